"""Masks from low-resolution logits straight to a `MaskSet`, without ever stacking them.

`Raster` is a label image that each mask refines inside its own box: every label that the mask
meets is divided into the part outside, which keeps its number, and the part inside, which gets a
new one. What a label belongs to is kept as a chain of (label it was divided from, mask), so the
memory does not grow with masks times labels until the last step. Pixels are exactly those that
`scoring` counts.

Letters: H x W pixels, K masks, L labels, B blocks.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samprior.pipeline.everything.cells import mask_blocks
from samprior.pipeline.everything.resampling import Axis, Ints, Resampling
from samprior.pipeline.everything.scoring import score_masks
from samprior.pipeline.everything.workspace import workspace
from samprior.storage import MaskSet
from samprior.storage.compiled import kernel
from samprior.storage.masks import Bools

PixelBox = tuple[int, int, int, int]
"""x0, y0, x1, y1 of a mask in its crop, inclusive, as `Scores.boxes` has them."""


class Raster:
    """Collects the masks of one picture in their final order."""

    def __init__(self, height: int, width: int) -> None:
        self._labels = np.zeros((height, width), np.int32)
        # Label 0 is "in no mask"; each other was divided from an older one by a mask.
        self._origins: list[Ints] = [np.zeros(1, np.int32)]
        self._num_labels = 1
        self._num_masks = 0

    def add(
        self,
        logits: Tensor,
        resampling: Resampling,
        box: PixelBox,
        *,
        x0: int = 0,
        y0: int = 0,
        mask_threshold: float,
    ) -> None:
        """Add a mask by its float32 logits (h, w) on the CPU.

        The crop they belong to begins at pixel (`x0`, `y0`) of the picture; `box` is the mask's
        box in that crop, or any larger one.
        """
        blocks = _blocks(logits, resampling, box, mask_threshold)
        height, width = resampling.size
        self._divide(self._labels[y0 : y0 + height, x0 : x0 + width], blocks)

    def add_plane(self, plane: Bools) -> None:
        """Add a mask by its pixels, boolean (H, W)."""
        assert plane.shape == self._labels.shape, (plane.shape, self._labels.shape)
        edges = np.diff(plane, axis=1, prepend=False, append=False)  # (H, W + 1)
        y, x = np.nonzero(edges)
        blocks = np.stack([y[::2], y[::2] + 1, x[::2], x[1::2]], axis=1)
        self._divide(self._labels, blocks.astype(np.int32))

    def finish(self, columns: Mapping[str, npt.ArrayLike]) -> MaskSet:
        """The set of all masks in the order they came; `columns` are arrays (K, ...)."""
        origins, masks = np.concatenate(self._origins), self._masks_of_labels()
        present = np.flatnonzero(np.bincount(self._labels.reshape(-1), minlength=len(origins)))
        compact = np.zeros(len(origins), np.int32)
        compact[present] = np.arange(len(present))
        members = np.zeros((len(present), self._num_masks), np.bool_)
        chain = present.copy()
        rows = np.flatnonzero(chain)
        while len(rows):
            members[rows, masks[chain[rows]]] = True
            chain[rows] = origins[chain[rows]]
            rows = rows[chain[rows] > 0]
        return MaskSet.from_labels(compact[self._labels], members, columns)

    def _masks_of_labels(self) -> npt.NDArray[np.intp]:
        """(L,): the mask that made each label; -1 for label 0."""
        return np.repeat(np.arange(-1, self._num_masks), [len(part) for part in self._origins])

    def _divide(self, labels: Ints, blocks: Ints) -> None:
        origins = _divide_blocks(labels, blocks, self._num_labels)
        self._origins.append(origins)
        self._num_labels += len(origins)
        self._num_masks += 1


def load_kernels() -> None:
    """Load the machine code of all kernels; compiled first, for seconds, if it isn't on disk."""
    resampling = Resampling.of(3, img_size=12, input_size=(12, 12), original_size=(12, 12))
    logits = torch.ones(1, 3, 3)
    score_masks(logits, resampling, mask_threshold=0.0, offset=1.0)
    Raster(12, 12).add(logits[0], resampling, (0, 0, 11, 11), mask_threshold=0.0)


def mask_plane(
    logits: Tensor, resampling: Resampling, box: PixelBox, *, mask_threshold: float
) -> Bools:
    """One mask as boolean (H, W) of its crop; arguments as for `Raster.add`."""
    plane = np.zeros(resampling.size, np.bool_)
    for y0, y1, x0, x1 in _blocks(logits, resampling, box, mask_threshold).tolist():
        plane[y0:y1, x0:x1] = True
    return plane


def _blocks(logits: Tensor, resampling: Resampling, box: PixelBox, mask_threshold: float) -> Ints:
    """Disjoint blocks (B, 4) y0, y1, x0, x1 that make up the mask, in its crop."""
    assert logits.dtype == torch.float32, logits.dtype
    x0, y0, x1, y1 = (int(side) for side in box)
    return mask_blocks(
        logits.detach().contiguous().numpy(),
        resampling.tables,
        np.float32(mask_threshold),
        workspace(resampling),
        _cells(resampling.tables.rows, y0, y1),
        _cells(resampling.tables.columns, x0, x1),
    )


def _cells(axis: Axis, first: int, last: int) -> tuple[int, int]:
    """The cells from that of pixel `first` to one past that of pixel `last`."""
    return int(axis.starts[first]), int(axis.starts[last]) + 1


@kernel
def _divide_blocks(labels: Ints, blocks: Ints, num_labels: int) -> Ints:
    """Give each label a new number inside the blocks, in place; the old one of each new, (L,)."""
    renamed = np.full(num_labels, -1, np.int32)
    origins = np.empty(num_labels, np.int32)
    count = 0
    for block in range(len(blocks)):
        y0, y1, x0, x1 = blocks[block]
        for y in range(y0, y1):
            for x in range(x0, x1):
                old = labels[y, x]
                if renamed[old] < 0:
                    renamed[old] = num_labels + count
                    origins[count] = old
                    count += 1
                labels[y, x] = renamed[old]
    return origins[:count].copy()
