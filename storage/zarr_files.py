"""Write the files of a zarr v3 group, byte for byte as zarr-python does.

Only the forms of a store's shards: tables of one compressed chunk, and large arrays that are one
object of inner chunks (sharding codec). zarr-python takes milliseconds an array and copies pixels
several times; here chunks go straight to the file. A test compares every byte.

Each file's digest is taken while it is written, so nothing is read again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google_crc32c import value as crc32c
from numcodecs.zstd import Zstd

Json = dict[str, Any]
Chunk = bytes | memoryview
"""Bytes; a view is flat and contiguous."""

Place = tuple[int, ...]
"""Of an inner chunk in the grid of all."""

TABLE_LEVEL = 15
"""zstd's level of tables: small, written once, read often; higher ones take longer for no less."""

ABSENT = 2**64 - 1
"""Offset and length, in an index, of a chunk that is 0 everywhere and was not written."""


class GroupWriter:
    """The files of one group; several threads may write, each to its own array."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, tuple[str, int]] = {}
        self.write("zarr.json", _text({"attributes": {}, "zarr_format": 3, "node_type": "group"}))

    @property
    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of every file written, by its path below the group's folder."""
        return {name: digest for name, (digest, _) in sorted(self._files.items())}

    @property
    def stored_bytes(self) -> int:
        """Bytes of all files written."""
        return sum(num_bytes for _, num_bytes in self._files.values())

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        with self.open(name) as stream:
            stream.write(content)

    @contextmanager
    def open(self, name: str) -> Iterator["HashedStream"]:
        """Open a file that no thread has written before; it counts from the block's end on."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb", buffering=0) as raw:
            stream = HashedStream(raw)
            yield stream
        self._files[name] = stream.digest, stream.num_bytes

    def write_table(self, name: str, values: npt.NDArray[np.generic]) -> None:
        """Write an array of numbers as one chunk; none if every bit of it is 0, or it is empty."""
        chunk = tuple(max(1, side) for side in values.shape)
        zstd = {"name": "zstd", "configuration": {"level": TABLE_LEVEL, "checksum": True}}
        codecs = [bytes_codec(values.dtype), zstd]
        self.write(f"{name}/zarr.json", array_metadata(values.shape, values.dtype, chunk, codecs))
        content = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        if np.frombuffer(content, np.uint8).any():
            code = Zstd(level=TABLE_LEVEL, checksum=True).encode(content)
            self.write(object_name(name, values.ndim), bytes(code))

    def write_sharded(
        self,
        name: str,
        chunks: Iterable[tuple[Place, Chunk]],
        *,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        chunk: Sequence[int],
        codecs: Sequence[Json],
        dimension_names: Sequence[str],
    ) -> None:
        """Write an array as one object of inner chunks.

        Args:
            name: the array's.
            chunks: those that are not 0 everywhere, coded, in the order of `morton_order`. Each is
                written before the next is asked for, so one buffer may serve for all.
            shape: of the array; the object's is that, rounded up to whole inner chunks.
            dtype: of the array.
            chunk: shape of an inner chunk.
            codecs: of an inner chunk, as zarr names them.
            dimension_names: one for each dimension.
        """
        grid = chunk_grid(shape, chunk)
        whole = tuple(count * side for count, side in zip(grid, chunk, strict=True))
        told = array_metadata(shape, dtype, whole, [_sharding(chunk, codecs)], dimension_names)
        self.write(f"{name}/zarr.json", told)
        coming = iter(chunks)
        first = next(coming, None)
        if first is None:
            return
        index = np.full((*grid, 2), ABSENT, "<u8")
        with self.open(object_name(name, len(grid))) as stream:
            _write_chunk(stream, index, *first)
            for place, content in coming:
                _write_chunk(stream, index, place, content)
            stream.write(index.tobytes())
            stream.write(checksum(index.tobytes()))


class HashedStream:
    """A file that is written from its begin to its end, and what there is to say of it."""

    def __init__(self, raw: FileIO) -> None:
        self.num_bytes = 0
        self._raw = raw
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what was written so far."""
        return self._hash.hexdigest()

    def write(self, content: Chunk) -> None:
        """Write all of `content`; the system may take it piece by piece."""
        self._hash.update(content)
        self.num_bytes += len(content)
        rest = memoryview(content)
        while rest:
            rest = rest[self._raw.write(rest) :]


def array_metadata(
    shape: Sequence[int],
    dtype: np.dtype[Any],
    chunk: Sequence[int],
    codecs: Sequence[Json],
    dimension_names: Sequence[str] | None = None,
) -> bytes:
    """The `zarr.json` of an array of 0 where nothing is written, in regular chunks."""
    names = {"dimension_names": list(dimension_names)} if dimension_names else {}
    return _text(
        {
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": np.zeros((), dtype).item(),
            "codecs": list(codecs),
            "attributes": {},
            **names,
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def bytes_codec(dtype: np.dtype[Any]) -> Json:
    """Numbers as they are, the low byte first."""
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def chunk_grid(shape: Sequence[int], chunk: Sequence[int]) -> Place:
    """How many inner chunks there are along each dimension."""
    return tuple(-(-side // part) for side, part in zip(shape, chunk, strict=True))


def morton_order(grid: Sequence[int]) -> list[Place]:
    """Every place of a grid in the order that zarr writes inner chunks.

    By their Morton codes: the lowest bit of each coordinate, then the next of each, and so on, as
    far as a dimension has bits.
    """
    places = np.indices(grid).reshape(len(grid), -1)
    bits = [(count - 1).bit_length() for count in grid]
    code, length = np.zeros(places.shape[1], np.int64), 0
    for bit in range(max(bits)):
        for dimension in range(len(grid)):
            if bit < bits[dimension]:
                code |= (places[dimension] >> bit & 1) << length
                length += 1
    return [tuple(place) for place in places[:, np.argsort(code)].T.tolist()]


def object_name(array: str, num_dimensions: int) -> str:
    """An array's only object, below the group's folder."""
    return "/".join([array, "c", *("0" for _ in range(num_dimensions))])


def checksum(content: bytes) -> bytes:
    """As zarr's codec crc32c appends it."""
    return int(crc32c(content)).to_bytes(4, "little")


def _sharding(chunk: Sequence[int], codecs: Sequence[Json]) -> Json:
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(chunk),
            "codecs": list(codecs),
            "index_codecs": [bytes_codec(np.dtype(np.uint64)), {"name": "crc32c"}],
            "index_location": "end",
        },
    }


def _write_chunk(
    stream: HashedStream, index: npt.NDArray[np.uint64], place: Place, content: Chunk
) -> None:
    index[place] = stream.num_bytes, len(content)
    stream.write(content)


def _text(metadata: Json) -> bytes:
    return json.dumps(metadata, indent=2).encode()
