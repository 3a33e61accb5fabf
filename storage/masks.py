"""`MaskSet`: the masks of one image, kept as atoms and membership.

SAM's masks overlap and nest, so one label map loses information and a stack of K boolean planes
is a hundred times too big. A `MaskSet` keeps the finest regions that no mask divides (atoms) and
which masks hold each of them. Nothing is lost: every mask comes back bit for bit.

Letters: H x W pixels, K masks, A atoms (atom 0 is "in no mask").
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from samprior.storage.errors import UsageError

Bools = npt.NDArray[np.bool_]
Atoms = npt.NDArray[np.unsignedinteger]

KERNEL_PX = 100_000
"""Fewer pixels in all planes are left to NumPy: they aren't worth half a second to import numba."""


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Masks of one image, in the order they were given.

    Atoms are numbered from 1 by first appearance in reading order, so equal masks in equal order
    give equal arrays, however the set was made.
    """

    atoms: Atoms
    """uint16 (H, W), or uint32 above 65,535 atoms: the atom of each pixel, 0 = in no mask."""

    members: Bools
    """(A, K): which masks hold atom a. Row 0 is all False; `members[atoms]` is (H, W, K)."""

    columns: Mapping[str, npt.NDArray[np.generic]]
    """One row per mask: numbers of shape (K, ...), such as `predicted_iou` and `stability`."""

    def __post_init__(self) -> None:
        if self.atoms.ndim != 2 or self.members.ndim != 2 or self.members.dtype != np.bool_:
            raise UsageError(
                "a MaskSet takes atoms (H, W) and boolean members (A, K), got "
                f"{self.atoms.shape} and {self.members.dtype} {self.members.shape}"
            )
        top = int(self.atoms.max()) if self.atoms.size else 0
        if top >= len(self.members) or self.members[0].any():
            raise UsageError(
                f"members must have a row for each of the {top + 1} atoms, and row 0 empty; "
                f"got {len(self.members)} rows"
            )
        for name, column in self.columns.items():
            if column.shape[:1] != self.members.shape[1:]:
                raise UsageError(
                    f"column {name!r} has shape {column.shape}; it must have a row for each of the "
                    f"{self.members.shape[1]} masks"
                )

    @classmethod
    def from_masks(cls, masks: npt.ArrayLike, **columns: npt.ArrayLike) -> Self:
        """Make a set of boolean masks (K, H, W); `columns` are arrays of shape (K, ...).

        Raises:
            UsageError: masks that are not boolean (K, H, W), or a column of another length.
        """
        planes = np.asarray(masks)
        if planes.ndim != 3 or planes.dtype != np.bool_:
            raise UsageError(
                f"masks must be boolean (K, H, W), got {planes.dtype} {planes.shape}; "
                "for no mask at all pass np.zeros((0, H, W), bool)"
            )
        given = {name: np.asarray(column) for name, column in columns.items()}
        if _is_compiled(planes.size):
            from samprior.storage.planes import planes_to_atoms

            atoms, members, atom_areas = planes_to_atoms(planes)
            return cls.counted(atoms, members, given, atom_areas=atom_areas)
        labels = np.zeros(planes.shape[1:], np.int64)
        members = np.zeros((1, len(planes)), np.bool_)
        for k, plane in enumerate(planes):
            members = _divide(labels, members, plane, k)
        return cls._canonical(labels, members, given)

    @classmethod
    def from_labels(
        cls,
        labels: npt.NDArray[np.integer],
        members: Bools,
        columns: Mapping[str, npt.ArrayLike],
    ) -> Self:
        """Make a set of regions in any numbering: the same as `from_masks` of their masks.

        `labels` (H, W) holds numbers below L, `members` is boolean (L, K): which masks hold the
        pixels of each label. Labels may be unused, or equal in their membership.

        Raises:
            UsageError: labels that `members` has no row for, or a column of another length.
        """
        if labels.ndim != 2 or members.ndim != 2 or members.dtype != np.bool_:
            raise UsageError(
                "from_labels takes labels (H, W) and boolean members (L, K), got "
                f"{labels.shape} and {members.dtype} {members.shape}"
            )
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(members):
            raise UsageError(
                f"labels must be 0 to {len(members) - 1}, a row of members each, got "
                f"{labels.min()} to {labels.max()}"
            )
        return cls._canonical(
            labels, members, {name: np.asarray(column) for name, column in columns.items()}
        )

    @classmethod
    def counted(
        cls,
        atoms: Atoms,
        members: Bools,
        columns: Mapping[str, npt.NDArray[np.generic]],
        *,
        atom_areas: npt.NDArray[np.int64],
    ) -> Self:
        """Make a set whose atoms have been counted: `atom_areas` (A,) are the pixels of each."""
        # Past the constructor's checks, which take as long as cutting the masks of a crop does, and
        # what was counted passes; `atom_areas` is put where cached_property looks for it.
        masks = object.__new__(cls)
        masks.__dict__.update(atoms=atoms, members=members, columns=columns, atom_areas=atom_areas)
        return masks

    @classmethod
    def _canonical(
        cls,
        labels: npt.NDArray[np.integer],
        members: Bools,
        columns: Mapping[str, npt.NDArray[np.generic]],
    ) -> Self:
        """Merge labels of equal membership and number them by first appearance."""
        first = _first_pixel(labels, len(members))
        present = np.flatnonzero((first < labels.size) & members.any(axis=1))
        _, merged = np.unique(np.packbits(members[present], axis=1), axis=0, return_inverse=True)
        merged = merged.reshape(-1)
        groups = int(merged.max()) + 1 if len(present) else 0
        group_first = np.full(groups, labels.size)
        np.minimum.at(group_first, merged, first[present])
        rank = np.empty(groups, np.int64)
        rank[np.argsort(group_first)] = np.arange(1, groups + 1)
        lookup = np.zeros(len(members), np.uint16 if groups <= 0xFFFF else np.uint32)
        lookup[present] = rank[merged]
        ordered = np.zeros((groups + 1, members.shape[1]), np.bool_)
        ordered[lookup[present]] = members[present]
        return cls(lookup[labels], ordered, columns)

    def __len__(self) -> int:
        return int(self.members.shape[1])

    def __repr__(self) -> str:
        height, width = self.shape
        return f"MaskSet({len(self)} masks, {len(self.members) - 1} atoms, {width}x{height})"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.atoms.shape
        return height, width

    def to_masks(self) -> Bools:
        """All masks as boolean (K, H, W), bit for bit as they were given."""
        if _is_compiled(len(self) * self.atoms.size) and self.atoms.dtype.kind == "u":
            from samprior.storage.planes import atoms_to_planes

            return atoms_to_planes(self.atoms, self.members)
        planes = np.empty((len(self), *self.shape), np.bool_)
        index = self.atoms.astype(np.intp)
        columns = np.ascontiguousarray(self.members.T)
        for plane, column in zip(planes, columns, strict=True):
            # "clip" skips the bounds check that the constructor has made for all.
            np.take(column, index, out=plane, mode="clip")
        return planes

    def mask(self, k: int) -> Bools:
        """Mask k as boolean (H, W)."""
        return self.members[:, k][self.atoms]

    @cached_property
    def atom_areas(self) -> npt.NDArray[np.int64]:
        """(A,) pixels of each atom; entry 0 counts the pixels in no mask."""
        return np.bincount(self.atoms.reshape(-1), minlength=len(self.members)).astype(np.int64)

    @cached_property
    def areas(self) -> npt.NDArray[np.int64]:
        """(K,) pixels of each mask."""
        return self.atom_areas @ self.members

    @cached_property
    def boxes(self) -> npt.NDArray[np.int32]:
        """(K, 4) as x0, y0, x1, y1 with x1 and y1 one past the last pixel; zeros if empty.

        `image[y0:y1, x0:x1]` is the cut-out. SAM's XYWH `bbox` is (x0, y0, x1-1-x0, y1-1-y0).
        """
        boxes = np.zeros((len(self), 4), np.int32)
        in_rows = _atoms_by_line(self.atoms, len(self.members)) @ self.members  # (H, K)
        in_columns = _atoms_by_line(self.atoms.T, len(self.members)) @ self.members  # (W, K)
        for low, high, seen in ((1, 3, in_rows), (0, 2, in_columns)):
            held = seen.any(axis=0)
            boxes[:, low] = np.where(held, seen.argmax(axis=0), 0)
            boxes[:, high] = np.where(held, len(seen) - seen[::-1].argmax(axis=0), 0)
        return boxes

    @property
    def intersections(self) -> npt.NDArray[np.int64]:
        """(K, K) pixels that each two masks share; the diagonal is `areas`."""
        return atom_intersections(self.atom_areas, self.members)

    @property
    def coverage(self) -> float:
        """Share of the pixels that lie in at least one mask."""
        return 1.0 - float(self.atom_areas[0]) / self.atoms.size if self.atoms.size else 0.0

    def select(self, masks: npt.ArrayLike) -> Self:
        """The set of only some masks: boolean (K,) or indices, in the order given.

        Raises:
            UsageError: neither booleans (K,) nor a list of masks of this set.
        """
        chosen = np.asarray(masks)
        if not chosen.size:
            chosen = np.zeros(0, np.intp)  # an empty list comes as floats
        if chosen.ndim != 1:
            raise UsageError(f"select takes a list of masks, got shape {chosen.shape}")
        try:
            members = self.members[:, chosen]
        except IndexError as error:
            raise UsageError(f"can't select from {len(self)} masks: {error}") from error
        return self._canonical(
            self.atoms,
            members,
            {name: column[chosen] for name, column in self.columns.items()},
        )

    def crop(self, y: int, x: int, height: int, width: int) -> Self:
        """The masks inside a window, cut to it; masks that don't meet it are left out.

        Raises:
            UsageError: the window does not lie inside the image.
        """
        y, x, height, width = checked_window(self.shape, y, x, height, width)
        atoms = self.atoms[y : y + height, x : x + width]
        seen = np.zeros(len(self.members), np.bool_)
        seen[atoms] = True
        met = self.members[seen].any(axis=0)
        return self._canonical(
            atoms,
            self.members[:, met],
            {name: column[met] for name, column in self.columns.items()},
        )

    def equals(self, other: "MaskSet") -> bool:
        """Whether both hold the same masks in the same order with the same columns.

        NaN equals NaN: SAM's stability is 0/0 for masks that are empty at its upper threshold.
        """
        return (
            np.array_equal(self.atoms, other.atoms)
            and np.array_equal(self.members, other.members)
            and self.columns.keys() == other.columns.keys()
            and all(
                column.dtype == other.columns[name].dtype
                and np.array_equal(column, other.columns[name], equal_nan=column.dtype.kind == "f")
                for name, column in self.columns.items()
            )
        )


def atom_intersections(atom_areas: npt.NDArray[np.int64], members: Bools) -> npt.NDArray[np.int64]:
    """(K, K) pixels shared by each two masks, from atoms' areas (A,) and members (A, K)."""
    # float64 holds every pixel count exactly and goes through BLAS; integer products don't.
    weights = members.astype(np.float64)
    return (weights.T @ (weights * atom_areas[:, None])).astype(np.int64)


