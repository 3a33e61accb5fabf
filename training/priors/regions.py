"""The masks of a batch of crops as tensors, and pooling over them without planes of masks.

All pooling runs over atoms, the finest regions that no mask divides: values are added up per
atom in one pass over the pixels, then per mask over the pairs "atom lies in mask", and go back to
the pixels by one gather. The cost doesn't grow with how many masks overlap. On a CPU every
result is the same from run to run; on CUDA the order of additions may vary.

Letters: B images, H x W pixels, C channels, A atoms, M masks and P pairs of the whole batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samprior.storage import MaskSet
from samprior.storage.errors import UsageError
from samprior.training.priors.parts import count_cells, image_part

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CellCounts:
    """How many pixels of each atom lie in each cell of a coarse grid; a cell is s x s pixels.

    Only pairs that meet are listed: T of them, sorted by cell, then atom.
    """

    atom: Tensor
    """int64 (T,): atom of the batch."""

    cell: Tensor
    """int64 (T,): cell of the batch, numbered in reading order, image after image."""

    count: Tensor
    """int64 (T,): pixels that both share, at least 1."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "CellCounts":
        """The same on another device."""
        return CellCounts(*(part.to(device, non_blocking=non_blocking) for part in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Atom, cell and count."""
        return self.atom, self.cell, self.count


@dataclass(frozen=True, eq=False, kw_only=True)
class RegionBatch:
    """Masks of B crops of one size. Make it with `RegionBatch.collate`.

    Atoms and masks are numbered through the batch, image after image. The first atom of each
    image is its "in no mask", also when no pixel is. Masks keep the order of their `MaskSet`;
    `mask_rank` is the other order, by falling area.
    """

    atoms: Tensor
    """int32 (B, H, W): the atom of each pixel. The only large part: half the bytes of int64."""

    first_atom: Tensor
    """int64 (B,): the "in no mask" atom of each image."""

    atom_areas: Tensor
    """int64 (A,): pixels of each atom."""

    atom_depth: Tensor
    """int64 (A,): how many masks hold each atom."""

    atom_top: Tensor
    """int64 (A,): rank of the smallest mask that holds the atom, the top-most one; -1 if none."""

    pair_atom: Tensor
    """int64 (P,): atom of each pair "atom lies in mask"; pairs are sorted by mask."""

    pair_mask: Tensor
    """int64 (P,): mask of each pair."""

    mask_image: Tensor
    """int64 (M,): image of each mask."""

    mask_areas: Tensor
    """int64 (M,): pixels of each mask; may be 0."""

    mask_position: Tensor
    """int64 (M,): place of the mask in its `MaskSet`, from 0."""

    mask_rank: Tensor
    """int64 (M,): place of the mask among its image's by falling area (stable), from 0."""

    cells: Mapping[int, CellCounts]
    """Cell counts made ahead, by stride in pixels."""

    @classmethod
    def collate(cls, mask_sets: Sequence[MaskSet], *, strides: Sequence[int] = ()) -> Self:
        """Put the masks of several crops of one size together, on the CPU.

        `strides` lists the coarse grids whose counts to make now, in the loading thread, so that
        `cell_counts` needn't make them (and wait for the device) in the training step.

        Raises:
            UsageError: no crop, crops of different sizes, or a side no multiple of a stride.
        """
        shapes = sorted({masks.shape for masks in mask_sets})
        if len(shapes) != 1:
            raise UsageError(
                f"a batch needs crops of one size, got {len(mask_sets)} crops of sizes {shapes}"
            )
        parts = [image_part(masks.members, masks.atom_areas) for masks in mask_sets]
        atom_starts = _starts([len(part["atom_depth"]) for part in parts])
        mask_starts = _starts([len(part["mask_areas"]) for part in parts])
        atoms = np.empty((len(mask_sets), *shapes[0]), np.int32)
        for image, (part, masks) in enumerate(zip(parts, mask_sets, strict=True)):
            atoms[image] = masks.atoms
            atoms[image] += np.int32(atom_starts[image])
            part["pair_atom"] += atom_starts[image]
            part["pair_mask"] += mask_starts[image]
        num_masks = [len(masks) for masks in mask_sets]
        joined = {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts]))
            for name in parts[0]
        }
        joined["atoms"] = torch.from_numpy(atoms)
        joined["first_atom"] = torch.from_numpy(atom_starts)
        joined["mask_image"] = torch.from_numpy(np.repeat(np.arange(len(parts)), num_masks))
        positions = np.arange(sum(num_masks)) - np.repeat(mask_starts, num_masks)
        joined["mask_position"] = torch.from_numpy(positions)
        return cls(**joined, cells={}).with_cells(strides)

    def with_cells(self, strides: Sequence[int]) -> Self:
        """The same batch with the cell counts of these strides made.

        Raises:
            UsageError: a side of the crops is no multiple of a stride.
        """
        return replace(self, cells={stride: self.cell_counts(stride) for stride in strides})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        tensors = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in fields(self)
            if field.name != "cells"
        }
        cells = {
            stride: counts.to(device, non_blocking=non_blocking)
            for stride, counts in self.cells.items()
        }
        return type(self)(**tensors, cells=cells)

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.atoms.shape[0]

    @property
    def num_atoms(self) -> int:
        """Atoms of all images together."""
        return self.atom_areas.shape[0]

    @property
    def num_masks(self) -> int:
        """Masks of all images together."""
        return self.mask_areas.shape[0]

    def check_image(self, image: Tensor) -> None:
        """Raise UsageError unless `image` (B, C, H, W) has the size of this batch."""
        batch, height, width = self.atoms.shape
        if image.ndim != 4 or (image.shape[0], *image.shape[2:]) != (batch, height, width):
            raise UsageError(
                f"masks of {batch} crops of {height}x{width} don't fit images of shape "
                f"{tuple(image.shape)}; cut both with the same window"
            )

    def sum_by_atom(self, values: Tensor) -> Tensor:
        """Add up (B, C, H, W) over the pixels of each atom: (A, C), in float64.

        Single precision would lose the third digit on an atom of 65,536 pixels.
        """
        rows = values.permute(0, 2, 3, 1).reshape(-1, values.shape[1]).double()
        return rows.new_zeros(self.num_atoms, rows.shape[1]).index_add(
            0, self.atoms.reshape(-1), rows
        )

    def sum_by_mask(self, atom_values: Tensor) -> Tensor:
        """Add up (A, C) over the atoms of each mask: (M, C)."""
        rows = atom_values.index_select(0, self.pair_atom)
        return rows.new_zeros(self.num_masks, rows.shape[1]).index_add(0, self.pair_mask, rows)

    def sum_of_masks(self, mask_values: Tensor) -> Tensor:
        """Add up (M, C) over the masks that hold each atom: (A, C)."""
        rows = mask_values.index_select(0, self.pair_mask)
        return rows.new_zeros(self.num_atoms, rows.shape[1]).index_add(0, self.pair_atom, rows)

    def to_pixels(self, atom_values: Tensor) -> Tensor:
        """Give each pixel the values (A, C) of its atom: (B, C, H, W)."""
        batch, height, width = self.atoms.shape
        rows = atom_values.index_select(0, self.atoms.reshape(-1))
        return rows.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def in_largest(self, num_masks: int) -> Tensor:
        """Bool (A, num_masks): whether the atom lies in the mask of that rank in its image."""
        # Masks beyond `num_masks` all land in one further column, which is cut off again; picking
        # the others by a condition would make the device wait for the CPU.
        table = self.atom_areas.new_zeros(self.num_atoms, num_masks + 1, dtype=torch.bool)
        column = self.mask_rank.index_select(0, self.pair_mask).clamp(max=num_masks)
        table[self.pair_atom, column] = True
        return table[:, :num_masks]

    def largest_areas(self, num_masks: int) -> Tensor:
        """int64 (B, num_masks): pixels of each image's largest masks by rank; 0 where none."""
        table = self.mask_areas.new_zeros(self.batch_size, num_masks + 1)
        table[self.mask_image, self.mask_rank.clamp(max=num_masks)] = self.mask_areas
        return table[:, :num_masks]

    def cell_counts(self, stride: int) -> CellCounts:
        """How many pixels of each atom lie in each stride x stride cell.

        Raises:
            UsageError: a side of the crops is no multiple of the stride.
        """
        if stride in self.cells:
            return self.cells[stride]
        height, width = self.atoms.shape[1:]
        if height % stride or width % stride:
            raise UsageError(
                f"crops of {height}x{width} have a side that is no multiple of {stride}, the "
                f"stride of the features; use crops such as "
                f"{max(height // stride, 1) * stride}x{max(width // stride, 1) * stride}"
            )
        if self.atoms.device.type == "cpu":
            counted = count_cells(self.atoms.numpy(), stride, self.num_atoms)
            return CellCounts(*map(torch.from_numpy, counted))
        return cell_counts_by_sorting(self.atoms, stride)


