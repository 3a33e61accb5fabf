"""Read the masks' regions of a shard by window: coded atoms, or tiles of plain ones.

What a window needs is decoded once and kept, while there is room, as segments (`storage.cuts`):
a few kB for a tile of 256 x 256 pixels. A `Cut` is the same however the atoms are stored.

H x W pixels of a window, A atoms and K masks of the image, a atoms and k masks of the window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from google_crc32c import value as crc32c

from samprior.storage.arrays import ABSENT, UNREAD, ShardedArray
from samprior.storage.cache import BoundedCache
from samprior.storage.crossings import CODEC_NAME, tile_px_of
from samprior.storage.masks import Atoms
from samprior.storage.sources import MaskSource, address_of
from samprior.storage.tiles import Maps, TiledArray, read_ranges

Cache = BoundedCache[Any]
"""Codes and decoded tiles, by shard and image."""

Bools = npt.NDArray[np.bool_]
TileWords = npt.NDArray[np.unsignedinteger]
Window = tuple[int, int, int, int]
"""y, x, height and width of a part of an image."""
Words = npt.NDArray[np.int64]


class Cut(NamedTuple):
    """The atoms of a window, numbered from 1 by their first pixel in reading order."""

    atoms: Atoms
    """uint16 (H, W), or uint32 above 65,535 atoms."""
    areas: Words
    """(a,) pixels of each in the window; the first entry is of those in no mask."""
    members: Bools
    """(a, k): which masks hold each atom; the first row is False."""
    masks: Words
    """(k,): which masks of the image these are."""


EVERY = np.zeros(0, np.uint8)
"""In place of the bits of the masks that count: all do."""


@dataclass(frozen=True)
class Members:
    """Which masks of an image hold its atoms."""

    packed: npt.NDArray[np.uint8]
    """(A, bytes): a row of bits for each atom."""
    num_masks: int
    """K."""

    @property
    def num_atoms(self) -> int:
        """A; the first is "in no mask"."""
        return len(self.packed)

    @cached_property
    def address(self) -> int:
        """Where `packed` begins."""
        return address_of(self.packed)

    def kept(self, keep: Bools | None) -> npt.NDArray[np.uint8]:
        """Booleans (K,) as bits; None and an image without masks give no bytes."""
        return EVERY if keep is None else np.packbits(keep)


class AtomsArray(Protocol):
    """The atoms of all images of a shard."""

    def cut(
        self, row: int, window: Window, members: Members, keep: Bools | None, *, only_met: bool
    ) -> Cut:
        """Cut a window out of image `row`.

        Args:
            row: of the image in the shard.
            window: y, x, height, width.
            members: of the image.
            keep: (K,) the masks that count; atoms that differ only in others become one. None
                keeps all.
            only_met: leave out masks that don't meet the window.

        Raises:
            OSError, ValueError, RuntimeError: the data are damaged.
        """

    def outline(self, row: int, window: Window) -> int:
        """How often neighbours in the rows of a window (y, x, height, width) differ."""

    def measure(self, row: int, num_atoms: int) -> tuple[Words, Words]:
        """Pixels (A,) and boxes (A, 4) of an image's atoms, x1 and y1 one past the last."""

    def source(
        self, row: int, window: Window, members: Members, *, decoded: bool
    ) -> MaskSource | None:
        """Where image `row` lies for a kernel that cuts this window out; None: use `cut`.

        Args:
            row: of the image in the shard.
            window: y, x, height, width.
            members: of the image.
            decoded: decode the window's tiles first where they aren't; else those are UNREAD.

        Raises:
            OSError, ValueError, RuntimeError: the data are damaged.
        """


def open_atoms(array: ShardedArray, sizes: Words, maps: Maps, cache: Cache) -> AtomsArray:
    """The reader that fits how the atoms are stored; `sizes` (n, 2) are those of the images.

    Raises:
        ValueError: the array has codecs that no version of the format has.
    """
    if array.codec_names == [CODEC_NAME, "crc32c"]:
        return CodedAtoms(array, sizes, maps, cache)
    return PlainAtoms(TiledArray(array, maps), sizes)


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image that have been decoded; grows by being replaced."""

    words: TileWords
    """Of all tiles, one after another (`storage.cuts`)."""
    blocks: Words
    """(rows, columns of tiles): the first word of each; ABSENT for zeros, UNREAD for unknown."""

    @property
    def nbytes(self) -> int:
        """What is held."""
        return self.words.nbytes + self.blocks.nbytes + 400

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Where words and blocks begin."""
        return address_of(self.words), address_of(self.blocks)