def checked_window(
    shape: tuple[int, int], y: int, x: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """The window as plain integers, which don't wrap as NumPy's small ones do.

    Raises:
        UsageError: it is empty, or does not lie inside an image of `shape`.
    """
    y, x, height, width = map(operator.index, (y, x, height, width))
    inside = y >= 0 and x >= 0 and y + height <= shape[0] and x + width <= shape[1]
    if not inside or height < 1 or width < 1:
        raise UsageError(
            f"window y={y} x={x} {width}x{height} does not lie inside {shape[1]}x{shape[0]}"
        )
    return y, x, height, width


def _is_compiled(num_px: int) -> bool:
    """Whether planes of so many pixels in all are left to compiled loops, which need numba."""
    if num_px < KERNEL_PX:
        return False
    from samprior.storage import compiled

    return compiled.numba is not None


def _divide(labels: npt.NDArray[np.int64], members: Bools, plane: Bools, k: int) -> Bools:
    """Split every label that mask k meets, in place; return members with the new rows."""
    inside = labels[plane]
    met = np.zeros(len(members), np.bool_)
    met[inside] = True
    split = np.flatnonzero(met)
    lookup = np.zeros(len(members), np.int64)
    lookup[split] = np.arange(len(members), len(members) + len(split))
    labels[plane] = lookup[inside]
    rows = members[split].copy()
    rows[:, k] = True
    return np.concatenate([members, rows])


def _first_pixel(labels: npt.NDArray[np.integer], num_labels: int) -> npt.NDArray[np.int64]:
    """(num_labels,) index of each label's first pixel in reading order; labels.size if none."""
    flat = labels.reshape(-1)
    first = np.full(num_labels, flat.size, np.int64)
    # Of repeated indices NumPy keeps the last written, so writing backwards keeps the first.
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)
    return first


def _atoms_by_line(atoms: Atoms, num_atoms: int) -> Bools:
    """(lines, A): which atoms occur in each line of `atoms`."""
    seen = np.zeros((len(atoms), num_atoms), np.bool_)
    np.put_along_axis(seen, atoms.astype(np.intp), True, axis=1)
    return seen
