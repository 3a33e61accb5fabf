"""Compile kernels for the CPU where numba is installed; elsewhere they run as they are written.

Kernels keep to arithmetic of int64 so that both ways give the same values, compiled or interpreted
(much slower; NUMBA_DISABLE_JIT=1 asks for it). Compiled ones release the GIL.
Numba costs half a second at its import: import modules of kernels where they are first needed.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

numba: Any
try:
    import numba
except ImportError:
    numba = None
if numba is not None and numba.config.DISABLE_JIT:
    numba = None


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile at the first call, keep the machine code on disk, release the GIL.

    Where no folder for machine code can be written to, every process compiles for itself.
    """
    if numba is None:
        return function
    try:
        compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available"
        return cast(
            Callable[Parameters, Result],
            numba.njit(nogil=True, error_model="numpy")(function),
        )
    # Machine code holds what it calls, but numba looks for changes in the caller's file only. The
    # stamp it compares is that of the whole folder here, and of this one, whose kernels others
    # call; a test changes a callee.
    folder = Path(function.__code__.co_filename).parent
    compiled._cache._cache_file._source_stamp = _sources(folder) + _sources(Path(__file__).parent)
    return cast(Callable[Parameters, Result], compiled)


@lru_cache
def _sources(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
