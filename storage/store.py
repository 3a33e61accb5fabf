"""`MaskStore`: read a store of images and masks, whole images or crops, by place or by key.

The store is plain zarr v3 (docs/store-format.md); any zarr reader can open it without samprior.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore

from samprior.storage.errors import StoreError, UsageError
from samprior.storage.files import sha256_of
from samprior.storage.manifest import Header, Receipt, read_header, read_receipts, shard_folder
from samprior.storage.masks import MaskSet, atom_intersections, check_window
from samprior.storage.tiles import TiledArray
from samprior.storage.writer import COLUMN_PREFIX, Record

TILED = {"clean", "degraded", "atoms"}
"""Arrays that are read by window; the others are small and read whole."""


@dataclass(frozen=True)
class MaskTable:
    """The masks of one image without their pixels."""

    members: npt.NDArray[np.bool_]
    """(A, K), as in `MaskSet`."""
    atom_areas: npt.NDArray[np.int64]
    """(A,) pixels of each atom."""
    areas: npt.NDArray[np.int64]
    """(K,) pixels of each mask."""
    boxes: npt.NDArray[np.int32]
    """(K, 4), as in `MaskSet`."""
    columns: dict[str, npt.NDArray[np.generic]]
    """One row per mask."""

    @property
    def intersections(self) -> npt.NDArray[np.int64]:
        """(K, K) pixels that each two masks share."""
        return atom_intersections(self.atom_areas, self.members)


class MaskStore:
    """A finished or growing store, read-only. Safe to use from several threads and to pickle.

    `len(store)` and `store.keys` count the images whose shards are there; `store.missing_shards`
    says whether that is all.
    """

    def __init__(self, root: Path, header: Header, receipts: dict[int, Receipt]) -> None:
        self.root = root
        self.header = header
        self.receipts = receipts
        self.keys: tuple[str, ...] = tuple(
            key for receipt in receipts.values() for key in receipt.keys
        )
        self._filled = [receipt for receipt in receipts.values() if receipt.keys]
        self._first = list(accumulate((len(r.keys) for r in self._filled), initial=0))
        self._shards: dict[int, _Shard] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str | Path) -> Self:
        """Open a store by its folder.

        Raises:
            StoreError: no store there, or one this version can't read.
        """
        if "://" in str(url):
            raise UsageError(f"{url}: stores are read from local folders; copy it to one")
        root = Path(url)
        return cls(root, read_header(root), read_receipts(root))

    def __getstate__(self) -> tuple[Path, Header, dict[int, Receipt]]:
        return self.root, self.header, self.receipts

    def __setstate__(self, state: tuple[Path, Header, dict[int, Receipt]]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # open arrays and locks don't travel

    def __len__(self) -> int:
        return self._first[-1]

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | str) -> Record:
        """The record at a place or of a key.

        Raises:
            KeyError, IndexError: there is no such image.
        """
        place = self.index_of(index) if isinstance(index, str) else index
        height, width = self.size(place)
        return self.crop(place, 0, 0, height, width)

    def index_of(self, key: str) -> int:
        """Place of a key."""
        try:
            return self._places[key]
        except KeyError:
            raise KeyError(f"{self.root} has no image {key!r}; it has {len(self)}") from None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

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
                f"{self.root} has {self.header.num_shards - len(missing)} of "
                f"{self.header.num_shards} shards; run the same `samprior precompute` to finish it"
            )
        if not len(self):
            raise StoreError(f"{self.root} holds no image: all were quarantined")
        return self

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, pixels; from the receipts, no data is read."""
        receipt, row = self._locate(index)
        return receipt.sizes[row]

    def table(self, index: int) -> MaskTable:
        """The masks of an image without their pixels."""
        receipt, row = self._locate(index)
        return self._shard(receipt.shard).table(row)

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
        shard, window = self._window(index, y, x, height, width)
        clean = shard.read("clean", window)
        return (shard.read("degraded", window) if self.paired else clean), clean

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
        shard, window = self._window(index, y, x, height, width)
        table = shard.table(window[0])
        members, columns = table.members, table.columns
        if keep is not None:
            members = members[:, keep]
            columns = {name: column[keep] for name, column in columns.items()}
        atoms = shard.read("atoms", window)
        if len(members) <= 0x10000:
            # One image of very many atoms widens the array of its whole shard.
            atoms = atoms.astype(np.uint16, copy=False)
        masks = MaskSet(atoms, members, columns)
        whole = (height, width) == self.size(index)
        return masks if whole and keep is None else masks.crop(0, 0, height, width)

    def _window(
        self, index: int, y: int, x: int, height: int, width: int
    ) -> tuple["_Shard", tuple[int, int, int, int, int]]:
        """The open shard of an image, and the window with the image's row in it."""
        receipt, row = self._locate(index)
        check_window(receipt.sizes[row], y, x, height, width)
        return self._shard(receipt.shard), (row, y, x, height, width)

    def _locate(self, index: int) -> tuple[Receipt, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.root}")
        place = index % len(self)
        shard = bisect_right(self._first, place) - 1
        return self._filled[shard], place - self._first[shard]

    def _shard(self, shard: int) -> "_Shard":
        with self._lock:
            if shard not in self._shards:
                self._shards[shard] = _Shard(self.root, self.receipts[shard])
            return self._shards[shard]


