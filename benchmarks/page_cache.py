"""Reading from the disk itself: drop a folder's files from the system's cache, and see that it did.

Linux only. No privileges are needed for one's own files. What the disk or a virtual machine's host
caches can't be dropped from here.
"""

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class Cold(NamedTuple):
    """What reading from the disk took."""

    elapsed_s: float
    num_bytes: int
    """Read from the disk, with what was read ahead."""


def drop(folder: Path) -> None:
    """Ask the system to forget the files below a folder; mapped pages and tmpfs it keeps."""
    for file in _files(folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that wait to be written can't be forgotten
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(folder: Path) -> float:
    """Share of the pages of the files below a folder that are in memory."""
    held = [_pages_in_memory(file) for file in _files(folder) if file.stat().st_size]
    return sum(cached for cached, _ in held) / sum(count for _, count in held)


def cold_run(work: Callable[[], object]) -> Cold:
    """Run `work`, of which this process reads the files."""
    before, started = _bytes_from_disk(), time.perf_counter()
    work()
    return Cold(time.perf_counter() - started, _bytes_from_disk() - before)


def _bytes_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    (count,) = (line.split()[1] for line in lines if line.startswith("read_bytes:"))
    return int(count)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _pages_in_memory(file: Path) -> tuple[int, int]:
    size = file.stat().st_size
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"{file} can't be mapped")
        failed = _LIBC.mincore(address, size, pages.ctypes.data)
        _LIBC.munmap(address, size)
        if failed:
            raise OSError(ctypes.get_errno(), f"can't tell which pages of {file} are in memory")
    finally:
        os.close(descriptor)
    return int((pages & 1).sum()), len(pages)