def cell_counts_by_sorting(atoms: Tensor, stride: int) -> CellCounts:
    """`RegionBatch.cell_counts` of atoms (B, H, W) as a GPU can do it; sides fit the stride."""
    batch, height, width = atoms.shape
    blocks = atoms.reshape(batch, height // stride, stride, width // stride, stride)
    # Sorting inside the cells: many short sorts, where torch.unique makes one long one.
    rows = blocks.transpose(2, 3).reshape(-1, stride * stride).sort(dim=1).values
    changes = torch.ones_like(rows, dtype=torch.bool)
    changes[:, 1:] = rows[:, 1:] != rows[:, :-1]
    first = changes.reshape(-1).nonzero()[:, 0]
    count = torch.diff(first, append=first.new_full((1,), rows.numel()))
    return CellCounts(rows.reshape(-1)[first].long(), first // (stride * stride), count)


def keep_masks(
    areas: npt.NDArray[np.integer],
    intersections: npt.NDArray[np.integer],
    *,
    min_area_px: int = 64,
    max_iou: float = 0.9,
) -> Bools:
    """Which masks are worth fusing: neither tiny nor the near duplicate of a larger kept one.

    Goes through the masks by falling area (ties in the given order). SAM's own suppression
    leaves near duplicates.

    Args:
        areas: (K,) pixels of each mask.
        intersections: (K, K) pixels that each two share, as in `MaskSet.intersections`.
        min_area_px: masks of fewer pixels are dropped.
        max_iou: masks whose IoU with an earlier kept one is above this are dropped.

    Returns:
        Bool (K,), in the given order: `masks.select(keep_masks(...))`.
    """
    keep = np.zeros(len(areas), np.bool_)
    for k in np.argsort(-np.asarray(areas, np.int64), kind="stable"):
        if areas[k] < min_area_px:
            continue
        shared = intersections[k, keep]
        union = areas[k] + areas[keep] - shared
        # Written without a division: an empty mask has an empty union.
        keep[k] = not np.any(shared > max_iou * union)
    return keep


def dropout_masks(num_masks: int, rng: np.random.Generator, *, share: float = 0.5) -> Bools:
    """Which masks stay when a random share of them is dropped in training: bool (num_masks,).

    Exactly `share * num_masks` are dropped, rounded up or down at random so that the mean is
    right for few masks too. SAM-Deblur drops one half.

    Raises:
        UsageError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise UsageError(f"the share of dropped masks must lie in [0, 1], got {share}")
    num_dropped = int(share * num_masks + rng.random())
    keep = np.ones(num_masks, np.bool_)
    keep[rng.permutation(num_masks)[:num_dropped]] = False
    return keep


def _starts(lengths: Sequence[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
