"""Readers of crops: what a peer has to offer, and the peers that keep PNG files and JSON.

Every reader gets windows and delivers samples (delivery.py). It opens its files when it first
reads, once in each process, so that it can be sent to workers. A peer whose library is missing is
told of with the reason, never left out.
"""

import importlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import plain_masks
from delivery import Sample
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from windows import Window

from samprior.storage import Record
from samprior.storage.images import Rgb

PARTS = ("degraded.png", "clean.png", "json")
"""What a picture is kept as: both sides losslessly, and its masks as SA-1B keeps them."""

# litdata asks PyPI for newer versions of itself.
os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"


class MissingPeerError(Exception):
    """A library of a peer can't be imported; the message says which and why."""


def library(name: str, distribution: str) -> ModuleType:
    """Import a peer's library; what it warns of on the way is its own affair.

    Raises:
        MissingPeerError: it is not installed or does not import.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:  # a library that does not fit others raises whatever it likes
        reason = " ".join(str(error).split())
        raise MissingPeerError(
            f"{type(error).__name__}: {reason}; pip install {distribution}"
        ) from error


class Reader:
    """Crops of pictures that lie below `root`."""

    library: tuple[str, str] | None = None
    """Module and distribution that it needs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root,)  # open files and handles don't travel

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        raise NotImplementedError

    def stream(self, windows: Sequence[Window]) -> Iterator[Sample]:
        """The crops of windows, in order."""
        return map(self.read, windows)

    def dataset(self, windows: Sequence[Window]) -> Dataset[Any]:
        """The crops of windows for a DataLoader."""
        return Crops(self, windows)


class Crops(Dataset[Sample]):
    """Crops by number."""

    def __init__(self, reader: Reader, windows: Sequence[Window]) -> None:
        self.reader, self.windows = reader, windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Sample:
        return self.reader.read(self.windows[number])


@dataclass(frozen=True)
class Files:
    """The encoded parts of pictures, made once for all peers that keep them."""

    parts: list[dict[str, bytes]]
    """By picture and then by name, as in PARTS."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Files":
        """Encode pictures and masks."""
        return cls(
            [
                {
                    "degraded.png": _png(record.degraded),
                    "clean.png": _png(record.clean),
                    "json": plain_masks.sa1b_json(record.masks.to_masks(), record.masks),
                }
                for record in records
            ]
        )


class PngJson(Reader):
    """Three files a picture, read whole; only masks whose box meets the crop are decoded."""

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        parts = {part: (self.root / f"{window.image:04d}.{part}").read_bytes() for part in PARTS}
        return decoded(parts, window)


class PngJsonAll(Reader):
    """The same, and every mask is decoded, as pycocotools' tutorials do."""

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        files = {part: self.root / f"{window.image:04d}.{part}" for part in PARTS}
        degraded, clean = (np.asarray(_rgb(files[part].read_bytes())) for part in PARTS[:2])
        shape = (clean.shape[0], clean.shape[1])
        planes = plain_masks.all_planes(plain_masks.parsed(files["json"].read_bytes()), shape)
        cut = slice(window.y, window.y + window.side), slice(window.x, window.x + window.side)
        return Sample(degraded[cut], clean[cut], plain_masks.cut_planes(planes, window))


class WebDataset(Reader):
    """Tars of the same files, streamed: one crop of each picture, in the order of the tars."""

    library = ("webdataset", "webdataset")

    def stream(self, windows: Sequence[Window]) -> Iterator[Sample]:
        """The crops of windows, at most one of each picture, in the order of the pictures."""
        by_image = {window.image: window for window in windows}
        for parts in self._samples:
            window = by_image.get(int(parts["__key__"]))
            if window is not None:
                yield decoded(parts, window)

    def dataset(self, windows: Sequence[Window]) -> Dataset[Any]:
        """The crops of windows for a DataLoader, whose workers share the tars."""
        return Streamed(self, windows)

    @cached_property
    def _samples(self) -> Iterable[dict[str, Any]]:
        wds = library(*self.library)
        tars = [str(tar) for tar in sorted(self.root.glob("*.tar"))]
        samples: Iterable[dict[str, Any]] = wds.WebDataset(tars, shardshuffle=False)
        return samples


class Streamed(IterableDataset[Sample]):
    """Crops as they come."""

    def __init__(self, reader: Reader, windows: Sequence[Window]) -> None:
        self.reader, self.windows = reader, windows

    def __iter__(self) -> Iterator[Sample]:
        return self.reader.stream(self.windows)


class LitData(Reader):
    """litdata's chunks of the same files, by number."""

    library = ("litdata", "litdata")

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        return decoded(self._dataset[window.image], window)

    @cached_property
    def _dataset(self) -> Any:  # noqa: ANN401
        return library(*self.library).StreamingDataset(str(self.root), shuffle=False)


class Mosaic(Reader):
    """MosaicML streaming's shards of the same files, by number, as its local reader gives them."""

    library = ("streaming", "mosaicml-streaming")

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        return decoded(self._dataset[window.image], window)

    @cached_property
    def _dataset(self) -> Any:  # noqa: ANN401
        with warnings.catch_warnings():
            # It leaves the index to the garbage collector to close.
            warnings.simplefilter("ignore", ResourceWarning)
            return library(*self.library).LocalDataset(local=str(self.root))


def write_folder(root: Path, files: Files) -> None:
    """Three files a picture."""
    root.mkdir()
    for number, parts in enumerate(files.parts):
        for part, content in parts.items():
            (root / f"{number:04d}.{part}").write_bytes(content)


def write_tars(root: Path, files: Files) -> None:
    """At least four tars if there are four pictures, so that workers have some each."""
    wds = library(*WebDataset.library)
    root.mkdir()
    most = max(1, len(files.parts) // 4)
    with wds.ShardWriter(str(root / "%04d.tar"), maxcount=most, verbose=0) as writer:
        for number, parts in enumerate(files.parts):
            writer.write({"__key__": f"{number:04d}", **parts})


def write_litdata(root: Path, files: Files) -> None:
    """Chunks of 64 MB, litdata's default, uncompressed."""
    library(*LitData.library)
    cache = library("litdata.streaming", "litdata").Cache(str(root), chunk_bytes="64MB")
    for number, parts in enumerate(files.parts):
        cache[number] = parts
    cache.done()
    cache.merge()


def write_mosaic(root: Path, files: Files) -> None:
    """Shards of 64 MiB, MosaicML's default, uncompressed."""
    streaming = library(*Mosaic.library)
    columns = dict.fromkeys(PARTS, "bytes")
    with streaming.MDSWriter(out=str(root), columns=columns, size_limit=2**26) as writer:
        for parts in files.parts:
            writer.write(parts)


def decoded(parts: dict[str, Any], window: Window) -> Sample:
    """The crop of a picture's parts; only masks whose box meets it are decoded."""
    return cut(parts, plain_masks.parsed(bytes(parts["json"])), window)


def cut(
    parts: Mapping[str, bytes], annotations: Sequence[plain_masks.Note], window: Window
) -> Sample:
    """The crop of both pictures, decoded whole, with the annotations whose box meets it."""
    _, y, x, side = window
    degraded, clean = (
        np.asarray(_rgb(parts[part]).crop((x, y, x + side, y + side))) for part in PARTS[:2]
    )
    return Sample(degraded, clean, plain_masks.met_by_box(annotations, window))


def _rgb(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def _png(rgb: Rgb) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, format="PNG")
    return stream.getvalue()
