"""`MaskStore`: read a store of images and masks, whole images or crops, by place or by key.

The store is plain zarr v3 (docs/store-format.md), in a folder or an object store.

H x W pixels, K masks, A atoms.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from samprior.storage.cache import BoundedCache
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.manifest import (
    Header,
    Receipt,
    read_header,
    read_receipts,
    shard_name,
)
from samprior.storage.masks import MaskSet, check_window
from samprior.storage.places import Place, open_place
from samprior.storage.shard import Resources, Shard
from samprior.storage.table import MaskTable, records_of
from samprior.storage.writer import Record

CACHE_BYTES = 256 * 2**20
"""Room for what was decoded last; the masks' outlines of some 2,000 photographs."""


class MaskStore:
    """A finished or growing store, read-only. Safe to use from several threads and to pickle.

    `len(store)` and `store.keys` count the images whose shards are there; `store.missing_shards`
    says whether that is all. Shards are opened when they are first read.
    """

    def __init__(
        self,
        place: Place,
        header: Header,
        receipts: dict[int, Receipt],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.place = place
        self.header = header
        self.receipts = receipts
        self.cache_bytes = cache_bytes
        self.keys: tuple[str, ...] = tuple(
            key for receipt in receipts.values() for key in receipt.keys
        )
        self._filled = [receipt for receipt in receipts.values() if receipt.keys]
        self._first = list(accumulate((len(r.keys) for r in self._filled), initial=0))
        self._resources = Resources(BoundedCache(cache_bytes))
        self._shards: dict[int, Shard] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str | Path, *, cache_bytes: int = CACHE_BYTES) -> Self:
        """Open a store by its folder or URL (s3://, gs://).

        Raises:
            StoreError: no store there, or one this version can't read.
            UsageError: a URL of another kind.
            UnreachableError: an object store didn't answer.
        """
        place = open_place(url)
        return cls(place, read_header(place), read_receipts(place), cache_bytes=cache_bytes)

    def __reduce__(self) -> tuple[object, ...]:
        # Open arrays and locks don't travel.
        return _reopen, (type(self), self.place, self.header, self.receipts, self.cache_bytes)

    def __len__(self) -> int:
        return self._first[-1]

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int | str) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | str | slice) -> "Record | Records":
        """The record at a place or of a key, or those of a slice of either.

        A slice of keys takes those from its start up to, but without, its stop, in the order of
        text: `store["GOPR0372":"GOPR0374"]`.

        Raises:
            KeyError, IndexError: there is no such image.
        """
        if isinstance(index, slice):
            return Records(self, self._sliced(index))
        place = self.index_of(index) if isinstance(index, str) else index
        height, width = self.size(place)
        return self.crop(place, 0, 0, height, width)

    def _sliced(self, wanted: slice) -> Sequence[int]:
        if not any(isinstance(end, str) for end in (wanted.start, wanted.stop)):
            return range(len(self))[wanted]
        if wanted.step is not None:
            raise UsageError(f"a slice of keys has no step, got {wanted.step!r}")
        first, stop = wanted.start or "", wanted.stop
        return [
            place
            for place, key in enumerate(self.keys)
            if key >= first and (stop is None or key < stop)
        ]

    def index_of(self, key: str) -> int:
        """Place of a key."""
        try:
            return self._places[key]
        except KeyError:
            raise KeyError(f"{self.url} has no image {key!r}; it has {len(self)}") from None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

    @property
    def url(self) -> str:
        """Folder or URL of the store."""
        return self.place.url

    @property
    def root(self) -> Path:
        """Folder of a store on this machine.

        Raises:
            UsageError: it is in an object store.
        """
        if self.place.local is None:
            raise UsageError(f"{self.url} is in an object store; copy it to a folder for this")
        return self.place.local

    @property
    def paired(self) -> bool:
        """Whether degraded and clean are two pictures."""
        return self.header.paired

    @property
    def fingerprint(self) -> str:
        """Digest of all that determines the store's content."""
        return self.header.fingerprint

    @property
    def missing_shards(self) -> list[int]:
        """Shards of the plan that are not there yet."""
        return [shard for shard in range(self.header.num_shards) if shard not in self.receipts]

    @property
    def quarantined(self) -> dict[str, str]:
        """Reason for each image of the plan that could not be used."""
        return {
            key: reason
            for receipt in self.receipts.values()
            for key, reason in receipt.quarantined.items()
        }

    def require_complete(self) -> Self:
        """Return self, or raise StoreError when shards of the plan are missing."""
        if missing := self.missing_shards:
            raise StoreError(
                f"{self.url} has {self.header.num_shards - len(missing)} of "
                f"{self.header.num_shards} shards; run the same `samprior precompute` to finish it"
            )
        if not len(self):
            raise StoreError(f"{self.url} holds no image: all were quarantined")
        return self

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, pixels; from the receipts, no data is read."""
        receipt, row = self._locate(index)
        return receipt.sizes[row]

    def table(self, index: int) -> MaskTable:
        """The masks of an image without their pixels."""
        receipt, row = self._locate(index)
        return self._shard(receipt).table(row)

    def records(self) -> npt.NDArray[Any]:
        """All masks of the store as one structured array.

        Fields: `image` (place in the store), `mask` (place in its image), `area`, `box` (4), and
        the columns by name.
        """
        return records_of({index: self.table(index) for index in range(len(self))})

    def crop(self, index: int, y: int, x: int, height: int, width: int) -> Record:
        """The record of an image, cut to a window.

        Masks that don't meet the window are left out, unless the whole image is asked for.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        degraded, clean = self.pictures(index, y, x, height, width)
        receipt, row = self._locate(index)
        masks = self.masks(index, y, x, height, width)
        return Record(key=receipt.keys[row], degraded=degraded, clean=clean, masks=masks)

    def pictures(
        self, index: int, y: int, x: int, height: int, width: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Degraded and clean of an image, cut to a window, without its masks.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        clean = np.empty((height, width, 3), np.uint8)
        degraded = np.empty_like(clean) if self.paired else clean
        self.read_pictures(index, y, x, degraded, clean)
        return degraded, clean

    def read_pictures(
        self,
        index: int,
        y: int,
        x: int,
        degraded: npt.NDArray[np.uint8],
        clean: npt.NDArray[np.uint8],
    ) -> None:
        """Read the window at (y, x) into arrays (H, W, 3), contiguous and of one size.

        A store that is not paired fills `clean` only.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        receipt, row = self._locate(index)
        check_window(receipt.sizes[row], y, x, *clean.shape[:2])
        shard = self._shard(receipt)
        shard.read_picture("clean", row, y, x, clean)
        if self.paired:
            shard.read_picture("degraded", row, y, x, degraded)

    def masks(
        self,
        index: int,
        y: int,
        x: int,
        height: int,
        width: int,
        *,
        keep: npt.NDArray[np.bool_] | None = None,
    ) -> MaskSet:
        """The masks of an image, cut to a window; `keep` (K,) leaves out masks of the image.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        receipt, row = self._locate(index)
        check_window(receipt.sizes[row], y, x, height, width)
        return self._shard(receipt).masks(row, (y, x, height, width), keep)

    def _locate(self, index: int) -> tuple[Receipt, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.url}")
        place = index % len(self)
        shard = bisect_right(self._first, place) - 1
        return self._filled[shard], place - self._first[shard]

    def _shard(self, receipt: Receipt) -> Shard:
        with self._lock:
            held = self._shards.get(receipt.shard)
        if held is None:
            # Opened outside the lock: of an object store it takes a while.
            opened = Shard(self.place.below(shard_name(receipt.shard)), receipt, self._resources)
            with self._lock:
                held = self._shards.setdefault(receipt.shard, opened)
        return held


class Records(Sequence[Record]):
    """Some records of a store, read when they are asked for."""

    def __init__(self, store: MaskStore, places: Sequence[int]) -> None:
        self.store = store
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return Records(self.store, self.places[index])
        return self.store[self.places[index]]


def _reopen(
    kind: type[MaskStore],
    place: Place,
    header: Header,
    receipts: dict[int, Receipt],
    cache_bytes: int,
) -> MaskStore:
    return kind(place, header, receipts, cache_bytes=cache_bytes)
