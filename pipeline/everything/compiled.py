"""How kernels are compiled, and what they are handed besides tables and logits."""

from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar, cast

import numba
import numpy as np

from samprior.pipeline.everything.resampling import TAPS, Floats, Ints, Resampling

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile for the CPU at the first call, keep the machine code on disk, release the GIL."""
    compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return cast(Callable[Parameters, Result], compiled)


class Thresholds(NamedTuple):
    """Three logit thresholds in rising order, rounded to float32 as PyTorch rounds a scalar."""

    low: np.float32
    middle: np.float32
    high: np.float32


class Workspace(NamedTuple):
    """Buffers of one thread."""

    least: Floats
    """(U,): per column, the least of three rows of samples."""

    greatest: Floats
    """(U,): per column, the greatest of them."""

    sides: Ints
    """(U,): per cell, how many thresholds it lies above, or that it is mixed."""

    mixed: Floats
    """(3, Q): three rows of samples, mixed for each column of pixels."""

    values: Floats
    """(tallest cell, Q): evaluated pixels of one row of cells."""


def workspace(resampling: Resampling) -> Workspace:
    """Buffers for one thread's work with this resampling."""
    width = resampling.columns_needed
    tallest = int(np.diff(resampling.tables.rows.edges).max())
    return Workspace(
        least=np.empty(width, np.float32),
        greatest=np.empty(width, np.float32),
        sides=np.empty(width, np.int32),
        mixed=np.empty((TAPS, resampling.size[1]), np.float32),
        values=np.empty((tallest, resampling.size[1]), np.float32),
    )
