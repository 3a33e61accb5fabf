"""Read a shard's metadata and small arrays, without zarr-python's milliseconds an array.

The arrays are standard zarr v3; this reads only the forms that `samprior.storage.writer` writes,
now or in an older version of the format. Small arrays are one chunk under zstd; large ones are one
object each by the sharding codec, of which only the index is read here.

n images; T... the grid of inner chunks.
"""

import hashlib
import json
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from google_crc32c import value as crc32c
from numcodecs.zstd import Zstd

from samprior.storage.manifest import Receipt
from samprior.storage.places import Place

ABSENT = -1
"""Offset of an inner chunk that was not written because it is zero everywhere."""

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

    @property
    def object_name(self) -> str:
        """The array's one object, below the shard's folder."""
        return _object_name(self.name, len(self.shape))

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
            chunk = contents.get(_object_name(array, len(about["shape"])))
            arrays[array] = _small_array(about, chunk)
    return arrays


def read_sharded_arrays(place: Place, receipt: Receipt) -> dict[str, ShardedArray]:
    """The large arrays of a shard by name: metadata and index.

    Raises:
        OSError, KeyError, ValueError: metadata or index is not as it was written.
    """
    names = [f"{name}/zarr.json" for name in LARGE if f"{name}/zarr.json" in receipt.digests]
    arrays = {}
    for name, content in zip(names, place.read_many(names), strict=True):
        if hashlib.sha256(content).hexdigest() != receipt.digests[name]:
            raise ValueError(f"{name} was altered")
        array = _array_of(name)
        arrays[array] = _sharded_array(place, array, json.loads(content), receipt)
    return arrays


def _small_array(about: dict[str, Any], chunk: bytes | None) -> npt.NDArray[Any]:
    shape, dtype = tuple(about["shape"]), np.dtype(about["data_type"]).newbyteorder("<")
    if chunk is None:  # zero everywhere, or empty
        return np.zeros(shape, dtype)
    if [codec["name"] for codec in about["codecs"]] != ["bytes", "zstd"]:
        raise ValueError(f"unknown codecs {about['codecs']}")
    return np.frombuffer(Zstd().decode(chunk), dtype).reshape(shape)


def _sharded_array(
    place: Place, name: str, about: dict[str, Any], receipt: Receipt
) -> ShardedArray:
    sharding = about["codecs"][0]["configuration"]
    chunk = tuple(sharding["chunk_shape"])
    whole = about["chunk_grid"]["configuration"]["chunk_shape"]
    grid = tuple(side // part for side, part in zip(whole, chunk, strict=True))
    shape = tuple(about["shape"])
    object_name = _object_name(name, len(shape))
    spans = np.full((*grid, 2), ABSENT, np.int64)
    if object_name in receipt.digests:
        spans = _read_index(place, object_name, grid)
    dtype = np.dtype(about["data_type"]).newbyteorder("<")
    return ShardedArray(place, name, shape, dtype, chunk, tuple(sharding["codecs"]), spans)


def _read_index(place: Place, object_name: str, grid: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Offsets and bytes at the end of an object; a checksum follows them."""
    num_bytes = prod(grid) * 16 + 4
    content = place.read_end(object_name, num_bytes)
    if crc32c(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise ValueError(f"the index of {object_name} has a wrong checksum")
    index = np.frombuffer(content[:-4], "<u8").reshape(*grid, 2)
    is_absent = index[..., 0] == 2**64 - 1
    spans = np.where(is_absent[..., None], ABSENT, index.view(np.int64))
    ends = spans[~is_absent].sum(axis=-1)
    room = place.size(object_name) - num_bytes
    if len(ends) and (int(ends.max()) > room or int(spans[~is_absent].min()) < 0):
        raise ValueError(f"the index of {object_name} points beyond its chunks")
    return spans


def _array_of(name: str) -> str:
    """The array that a file of a shard belongs to; "" for the group's own metadata."""
    array, slash, _ = name.partition("/")
    return array if slash else ""


def _object_name(array: str, num_dimensions: int) -> str:
    return "/".join([array, "c", *("0" for _ in range(num_dimensions))])
