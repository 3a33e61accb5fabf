"""Write one shard of a store: staged under a temporary name, visible only when whole.

A shard has exactly one writer. Its large arrays are single zarr v3 objects of tiles (sharding
codec): images uncompressed, so that a reader may map them; atoms under the crossings code, of
which each tile can be read alone. Images smaller than the largest of the shard are padded; tiles of
padding alone are not written.

Letters: n images, M masks of all n, A atoms of one image, K masks of one image.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr
from google_crc32c import value as crc32c
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from samprior.storage.crossings.codec import CrossingsCodec
from samprior.storage.errors import StoreError
from samprior.storage.files import staged_folder
from samprior.storage.header import Images
from samprior.storage.manifest import (
    Inputs,
    Receipt,
    digests_of,
    receipt_file,
    shard_folder,
    write_receipt,
)
from samprior.storage.masks import MaskSet

TILE_PX = 128
"""Side of a picture's tile; an aligned 256x256 crop touches four."""

ATOMS_TILE_PX = 256
"""Side of what can be decoded alone of the atoms. docs/store-format.md has other sides measured."""

CODING_THREADS = 4
"""Threads that code the atoms of a shard."""

COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)
"""What a column of the mask table may be called; it becomes part of a file's name."""

COLUMN_PREFIX = "column."
"""Arrays with this prefix are the mask table's columns, by name."""


@dataclass(frozen=True)
class Record:
    """One image of a store."""

    key: str
    degraded: npt.NDArray[np.uint8]
    """(H, W, 3); the same array as `clean` in a store that is not paired."""
    clean: npt.NDArray[np.uint8]
    """(H, W, 3)."""
    masks: MaskSet


