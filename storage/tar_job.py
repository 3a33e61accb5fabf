"""Tars that a job writes shard by shard, with receipts, as it does the zarr store.

    OUT/header.json            what the job makes; as the header of a zarr store
    OUT/header-copy.json       the same once more, with a digest
    OUT/receipts/000000.json   one receipt per shard; the tar counts from then on
    OUT/000000.tar             the shard's samples, if it holds images
    OUT/index.json             written last: now the folder is whole

Tars and index are those that an export of the equal zarr store would write, byte for byte.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from samprior.storage.errors import StoreError, UnreachableError
from samprior.storage.files import sha256_of
from samprior.storage.header import HEADER_COPY, header_copy, readable_json
from samprior.storage.manifest import (
    Header,
    Inputs,
    Receipt,
    each_receipt,
    receipt_file,
    write_header_files,
    write_receipt,
)
from samprior.storage.places import Place, joined, open_place
from samprior.storage.tars import INDEX, TarEntry, tar_name, write_index, write_tar
from samprior.storage.uploads import upload_shard
from samprior.storage.writer import Record

HEADER = "header.json"


def write_tar_header(root: Path | Place, header: Header) -> None:
    """Make the folder that will hold the tars."""
    write_header_files(root, tar_files(header))


def tar_files(header: Header) -> dict[str, bytes]:
    """The files that say what the tars are made of, by name."""
    return {HEADER: readable_json(header.to_record()), HEADER_COPY: header_copy(header)}


def read_tar_header(root: Path | Place) -> Header:
    """What the tars at `root` are made of.

    Raises:
        StoreError: it is missing, damaged, or was altered.
        UnreachableError: an object store didn't answer.
    """
    place = open_place(root)
    file = joined(place.url, HEADER)
    try:
        record = json.loads(place.read(HEADER))
    except UnreachableError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{file} is no header of samprior's tars ({error!r})") from error
    return Header.from_record(record, origin=file)


def each_tar_receipt(root: Path | Place) -> Iterator[Receipt]:
    """The receipts of the shards whose tars are there, in order; the folder is listed once.

    Raises:
        StoreError: a receipt is damaged.
        UnreachableError: an object store didn't answer.
    """
    place = open_place(root)
    sizes = place.sizes()
    for receipt in each_receipt(place):
        if not receipt.keys or sizes.get(tar_name(receipt.shard)) == receipt.stored_bytes:
            yield receipt


def write_tar_shard(
    root: Path | Place,
    shard: int,
    records: Sequence[Record],
    *,
    paired: bool,
    inputs: Mapping[str, Inputs] | None = None,
    quarantined: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Receipt:
    """Write a shard of a job as a tar, as `write_shard` does as zarr, and then its receipt.

    A shard of no records (all quarantined) has a receipt and no tar. The index goes first: a folder
    that has one is whole.

    Raises:
        StoreError: pictures and masks that are not of one size.
    """
    for record in records:
        if not record.degraded.shape == record.clean.shape == (*record.masks.shape, 3):
            raise StoreError(
                f"{record.key}: degraded {record.degraded.shape}, clean {record.clean.shape} and "
                f"masks {record.masks.shape} must be of one size"
            )
    write = partial(
        _write_here,
        shard=shard,
        records=records,
        paired=paired,
        inputs=inputs or {},
        quarantined=quarantined or {},
        notes=notes,
    )
    place = open_place(root)
    place.remove(INDEX)
    if place.local is not None:
        return write(place.local)
    return upload_shard(place, shard, write, held=_held)


def _held(_: Place, shard: int) -> list[str]:
    """Files of a shard that may be there."""
    return [tar_name(shard)]


def _write_here(
    root: Path,
    *,
    shard: int,
    records: Sequence[Record],
    paired: bool,
    inputs: Mapping[str, Inputs],
    quarantined: Mapping[str, str],
    notes: Sequence[str],
) -> Receipt:
    """Write a shard into a folder of this machine."""
    receipt_file(root, shard).unlink(missing_ok=True)
    tar = root / tar_name(shard)
    if records:
        write_tar(tar, records, paired=paired)
    else:
        tar.unlink(missing_ok=True)
    receipt = Receipt(
        shard=shard,
        keys=tuple(record.key for record in records),
        sizes=tuple(record.masks.shape for record in records),
        num_masks=tuple(len(record.masks) for record in records),
        stored_bytes=tar.stat().st_size if records else 0,
        digests={tar.name: sha256_of(tar)} if records else {},
        inputs=dict(inputs),
        quarantined=dict(quarantined),
        notes=tuple(notes),
    )
    write_receipt(root, receipt)
    return receipt


def finish_tars(root: Path | Place, header: Header) -> None:
    """Write the index, from the receipts of all shards.

    Raises:
        StoreError: a tar has gone meanwhile.
    """
    num_shards, entries = 0, []
    for receipt in each_tar_receipt(root):
        num_shards += 1
        if receipt.keys:
            entries.append(tar_entry(receipt))
    if num_shards < header.num_shards:
        raise StoreError(
            f"{open_place(root).url} has {num_shards} of {header.num_shards} shards; run the same "
            "command again"
        )
    write_index(root, entries, fingerprint=header.fingerprint)


def tar_entry(receipt: Receipt) -> TarEntry:
    """What the index says of the tar of a receipt."""
    return TarEntry(
        name=tar_name(receipt.shard),
        num_samples=len(receipt.keys),
        num_bytes=receipt.stored_bytes,
        sha256=receipt.digests[tar_name(receipt.shard)],
        keys=receipt.keys,
        sizes=receipt.sizes,
    )
