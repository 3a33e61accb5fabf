"""Planes to atoms and atoms to planes at about the speed of memory, for `MaskSet`.

Planes are read once, a band of rows at a time. Where a mask begins or ends in a row is a switch.
Sorted, the switches lead from one set of masks to the next, and a table gives equal sets equal
numbers; it compares them bit for bit, so nothing hangs on a hash. Bands stand alone and threads
share them; their numbers are merged in reading order, which makes them canonical.

K masks, H x W pixels, R rows of a band, S sets of masks, B words of 32 masks, A atoms.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from samprior.storage.sweeps import (
    fill_runs,
    find_switches,
    join_sets,
    paint_segments,
    sweep_switches,
)

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Atoms = npt.NDArray[np.unsignedinteger]
Item = TypeVar("Item")
Result = TypeVar("Result")

BAND_PX = 1 << 24
"""Pixels of all planes in a band, if that is a row at least. In noise a pixel takes 8 bytes."""

MAX_THREADS = 4
"""More wait for memory, not for arithmetic."""


@dataclass(frozen=True)
class _Band:
    """What is in the rows from `top` to `bottom`; sets are in the order of their first pixel."""

    top: int
    bottom: int
    segments: npt.NDArray[np.int32]
    """(segments, 3): first pixel in the band, one past the last, set."""
    sets: Ints
    """(S, B): bits of the masks."""
    digests: Ints
    """(S,): XOR of the masks' keys. Sets that differ may share one."""
    areas: Ints
    """(S,) pixels."""


def planes_to_atoms(planes: Bools) -> tuple[Atoms, Bools, Ints]:
    """Atoms (H, W), members (A, K) and areas (A,) of masks (K, H, W), numbered as in `MaskSet`."""
    num_masks, height, width = planes.shape
    keys = np.random.default_rng(0).integers(1 << 62, size=(num_masks,))
    bands = _share(
        lambda rows: _sweep_band(planes, rows[0], rows[1], keys), _cut_rows(height, planes.size)
    )
    sets, numbers, areas = _join(bands)
    areas[0] = height * width - areas.sum()
    members = np.zeros((len(areas), num_masks), np.bool_)
    packed = sets.astype("<u4").view(np.uint8)
    members[1:] = np.unpackbits(packed, axis=1, count=num_masks, bitorder="little")
    atoms = np.zeros((height, width), np.uint16 if len(areas) <= 1 << 16 else np.uint32)
    _share(
        lambda part: paint_segments(
            part[0].segments, part[1], atoms[part[0].top : part[0].bottom].reshape(-1)
        ),
        list(zip(bands, numbers, strict=True)),
    )
    return atoms, members, areas


def atoms_to_planes(atoms: Atoms, members: Bools) -> Bools:
    """Masks (K, H, W) from atoms (H, W) and members (A, K)."""
    planes = np.zeros((members.shape[1], *atoms.shape), np.bool_)
    octets = planes.view(np.uint8)
    whole = np.ascontiguousarray(atoms)
    holders, held = np.nonzero(members)
    starts = np.searchsorted(holders, np.arange(len(members) + 1))
    _share(
        lambda rows: fill_runs(whole, rows[0], rows[1], starts, held, octets),
        _cut_rows(len(atoms), planes.size),
    )
    return planes


