"""What `RegionBatch` needs to know of the masks of one image: small arrays, made in one kernel.

In NumPy it is a dozen calls on some fifty numbers each, which took longer than reading the crop.

A atoms, K masks, P pairs "atom lies in mask".
"""

import numpy as np
import numpy.typing as npt

from samprior.storage.compiled import kernel

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def image_part(members: Bools, atom_areas: Ints) -> dict[str, Ints]:
    """The arrays of an image from members (A, K) and pixels (A,), atoms and masks from 0."""
    num_atoms, num_masks = members.shape
    depth, top = np.zeros((2, num_atoms), np.int64)
    areas, rank = np.zeros((2, num_masks), np.int64)
    pairs = np.empty((2, int(np.count_nonzero(members))), np.int64)
    fill_part(members, atom_areas, depth, top, areas, rank, pairs)
    return {
        "atom_areas": atom_areas,
        "atom_depth": depth,
        "atom_top": top,
        "pair_atom": pairs[0],
        "pair_mask": pairs[1],
        "mask_areas": areas,
        "mask_rank": rank,
    }


def count_cells(
    atoms: npt.NDArray[np.int32], stride: int, num_atoms: int
) -> tuple[Ints, Ints, Ints]:
    """Atom, cell and pixels of each pair that meets, of atoms (B, H, W) in stride x stride cells.

    Sorted by cell, then atom; cells are numbered in reading order, image after image.
    """
    pairs = np.empty((3, atoms.size), np.int64)
    count = _count_cells(atoms, stride, np.zeros(num_atoms, np.int64), pairs)
    found, cells, pixels = (row[:count].copy() for row in pairs)
    return found, cells, pixels


@kernel
def _count_cells(atoms: npt.NDArray[np.int32], stride: int, tally: Ints, pairs: Ints) -> int:
    """Write the pairs (3, room) and return how many; `tally` (A,) is zeros before and after."""
    batch, height, width = atoms.shape
    total, cell = 0, 0
    for image in range(batch):
        for top in range(0, height, stride):
            for left in range(0, width, stride):
                begin = total
                for y in range(top, top + stride):
                    for x in range(left, left + stride):
                        atom = atoms[image, y, x]
                        if tally[atom] == 0:
                            # Sorted as they come: cells have few atoms.
                            place = total
                            while place > begin and pairs[0, place - 1] > atom:
                                pairs[0, place] = pairs[0, place - 1]
                                place -= 1
                            pairs[0, place] = atom
                            total += 1
                        tally[atom] += 1
                for place in range(begin, total):
                    pairs[1, place] = cell
                    pairs[2, place] = tally[pairs[0, place]]
                    tally[pairs[0, place]] = 0
                cell += 1
    return total


@kernel
def fill_part(
    members: Bools,
    atom_areas: Ints,
    depth: Ints,
    top: Ints,
    areas: Ints,
    rank: Ints,
    pairs: Ints,
) -> None:
    """Write an image's arrays; depth and areas are zeros, pairs (2, P) come by mask, then atom."""
    num_atoms, num_masks = members.shape
    count = 0
    for mask in range(num_masks):
        for atom in range(num_atoms):
            if members[atom, mask]:
                pairs[0, count] = atom
                pairs[1, count] = mask
                areas[mask] += atom_areas[atom]
                depth[atom] += 1
                count += 1
    order = np.argsort(-areas, kind="mergesort")  # stable: equal ones keep their order
    for place in range(num_masks):
        rank[order[place]] = place
    top[:] = -1
    for place in range(count):
        atom = pairs[0, place]
        top[atom] = max(top[atom], rank[pairs[1, place]])
