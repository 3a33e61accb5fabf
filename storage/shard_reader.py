"""One shard, open for reading: its small tables in memory, its large arrays by window.

K masks and A atoms of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from samprior.storage.arrays import read_sharded_arrays, read_small_arrays
from samprior.storage.atoms import Cache, Members, Window, open_atoms
from samprior.storage.cache import BoundedCache
from samprior.storage.errors import StoreError, UnreachableError
from samprior.storage.manifest import Receipt
from samprior.storage.masks import Bools, MaskSet
from samprior.storage.places import Place
from samprior.storage.sources import MaskSource, PictureSource
from samprior.storage.table import MaskTable, boxes_of
from samprior.storage.tiles import MAX_MAPS, Maps, TiledArray
from samprior.storage.writer import COLUMN_PREFIX

T = TypeVar("T")
_DAMAGE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
)
"""What reading a file that isn't what it was may end in."""

Columns = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Resources:
    """What the shards of a store share."""

    cache: Cache
    maps: Maps = field(default_factory=lambda: BoundedCache(MAX_MAPS))


class Shard:
    """Reads pictures and masks of the shard in `place`.

    Raises:
        StoreError: files are missing or not as they were written.
        UnreachableError: an object store didn't answer.
    """

    def __init__(self, place: Place, receipt: Receipt, resources: Resources) -> None:
        self.place = place
        self.receipt = receipt
        self.resources = resources
        self._tables: dict[int, tuple[Members, Columns]] = {}
        self._tiled: dict[str, TiledArray] = {}
        self.tables, arrays = self._guarded(self._open)
        self.sizes = _sizes(self.tables)
        for name in arrays.keys() - {"atoms"}:
            self._tiled[name] = self._guarded(partial(TiledArray, arrays[name], resources.maps))
        self.atoms = self._guarded(
            lambda: open_atoms(arrays["atoms"], self.sizes, resources.maps, resources.cache)
        )

    def _open(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Read the tables, and where the large arrays' chunks lie.

        A missing object would read as zeros, so all are looked for. Small files are compared with
        their digests, codes carry checksums; bits of pictures are left to `verify_store`.
        """
        sizes = self.place.sizes()
        held = sum(sizes.get(name, 0) for name in self.receipt.digests)
        if held != self.receipt.stored_bytes:
            raise ValueError(f"{held} bytes where {self.receipt.stored_bytes} were written")
        tables = read_small_arrays(self.place, self.receipt)
        _check_tables(tables, self.receipt)
        return tables, read_sharded_arrays(self.place, self.receipt, sizes)

    @cached_property
    def _offsets(self) -> dict[str, npt.NDArray[np.int64]]:
        return _offsets(self.tables)

    def _table(self, row: int) -> tuple[Members, Columns]:
        """Members and columns of an image; views, so that nothing but the tables is held."""
        held = self._tables.get(row)
        if held is None:
            atoms, masks, rows = (
                slice(*self._offsets[name][row : row + 2].tolist())
                for name in ("atom", "mask", "member")
            )
            num_masks = masks.stop - masks.start
            packed = self.tables["members"][rows].reshape(
                atoms.stop - atoms.start, -(-num_masks // 8)
            )
            columns = {
                name.removeprefix(COLUMN_PREFIX): column[masks]
                for name, column in self.tables.items()
                if name.startswith(COLUMN_PREFIX)
            }
            held = self._tables[row] = Members(packed, num_masks), columns
        return held

    def table(self, row: int) -> MaskTable:
        """The masks of an image without their pixels."""
        held, columns = self._table(row)
        members = np.unpackbits(held.packed, axis=1, count=held.num_masks).view(np.bool_)
        atom_areas, atom_boxes = self._guarded(lambda: self.atoms.measure(row, len(members)))
        return MaskTable(
            members=members,
            atom_areas=atom_areas,
            areas=atom_areas @ members,
            boxes=boxes_of(atom_boxes, members),
            columns=columns,
        )

    def read_picture(self, name: str, row: int, y: int, x: int, out: npt.NDArray[np.uint8]) -> None:
        """Read the window at (y, x) that fills `out` (H, W, 3)."""
        self._guarded(lambda: self._tiled[name].read_into(out, row, y, x))

    def masks(self, row: int, window: Window, keep: Bools | None) -> MaskSet:
        """The masks of a window; without `keep` the whole image has all masks, met or not."""
        members, columns = self._table(row)
        only_met = keep is not None or window != (0, 0, *self.receipt.sizes[row])
        cut = self._guarded(lambda: self.atoms.cut(row, window, members, keep, only_met=only_met))
        if len(cut.masks) < members.num_masks:
            columns = {name: column.take(cut.masks, 0) for name, column in columns.items()}
        return MaskSet.counted(cut.atoms, cut.members, columns, atom_areas=cut.areas)

    def picture_source(self, name: str, row: int, window: Window) -> PictureSource | None:
        """What a kernel reads this window from; None where only `read_picture` does."""
        return self._guarded(lambda: self._tiled[name].source(row, *window))

    def mask_source(self, row: int, window: Window, *, decoded: bool) -> MaskSource | None:
        """What a kernel cuts this window from, see `AtomsArray`; None where only `masks` does."""
        members, _ = self._table(row)
        return self._guarded(lambda: self.atoms.source(row, window, members, decoded=decoded))

    def outline(self, row: int, window: Window) -> int:
        """Crossings of outlines along the rows of a window (y, x, height, width)."""
        return self._guarded(lambda: self.atoms.outline(row, window))

    def _guarded(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except UnreachableError:
            raise
        except _DAMAGE as error:
            raise StoreError(
                f"{self.place.url} can't be read ({type(error).__name__}: {error}); "
                "run `samprior verify` on the store"
            ) from error


def _offsets(tables: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.int64]]:
    """Where the rows of each image begin in the flat tables."""
    if "extent" not in tables:  # format 1
        return {name: tables[f"{name}_offset"] for name in ("mask", "atom", "member")}
    _, _, masks, atoms = tables["extent"].T
    counts = {"mask": masks, "atom": atoms, "member": atoms * -(-masks // 8)}
    return {
        name: np.concatenate([[0], np.cumsum(values)]).astype(np.int64)
        for name, values in counts.items()
    }


def _check_tables(tables: dict[str, npt.NDArray[Any]], receipt: Receipt) -> None:
    """Raise ValueError unless the tables fit each other and the receipt."""
    offsets = _offsets(tables)
    masks, atoms, members = (np.diff(offsets[name]) for name in ("mask", "atom", "member"))
    rows = [len(table) for name, table in tables.items() if name.startswith(COLUMN_PREFIX)]
    if (
        _sizes(tables).tolist() != [list(size) for size in receipt.sizes]
        or masks.tolist() != list(receipt.num_masks)
        or (atoms < 1).any()
        or members.tolist() != (atoms * -(-masks // 8)).tolist()
        or len(tables["members"]) != int(members.sum())
        or any(count != int(masks.sum()) for count in rows)
    ):
        raise ValueError("its tables don't fit the receipt, or each other")


def _sizes(tables: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """(n, 2) height and width of each image."""
    sizes = tables["extent"][:, :2] if "extent" in tables else tables["size"]
    return np.asarray(sizes, np.int64)