def _sweep_band(planes: Bools, top: int, bottom: int, keys: Ints) -> _Band:
    switches, column_bits, mask_bits = _switches(planes, top, bottom)
    num_masks, _, width = planes.shape
    most_sets = min(len(switches), (bottom - top) * width, 1 << min(num_masks, 40))
    segments = np.empty((len(switches), 3), np.int32)
    sets = np.empty((most_sets, -(-num_masks // 32)), np.int64)
    digests, areas = np.empty((2, most_sets), np.int64)
    num_segments, num_sets = sweep_switches(
        switches,
        column_bits,
        mask_bits,
        width,
        keys,
        _slots(most_sets),
        segments,
        sets,
        digests,
        areas,
    )
    return _Band(
        top, bottom, segments[:num_segments], sets[:num_sets], digests[:num_sets], areas[:num_sets]
    )


def _switches(planes: Bools, top: int, bottom: int) -> tuple[Ints, int, int]:
    """The sorted switches of a band, and the bits that columns and masks have in them."""
    num_masks, _, width = planes.shape
    column_bits, mask_bits = width.bit_length(), num_masks.bit_length()
    octets, first_row = _octets(planes, top, bottom)
    most = num_masks * (bottom - top) * (width + 1) + 8
    # Masks of SAM switch once in 2,000 pixels.
    room = most // 128 + 1024
    while True:
        switches = np.empty(min(room, most), np.int64)
        count = find_switches(
            octets,
            octets.view(np.int64),
            first_row,
            bottom - top,
            width,
            column_bits,
            mask_bits,
            switches,
        )
        if count >= 0:
            switches = switches[:count]
            switches.sort()
            return switches, column_bits, mask_bits
        room *= 12


def _octets(planes: Bools, top: int, bottom: int) -> tuple[Bytes, int]:
    """Planes as bytes with rows of whole, aligned words, and the band's first row in them."""
    num_masks, _, width = planes.shape
    if width % 8 == 0 and planes.flags.c_contiguous and planes.ctypes.data % 8 == 0:
        return planes.view(np.uint8), top
    octets = np.zeros((num_masks, bottom - top, -(-width // 8) * 8), np.uint8)
    octets[:, :, :width] = planes[:, top:bottom].view(np.uint8)
    return octets, 0


def _slots(most: int) -> Ints:
    """An empty table that is at most half full with so many entries."""
    return np.zeros(2 << most.bit_length(), np.int64)


def _join(bands: Sequence[_Band]) -> tuple[Ints, list[Ints], Ints]:
    """The different sets (A - 1, B), for each band the numbers of its own, and the areas (A,)."""
    sets = np.concatenate([band.sets for band in bands])
    digests = np.concatenate([band.digests for band in bands])
    parts = np.concatenate([band.areas for band in bands])
    numbers, first = np.empty((2, len(sets)), np.int64)
    areas = np.zeros(len(sets) + 1, np.int64)
    count = join_sets(sets, digests, parts, _slots(len(sets)), numbers, first, areas)
    ends = np.cumsum([len(band.sets) for band in bands])
    return sets[first[:count]], np.split(numbers, ends[:-1]), areas[: count + 1].copy()


def _cut_rows(height: int, num_px: int) -> list[tuple[int, int]]:
    """Rows from and to of each band; where there are several, as many for each thread."""
    count = -(-num_px // BAND_PX)
    threads = min(count, _num_threads())
    count = min(-(-count // threads) * threads, height)
    edges = [height * place // count for place in range(count + 1)]
    return list(pairwise(edges))


def _num_threads() -> int:
    return min(os.cpu_count() or 1, MAX_THREADS)


@lru_cache
def _helpers() -> ThreadPoolExecutor:
    """Threads that wait for work: to start some takes as long as to read 5 MB of planes."""
    return ThreadPoolExecutor(MAX_THREADS - 1, thread_name_prefix="samprior-planes")


# Threads don't live on in a forked process; it starts its own.
os.register_at_fork(after_in_child=_helpers.cache_clear)


def _share(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results of all items in their order, some of them by other threads.

    This thread takes part. Of the others it waits for no more than the item each has begun.
    """
    results: dict[int, Result] = {}
    waiting = deque(range(len(items)))

    def take() -> None:
        while True:
            try:
                place = waiting.popleft()
            except IndexError:
                return
            results[place] = work(items[place])

    num_helpers = min(len(items), _num_threads()) - 1
    others = [_helpers().submit(take) for _ in range(num_helpers)]
    take()
    for other in others:
        if not other.cancel():
            other.result()
    return [results[place] for place in range(len(items))]