class CodedAtoms:
    """Atoms by the crossings code, one inner chunk an image."""

    def __init__(self, array: ShardedArray, sizes: Words, maps: Maps, cache: Cache) -> None:
        # numba. Imported once: to look modules up takes a tenth of the time of cutting a crop.
        from samprior.storage import cuts

        self._cut, self._members_of, self._outline = cuts.cut, cuts.members_of, cuts.outline
        self.array = array
        self.sizes = sizes
        self.maps = maps
        self.cache = cache
        self.tile_px = tile_px_of(array.codecs[0])
        if len(array.chunk) != 3 or array.chunk[0] != 1 or array.spans.shape[1:] != (1, 1, 2):
            raise ValueError(f"atoms have chunks {array.chunk}; wanted one for each image")
        self.height, self.width = map(int, array.chunk[1:])
        self.grid = (-(-self.height // self.tile_px), -(-self.width // self.tile_px))
        self.spans = array.spans.reshape(-1, 2)

    def cut(
        self, row: int, window: Window, members: Members, keep: Bools | None, *, only_met: bool
    ) -> Cut:
        """See `AtomsArray`."""
        y, x, height, width = window
        packed, kept = members.packed, members.kept(keep)
        assert len(kept) in (0, packed.shape[1]), "kernels check no bounds"
        out = np.empty((height, width), np.uint16 if len(packed) <= 0x10000 else np.uint32)
        order, areas = np.empty((2, len(packed)), np.int64)
        count = self._run(
            row,
            window,
            lambda words, blocks: self._cut(
                words, blocks, self.tile_px, y, x, packed, kept, out, order, areas
            ),
        )
        if count < 0:
            raise ValueError(f"image {row} has atoms beyond its {len(packed)}")
        found, masks = self._members_of(
            packed, kept, order[: count + 1], members.num_masks, only_met
        )
        atoms = out if count > 0xFFFF else out.astype(np.uint16, copy=False)
        return Cut(atoms, areas[: count + 1].copy(), found, masks)

    def outline(self, row: int, window: Window) -> int:
        """See `AtomsArray`."""
        return self._run(
            row,
            window,
            lambda words, blocks: self._outline(words, blocks, self.tile_px, *window),
        )

    def measure(self, row: int, num_atoms: int) -> tuple[Words, Words]:
        """See `AtomsArray`."""
        from samprior.storage import cuts

        areas, boxes = empty_measures(num_atoms)
        tiles = self._read_tiles(row, (0, 0, self.height, self.width))
        for tile, block in enumerate(tiles.blocks.reshape(-1).tolist()):
            y, x = (part * self.tile_px for part in divmod(tile, self.grid[1]))
            height, width = self._tile_shape(tile)
            if block == ABSENT:
                areas[0] += height * width
            elif not cuts.measure(tiles.words[block:], y, x, width, areas, boxes):
                raise ValueError(f"image {row} has atoms beyond its {num_atoms}")
        # The padding of images smaller than the shard's largest is in no mask.
        areas[0] -= self.height * self.width - int(self.sizes[row].prod())
        return areas, boxes

    def source(
        self, row: int, window: Window, members: Members, *, decoded: bool
    ) -> MaskSource | None:
        """See `AtomsArray`."""
        self._check_window(row, window)
        tiles = self._read_tiles(row, window) if decoded else self._held(row)
        num_atoms, member_bytes = members.packed.shape
        if tiles.words.itemsize != 4 or num_atoms > 0x10000:
            return None
        return MaskSource(
            (tiles, members),
            tiles.addresses[0],
            len(tiles.words),
            tiles.addresses[1],
            *self.grid,
            self.tile_px,
            members.address,
            num_atoms,
            member_bytes,
            members.num_masks,
        )

    def _check_window(self, row: int, window: Window) -> None:
        y, x, height, width = window
        if y + height > self.height or x + width > self.width:
            # The kernels check no bounds; sizes come from a receipt, which may lie.
            raise ValueError(f"image {row} is larger than its array")

    def _run(self, row: int, window: Window, work: Callable[[TileWords, Words], int]) -> int:
        """Give a kernel the tiles of an image, once more where it misses some; what it counts."""
        self._check_window(row, window)
        tiles = self._held(row)
        count = work(tiles.words, tiles.blocks)
        if count == UNREAD:
            tiles = self._read_tiles(row, window)
            count = work(tiles.words, tiles.blocks)
        return count

    def _held(self, row: int) -> Tiles:
        """The tiles of an image that have been decoded so far."""
        held: Tiles = self.cache.get((self.array.place.url, row), self._nothing)
        return held

    def _nothing(self) -> tuple[Tiles, int]:
        tiles = Tiles(np.zeros(0, np.uint32), np.full(self.grid, UNREAD, np.int64))
        return tiles, tiles.nbytes

    def _read_tiles(self, row: int, window: Window) -> Tiles:
        """The same with all that a window (y, x, height, width) touches."""
        held = self._held(row)
        y, x, height, width = window
        blocks, parts, total = held.blocks.copy(), [held.words], len(held.words)
        rows = range(y // self.tile_px, (y + height - 1) // self.tile_px + 1)
        columns = range(x // self.tile_px, (x + width - 1) // self.tile_px + 1)
        for place in product(rows, columns):
            if blocks[place] != UNREAD:
                continue
            words = self._decode_tile(row, place[0] * self.grid[1] + place[1])
            blocks[place] = ABSENT if words is None else total
            if words is not None:
                parts.append(words)
                total += len(words)
        tiles = Tiles(np.concatenate(parts), blocks)
        # Another thread may have put other tiles there meanwhile; those are decoded again.
        self.cache.put((self.array.place.url, row), tiles, tiles.nbytes)
        return tiles

    def _tile_shape(self, tile: int) -> tuple[int, int]:
        tile_row, tile_column = divmod(tile, self.grid[1])
        return (
            min(self.tile_px, self.height - tile_row * self.tile_px),
            min(self.tile_px, self.width - tile_column * self.tile_px),
        )

    def _decode_tile(self, row: int, tile: int) -> TileWords | None:
        """The words of a tile; None if it is 0 everywhere."""
        from samprior.storage.crossings.chunk import decode_runs
        from samprior.storage.cuts import pack_tile

        if self.spans[row, 0] == ABSENT:
            return None
        code, places = self._code(row)
        at, limit = int(places[tile]), int(places[tile + 1])
        return (
            None
            if at == limit
            else pack_tile(*decode_runs(code, at, limit, *self._tile_shape(tile)))
        )

    def _code(self, row: int) -> tuple[npt.NDArray[np.uint8], Words]:
        """The code of an image, its checksum checked, and where its tiles begin."""
        held: tuple[npt.NDArray[np.uint8], Words] = self.cache.get(
            (self.array.place.url, row, "code"), partial(self._read_code, row)
        )
        return held

    def _read_code(self, row: int) -> tuple[tuple[npt.NDArray[np.uint8], Words], int]:
        from samprior.storage.crossings.chunk import tile_places

        offset, size = map(int, self.spans[row])
        (content,) = read_ranges(self.array, [(offset, offset + size)], self.maps)
        if size < 4 or crc32c(content[:-4].tobytes()) != int(content[-4:].view("<u4")[0]):
            raise ValueError(f"the atoms of image {row} have a wrong checksum")
        code = content[:-4]
        return (code, tile_places(code, self.grid[0] * self.grid[1])), size


class PlainAtoms:
    """Atoms as plain tiles under zstd, as in stores of format 1."""

    def __init__(self, tiled: TiledArray, sizes: Words) -> None:
        self.tiled = tiled
        self.sizes = sizes

    def cut(
        self, row: int, window: Window, members: Members, keep: Bools | None, *, only_met: bool
    ) -> Cut:
        """See `AtomsArray`."""
        from samprior.storage.cuts import members_of

        packed, bits = members.packed, members.kept(keep)
        atoms = self._checked(self.tiled.read(row, *window), len(packed))
        seen, first, areas = np.unique(atoms, return_index=True, return_counts=True)
        by_first = np.argsort(first)
        seen, areas = seen[by_first], areas[by_first]
        kept = packed[seen] if keep is None else packed[seen] & bits
        _, heads, group = np.unique(kept, axis=0, return_index=True, return_inverse=True)
        group = group.reshape(-1)
        ranked = np.sort(heads[kept[heads].any(axis=1)])
        number = np.zeros(len(heads), np.int64)
        number[group[ranked]] = np.arange(1, len(ranked) + 1)
        lookup = np.zeros(len(packed), np.uint16 if len(ranked) <= 0xFFFF else np.uint32)
        lookup[seen] = number[group]
        sums = np.zeros(len(ranked) + 1, np.int64)
        np.add.at(sums, number[group], areas)
        order = np.concatenate([[0], seen[ranked]]).astype(np.int64)
        return Cut(
            lookup[atoms], sums, *members_of(packed, bits, order, members.num_masks, only_met)
        )

    def outline(self, row: int, window: Window) -> int:
        """See `AtomsArray`."""
        atoms = self.tiled.read(row, *window)
        return int(np.count_nonzero(atoms[:, 1:] != atoms[:, :-1]))

    def measure(self, row: int, num_atoms: int) -> tuple[Words, Words]:
        """See `AtomsArray`."""
        height, width = map(int, self.sizes[row])
        atoms = self._checked(self.tiled.read(row, 0, 0, height, width), num_atoms)
        areas, boxes = empty_measures(num_atoms)
        areas += np.bincount(atoms.reshape(-1), minlength=num_atoms)
        y, x = np.indices(atoms.shape)
        for column, (places, extreme) in enumerate(
            ((x, np.minimum), (y, np.minimum), (x + 1, np.maximum), (y + 1, np.maximum))
        ):
            extreme.at(boxes[:, column], atoms.reshape(-1), places.reshape(-1))
        return areas, boxes

    def source(
        self, row: int, window: Window, members: Members, *, decoded: bool
    ) -> MaskSource | None:
        """See `AtomsArray`; these are not segments."""
        return None

    def _checked(self, atoms: npt.NDArray[Any], num_atoms: int) -> npt.NDArray[Any]:
        if atoms.size and int(atoms.max()) >= num_atoms:
            raise ValueError(f"an image has atoms beyond its {num_atoms}")
        return atoms


def empty_measures(num_atoms: int) -> tuple[Words, Words]:
    """Areas of 0 and boxes that any pixel widens."""
    boxes = np.zeros((num_atoms, 4), np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    return np.zeros(num_atoms, np.int64), boxes
