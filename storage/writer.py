"""Write one shard of a store: staged under a temporary name, visible only when whole.

A shard has exactly one writer. For an object store it is written in a folder of this machine and
then sent, the receipt last. Its large arrays are single zarr v3 objects of tiles (sharding
codec): images uncompressed, so that a reader may map them; atoms under the crossings code, of
which each tile can be read alone. Images smaller than the largest of the shard are padded; tiles of
padding alone are not written. Threads write the arrays side by side; pixels are held but once.

Letters: n images, M masks of all n, A atoms of one image, K masks of one image.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samprior.storage.crossings import codec_metadata
from samprior.storage.errors import StoreError
from samprior.storage.files import staged_folder
from samprior.storage.header import Images
from samprior.storage.manifest import (
    Inputs,
    Receipt,
    receipt_file,
    shard_folder,
    shard_name,
    write_receipt,
)
from samprior.storage.masks import Atoms, MaskSet
from samprior.storage.places import Place, joined, open_place
from samprior.storage.uploads import upload_shard
from samprior.storage.zarr_files import (
    GroupWriter,
    bytes_codec,
    checksum,
    chunk_grid,
    morton_order,
)
from samprior.storage.zarr_files import Place as Tile

TILE_PX = 128
"""Side of a picture's tile; an aligned 256x256 crop touches four."""

ATOMS_TILE_PX = 256
"""Side of what can be decoded alone of the atoms. docs/store-format.md has other sides measured."""

WRITING_THREADS = 4
"""Threads that code and write a shard."""

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
    root: Path | Place,
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
        UnreachableError: an object store didn't answer, or refused.
    """
    _check(records)
    receipt = Receipt(
        shard=shard,
        keys=tuple(record.key for record in records),
        sizes=tuple(record.masks.shape for record in records),
        num_masks=tuple(len(record.masks) for record in records),
        stored_bytes=0,
        digests={},
        inputs=dict(inputs or {}),
        quarantined=dict(quarantined or {}),
        notes=tuple(notes),
        pictures=dict(pictures or {}),
    )
    write = partial(
        _write_here,
        receipt=receipt,
        records=records,
        paired=paired,
        with_images=images == "stored",
    )
    place = open_place(root)
    if place.local is not None:
        return write(place.local)
    return upload_shard(place, shard, write, held=_held)


def _held(place: Place, shard: int) -> list[str]:
    """Files of a shard that are there."""
    folder = shard_name(shard)
    return [joined(folder, name) for name in place.below(folder).sizes()]


def _write_here(
    root: Path, *, receipt: Receipt, records: Sequence[Record], paired: bool, with_images: bool
) -> Receipt:
    """Write a shard into a folder of this machine; `receipt` still lacks its files."""
    shard = receipt.shard
    # An older version of this shard must not count while it is being replaced.
    receipt_file(root, shard).unlink(missing_ok=True)
    with staged_folder(shard_folder(root, shard)) as draft:
        group = GroupWriter(draft)
        if records:
            _write_arrays(group, records, paired=paired, with_images=with_images)
    receipt = replace(receipt, stored_bytes=group.stored_bytes, digests=group.digests)
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
        dtypes = {record.degraded.dtype, record.clean.dtype}
        if dtypes != {np.dtype(np.uint8)}:
            raise StoreError(
                f"{record.key} has pictures of {', '.join(sorted(map(str, dtypes)))}; "
                "a store holds uint8"
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


def _write_arrays(
    group: GroupWriter, records: Sequence[Record], *, paired: bool, with_images: bool
) -> None:
    """Write all arrays; the first error of any is raised once every thread has ended."""
    with ThreadPoolExecutor(WRITING_THREADS) as pool:
        # Tables first: the members' takes as long as the atoms of two images.
        running = _write_masks(group, [record.masks for record in records], pool)
        if with_images:
            running += _write_images(group, records, pool, paired=paired)
        _write_atoms(group, [record.masks.atoms for record in records], pool)
        for job in running:
            job.result()


def _write_images(
    group: GroupWriter, records: Sequence[Record], pool: ThreadPoolExecutor, *, paired: bool
) -> list[Future[None]]:
    pictures = {"clean": [record.clean for record in records]}
    if paired:
        pictures["degraded"] = [record.degraded for record in records]
    return [pool.submit(_write_pictures, group, name, images) for name, images in pictures.items()]


def _write_pictures(group: GroupWriter, name: str, images: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Write (n, H, W, 3) as one object of 1 x 128 x 128 x 3 tiles."""
    shape, chunk = _common_shape(images), (1, TILE_PX, TILE_PX, 3)
    dtype = np.dtype(np.uint8)
    group.write_sharded(
        name,
        _tiles(images, morton_order(chunk_grid(shape, chunk))),
        shape=shape,
        dtype=dtype,
        chunk=chunk,
        codecs=[bytes_codec(dtype)],
        dimension_names=("image", "y", "x", "channel"),
    )


def _tiles(
    images: Sequence[npt.NDArray[np.uint8]], places: Sequence[Tile]
) -> Iterator[tuple[Tile, memoryview]]:
    """Tiles that are not 0 everywhere, padded with 0; a tile is gone when the next one comes."""
    tile = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
    content = tile.reshape(-1)
    for place in places:
        row, down, right, _ = place
        y, x = down * TILE_PX, right * TILE_PX
        held = images[row][y : y + TILE_PX, x : x + TILE_PX]
        if held.shape != tile.shape:
            tile[:] = 0
        tile[: held.shape[0], : held.shape[1]] = held
        if content.view(np.uint64).any():
            yield place, content.data


def _write_atoms(group: GroupWriter, images: Sequence[Atoms], pool: ThreadPoolExecutor) -> None:
    """Write (n, H, W) as one object of coded images, which threads code."""
    from samprior.storage.crossings.chunk import encode_image  # numba

    shape = _common_shape(images)
    height, width = (-(-side // TILE_PX) * TILE_PX for side in shape[1:])

    def code_of(image: Atoms) -> bytes:
        if not image.any():
            return b""
        code = encode_image(image, tile_px=ATOMS_TILE_PX, sides=(height, width))
        return code + checksum(code)

    codes = pool.map(code_of, images)
    group.write_sharded(
        "atoms",
        (((row, 0, 0), code) for row, code in enumerate(codes) if code),
        shape=shape,
        dtype=np.result_type(*images),
        chunk=(1, height, width),
        codecs=[codec_metadata(ATOMS_TILE_PX), {"name": "crc32c"}],
        dimension_names=("image", "y", "x"),
    )


def _common_shape(images: Sequence[npt.NDArray[np.unsignedinteger]]) -> tuple[int, ...]:
    """(n, H, W, ...) of all images in one array, as high and wide as the largest."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    return len(images), height, width, *images[0].shape[2:]


def _write_masks(
    group: GroupWriter, sets: Sequence[MaskSet], pool: ThreadPoolExecutor
) -> list[Future[None]]:
    """The ragged tables of all images, end to end, with the counts that cut them."""
    members = [np.packbits(masks.members, axis=1).reshape(-1) for masks in sets]
    extents = [(*masks.shape, len(masks), len(masks.members)) for masks in sets]
    tables: dict[str, npt.NDArray[np.generic]] = {
        "members": np.concatenate(members),
        "extent": np.array(extents, np.int64),
    }
    for name in sets[0].columns:
        tables[COLUMN_PREFIX + name] = np.concatenate([masks.columns[name] for masks in sets])
    return [pool.submit(group.write_table, name, values) for name, values in tables.items()]
