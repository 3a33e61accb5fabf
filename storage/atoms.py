"""Read the masks' regions of a shard by window: coded atoms, or tiles of plain ones.

What a window needs is decoded once and kept, while there is room, as segments (`storage.cuts`):
a few kB for a tile of 256 x 256 pixels. A `Cut` is the same however the atoms are stored.

H x W pixels, A atoms of the image.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from google_crc32c import value as crc32c

from samprior.storage.arrays import ABSENT, ShardedArray
from samprior.storage.cache import BoundedCache
from samprior.storage.crossings.codec import CrossingsCodec
from samprior.storage.masks import Atoms
from samprior.storage.tiles import Maps, TiledArray, read_ranges

Cache = BoundedCache[Any]
"""Codes and decoded tiles, by shard, image and tile."""

Words = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """The atoms of a window, numbered from 1 by their first pixel in reading order."""

    atoms: Atoms
    """uint16 (H, W), or uint32 above 65,535 atoms."""
    order: Words
    """The image's atom behind each number from 1 on; of several that became one, the first met."""
    areas: Words
    """Pixels of each of these in the window."""


class AtomsArray(Protocol):
    """The atoms of all images of a shard."""

    def cut(
        self,
        row: int,
        window: tuple[int, int, int, int],
        members: npt.NDArray[np.uint8],
        keep: npt.NDArray[np.uint8] | None,
    ) -> Cut:
        """Cut a window (y, x, height, width) out of image `row`.

        Args:
            row: of the image in the shard.
            window: where.
            members: (A, bytes) packed bits, the masks of each atom.
            keep: (bytes,) packed bits of the masks that count; atoms that differ only in others
                become one. None keeps all.

        Raises:
            OSError, ValueError, RuntimeError: the data are damaged.
        """

    def outline(self, row: int, window: tuple[int, int, int, int]) -> int:
        """How often neighbours in the rows of a window (y, x, height, width) differ."""

    def measure(self, row: int, num_atoms: int) -> tuple[Words, Words]:
        """Pixels (A,) and boxes (A, 4) of an image's atoms, x1 and y1 one past the last."""


def open_atoms(array: ShardedArray, sizes: Words, maps: Maps, cache: Cache) -> AtomsArray:
    """The reader that fits how the atoms are stored; `sizes` (n, 2) are those of the images.

    Raises:
        ValueError: the array has codecs that no version of the format has.
    """
    if array.codec_names == ["samprior.crossings", "crc32c"]:
        return CodedAtoms(array, sizes, maps, cache)
    return PlainAtoms(TiledArray(array, maps), sizes)


