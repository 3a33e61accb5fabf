"""Read all crops of a batch in a few kernel calls, off Python's lock from the first to the last.

By crop, a kernel runs for microseconds and then waits for the lock, which other threads hold: two
threads were hardly faster than none. Here Python only writes down where everything lies
(`storage.sources`). What has no place in memory, as in object stores, is read by crop; the result
is the same.

B crops of n x n pixels; A atoms, M masks and P pairs "atom lies in mask" of the whole batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from samprior.storage import MaskStore
from samprior.storage.arrays import UNREAD
from samprior.storage.compiled import kernel
from samprior.storage.cuts import cut, members_of
from samprior.storage.memory import CHANNELS, array_at, copy_window
from samprior.storage.sources import MaskSource, PictureSource, address_of
from samprior.training.priors.parts import fill_part
from samprior.training.priors.regions import RegionBatch
from samprior.training.sampling import Place
from samprior.training.turns import turn_items, turn_pixels, walk

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Table = npt.NDArray[np.void]
"""A row for each crop: its source, its window, and how it is turned (`turns.walk`)."""

Joined = tuple[Ints, Ints, Ints, Ints]

_WINDOW = ("y", "x", "first", "down", "right")


def _row_type(*names: str) -> np.dtype[Any]:
    return np.dtype([(name, np.int64) for name in names])


PICTURE = _row_type(*PictureSource._fields[1:], *_WINDOW)
MASKS = _row_type(*MaskSource._fields[1:], *_WINDOW, "keep", "keep_bytes")


def read_pictures(store: MaskStore, places: Sequence[Place], pictures: Bytes) -> bool:
    """Read degraded and clean of all crops; whether that could be done.

    Args:
        store: holds the pictures.
        places: of the crops.
        pictures: (2, B, n, n, 3), overwritten: degraded, then clean.

    Raises:
        UsageError: a crop does not lie inside its image.
        StoreError: a shard can't be read.
    """
    side = pictures.shape[2]
    assert pictures.shape == (2, len(places), side, side, CHANNELS)
    assert pictures.flags.c_contiguous
    pairs = [store.picture_sources(each.index, each.y, each.x, side, side) for each in places]
    found = [pair for pair in pairs if pair is not None]
    if len(found) < len(places):
        return False
    windows = [_window(place, side) for place in places]
    rows = [
        (*source[1:], *window)
        for sources in zip(*found, strict=True)
        for source, window in zip(sources, windows, strict=True)
    ]
    # `found` owns what the table points to.
    _read_pictures(np.array(rows, PICTURE), pictures.reshape(len(rows), side, side * CHANNELS))
    return True


def read_regions(
    store: MaskStore,
    places: Sequence[Place],
    keeps: Sequence[Bools],
    atoms: npt.NDArray[np.int32],
) -> RegionBatch | None:
    """What `RegionBatch.collate` makes of the crops' masks, without cells; None: not to be had.

    Args:
        store: holds the masks.
        places: of the crops.
        keeps: (K,) for each crop: the masks of its image that count.
        atoms: (B, n, n), overwritten: the atoms of the result.

    Raises:
        UsageError: a crop does not lie inside its image.
        StoreError: a shard can't be read.
    """
    side = atoms.shape[1]
    assert atoms.shape == (len(places), side, side)
    assert atoms.flags.c_contiguous
    windows = [(place.index, place.y, place.x, side, side) for place in places]
    sources = [store.mask_source(*window, decoded=False) for window in windows]
    bits = [np.packbits(keep) for keep in keeps]
    table = _mask_table(sources, places, bits, side)
    if table is None:
        return None
    unread = np.zeros(len(places), np.bool_)
    if _find_unread(table, side, unread):
        for number in np.flatnonzero(unread).tolist():
            sources[number] = store.mask_source(*windows[number], decoded=True)
        table = _mask_table(sources, places, bits, side)
        if table is None:
            return None
    # `sources` and `bits` own what the table points to.
    joined = _cut_regions(table, atoms)
    return None if joined is None else _batch_of(joined, atoms)


def _batch_of(joined: Joined, atoms: npt.NDArray[np.int32]) -> RegionBatch:
    first_atom, by_atom, by_mask, pairs = joined
    parts = {
        "atoms": atoms,
        "first_atom": first_atom,
        **dict(zip(("atom_areas", "atom_depth", "atom_top"), by_atom, strict=True)),
        **dict(
            zip(("mask_image", "mask_areas", "mask_position", "mask_rank"), by_mask, strict=True)
        ),
        **dict(zip(("pair_atom", "pair_mask"), pairs, strict=True)),
    }
    return RegionBatch(**{name: torch.from_numpy(part) for name, part in parts.items()}, cells={})


def _window(place: Place, side: int) -> tuple[int, ...]:
    steps = walk(side, flip=place.flip, quarter_turns=place.quarter_turns)
    return place.y, place.x, *steps


def _mask_table(
    sources: Sequence[MaskSource | None],
    places: Sequence[Place],
    bits: Sequence[Bytes],
    side: int,
) -> Table | None:
    rows = []
    for source, place, kept in zip(sources, places, bits, strict=True):
        if source is None:
            return None
        assert len(kept) == source.member_bytes, "kernels check no bounds"
        rows.append((*source[1:], *_window(place, side), address_of(kept), len(kept)))
    return np.array(rows, MASKS)


@kernel
def _read_pictures(table: Table, out: Bytes) -> None:
    """Read pictures to `out` (2 B, n, n * CHANNELS)."""
    side = out.shape[1]
    straight = np.empty((side, side * CHANNELS), np.uint8)
    for number in range(len(table)):
        row = table[number]
        data = array_at(row["data"], (row["data_bytes"],), np.uint8)
        grid = (row["tile_rows"], row["tile_columns"], 2)
        spans = array_at(row["spans"], grid, np.int64)
        first, right = row["first"], row["right"]
        is_turned = first != 0 or right != 1
        target = straight if is_turned else out[number]
        copy_window(data, spans, row["tile_px"], row["y"], row["x"], target)
        if is_turned:
            flat = out[number].reshape(-1)
            turn_pixels(straight.reshape(-1), flat, side, first, row["down"], right)


@kernel
def _find_unread(table: Table, side: int, unread: Bools) -> bool:
    """Mark the crops (B,) that touch tiles which are not decoded; whether there are any."""
    for number in range(len(table)):
        row = table[number]
        tile_px = row["tile_px"]
        blocks = array_at(row["blocks"], (row["tile_rows"], row["tile_columns"]), np.int64)
        for tile_row in range(row["y"] // tile_px, (row["y"] + side - 1) // tile_px + 1):
            for column in range(row["x"] // tile_px, (row["x"] + side - 1) // tile_px + 1):
                unread[number] |= blocks[tile_row, column] == UNREAD
    return bool(unread.any())


@kernel
def _cut_regions(table: Table, atoms: npt.NDArray[np.int32]) -> Joined | None:
    """Write `atoms` (B, n, n); None where an image is damaged.

    Returns first_atom (B,), and what `_batch_of` names by atom (3, A), mask (4, M), pair (2, P).
    """
    side = atoms.shape[1]
    straight = np.empty((side, side), np.uint16)
    order, areas = np.empty((2, table["num_atoms"].max()), np.int64)
    first_atom = np.empty(len(table), np.int64)
    members, atom_areas = [], []
    num_atoms, num_masks, num_pairs = 0, 0, 0
    for number in range(len(table)):
        row = table[number]
        words = array_at(row["words"], (row["num_words"],), np.uint32)
        blocks = array_at(row["blocks"], (row["tile_rows"], row["tile_columns"]), np.int64)
        packed = array_at(row["members"], (row["num_atoms"], row["member_bytes"]), np.uint8)
        keep = array_at(row["keep"], (row["keep_bytes"],), np.uint8)
        y, x = row["y"], row["x"]
        last = cut(words, blocks, row["tile_px"], y, x, packed, keep, straight, order, areas)
        if last < 0:
            return None
        found, _ = members_of(packed, keep, order[: last + 1], row["num_masks"], True)
        first, down, right = row["first"], row["down"], row["right"]
        flat = atoms[number].reshape(-1)
        turn_items(straight.reshape(-1), flat, side, first, down, right, num_atoms)
        members.append(found)
        atom_areas.append(areas[: last + 1].copy())
        first_atom[number] = num_atoms
        num_atoms += found.shape[0]
        num_masks += found.shape[1]
        num_pairs += int(np.count_nonzero(found))
    by_atom = np.zeros((3, num_atoms), np.int64)
    by_mask = np.zeros((4, num_masks), np.int64)
    pairs = np.empty((2, num_pairs), np.int64)
    _join(members, atom_areas, by_atom, by_mask, pairs)
    return first_atom, by_atom, by_mask, pairs


@kernel
def _join(
    members: list[Bools], atom_areas: list[Ints], by_atom: Ints, by_mask: Ints, pairs: Ints
) -> None:
    """Write what `RegionBatch` needs to know of all images; see `_cut_regions`."""
    atom, mask, pair = 0, 0, 0
    for image in range(len(members)):
        held = members[image]
        next_atom, next_mask = atom + held.shape[0], mask + held.shape[1]
        its_pairs = pairs[:, pair : pair + np.count_nonzero(held)]
        by_atom[0, atom:next_atom] = atom_areas[image]
        by_mask[0, mask:next_mask] = image
        by_mask[2, mask:next_mask] = np.arange(held.shape[1])
        fill_part(
            held,
            atom_areas[image],
            by_atom[1, atom:next_atom],
            by_atom[2, atom:next_atom],
            by_mask[1, mask:next_mask],
            by_mask[3, mask:next_mask],
            its_pairs,
        )
        its_pairs[0] += atom
        its_pairs[1] += mask
        atom, mask, pair = next_atom, next_mask, pair + its_pairs.shape[1]