def write_shard(
    root: Path,
    shard: int,
    records: Sequence[Record],
    *,
    paired: bool,
    images: Images = "stored",
    pictures: Mapping[str, tuple[str, str]] | None = None,
    inputs: Mapping[str, Inputs] | None = None,
    quarantined: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Receipt:
    """Write a shard, whole or not at all, and then its receipt, from which on it counts.

    A shard of no records (all quarantined) has a receipt and no arrays. The pictures go into it
    only if `images` is "stored"; `pictures` names their files where it is "reference".

    Raises:
        StoreError: records whose sizes or mask columns don't fit together.
    """
    _check(records)
    # An older version of this shard must not count while it is being replaced.
    receipt_file(root, shard).unlink(missing_ok=True)
    with staged_folder(shard_folder(root, shard)) as draft:
        group = zarr.open_group(LocalStore(draft), mode="w", zarr_format=3)
        if records:
            if images == "stored":
                _write_images(group, records, paired=paired)
            _write_atoms(draft, group, [record.masks.atoms for record in records])
            _write_masks(group, [record.masks for record in records])
        digests, stored_bytes = digests_of(draft)
    receipt = Receipt(
        shard=shard,
        keys=tuple(record.key for record in records),
        sizes=tuple(record.masks.shape for record in records),
        num_masks=tuple(len(record.masks) for record in records),
        stored_bytes=stored_bytes,
        digests=digests,
        inputs=dict(inputs or {}),
        quarantined=dict(quarantined or {}),
        notes=tuple(notes),
        pictures=dict(pictures or {}),
    )
    write_receipt(root, receipt)
    return receipt


def _check(records: Sequence[Record]) -> None:
    columns = {record.key: sorted(record.masks.columns) for record in records}
    for record in records:
        shapes = {record.degraded.shape, record.clean.shape, (*record.masks.shape, 3)}
        if len(shapes) != 1 or 0 in record.clean.shape:
            raise StoreError(
                f"{record.key}: degraded {record.degraded.shape}, clean {record.clean.shape} and "
                f"masks {record.masks.shape} must be of one size"
            )
        _check_columns(record)
        if columns[record.key] != columns[records[0].key]:
            raise StoreError(
                f"{record.key} has mask columns {columns[record.key]}, "
                f"{records[0].key} has {columns[records[0].key]}; a shard needs the same"
            )


def _check_columns(record: Record) -> None:
    """Refuse columns that could be written, but not read again."""
    for name, column in record.masks.columns.items():
        dtype = column.dtype
        is_number = dtype.kind in "biuf" and dtype.itemsize <= 8 and dtype.isnative
        if not COLUMN_NAME.fullmatch(name) or not is_number:
            raise StoreError(
                f"{record.key} has a mask column {name!r} of {dtype}; columns are numbers of at "
                "most 64 bits in this machine's order, and named with letters, digits and _"
            )


def _write_images(group: zarr.Group, records: Sequence[Record], *, paired: bool) -> None:
    _write_pictures(group, "clean", _padded([record.clean for record in records]))
    if paired:
        _write_pictures(group, "degraded", _padded([record.degraded for record in records]))


def _padded(
    images: Sequence[npt.NDArray[np.unsignedinteger]],
) -> npt.NDArray[np.unsignedinteger]:
    """(n, H, W, ...) images of one block, as high and wide as the largest."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    shape = (len(images), height, width, *images[0].shape[2:])
    block = np.zeros(shape, np.result_type(*images))
    for row, image in enumerate(images):
        block[row, : image.shape[0], : image.shape[1]] = image
    return block


def _write_pictures(group: zarr.Group, name: str, block: npt.NDArray[np.unsignedinteger]) -> None:
    """Write (n, H, W, 3) as one object of 1 x 128 x 128 x 3 tiles."""
    sides = _padded_sides(block.shape)
    array = group.create_array(
        name,
        shape=block.shape,
        dtype=block.dtype,
        chunks=(1, TILE_PX, TILE_PX, 3),
        shards=(len(block), *sides, 3),
        compressors=None,
        fill_value=0,
        dimension_names=("image", "y", "x", "channel"),
    )
    array[...] = block


def _write_atoms(
    folder: Path, group: zarr.Group, images: Sequence[npt.NDArray[np.unsignedinteger]]
) -> None:
    """Write (n, H, W) as one object of coded images, `folder` being the group's.

    zarr makes the array; its object is put together here, of codes that threads make: zarr would
    copy every image several times and code one after the other. A test compares the bytes.
    """
    from samprior.storage.crossings.chunk import encode_image  # numba

    shape = (len(images), *(max(image.shape[axis] for image in images) for axis in (0, 1)))
    sides, dtype = _padded_sides(shape), np.result_type(*images)
    group.create_array(
        "atoms",
        shape=shape,
        dtype=dtype,
        chunks=(1, *sides),
        shards=(len(images), *sides),
        serializer=CrossingsCodec(tile_px=ATOMS_TILE_PX),
        compressors=Crc32cCodec(),
        fill_value=0,
        dimension_names=("image", "y", "x"),
    )

    def code_of(image: npt.NDArray[np.unsignedinteger]) -> bytes:
        if not image.any():
            return b""
        padding = [(0, side - held) for side, held in zip(sides, image.shape, strict=True)]
        code = encode_image(np.pad(image.astype(dtype, copy=False), padding), tile_px=ATOMS_TILE_PX)
        return code + _crc32c(code)

    with ThreadPoolExecutor(min(len(images), CODING_THREADS)) as pool:
        codes = list(pool.map(code_of, images))
    if any(codes):
        file = folder / "atoms" / "c" / "0" / "0" / "0"
        file.parent.mkdir(parents=True)
        file.write_bytes(_sharded(codes))


def _sharded(chunks: Sequence[bytes]) -> bytes:
    """Inner chunks as an object of zarr's sharding codec: end to end, then the index."""
    lengths = np.array([len(chunk) for chunk in chunks])
    index = np.full((len(chunks), 2), 2**64 - 1, "<u8")  # of chunks that are absent
    is_held = lengths > 0
    index[is_held, 0] = (np.cumsum(lengths) - lengths)[is_held]
    index[is_held, 1] = lengths[is_held]
    return b"".join(chunks) + index.tobytes() + _crc32c(index.tobytes())


def _crc32c(content: bytes) -> bytes:
    return int(crc32c(content)).to_bytes(4, "little")


def _padded_sides(shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = (-(-side // TILE_PX) * TILE_PX for side in shape[1:3])
    return height, width


def _write_masks(group: zarr.Group, sets: Sequence[MaskSet]) -> None:
    """The ragged tables of all images, end to end, with the counts that cut them."""
    extents = [(*masks.shape, len(masks), len(masks.members)) for masks in sets]
    _flat(group, "extent", np.array(extents, np.int64))
    members = [np.packbits(masks.members, axis=1).reshape(-1) for masks in sets]
    _flat(group, "members", np.concatenate(members))
    for name in sets[0].columns:
        column = np.concatenate([masks.columns[name] for masks in sets])
        _flat(group, COLUMN_PREFIX + name, column)


def _flat(group: zarr.Group, name: str, values: npt.NDArray[np.generic]) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=tuple(max(1, side) for side in values.shape),
        # Small, written once and read often; higher levels take longer and give no less.
        compressors=ZstdCodec(level=15, checksum=True),
    )
    if values.size:
        array[...] = values
