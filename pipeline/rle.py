"""COCO run-length codes, decoded with a check of every number.

The C decoder of pycocotools trusts its input: counts that exceed the image are written past the
end of the buffer. Here a code is either right or refused.
"""

import numpy as np
import numpy.typing as npt

_MAX_DIGITS = 7
"""Characters per number: 5 bits each, so 7 hold any count of an image that is read at all."""


def decode_counts(code: str) -> npt.NDArray[np.int64]:
    """Run lengths of a compressed code (pycocotools' rleFrString).

    Each character holds 5 bits, the low ones first, and whether more follow; numbers are signed,
    and from the fourth on they are differences to the number two before.

    Raises:
        ValueError: characters outside the code, or a number that is unfinished or too long.
    """
    if not code.isascii():
        raise ValueError("the code has characters outside ASCII")
    digits = np.frombuffer(code.encode(), np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("the code has characters outside '0' to 'o'")
    last = (digits & 32) == 0
    if not last[-1]:
        raise ValueError("the code ends within a number")
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(np.append(starts, len(digits)))
    if lengths.max() > _MAX_DIGITS:
        raise ValueError("the code has a number beyond any image")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    negative = (digits[last] & 16) != 0
    numbers[negative] -= np.int64(1) << (5 * lengths[negative])
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def counts_to_mask(
    counts: npt.NDArray[np.int64], *, height: int, width: int
) -> npt.NDArray[np.bool_]:
    """Boolean (H, W) of alternating runs outside and inside the mask, down the columns.

    Raises:
        ValueError: a negative run, or runs that don't add up to the image.
    """
    if len(counts) and counts.min() < 0:
        raise ValueError("the code has a negative run")
    if int(counts.sum()) != height * width:
        raise ValueError(f"the runs add up to {int(counts.sum())} of {height * width} pixels")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T
