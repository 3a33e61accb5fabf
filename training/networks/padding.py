"""How far an image is extended before a network halves its sides.

Written so that `torch.export` and its ONNX writer follow with symbolic lengths: of `-length % m`
torch can't tell that it makes a multiple, and ONNX divides negative numbers towards zero.
"""


def beyond(length: int, multiple: int) -> int:
    """Pixels from `length` to the next multiple; 0 for a multiple."""
    return (length + multiple - 1) // multiple * multiple - length


def around(length: int, multiple: int) -> tuple[int, int]:
    """The same pixels, half of them before and half after; an odd one comes after."""
    missing = beyond(length, multiple)
    before = (missing + 2 * length) // 2 - length  # not of a difference, which may turn negative
    return before, missing - before
