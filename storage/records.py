"""Slices of a store: some of its records, read when they are asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from samprior.storage.errors import UsageError
from samprior.storage.writer import Record

if TYPE_CHECKING:
    from samprior.storage.store import MaskStore


def sliced(keys: Sequence[str], wanted: slice) -> Sequence[int]:
    """Places of a slice of numbers, or of one of keys in the order of text.

    Raises:
        UsageError: a slice of keys with a step.
    """
    ends: tuple[Any, Any] = (wanted.start, wanted.stop)
    if not any(isinstance(end, str) for end in ends):
        return range(len(keys))[wanted]
    if wanted.step is not None:
        raise UsageError(f"a slice of keys has no step, got {wanted.step!r}")
    first, stop = ends[0] or "", ends[1]
    return [
        place for place, key in enumerate(keys) if key >= first and (stop is None or key < stop)
    ]


class Records(Sequence[Record]):
    """Some records of a store, read when they are asked for."""

    def __init__(self, store: "MaskStore", places: Sequence[int]) -> None:
        self.store = store
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return Records(self.store, self.places[index])
        return self.store[self.places[index]]