class CodedAtoms:
    """Atoms by the crossings code, one inner chunk an image."""

    def __init__(self, array: ShardedArray, sizes: Words, maps: Maps, cache: Cache) -> None:
        self.array = array
        self.sizes = sizes
        self.maps = maps
        self.cache = cache
        self.tile_px = CrossingsCodec.from_dict(array.codecs[0]).tile_px
        if len(array.chunk) != 3 or array.chunk[0] != 1 or array.spans.shape[1:] != (1, 1, 2):
            raise ValueError(f"atoms have chunks {array.chunk}; wanted one for each image")
        height, width = array.chunk[1:]
        self.grid = (-(-height // self.tile_px), -(-width // self.tile_px))
        self.spans = array.spans.reshape(-1, 2)

    def cut(
        self,
        row: int,
        window: tuple[int, int, int, int],
        members: npt.NDArray[np.uint8],
        keep: npt.NDArray[np.uint8] | None,
    ) -> Cut:
        """See `AtomsArray`."""
        from samprior.storage import cuts

        assert keep is None or keep.shape == members.shape[1:], "kernels check no bounds"
        y, x, height, width = window
        words, blocks = self._blocks(row, *window)
        place = (words, blocks, self.tile_px, y, x)
        group = np.arange(len(members))
        order, areas = np.empty((2, len(members)), np.int64)
        number = np.zeros(len(members), np.int64)
        count = cuts.survey(*place, height, width, number, order, areas)
        if count < 0:
            raise ValueError(f"image {row} has atoms beyond its {len(members)}")
        if keep is not None:
            found = order[:count], areas[:count]
            count = cuts.merge_atoms(members, keep, *found, number, group)
        out = np.empty((height, width), np.uint16 if count <= 0xFFFF else np.uint32)
        cuts.paint(*place, group, number, out)
        return Cut(out, order[:count], areas[:count])

    def outline(self, row: int, window: tuple[int, int, int, int]) -> int:
        """See `AtomsArray`."""
        from samprior.storage import cuts

        y, x, height, width = window
        words, blocks = self._blocks(row, *window)
        return int(cuts.outline(words, blocks, self.tile_px, y, x, height, width))

    def measure(self, row: int, num_atoms: int) -> tuple[Words, Words]:
        """See `AtomsArray`."""
        from samprior.storage import cuts

        areas, boxes = empty_measures(num_atoms)
        height, width = map(int, self.array.chunk[1:])
        for tile in range(self.grid[0] * self.grid[1]):
            y, x = (part * self.tile_px for part in divmod(tile, self.grid[1]))
            words = self._tile(row, tile)
            if words is None:
                areas[0] += (min(y + self.tile_px, height) - y) * (min(x + self.tile_px, width) - x)
            elif not cuts.measure(words, y, x, min(self.tile_px, width - x), areas, boxes):
                raise ValueError(f"image {row} has atoms beyond its {num_atoms}")
        # The padding of images smaller than the shard's largest is in no mask.
        areas[0] -= height * width - int(self.sizes[row].prod())
        return areas, boxes

    def _blocks(
        self, row: int, y: int, x: int, height: int, width: int
    ) -> tuple[npt.NDArray[np.unsignedinteger], Words]:
        """The words of the tiles that a window touches, and where each begins."""
        if y + height > self.array.chunk[1] or x + width > self.array.chunk[2]:
            # The kernels check no bounds; sizes come from a receipt, which may lie.
            raise ValueError(f"image {row} is larger than its array")
        rows = range(y // self.tile_px, (y + height - 1) // self.tile_px + 1)
        columns = range(x // self.tile_px, (x + width - 1) // self.tile_px + 1)
        blocks = np.full((len(rows), len(columns)), ABSENT, np.int64)
        parts, total = [], 0
        for i, tile_row in enumerate(rows):
            for j, tile_column in enumerate(columns):
                words = self._tile(row, tile_row * self.grid[1] + tile_column)
                if words is not None:
                    blocks[i, j] = total
                    parts.append(words)
                    total += len(words)
        if len(parts) == 1:
            return parts[0], blocks
        return (np.concatenate(parts) if parts else np.zeros(1, np.uint32)), blocks

    def _tile(self, row: int, tile: int) -> npt.NDArray[np.unsignedinteger] | None:
        """The words of a tile; None if it is 0 everywhere."""
        if self.spans[row, 0] == ABSENT:
            return None
        found: npt.NDArray[np.unsignedinteger] | None = self.cache.get(
            (self.array.place.url, row, tile), partial(self._decode_tile, row, tile)
        )
        return found

    def _decode_tile(
        self, row: int, tile: int
    ) -> tuple[npt.NDArray[np.unsignedinteger] | None, int]:
        """The words of a tile, and their bytes."""
        from samprior.storage.crossings.chunk import decode_runs
        from samprior.storage.cuts import pack_tile

        code, places = self._code(row)
        at, limit = int(places[tile]), int(places[tile + 1])
        if at == limit:
            return None, 64
        tile_row, tile_column = divmod(tile, self.grid[1])
        height = min(self.tile_px, self.array.chunk[1] - tile_row * self.tile_px)
        width = min(self.tile_px, self.array.chunk[2] - tile_column * self.tile_px)
        words = pack_tile(*decode_runs(code, at, limit, height, width))
        return words, words.nbytes

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
        self,
        row: int,
        window: tuple[int, int, int, int],
        members: npt.NDArray[np.uint8],
        keep: npt.NDArray[np.uint8] | None,
    ) -> Cut:
        """See `AtomsArray`."""
        atoms = self._checked(self.tiled.read(row, *window), len(members))
        seen, first, areas = np.unique(atoms, return_index=True, return_counts=True)
        by_first = np.argsort(first)
        seen, areas = seen[by_first], areas[by_first]
        kept = members[seen] if keep is None else members[seen] & keep
        _, heads, group = np.unique(kept, axis=0, return_index=True, return_inverse=True)
        group = group.reshape(-1)
        ranked = np.sort(heads[kept[heads].any(axis=1)])
        number = np.zeros(len(heads), np.int64)
        number[group[ranked]] = np.arange(1, len(ranked) + 1)
        lookup = np.zeros(len(members), np.uint16 if len(ranked) <= 0xFFFF else np.uint32)
        lookup[seen] = number[group]
        sums = np.zeros(len(ranked) + 1, np.int64)
        np.add.at(sums, number[group], areas)
        return Cut(lookup[atoms], seen[ranked].astype(np.int64), sums[1:])

    def outline(self, row: int, window: tuple[int, int, int, int]) -> int:
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

    def _checked(self, atoms: npt.NDArray[Any], num_atoms: int) -> npt.NDArray[Any]:
        if atoms.size and int(atoms.max()) >= num_atoms:
            raise ValueError(f"an image has atoms beyond its {num_atoms}")
        return atoms


def empty_measures(num_atoms: int) -> tuple[Words, Words]:
    """Areas of 0 and boxes that any pixel widens."""
    boxes = np.zeros((num_atoms, 4), np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    return np.zeros(num_atoms, np.int64), boxes
