"""Read windows of a shard's tiled arrays without zarr-python's overhead of milliseconds a read.

The arrays are standard zarr v3 objects (sharding codec, one object an array); this reads only the
form that `samprior.storage.writer` writes. The tiles' places are read once; a window is then one
`pread` per tile. The file is opened for each window, so that no number of shards runs out of file
descriptors.
"""

import json
import os
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

_ABSENT = 2**64 - 1
"""Offset of a tile that was not written because it is zero everywhere."""


class TiledArray:
    """One array (n, H, W, ...) of 1 x T x T tiles; safe to read from several threads.

    Raises:
        OSError, ValueError, KeyError: the metadata or the index is not what the writer writes.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "zarr.json").read_bytes())
        sharding = about["codecs"][0]["configuration"]
        self.shape = tuple(about["shape"])
        self.dtype = np.dtype(about["data_type"]).newbyteorder("<")
        self.tile = tuple(sharding["chunk_shape"])
        self.compressed = any(codec["name"] == "zstd" for codec in sharding["codecs"])
        self.file = folder.joinpath("c", *("0" for _ in self.shape))
        grid = tuple(
            side // tile
            for side, tile in zip(
                about["chunk_grid"]["configuration"]["chunk_shape"], self.tile, strict=True
            )
        )
        self.places = self._read_index(grid)

    def _read_index(self, grid: tuple[int, ...]) -> npt.NDArray[np.uint64]:
        """(n, rows, columns, ..., 2): offset and bytes of each tile."""
        if not self.file.exists():  # zero everywhere
            return np.full((*grid, 2), _ABSENT, np.uint64)
        num_bytes = prod(grid) * 16 + 4  # a checksum ends it
        with self.file.open("rb") as stream:
            stream.seek(-num_bytes, os.SEEK_END)
            index = np.frombuffer(stream.read(num_bytes - 4), "<u8").reshape(*grid, 2)
            size = stream.tell() + 4
        held = index[index[..., 0] != _ABSENT]
        if len(held) and int(held.sum(axis=-1).max()) > size - num_bytes:
            raise ValueError(f"the index of {self.file} points beyond its tiles")
        return index

    def read(self, row: int, y: int, x: int, height: int, width: int) -> npt.NDArray[Any]:
        """The window (height, width, ...) of image `row`; it must lie inside the array.

        Raises:
            OSError, RuntimeError, ValueError: the file is short or a compressed tile is damaged.
        """
        window = np.zeros((height, width, *self.shape[3:]), self.dtype)
        _, side, _ = self.tile[:3]
        rows = range(y // side, (y + height - 1) // side + 1)
        columns = range(x // side, (x + width - 1) // side + 1)
        descriptor = None
        try:
            for i, j in product(rows, columns):
                offset, num_bytes = map(int, self.places[row, i, j].reshape(-1))
                if offset == _ABSENT:
                    continue
                if descriptor is None:
                    descriptor = os.open(self.file, os.O_RDONLY)
                tile = self._decode(os.pread(descriptor, num_bytes, offset))
                top, left = max(y, i * side), max(x, j * side)
                bottom, right = min(y + height, (i + 1) * side), min(x + width, (j + 1) * side)
                window[top - y : bottom - y, left - x : right - x] = tile[
                    top - i * side : bottom - i * side, left - j * side : right - j * side
                ]
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return window

    def _decode(self, content: bytes) -> npt.NDArray[Any]:
        if self.compressed:
            content = Zstd().decode(content)
        return np.frombuffer(content, self.dtype).reshape(self.tile[1:])
