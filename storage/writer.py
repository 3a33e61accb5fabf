"""Write one shard of a store: staged under a temporary name, visible only when whole.

A shard has exactly one writer. Its arrays are single zarr v3 objects of 128x128 tiles (sharding
codec): images uncompressed, so that a reader may map them; atoms under zstd, which shrinks
their flat areas to little and is quick to undo. Images smaller than the largest of the shard are
padded; tiles of padding alone are not written.

Letters: n images, M masks of all n, A atoms of one image, K masks of one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from samprior.storage.errors import StoreError
from samprior.storage.files import staged_folder
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
"""Side of a tile; an aligned 256x256 crop touches four."""

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
    inputs: Mapping[str, Inputs] | None = None,
    quarantined: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Receipt:
    """Write a shard, whole or not at all, and then its receipt, from which on it counts.

    A shard of no records (all quarantined) has a receipt and no arrays.

    Raises:
        StoreError: records whose sizes or mask columns don't fit together.
    """
    _check(records)
    # An older version of this shard must not count while it is being replaced.
    receipt_file(root, shard).unlink(missing_ok=True)
    with staged_folder(shard_folder(root, shard)) as draft:
        group = zarr.open_group(LocalStore(draft), mode="w", zarr_format=3)
        if records:
            _write_images(group, records, paired=paired)
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
        if columns[record.key] != columns[records[0].key]:
            raise StoreError(
                f"{record.key} has mask columns {columns[record.key]}, "
                f"{records[0].key} has {columns[records[0].key]}; a shard needs the same"
            )


def _write_images(group: zarr.Group, records: Sequence[Record], *, paired: bool) -> None:
    height = max(record.masks.shape[0] for record in records)
    width = max(record.masks.shape[1] for record in records)
    shape = (len(records), height, width)
    images = {"clean": [record.clean for record in records]}
    if paired:
        images["degraded"] = [record.degraded for record in records]
    for name, pictures in images.items():
        _tiled(group, name, _padded((*shape, 3), np.dtype(np.uint8), pictures))
    atoms = [record.masks.atoms for record in records]
    _tiled(group, "atoms", _padded(shape, np.result_type(*atoms), atoms), compress=True)


def _padded(
    shape: tuple[int, ...],
    dtype: np.dtype[np.unsignedinteger],
    images: Sequence[npt.NDArray[np.unsignedinteger]],
) -> npt.NDArray[np.unsignedinteger]:
    block = np.zeros(shape, dtype)
    for row, image in enumerate(images):
        block[row, : image.shape[0], : image.shape[1]] = image
    return block


def _tiled(
    group: zarr.Group, name: str, block: npt.NDArray[np.unsignedinteger], *, compress: bool = False
) -> None:
    """Write (n, H, W, ...) as one object of 1 x 128 x 128 tiles."""
    tail = block.shape[3:]
    sides = tuple(-(-side // TILE_PX) * TILE_PX for side in block.shape[1:3])
    array = group.create_array(
        name,
        shape=block.shape,
        dtype=block.dtype,
        chunks=(1, TILE_PX, TILE_PX, *tail),
        shards=(len(block), *sides, *tail),
        compressors=ZstdCodec(level=3, checksum=True) if compress else None,
        fill_value=0,
        dimension_names=("image", "y", "x", *("channel" for _ in tail)),
    )
    array[...] = block


def _write_masks(group: zarr.Group, sets: Sequence[MaskSet]) -> None:
    """The ragged tables of all images, end to end, with the offsets that cut them."""
    members = [np.packbits(masks.members, axis=1) for masks in sets]
    _flat(group, "size", np.array([masks.shape for masks in sets], np.int32))
    _flat(group, "mask_offset", _offsets([len(masks) for masks in sets]))
    _flat(group, "atom_offset", _offsets([len(masks.members) for masks in sets]))
    _flat(group, "member_offset", _offsets([rows.size for rows in members]))
    _flat(group, "members", np.concatenate([rows.reshape(-1) for rows in members]))
    _flat(group, "atom_area", np.concatenate([masks.atom_areas for masks in sets]))
    _flat(group, "area", np.concatenate([masks.areas for masks in sets]))
    _flat(group, "box", np.concatenate([masks.boxes for masks in sets]))
    for name in sets[0].columns:
        column = np.concatenate([masks.columns[name] for masks in sets])
        _flat(group, COLUMN_PREFIX + name, column)


def _offsets(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _flat(group: zarr.Group, name: str, values: npt.NDArray[np.generic]) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=tuple(max(1, side) for side in values.shape),
        compressors=ZstdCodec(level=3, checksum=True),
    )
    if values.size:
        array[...] = values
