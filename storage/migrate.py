"""Copy a store of any readable format to the present one, shard by shard, and compare.

Pictures, masks, tables, receipts' remarks and mask sets are kept; only how they are stored changes.
Nothing of the old store is touched. A copy that was broken off goes on where it was.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samprior.storage.cache import BoundedCache
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.files import STAGED_SUFFIX, remove_drafts, write_bytes
from samprior.storage.growth import LISTING
from samprior.storage.header import FORMAT_VERSION, Header
from samprior.storage.locks import LOCK, only_writer
from samprior.storage.manifest import (
    Receipt,
    read_header,
    read_receipts,
    shard_name,
    write_header,
)
from samprior.storage.mask_sets import mask_sets, set_name
from samprior.storage.places import LocalFolder, Place, open_place
from samprior.storage.shard_reader import Resources, Shard
from samprior.storage.store import CACHE_BYTES
from samprior.storage.writer import Record, write_shard

Progress = Callable[[int, int], None]
"""Called with (shards that are there, shards in all)."""


@dataclass
class Migration:
    """What `migrate_store` did."""

    old_version: int
    num_images: int = 0
    num_shards: int = 0
    """Of the store and all its mask sets."""
    shards_copied: int = 0
    """By this run; the others were there."""
    stored_bytes: int = 0


def migrate_store(old: str | Path, new: Path, *, progress: Progress | None = None) -> Migration:
    """Copy the store at `old`, a folder or URL, with its mask sets to the folder `new`.

    An unfinished store gives an unfinished copy, to be finished by the same `samprior precompute`.

    Raises:
        StoreError: `old` is no store or damaged; `new` holds anything but this copy.
        UsageError: one lies inside the other, `new` is a file, or `old` is a mask set.
        BusyError: another process writes to `new`.
    """
    place = open_place(old)
    if place.local is not None:
        there, wanted = place.local.resolve(), new.resolve()
        if there == wanted or there in wanted.parents or wanted in there.parents:
            raise UsageError(f"{new} and {old} lie inside each other; give a folder elsewhere")
    if new.exists() and not new.is_dir():
        raise UsageError(f"{new} is a file; give a new folder")
    header = read_header(place)
    if header.images == "parent":
        raise UsageError(f"{old} is a mask set; migrate the store that it belongs to")
    stores = [(place, new)]
    stores += [(place.below(set_name(name)), new / set_name(name)) for name in mask_sets(place)]
    total = sum(len(read_receipts(source)) for source, _ in stores)
    found = Migration(old_version=header.format_version)
    for source, target in stores:
        _refuse_strangers(target, _present(read_header(source)))
        with only_writer(target):
            for _ in _copied(source, target, found):
                found.num_shards += 1
                if progress:
                    progress(found.num_shards, total)
    found.num_images = sum(len(receipt.keys) for receipt in read_receipts(new).values())
    return found


def _copied(source: Place, target: Path, found: Migration) -> Iterator[Receipt]:
    """Copy what is missing of a store or mask set; gives each receipt that is there then."""
    old_header = read_header(source)
    for folder in (target, target / "shards", target / "receipts"):
        remove_drafts(folder)
    if old_header.appended and old_header.images != "parent":
        write_bytes(target / LISTING, source.read(LISTING))
    header = _present(old_header)
    write_header(target, header)
    there = read_receipts(target)
    for shard, old in read_receipts(source).items():
        receipt = there.get(shard)
        if receipt is None or _content(receipt) != _content(old):
            receipt = _copy_shard(source, target, header, old)
            found.shards_copied += 1
        found.stored_bytes += receipt.stored_bytes
        yield receipt


def _copy_shard(source: Place, target: Path, header: Header, old: Receipt) -> Receipt:
    _require_whole(source.below(shard_name(old.shard)), old)
    records = list(_records(source, header, old))
    receipt = write_shard(
        target,
        old.shard,
        records,
        paired=header.paired,
        images=header.images,
        pictures=old.pictures,
        inputs=old.inputs,
        quarantined=old.quarantined,
        notes=old.notes,
    )
    for copy, record in zip(_records(LocalFolder(target), header, receipt), records, strict=True):
        # A bug of ours if it ever differs, but one that must not cost anybody a store.
        if not _is_same(copy, record):
            raise StoreError(f"{record.key} of {source.url} was not copied as it is; keep the old")
    return receipt


def _records(place: Place, header: Header, receipt: Receipt) -> Iterator[Record]:
    """The records of a shard; blank pictures where it has none."""
    if not receipt.keys:
        return
    resources = Resources(BoundedCache(CACHE_BYTES))
    shard = Shard(place.below(shard_name(receipt.shard)), receipt, resources)
    for row, (key, (height, width)) in enumerate(zip(receipt.keys, receipt.sizes, strict=True)):
        shape = (height, width, 3)
        pictures = {}
        for side in ("clean", "degraded") if header.paired else ("clean",):
            pictures[side] = np.zeros(shape, np.uint8)
            if header.images == "stored":
                shard.read_picture(side, row, 0, 0, pictures[side])
        clean = pictures["clean"]
        masks = shard.masks(row, (0, 0, height, width), None)
        yield Record(key, pictures.get("degraded", clean), clean, masks)


def _is_same(copy: Record, record: Record) -> bool:
    return (
        copy.key == record.key
        and copy.masks.equals(record.masks)
        and np.array_equal(copy.clean, record.clean)
        and np.array_equal(copy.degraded, record.degraded)
    )


def _require_whole(folder: Place, receipt: Receipt) -> None:
    """Raise StoreError if a file has changed, which the copy's digests would hide for ever."""
    for name, digest in receipt.digests.items():
        try:
            is_whole = hashlib.sha256(folder.read(name)).hexdigest() == digest
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            raise StoreError(
                f"{folder.url}/{name} is damaged; run `samprior verify` on the store first"
            )


def _present(header: Header) -> Header:
    """The header that a copy has."""
    return replace(header, format_version=FORMAT_VERSION)


def _content(receipt: Receipt) -> Receipt:
    """A receipt without what depends on the format."""
    return replace(receipt, stored_bytes=0, digests={})


def _refuse_strangers(target: Path, header: Header) -> None:
    if (target / "zarr.json").exists():
        if read_header(target).fingerprint != header.fingerprint:
            raise StoreError(f"{target} holds another store; choose another folder")
    elif target.exists() and any(
        path.name not in (LOCK, LISTING) and path.suffix != STAGED_SUFFIX
        for path in target.iterdir()
    ):
        raise StoreError(f"{target} holds files that are no copy of a store; choose another folder")
