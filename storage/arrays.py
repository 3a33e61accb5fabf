"""Read a shard's metadata and small arrays, without zarr-python's milliseconds an array.

The arrays are standard zarr v3; this reads only the forms that `samprior.storage.writer` writes,
now or in an older version of the format. Small arrays are one chunk under zstd; large ones are one
object each by the sharding codec, of which only the index is read here.

n images; T... the grid of inner chunks.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from google_crc32c import value as crc32c
from numcodecs.zstd import Zstd

from samprior.storage.manifest import Receipt
from samprior.storage.places import Place
from samprior.storage.zarr_files import object_name

ABSENT = -1
"""Offset of an inner chunk that was not written because it is zero everywhere."""

UNREAD = -2
"""In place of where a tile is held: it has not been decoded."""

MAX_CHUNKS = 10**8
"""More inner chunks in an object, or more bytes in a small array, are taken for damage."""

MAX_SMALL_BYTES = 2**31

LARGE = ("clean", "degraded", "atoms")
"""Arrays that are read by window; the others are small and read whole."""


@dataclass(frozen=True)
class ShardedArray:
    """Where the inner chunks of a large array lie."""

    place: Place
    """The shard's folder."""
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    """Shape of an inner chunk."""
    codecs: tuple[dict[str, Any], ...]
    """Codecs of an inner chunk, as zarr names them."""
    spans: npt.NDArray[np.int64]
    """(T..., 2): offset and bytes of each inner chunk; offset ABSENT for zeros."""
    identity: tuple[int, ...] | None
    """Of the object's file, when its index was read."""

    @property
    def object_name(self) -> str:
        """The array's one object, below the shard's folder."""
        return object_name(self.name, len(self.shape))

    @property
    def codec_names(self) -> list[str]:
        """Names of the codecs of an inner chunk, in order."""
        return [codec["name"] for codec in self.codecs]


def read_small_arrays(place: Place, receipt: Receipt) -> dict[str, npt.NDArray[Any]]:
    """The small arrays of a shard by name, checked against the receipt's digests.

    Raises:
        OSError, KeyError, ValueError, RuntimeError: an object is missing or not as it was written.
    """
    names = [name for name in receipt.digests if _array_of(name) not in LARGE]
    contents = dict(zip(names, place.read_many(names), strict=True))
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != receipt.digests[name]:
            raise ValueError(f"{name} was altered")
    arrays = {}
    for name, content in contents.items():
        if name.endswith("/zarr.json"):
            array = _array_of(name)
            about = json.loads(content)
            chunk = contents.get(object_name(array, len(about["shape"])))
            arrays[array] = _small_array(about, chunk)
    return arrays


def read_sharded_arrays(
    place: Place, receipt: Receipt, sizes: Mapping[str, int]
) -> dict[str, ShardedArray]:
    """The large arrays of a shard by name: metadata and index.

    `sizes` are the bytes of the files that are there, as `Place.sizes` tells them.

    Raises:
        OSError, KeyError, ValueError: metadata or index is not as it was written.
    """
    names = [f"{name}/zarr.json" for name in LARGE if f"{name}/zarr.json" in receipt.digests]
    arrays = {}
    for name, content in zip(names, place.read_many(names), strict=True):
        if hashlib.sha256(content).hexdigest() != receipt.digests[name]:
            raise ValueError(f"{name} was altered")
        array = _array_of(name)
        arrays[array] = _sharded_array(place, array, json.loads(content), sizes)
    return arrays


def _small_array(about: dict[str, Any], chunk: bytes | None) -> npt.NDArray[Any]:
    shape, dtype = _whole_numbers(about["shape"], least=0), _number_type(about)
    if prod(shape) * dtype.itemsize > MAX_SMALL_BYTES:
        raise ValueError(f"a table of shape {shape} is no small array")
    values = np.zeros(shape, dtype)
    if chunk is None:  # zero everywhere, or empty
        return values
    if [codec["name"] for codec in about["codecs"]] != ["bytes", "zstd"]:
        raise ValueError(f"unknown codecs {about['codecs']}")
    # Into an array of the right size: a code may claim to hold any number of bytes.
    Zstd().decode(chunk, out=values)
    values.flags.writeable = False
    return values


def _sharded_array(
    place: Place, name: str, about: dict[str, Any], sizes: Mapping[str, int]
) -> ShardedArray:
    sharding = about["codecs"][0]["configuration"]
    shape = _whole_numbers(about["shape"])
    chunk = _whole_numbers(sharding["chunk_shape"])
    whole = _whole_numbers(about["chunk_grid"]["configuration"]["chunk_shape"])
    grid = tuple(side // part for side, part in zip(whole, chunk, strict=True))
    fits = all(side % part == 0 for side, part in zip(whole, chunk, strict=True))
    if not fits or any(side > room for side, room in zip(shape, whole, strict=True)):
        raise ValueError(f"{name} of shape {shape} is not one object of chunks {chunk}")
    if prod(grid) > MAX_CHUNKS:
        raise ValueError(f"{name} is said to have {prod(grid)} inner chunks")
    file = object_name(name, len(shape))
    spans, identity = np.full((*grid, 2), ABSENT, np.int64), None
    if file in sizes:
        identity = file_identity(place, file)
        spans = _read_index(place, file, grid, sizes[file])
    codecs = tuple(sharding["codecs"])
    return ShardedArray(place, name, shape, _number_type(about), chunk, codecs, spans, identity)


def file_identity(place: Place, name: str) -> tuple[int, ...] | None:
    """What tells a local file from one that took its place; None for a remote one."""
    if place.local is None:
        return None
    about = (place.local / name).stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _whole_numbers(values: object, *, least: int = 1) -> tuple[int, ...]:
    """A shape from JSON; raises ValueError for anything else."""
    if not isinstance(values, list) or any(
        type(value) is not int or not least <= value < 2**40 for value in values
    ):
        raise ValueError(f"{values!r:.80} is no shape")
    return tuple(values)


def _number_type(about: dict[str, Any]) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(about["data_type"])
    if dtype.kind not in "biuf":
        raise ValueError(f"{dtype} is no type of numbers")
    little: np.dtype[Any] = dtype.newbyteorder("<")
    return little


def _read_index(
    place: Place, file: str, grid: tuple[int, ...], file_bytes: int
) -> npt.NDArray[np.int64]:
    """Offsets and bytes at the end of an object; a checksum follows them."""
    num_bytes = prod(grid) * 16 + 4
    content = place.read_end(file, num_bytes)
    if crc32c(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise ValueError(f"the index of {file} has a wrong checksum")
    index = np.frombuffer(content[:-4], "<u8").reshape(*grid, 2)
    room = file_bytes - num_bytes
    is_absent = index[..., 0] == 2**64 - 1
    # Compared one by one: sums of what a damaged index says could wrap.
    if ((index > max(room, 0)) & ~is_absent[..., None]).any():
        raise ValueError(f"the index of {file} points beyond its chunks")
    spans = np.where(is_absent[..., None], ABSENT, index.view(np.int64))
    ends = spans[~is_absent].sum(axis=-1)
    if len(ends) and int(ends.max()) > room:
        raise ValueError(f"the index of {file} points beyond its chunks")
    return spans


def _array_of(name: str) -> str:
    """The array that a file of a shard belongs to; "" for the group's own metadata."""
    array, slash, _ = name.partition("/")
    return array if slash else ""
