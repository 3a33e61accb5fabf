"""Read windows of tiled arrays: pictures, and the atoms of stores of format 1.

Files of this machine are memory-mapped and uncompressed tiles are cut at memory speed; of an object
store the tiles that a window touches come in one call. At most `MAX_MAPS` files stay mapped.
"""

from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from samprior.storage.arrays import ABSENT, ShardedArray, file_identity
from samprior.storage.cache import BoundedCache
from samprior.storage.sources import PictureSource, address_of

MAX_MAPS = 4096
"""Systems allow a process some 65,000 maps."""

Maps = BoundedCache[npt.NDArray[np.uint8]]
"""Mapped files by shard and name; each counts 1."""


class TiledArray:
    """One array (n, H, W, ...) of 1 x T x T tiles; safe to read from several threads."""

    def __init__(self, array: ShardedArray, maps: Maps) -> None:
        self.array = array
        self.maps = maps
        self.tile_px = array.chunk[1]
        trailing = array.shape[3:]
        if array.chunk != (1, self.tile_px, self.tile_px, *trailing) or any(
            count != 1 for count in array.spans.shape[3:-1]
        ):
            raise ValueError(f"{array.name} has chunks {array.chunk}, which are no square tiles")
        # The grid has a column of one for each trailing dimension.
        self.spans = np.ascontiguousarray(array.spans.reshape(*array.spans.shape[:3], 2))
        self._spans_at = address_of(self.spans)
        self.height, self.width = (self.tile_px * count for count in self.spans.shape[1:3])
        self.is_raw = array.codec_names == ["bytes"]
        # Mapped, and of bytes and channels as `storage.memory` copies them.
        is_mapped = array.place.local is not None and self.is_raw
        self._copy_window = None
        if is_mapped and array.dtype == np.uint8 and array.chunk[3:] == (3,):
            from samprior.storage.memory import copy_window  # numba

            self._copy_window = copy_window
        held = self.spans[self.spans[..., 0] != ABSENT]
        self.end = int(held.sum(axis=-1).max()) if len(held) else 0
        tile_bytes = prod(array.chunk) * array.dtype.itemsize
        if self.is_raw and (held[:, 1] != tile_bytes).any():
            raise ValueError(f"{array.name} has tiles of other sizes than {tile_bytes} bytes")
        if array.codec_names not in (["bytes"], ["bytes", "zstd"]):
            raise ValueError(f"{array.name} has unknown codecs {array.codec_names}")

    def read(self, row: int, y: int, x: int, height: int, width: int) -> npt.NDArray[Any]:
        """The window (height, width, ...) of image `row`; it must lie inside the array.

        Raises:
            OSError, RuntimeError, ValueError: the object is short, or a compressed tile damaged.
        """
        out = np.empty((height, width, *self.array.shape[3:]), self.array.dtype)
        self.read_into(out, row, y, x)
        return out

    def read_into(self, out: npt.NDArray[Any], row: int, y: int, x: int) -> None:
        """Read the window at (y, x) that fills `out` (height, width, ...)."""
        self._check_window(y, x, *out.shape[:2])
        if self._copy_window and out.dtype == np.uint8 and out.flags.c_contiguous:
            data = self._whole_map()
            self._copy_window(data, self.spans[row], self.tile_px, y, x, out.reshape(len(out), -1))
        else:
            self._assemble(out, row, y, x)

    def source(self, row: int, y: int, x: int, height: int, width: int) -> PictureSource | None:
        """Where image `row` lies for a kernel that reads this window; None: use `read_into`.

        Raises:
            OSError, ValueError: the object is short.
        """
        self._check_window(y, x, height, width)
        if self._copy_window is None:
            return None
        data = self._whole_map()
        _, tile_rows, tile_columns, _ = self.spans.shape
        spans = self._spans_at + row * self.spans.strides[0]
        return PictureSource(
            (data, self.spans),
            address_of(data),
            len(data),
            spans,
            tile_rows,
            tile_columns,
            self.tile_px,
        )

    def _check_window(self, y: int, x: int, height: int, width: int) -> None:
        # Kernels check no bounds; sizes come from a receipt, which may lie.
        if y < 0 or x < 0 or y + height > self.height or x + width > self.width:
            raise ValueError(f"{self.array.name} is smaller than its images are said to be")

    def _whole_map(self) -> npt.NDArray[np.uint8]:
        """The mapped object, as long as its index says."""
        data = mapped(self.array, self.maps)
        if len(data) < self.end:
            raise ValueError(f"{self.array.object_name} is shorter than it was")
        return data

    def _assemble(self, out: npt.NDArray[Any], row: int, y: int, x: int) -> None:
        """The same tile by tile: those of object stores, compressed ones, atoms."""
        height, width = out.shape[:2]
        side = self.tile_px
        rows = range(y // side, (y + height - 1) // side + 1)
        columns = range(x // side, (x + width - 1) // side + 1)
        # Plain integers: NumPy's own are slow one by one, and this runs for every crop.
        spans = self.spans[row, rows.start : rows.stop, columns.start : columns.stop].tolist()
        places = list(product(rows, columns))
        ranges = [(offset, offset + size) for line in spans for offset, size in line]
        contents = read_ranges(
            self.array, [span for span in ranges if span[0] != ABSENT], self.maps
        )
        held = iter(contents)
        for (i, j), (offset, _) in zip(places, ranges, strict=True):
            top, left = max(y, i * side), max(x, j * side)
            bottom, right = min(y + height, (i + 1) * side), min(x + width, (j + 1) * side)
            part = out[top - y : bottom - y, left - x : right - x]
            if offset == ABSENT:
                part[...] = 0
                continue
            tile = self._decode(next(held))
            part[...] = tile[top - i * side : bottom - i * side, left - j * side : right - j * side]

    def _decode(self, content: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        if not self.is_raw:
            content = np.frombuffer(Zstd().decode(content), np.uint8)
        return content.view(self.array.dtype).reshape(self.array.chunk[1:])


def mapped(array: ShardedArray, maps: Maps) -> npt.NDArray[np.uint8]:
    """The bytes of a local array's object, mapped; nothing for an array of zeros."""
    return maps.get((array.place.url, array.name), partial(_map, array))


def _map(array: ShardedArray) -> tuple[npt.NDArray[np.uint8], int]:
    folder = array.place.local
    assert folder is not None
    if not (array.spans[..., 0] != ABSENT).any():
        return np.zeros(0, np.uint8), 1
    if file_identity(array.place, array.object_name) != array.identity:
        # Its tiles may lie elsewhere, and its masks have been read from the one before.
        raise ValueError(f"{array.object_name} was replaced; open the store again")
    return np.asarray(np.memmap(folder / array.object_name, np.uint8, mode="r")), 1


def read_ranges(
    array: ShardedArray, ranges: list[tuple[int, int]], maps: Maps
) -> list[npt.NDArray[np.uint8]]:
    """Pieces of an array's object: views of the map where there is one, else read in one call.

    Raises:
        ValueError: a piece is not all there.
    """
    if not ranges:
        return []
    if array.place.local is None:
        contents = array.place.read_ranges(array.object_name, ranges)
        return [np.frombuffer(content, np.uint8) for content in contents]
    data = mapped(array, maps)
    if max(stop for _, stop in ranges) > len(data):
        raise ValueError(f"{array.object_name} is shorter than it was")
    return [data[start:stop] for start, stop in ranges]
