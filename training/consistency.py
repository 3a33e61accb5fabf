"""Whether a picture is cut into the same masks as the clean one: segmentation as the user of it.

A segmenter is run on the clean picture and on another. Each mask of one side is compared with the
mask of the other side that overlaps it best. No plane of pixels is made: two atoms' shared pixels
are counted once, and masks are sums of atoms.

Letters: K and L masks, A and B atoms of the two sets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb
from samprior.storage.masks import MaskSet

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How well the masks of one set are met by those of another."""

    iou: float
    """Mean over the masks of the best intersection over union with any mask of the other set."""

    iou_by_area: float
    """The same mean, weighted with the masks' areas."""

    above_50: float
    """Share of the masks whose best IoU is above 0.5."""

    above_75: float
    """Share of the masks whose best IoU is above 0.75."""


@dataclass(frozen=True)
class Consistency:
    """Both directions."""

    found: Agreement
    """Of the clean picture's masks, among those of the other picture."""

    right: Agreement
    """Of the other picture's masks, among those of the clean one."""

    def values(self) -> Iterator[tuple[str, float]]:
        """All figures by name; the first is the mean of both directions."""
        yield "mask_iou", (self.found.iou + self.right.iou) / 2
        yield "mask_iou_by_area", (self.found.iou_by_area + self.right.iou_by_area) / 2
        for direction in ("found", "right"):
            for name, value in vars(getattr(self, direction)).items():
                yield f"mask_{direction}_{name}", value


def consistency(masks: MaskSet, clean: MaskSet) -> Consistency:
    """Compare the masks of a picture with those of its clean side.

    Masks without a pixel are left out. Two sets without masks agree fully; a set without masks
    and one with masks don't agree at all.

    Raises:
        UsageError: the sets are of pictures of different sizes.
    """
    if masks.shape != clean.shape:
        raise UsageError(
            f"masks to compare must be of one size, got {masks.shape} and {clean.shape}"
        )
    iou = mask_ious(clean, masks)
    areas, others = clean.areas[clean.areas > 0], masks.areas[masks.areas > 0]
    return Consistency(_agreement(iou, areas), _agreement(iou.T, others))


def mask_ious(first: MaskSet, second: MaskSet) -> Floats:
    """(K, L) intersection over union of each two masks; masks without a pixel are left out."""
    shared = coo_array(
        (
            np.ones(first.atoms.size),
            (first.atoms.reshape(-1).astype(np.int32), second.atoms.reshape(-1).astype(np.int32)),
        ),
        shape=(len(first.members), len(second.members)),
    ).tocsr()  # (A, B) pixels; coordinates that repeat are added
    held, others = first.areas > 0, second.areas > 0
    by_atom = shared @ second.members[:, others].astype(np.float64)  # (A, L)
    inner = first.members[:, held].T.astype(np.float64) @ by_atom
    union = first.areas[held][:, None] + second.areas[others][None] - inner
    return np.asarray(inner / union)


class ConsistencyMeasure:
    """Segmentation consistency as a `Measure` of `samprior.training.evaluate`.

    Args:
        segment: uint8 (H, W, 3) to its masks.
        name: the segmenter and its settings, in words.
    """

    def __init__(self, segment: Callable[[Rgb], MaskSet], *, name: str) -> None:
        self._segment = segment
        self.remark = (
            f"mask IoU: masks by {name} of each picture against those of the clean one, best IoU "
            "of each mask, mean over masks and both directions"
        )

    def __call__(self, clean: Rgb, pictures: Sequence[Rgb]) -> list[Mapping[str, float]]:
        """Figures of each picture; the clean one is segmented once."""
        wanted = self._segment(clean)
        return [dict(consistency(self._segment(one), wanted).values()) for one in pictures]


def _agreement(iou: Floats, areas: npt.NDArray[np.int64]) -> Agreement:
    """Of the masks along the first axis of `iou` (K, L), with areas (K,)."""
    num_masks, num_others = iou.shape
    if not num_masks or not num_others:
        value = float(num_masks == num_others)
        return Agreement(value, value, value, value)
    best = iou.max(axis=1)
    return Agreement(
        iou=float(best.mean()),
        iou_by_area=float(np.average(best, weights=areas)),
        above_50=float((best > 0.5).mean()),
        above_75=float((best > 0.75).mean()),
    )
