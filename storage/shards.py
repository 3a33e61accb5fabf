"""Export a store as webdataset tars for streaming, and read tars back.

One tar per shard of the store (or of as many images as asked for), one sample per image
(`samples`), and an index that is written last (`tars`). Equal stores give equal bytes.

Reading is deterministic in (seed, epoch) and in the place of the reader among all ranks and their
workers; webdataset groups, mixes and finds that place.
"""

import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from webdataset.tariterators import group_by_keys
from webdataset.utils import pytorch_worker_info

from samprior.storage.errors import StoreError, UsageError
from samprior.storage.exports import Progress, export_folder
from samprior.storage.files import sha256_of
from samprior.storage.samples import UNREADABLE, MaskForm, record_of
from samprior.storage.store import MaskStore
from samprior.storage.tars import (
    TarEntry,
    check_tar_keys,
    read_index,
    read_members,
    tar_name,
    write_index,
    write_tar,
)
from samprior.storage.writer import Record

_WEBDATASET_NOTES = re.compile("__[^/]*__($|/)")

MEND = "remove it and run the command that made it again"
"""What to do about a damaged tar."""


def export_webdataset(
    store: MaskStore,
    out: Path,
    *,
    masks: MaskForm = "atoms",
    images_per_tar: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a complete store as tars below `out`; whole tars of an earlier run are kept.

    Args:
        store: a complete store.
        out: the folder, made if missing.
        masks: as our arrays, or as run lengths in JSON for other tools.
        images_per_tar: None makes one tar of each shard that holds images.
        progress: called with (images written, images in all).

    Returns:
        The tars, in order.

    Raises:
        StoreError: the store is unfinished, or `out` holds another export.
        UsageError: a key that webdataset would read as another one, or no images in a tar.
        BusyError: another export writes to `out`.
    """
    store.require_complete()
    check_tar_keys(store.keys)
    if images_per_tar is not None and images_per_tar < 1:
        raise UsageError(f"--images-per-tar must be at least 1, got {images_per_tar}")
    options = {"to": "webdataset", "masks": masks, "images_per_tar": images_per_tar}
    entries: list[TarEntry] = []
    done = 0
    with export_folder(out, store, options):
        known = _known_digests(out)
        for name, places in _tars_of(store, images_per_tar):
            tar = out / name
            digest = sha256_of(tar) if tar.exists() else None
            if digest is None or digest != known.get(name, digest):
                records = (store[place] for place in places)
                write_tar(tar, records, paired=store.paired, masks=masks)
                digest = sha256_of(tar)
            entries.append(
                TarEntry(
                    name=name,
                    num_samples=len(places),
                    num_bytes=tar.stat().st_size,
                    sha256=digest,
                    keys=tuple(store.keys[place] for place in places),
                    sizes=tuple(store.size(place) for place in places),
                )
            )
            done += len(places)
            if progress:
                progress(done, len(store))
        write_index(out, entries, fingerprint=store.fingerprint, masks=masks)
    return [out / entry.name for entry in entries]


def read_webdataset(
    folder: Path,
    *,
    shuffle_buffer: int = 0,
    resample: bool = False,
    seed: int = 0,
    epoch: int = 0,
    node: tuple[int, int] | None = None,
    worker: tuple[int, int] | None = None,
) -> Iterable[Record]:
    """The records of a finished folder of tars; each rank and worker reads its own tars.

    Every image comes once per epoch, at one of the ranks and workers. With fewer tars than readers
    some get none, and ranks may get different numbers: give `images_per_tar` at the export, or
    `resample`. What is given back may be iterated again, pickled, and handed to torch's
    `DataLoader(..., batch_size=None)`.

    Args:
        folder: an export, or what `samprior precompute --format webdataset` wrote.
        shuffle_buffer: samples that are held back, as files in memory, and given in random order;
            the order of the tars is random then, too. 0 keeps the order of the store.
        resample: never end: tars are drawn with replacement.
        seed, epoch: what all random order comes from, at least 0. Count epochs yourself.
        node: (rank, number of ranks); None asks torch.distributed and its environment variables.
        worker: (number, count) among this rank's workers; None asks torch's DataLoader.

    Raises:
        StoreError: the folder is unfinished, or, while reading, a tar is not as it was written or
            has not the samples of the index; the message names it.
        UsageError: a number that can't be.
    """
    if min(shuffle_buffer, seed, epoch) < 0:
        raise UsageError(
            f"shuffle_buffer {shuffle_buffer}, seed {seed} and epoch {epoch} must be at least 0"
        )
    for name, place in (("node", node), ("worker", worker)):
        if place is not None and not 0 <= place[0] < place[1]:
            raise UsageError(f"{name} {place} must be a number from 0 and a count above it")
    exported_tars(folder)
    if node is None:
        # Asked here too: a process that DataLoader spawns knows its own number, not the rank.
        rank, num_ranks, _, _ = pytorch_worker_info()
        node = (rank, num_ranks) if num_ranks > 1 else None
    reader = _Reader(
        folder, tuple(read_index(folder)), shuffle_buffer, resample, (seed, epoch), node, worker
    )
    pipeline: Iterable[Record] = wds.DataPipeline(partial(_records, reader))
    return pipeline


def exported_tars(folder: Path) -> list[Path]:
    """The tars of a finished folder, in order.

    Raises:
        StoreError: the folder is unfinished or empty, or a tar is missing or short.
    """
    tars = []
    for entry in read_index(folder):
        tar = folder / entry.name
        if not tar.is_file() or tar.stat().st_size != entry.num_bytes:
            raise StoreError(f"{tar} is missing or not {entry.num_bytes} bytes; {MEND}")
        tars.append(tar)
    if not tars:
        raise StoreError(f"{folder} holds no image: all were quarantined")
    return tars


@dataclass(frozen=True)
class _Reader:
    """What one reading is made of; pickled to the workers of a DataLoader."""

    folder: Path
    entries: tuple[TarEntry, ...]
    shuffle_buffer: int
    resample: bool
    seeds: tuple[int, int]
    """Seed and epoch."""
    node: tuple[int, int] | None
    worker: tuple[int, int] | None


def _records(reader: _Reader) -> Iterator[Record]:
    # Asked here, in the process that reads.
    rank, num_ranks, number, num_workers = pytorch_worker_info()
    rank, num_ranks = reader.node or (rank, num_ranks)
    number, num_workers = reader.worker or (number, num_workers)
    rng = np.random.default_rng((*reader.seeds, rank, number))
    if reader.resample:
        tars = _drawn(reader.entries, rng)
    else:
        tars = islice(islice(_order(reader), rank, None, num_ranks), number, None, num_workers)
    samples = (sample for entry in tars for sample in _samples(reader.folder, entry))
    if reader.shuffle_buffer:
        mixer = random.Random(int(rng.integers(2**63)))
        size = reader.shuffle_buffer
        samples = wds.shuffle(size, initial=size, rng=mixer)(samples)
    for sample in samples:
        yield _record(sample)


def _order(reader: _Reader) -> Iterator[TarEntry]:
    """All tars, in the order that all ranks and workers agree on."""
    places = np.arange(len(reader.entries))
    if reader.shuffle_buffer:
        places = np.random.default_rng(reader.seeds).permutation(places)
    return (reader.entries[place] for place in places)


def _drawn(entries: Sequence[TarEntry], rng: np.random.Generator) -> Iterator[TarEntry]:
    """Tars without end, by their number of samples, so that every image is as likely."""
    counts = np.array([entry.num_samples for entry in entries], np.float64)
    while entries:
        yield entries[int(rng.choice(len(entries), p=counts / counts.sum()))]


def _samples(folder: Path, entry: TarEntry) -> Iterator[dict[str, Any]]:
    """The samples of a tar, still packed."""
    tar = folder / entry.name
    count = 0
    try:
        # Little beside the decoding, and decoders miss some flipped bits.
        if sha256_of(tar) != entry.sha256:
            raise StoreError(f"{tar} has another content than was written; {MEND}")
        # Not webdataset's own reader, which unpacks compressed tars and fills holes in memory.
        for sample in group_by_keys(_files(tar)):
            count += 1
            yield sample
    except (OSError, ValueError, tarfile.TarError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{tar} can't be read ({error}); {MEND}") from error
    if count != entry.num_samples:
        raise StoreError(
            f"{tar} has {count} samples where the index says {entry.num_samples}; {MEND}"
        )


def _files(tar: Path) -> Iterator[dict[str, Any]]:
    """The files of a tar as webdataset's reader gives them, its own notes left out."""
    for name, content in read_members(tar):
        if not _WEBDATASET_NOTES.match(name):
            yield {"fname": name, "data": content, "__url__": str(tar)}


def _record(sample: Mapping[str, Any]) -> Record:
    try:
        return record_of(sample)
    except UNREADABLE as error:
        raise StoreError(
            f"{sample['__url__']}: {sample['__key__']} can't be read "
            f"({type(error).__name__}: {error}); {MEND}"
        ) from error


def _tars_of(store: MaskStore, images_per_tar: int | None) -> Iterator[tuple[str, range]]:
    """The name of each tar and the places of its images."""
    if images_per_tar is not None:
        for number, start in enumerate(range(0, len(store), images_per_tar)):
            yield tar_name(number), range(start, min(start + images_per_tar, len(store)))
        return
    start = 0
    for receipt in store.receipts.values():
        if receipt.keys:
            yield tar_name(receipt.shard), range(start, start + len(receipt.keys))
            start += len(receipt.keys)


def _known_digests(out: Path) -> dict[str, str]:
    """Digests of a finished export's tars; none after a broken run, whose tars are whole too."""
    try:
        return {entry.name: entry.sha256 for entry in read_index(out)}
    except StoreError:
        return {}
