"""The forms in which a job can keep its shards: a zarr store, or webdataset tars.

A form is a handful of functions of `storage`; the job and its workers don't ask which one it is.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from samprior.pipeline.worker import ShardWriter
from samprior.storage.header import HEADER_COPY
from samprior.storage.manifest import Header, Receipt, each_receipt, read_header, write_header
from samprior.storage.places import Place
from samprior.storage.tar_job import (
    HEADER,
    each_tar_receipt,
    finish_tars,
    read_tar_header,
    write_tar_header,
    write_tar_shard,
)
from samprior.storage.tars import check_tar_keys
from samprior.storage.writer import write_shard


@dataclass(frozen=True, kw_only=True)
class Form:
    """How shards are kept below a folder."""

    noun: str
    """What such a folder is called in messages."""
    header_files: tuple[str, ...]
    """Files that `write_header` writes, in order; the first tells that a folder is of this form."""
    write_header: Callable[[Path | Place, Header], None]
    read_header: Callable[[Path | Place], Header]
    """Raises StoreError for what others wrote."""
    check_keys: Callable[[Iterable[str]], None]
    """Raises UsageError for a key that this form can't hold."""
    write_shard: ShardWriter
    """Pickled to workers, so a function of a module."""
    each_receipt: Callable[[Path | Place], Iterator[Receipt]]
    """Receipts of the shards that are there, one by one; lists the store once."""
    finish: Callable[[Path | Place, Header], None]
    """Called when all shards are there."""


def _nothing(*_: object) -> None:
    """Nothing to do in this form."""


ZARR = Form(
    noun="store",
    header_files=("zarr.json", "shards/zarr.json", HEADER_COPY),
    write_header=write_header,
    read_header=read_header,
    check_keys=_nothing,
    write_shard=write_shard,
    each_receipt=each_receipt,
    finish=_nothing,
)

WEBDATASET = Form(
    noun="folder of tars",
    header_files=(HEADER, HEADER_COPY),
    write_header=write_tar_header,
    read_header=read_tar_header,
    check_keys=check_tar_keys,
    write_shard=write_tar_shard,
    each_receipt=each_tar_receipt,
    finish=finish_tars,
)

FORMS = {"zarr": ZARR, "webdataset": WEBDATASET}
"""By the name that --format takes."""
