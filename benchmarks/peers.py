"""The peers of benchmarks/loader.py: who they are, their files, and why one can't take part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import array_readers
import numpy as np
import readers
from array_readers import StoreByZarr, TensorStore, ZarrPython, ZarrWithZarrs
from delivery import Batch, Sample, collated
from readers import Files, MissingPeerError, Reader
from torch.utils.data import DataLoader
from windows import Window

from samprior.storage import Record

PRELOADED = [
    "torch",
    "samprior.storage",
    "skimage.data",
    "scipy.ndimage",
    "pycocotools.mask",
    "PIL",
]
"""What worker processes import; the server that forks them does it once."""


@dataclass(frozen=True)
class Peer:
    """One way to read crops."""

    name: str
    reader: type[Reader]
    folder: str
    """Where its files are; peers may share them."""
    is_slow: bool = False
    """It decodes whole pictures: it gets one crop of each, others many."""


@dataclass(frozen=True)
class Prepared:
    """A peer whose files are there."""

    peer: Peer
    root: Path

    def reader(self) -> Reader:
        """A reader that has opened nothing yet."""
        return self.peer.reader(self.root)

    def version(self) -> list[tuple[str, str]]:
        """Distribution and version of the peer's library, if it has one of its own."""
        known = self.peer.reader.library
        return [(known[1], version(known[1]))] if known else []

    def batches(
        self, windows: Sequence[Window], *, batch_size: int, workers: int
    ) -> "DataLoader[Batch]":
        """Batches by worker processes, which stay for the next pass; 0: by the calling process."""
        # A clean server forks the workers: libraries with threads don't survive a fork of ours.
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        return DataLoader(
            self.reader().dataset(windows),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collated,
            multiprocessing_context=context if workers else None,
            persistent_workers=workers > 0,
        )


PEERS = (
    Peer("PIL, 2 PNG + JSON, all masks decoded", readers.PngJsonAll, "png", is_slow=True),
    Peer("PIL, 2 PNG + JSON, only masks near", readers.PngJson, "png", is_slow=True),
    Peer("webdataset of PNG + JSON", readers.WebDataset, "tar", is_slow=True),
    Peer("litdata of PNG + JSON", readers.LitData, "litdata", is_slow=True),
    Peer("MosaicML streaming of PNG + JSON", readers.Mosaic, "mosaic", is_slow=True),
    Peer("zarr-python on samprior's store", StoreByZarr, "store"),
    Peer("zarr-python, raw 256 tiles", ZarrPython, "zarr-256"),
    Peer("zarr-python + zarrs, raw 256 tiles", ZarrWithZarrs, "zarr-256"),
    Peer("tensorstore, raw 128 tiles", TensorStore, "zarr-128"),
    Peer("tensorstore, raw 256 tiles", TensorStore, "zarr-256"),
)


def prepare(
    root: Path, records: Sequence[Record], peers: Sequence[Peer]
) -> tuple[list[Prepared], dict[str, str]]:
    """Write the files of all peers; return who takes part, and why the others don't, by name."""
    encoded = Files.of(records)
    writers: Mapping[str, Callable[[Path], None]] = {
        "png": partial(readers.write_folder, files=encoded),
        "tar": partial(readers.write_tars, files=encoded),
        "litdata": partial(readers.write_litdata, files=encoded),
        "mosaic": partial(readers.write_mosaic, files=encoded),
        "zarr-128": partial(array_readers.write_zarr, records=records, tile_px=128),
        "zarr-256": partial(array_readers.write_zarr, records=records, tile_px=256),
    }
    ready, missing = [], {}
    for peer in peers:
        try:
            if peer.reader.library is not None:
                readers.library(*peer.reader.library)
            if not (root / peer.folder).exists():
                writers[peer.folder](root / peer.folder)
            ready.append(Prepared(peer, root / peer.folder))
        except MissingPeerError as error:
            missing[peer.name] = str(error)
    return ready, missing


def check(name: str, got: Sequence[Sample], wanted: Sequence[Sample]) -> None:
    """Assert that a reader gives the same crops."""
    for one, other in zip(got, wanted, strict=True):
        for part, theirs, right in zip(Sample._fields, one, other, strict=True):
            np.testing.assert_array_equal(theirs, right, err_msg=f"{name}: {part}")


def cut(records: Sequence[Record], window: Window) -> Sample:
    """The crop that every reader must give, from the whole pictures in memory."""
    image, y, x, side = window
    record = records[image]
    place = slice(y, y + side), slice(x, x + side)
    return Sample(
        record.degraded[place],
        record.clean[place],
        record.masks.crop(y, x, side, side).to_masks(),
    )