class _Shard:
    """Open arrays of one shard; the small tables are read once, the tiled ones by window."""

    def __init__(self, root: Path, receipt: Receipt) -> None:
        self.folder = shard_folder(root, receipt.shard)
        try:
            self._check_files(receipt)
            group = zarr.open_group(LocalStore(self.folder, read_only=True), mode="r")
            # zarr lists them as their metadata happens to arrive.
            arrays: dict[str, zarr.Array[Any]] = dict(sorted(group.arrays()))
            self.tiled = {name: TiledArray(self.folder / name) for name in TILED & arrays.keys()}
            self.tables: dict[str, npt.NDArray[Any]] = {
                name: np.asarray(array[...]) for name, array in arrays.items() if name not in TILED
            }
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise self._damaged(error) from error

    def _check_files(self, receipt: Receipt) -> None:
        """Find what zarr would not: a missing object reads as zeros, altered metadata as another
        array. Compressed objects carry checksums; bits of pictures are left to `verify_store`.
        """
        held = sum((self.folder / name).stat().st_size for name in receipt.digests)
        if held != receipt.stored_bytes:
            raise ValueError(f"{held} bytes where {receipt.stored_bytes} were written")
        for name, digest in receipt.digests.items():
            if name.endswith("zarr.json") and sha256_of(self.folder / name) != digest:
                raise ValueError(f"{name} was altered")

    def read(self, name: str, window: tuple[int, int, int, int, int]) -> npt.NDArray[Any]:
        try:
            return self.tiled[name].read(*window)
        except (KeyError, OSError, ValueError, RuntimeError) as error:
            raise self._damaged(error) from error

    def table(self, row: int) -> MaskTable:
        tables = self.tables
        masks = slice(*tables["mask_offset"][row : row + 2])
        atoms = slice(*tables["atom_offset"][row : row + 2])
        packed = tables["members"][slice(*tables["member_offset"][row : row + 2])]
        num_masks, num_atoms = masks.stop - masks.start, atoms.stop - atoms.start
        members = np.unpackbits(packed.reshape(num_atoms, -1), axis=1, count=int(num_masks))
        return MaskTable(
            members=members.astype(np.bool_),
            atom_areas=tables["atom_area"][atoms],
            areas=tables["area"][masks],
            boxes=tables["box"][masks],
            columns={
                name.removeprefix(COLUMN_PREFIX): column[masks]
                for name, column in tables.items()
                if name.startswith(COLUMN_PREFIX)
            },
        )

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.folder} can't be read ({type(error).__name__}: {error}); "
            "run `samprior verify` on the store"
        )
