"""Where an image's data lie in memory, so that one kernel reads many crops without Python.

A source is numbers only, as kernels take them in tables; `storage.memory.array_at` makes arrays of
them again. Kernels check no bounds: a source is made for a window, and only of what holds it.
An address is good while `held` is: keep the sources until the kernel has returned.
"""

from typing import Any, NamedTuple

import numpy.typing as npt


class PictureSource(NamedTuple):
    """One picture of an image in a mapped file, as `storage.memory.copy_window` takes it."""

    held: object
    """What owns the memory."""
    data: int
    """Address of the file's bytes."""
    data_bytes: int
    spans: int
    """Address of int64 (tile_rows, tile_columns, 2)."""
    tile_rows: int
    tile_columns: int
    tile_px: int


class MaskSource(NamedTuple):
    """The masks of an image as segments, as `storage.cuts.cut` takes them."""

    held: object
    """What owns the memory."""
    words: int
    """Address of uint32 (num_words,)."""
    num_words: int
    blocks: int
    """Address of int64 (tile_rows, tile_columns)."""
    tile_rows: int
    tile_columns: int
    tile_px: int
    members: int
    """Address of uint8 (num_atoms, member_bytes)."""
    num_atoms: int
    """At most 65,536."""
    member_bytes: int
    num_masks: int


def address_of(array: npt.NDArray[Any]) -> int:
    """Where an array begins."""
    # Half the time of `array.ctypes.data`.
    address: int = array.__array_interface__["data"][0]
    return address
