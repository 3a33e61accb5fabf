"""`MaskStore`: read a store of images and masks, whole images or crops, by place or by key.

The store is plain zarr v3 (docs/store-format.md), in a folder or an object store.

H x W pixels, K masks, A atoms.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from samprior.storage.atoms import Window
from samprior.storage.cache import BoundedCache
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.manifest import (
    Header,
    Receipt,
    read_header,
    read_receipts,
    shard_name,
)
from samprior.storage.mask_sets import MAIN, joined, mask_set_place, mask_sets
from samprior.storage.masks import MaskSet, checked_window
from samprior.storage.places import Place, open_place
from samprior.storage.records import Records, sliced
from samprior.storage.references import ReferencedPictures, resolved_root
from samprior.storage.shard_reader import Resources, Shard
from samprior.storage.sources import MaskSource, PictureSource
from samprior.storage.table import MaskTable, records_of
from samprior.storage.writer import Record

CACHE_BYTES = 256 * 2**20
"""Room for what was decoded last."""


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
        parent: "MaskStore | None" = None,
        pictures_root: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.place = place
        self.header = header
        self.parent = parent
        self.pictures_root = pictures_root
        self.cache_bytes = cache_bytes
        self._whole = receipts
        self._rows: dict[int, Sequence[int]] = {}
        self.receipts = receipts if parent is None else self._join(parent)
        self.keys: tuple[str, ...] = tuple(
            key for receipt in self.receipts.values() for key in receipt.keys
        )
        self._filled = [receipt for receipt in self.receipts.values() if receipt.keys]
        self._first = list(accumulate((len(r.keys) for r in self._filled), initial=0))
        self._references = None if pictures_root is None else ReferencedPictures(pictures_root)
        self._resources = Resources(BoundedCache(cache_bytes))
        self._shards: dict[int, Shard] = {}

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        masks: str = MAIN,
        pictures_root: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> Self:
        """Open a store by its folder or URL (s3://, gs://, az://).

        Args:
            url: where the store is.
            masks: which of `mask_sets`. The pictures are the store's; an image that was
                quarantined in the store or in the set is not in the opened store.
            pictures_root: where the pictures of a store that refers to them are now (the
                --root of their dataset); None takes where they were.
            cache_bytes: room for decoded masks.

        Raises:
            StoreError: no store there, or one this version can't read.
            UsageError: a URL of another kind, or an unknown mask set.
            UnreachableError: an object store didn't answer.
        """
        if cache_bytes < 0:
            raise UsageError(f"cache_bytes must be 0 or more, got {cache_bytes}")
        place = open_place(url)
        header = read_header(place)
        if header.images == "parent":
            raise UsageError(f"{url} is a mask set; open the store that it belongs to, and name it")
        root = resolved_root(header, pictures_root, where=place.url)
        receipts = read_receipts(place)
        store = cls(place, header, receipts, pictures_root=root, cache_bytes=cache_bytes)
        if masks == MAIN:
            return store
        place = mask_set_place(place, masks)
        header, receipts = read_header(place), read_receipts(place)
        if header.images != "parent" or header.paired != store.paired:
            raise StoreError(f"{place.url} is no mask set of {store.url}")
        return cls(place, header, receipts, parent=store, cache_bytes=cache_bytes)

    def __reduce__(self) -> tuple[object, ...]:
        # Open arrays and locks don't travel.
        reopen = partial(
            type(self),
            parent=self.parent,
            pictures_root=self.pictures_root,
            cache_bytes=self.cache_bytes,
        )
        return reopen, (self.place, self.header, self._whole)

    def _join(self, parent: "MaskStore") -> dict[int, Receipt]:
        """The receipts cut down to the images that both the mask set and the store have."""
        receipts = {}
        for receipt, rows in joined(self._whole, parent.receipts, where=self.url):
            receipts[receipt.shard] = receipt
            self._rows[receipt.shard] = rows
        return receipts

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
            return Records(self, sliced(self.keys, index))
        place = self.index_of(index) if isinstance(index, str) else index
        height, width = self.size(place)
        return self.crop(place, 0, 0, height, width)

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
    def name(self) -> str:
        """Last part of its folder or URL."""
        where = self.url if self.place.local is None else str(self.place.local.resolve())
        return where.rstrip("/").rpartition("/")[2]

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
    def mask_sets(self) -> list[str]:
        """Names that `open` takes for `masks`: "main", the store's own, and the further sets."""
        return [MAIN, *mask_sets((self.parent or self).place)]

    @property
    def num_shards(self) -> int:
        """Shards of the plan; a mask set needs as many as the store it belongs to."""
        return (self.parent or self).header.num_shards

    @property
    def missing_shards(self) -> list[int]:
        """Shards of the plan that are not there yet."""
        pictures = self.parent.receipts if self.parent else self.receipts
        return [
            shard
            for shard in range(self.num_shards)
            if shard not in self.receipts or shard not in pictures
        ]

    @property
    def quarantined(self) -> dict[str, str]:
        """Reason for each image of the plan that could not be used."""
        reasons = self.parent.quarantined if self.parent else {}
        for receipt in self.receipts.values():
            reasons |= receipt.quarantined
        return reasons

    def stored_receipts(self) -> Iterator[Receipt]:
        """Receipts of all that can be read here: of the masks, and of pictures stored apart."""
        yield from self.receipts.values()
        if self.parent is not None:
            yield from self.parent.receipts.values()

    def require_complete(self) -> Self:
        """Return self, or raise StoreError when shards of the plan are missing."""
        if missing := self.missing_shards:
            raise StoreError(
                f"{self.url} has {self.num_shards - len(missing)} of {self.num_shards} shards; run "
                "the same `samprior precompute` to finish it"
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
        receipt, row = self._locate(index)
        window = checked_window(receipt.sizes[row], y, x, height, width)
        degraded, clean = self._pictures(receipt, row, window)
        masks = self._shard(receipt).masks(row, window, None)
        return Record(key=receipt.keys[row], degraded=degraded, clean=clean, masks=masks)

    def pictures(
        self, index: int, y: int, x: int, height: int, width: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Degraded and clean of an image, cut to a window, without its masks.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        receipt, row = self._locate(index)
        window = checked_window(receipt.sizes[row], y, x, height, width)
        return self._pictures(receipt, row, window)

    def _pictures(
        self, receipt: Receipt, row: int, window: Window
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        y, x, height, width = window
        clean = np.empty((height, width, 3), np.uint8)
        degraded = np.empty_like(clean) if self.paired else clean
        self._read_pictures(receipt, row, y, x, degraded, clean)
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
        if clean.shape[2:] != (3,) or any(
            out.dtype != np.uint8 or out.shape != clean.shape for out in (degraded, clean)
        ):
            raise UsageError(
                f"pictures are read into uint8 (H, W, 3) of one size, got {degraded.dtype} "
                f"{degraded.shape} and {clean.dtype} {clean.shape}"
            )
        y, x, _, _ = checked_window(receipt.sizes[row], y, x, *clean.shape[:2])
        self._read_pictures(receipt, row, y, x, degraded, clean)

    def _read_pictures(
        self,
        receipt: Receipt,
        row: int,
        y: int,
        x: int,
        degraded: npt.NDArray[np.uint8],
        clean: npt.NDArray[np.uint8],
    ) -> None:
        if self.parent is not None:
            parent_receipt, parent_row = self.parent._locate(
                self.parent.index_of(receipt.keys[row])
            )
            self.parent._read_pictures(parent_receipt, parent_row, y, x, degraded, clean)
            return
        for side, out in (("clean", clean), ("degraded", degraded)):
            if side == "degraded" and not self.paired:
                continue
            if self._references is not None:
                self._references.read(side, receipt, row, y, x, out)
            else:
                self._shard(receipt).read_picture(side, row, y, x, out)

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
            UsageError: the window does not lie inside the image, or `keep` is of another length.
        """
        receipt, row = self._locate(index)
        window = checked_window(receipt.sizes[row], y, x, height, width)
        if keep is not None and keep.shape != (receipt.num_masks[row],):
            raise UsageError(
                f"keep has shape {keep.shape}; image {index} has {receipt.num_masks[row]} masks"
            )
        return self._shard(receipt).masks(row, window, keep)

    def outline(self, index: int, y: int, x: int, height: int, width: int) -> int:
        """How often the masks' outlines are crossed along all rows of a window.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        receipt, row = self._locate(index)
        window = checked_window(receipt.sizes[row], y, x, height, width)
        return self._shard(receipt).outline(row, window)

    def picture_sources(
        self, index: int, y: int, x: int, height: int, width: int
    ) -> tuple[PictureSource, PictureSource] | None:
        """Where a kernel finds degraded and clean of an image to read this window.

        None where there is no such place, as in object stores: `read_pictures` reads everywhere.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        receipt, row = self._locate(index)
        window = checked_window(receipt.sizes[row], y, x, height, width)
        if self.parent is not None:
            return self.parent.picture_sources(self.parent.index_of(receipt.keys[row]), *window)
        if self._references is not None or not self.paired:
            return None
        shard = self._shard(receipt)
        clean = shard.picture_source("clean", row, window)
        degraded = shard.picture_source("degraded", row, window)
        return None if degraded is None or clean is None else (degraded, clean)

    def mask_source(
        self, index: int, y: int, x: int, height: int, width: int, *, decoded: bool
    ) -> MaskSource | None:
        """Where a kernel finds the masks of an image to cut this window.

        None where there is no such place, as in stores of format 1: `masks` reads everywhere.
        `decoded` has the window's tiles decoded first; without, a kernel may find some unread.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        receipt, row = self._locate(index)
        window = checked_window(receipt.sizes[row], y, x, height, width)
        return self._shard(receipt).mask_source(row, window, decoded=decoded)

    def _locate(self, index: int) -> tuple[Receipt, int]:
        length = self._first[-1]
        if not -length <= index < length:
            raise IndexError(f"image {index} of {length} in {self.url}")
        place = index % length
        filled = bisect_right(self._first, place) - 1
        receipt, row = self._filled[filled], place - self._first[filled]
        if self.parent is not None:
            receipt, row = self._whole[receipt.shard], self._rows[receipt.shard][row]
        return receipt, row

    def _shard(self, receipt: Receipt) -> Shard:
        # Without a lock, which a fork could copy while it is held: two threads may open a shard at
        # once, and one is kept.
        held = self._shards.get(receipt.shard)
        if held is None:
            opened = Shard(self.place.below(shard_name(receipt.shard)), receipt, self._resources)
            held = self._shards.setdefault(receipt.shard, opened)
        return held
