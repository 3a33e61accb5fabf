"""What the engine's kernels are handed besides tables and logits."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from samprior.pipeline.everything.resampling import TAPS, Floats, Ints, Resampling


class Thresholds(NamedTuple):
    """Three logit thresholds in rising order, rounded to float32 as PyTorch rounds a scalar."""

    low: np.float32
    middle: np.float32
    high: np.float32


PADDING = 64
"""Loops over buffers run to a multiple of this: four vectors of float32, as compilers unroll."""


class Workspace(NamedTuple):
    """Buffers of one thread, with room for the padding."""

    least: Floats
    """(U,): per column, the least of three rows of samples."""

    greatest: Floats
    """(U,): per column, the greatest of them."""

    sides: npt.NDArray[np.uint8]
    """(U,): per cell, how many thresholds it lies above, or that it is mixed."""

    words: npt.NDArray[np.uint64]
    """(U / 8,): the same memory, eight cells at a time."""

    widths: Ints
    """(U,): per cell, its columns of pixels; 0 in the padding."""

    places: Ints
    """(Q,): columns of the pixels in mixed cells of a row of cells, one after another."""

    mixed: Floats
    """(3, Q): three rows of samples, mixed for each of these."""

    values: Floats
    """(Q,): a row of these pixels, evaluated."""


def workspace(resampling: Resampling) -> Workspace:
    """Buffers for one thread's work with this resampling."""
    width, pixels = resampling.columns_needed + PADDING, resampling.size[1] + PADDING
    widths = np.zeros(width, np.int32)
    edges = resampling.tables.columns.edges
    widths[: len(edges) - 1] = np.diff(edges)
    sides = np.zeros(-(-width // 8) * 8, np.uint8)
    return Workspace(
        least=np.zeros(width, np.float32),
        greatest=np.zeros(width, np.float32),
        sides=sides,
        words=sides.view(np.uint64),
        widths=widths,
        places=np.empty(pixels, np.int32),
        mixed=np.empty((TAPS, pixels), np.float32),
        values=np.empty(pixels, np.float32),
    )
