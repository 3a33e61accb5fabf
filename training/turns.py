"""Flip and turn square crops: kernels that read where the turned pixel comes from.

NumPy copies turned views along strides of a whole row, which leaves the caches at every pixel; here
small blocks are turned one after another.

n x n pixels of a crop.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from samprior.storage.compiled import kernel
from samprior.storage.memory import CHANNELS, copy_bytes
from samprior.training.sampling import Place

Bytes = npt.NDArray[np.uint8]
Atoms = npt.NDArray[np.unsignedinteger]

BLOCK = 16
"""Side of what is turned at a time, pixels."""


def turn_picture(picture: Bytes, place: Place, out: Bytes) -> None:
    """Write a picture (n, n, 3) to `out`, flipped and turned as `place` says; both contiguous."""
    side = len(picture)
    steps = walk(side, flip=place.flip, quarter_turns=place.quarter_turns)
    turn_pixels(picture.reshape(-1), out.reshape(-1), side, *steps)


def turn_atoms(atoms: Atoms, place: Place) -> Atoms:
    """Atoms (n, n), flipped and turned as `place` says."""
    side, out = len(atoms), np.empty_like(atoms)
    steps = walk(side, flip=place.flip, quarter_turns=place.quarter_turns)
    turn_items(atoms.reshape(-1), out.reshape(-1), side, *steps, 0)
    return out


@lru_cache(maxsize=64)  # eight to a side
def walk(side: int, *, flip: bool, quarter_turns: int) -> tuple[int, int, int]:
    """Where the first turned pixel comes from, and the steps to the next one down and right.

    The same as `np.rot90(image[:, ::-1] if flip else image, quarter_turns)`.
    """
    last, down, right = side - 1, side, 1
    first = 0
    if flip:
        first, right = last, -1
    for _ in range(quarter_turns):
        # The new first pixel is the last of the first row; down the rows it walks back along it.
        first, down, right = first + last * right, -right, down
    return first, down, right


@kernel
def turn_pixels(source: Bytes, out: Bytes, side: int, first: int, down: int, right: int) -> None:
    """Write pixels of a square picture to `out`, both flat, by the steps of `walk`."""
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            for y in range(top, min(top + BLOCK, side)):
                for x in range(left, min(left + BLOCK, side)):
                    begin = (first + y * down + x * right) * CHANNELS
                    copy_bytes(out, (y * side + x) * CHANNELS, source, begin, CHANNELS)


@kernel
def turn_items(
    source: Atoms,
    out: npt.NDArray[np.integer],
    side: int,
    first: int,
    down: int,
    right: int,
    added: int,
) -> None:
    """Write items of a square array plus a number to `out`, both flat, by the steps of `walk`."""
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            for y in range(top, min(top + BLOCK, side)):
                for x in range(left, min(left + BLOCK, side)):
                    item = source[np.uint64(first + y * down + x * right)]
                    out[np.uint64(y * side + x)] = item + out.dtype.type(added)
