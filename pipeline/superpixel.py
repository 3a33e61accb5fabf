"""The `superpixel` segmenter: nested regions by colour alone, without weights. It is not SAM.

For dry runs, tests, and machines that can't get SAM's checkpoints. Fine regions come from the
graph-based segmentation of Felzenszwalb and Huttenlocher (IJCV 2004), cut at full resolution up
to `MAX_WORK_PIXELS`; neighbours are then merged, the cheapest pair first by Ward's criterion on
mean Lab colour, and the merging is read off at several numbers of regions. So each mask of a
finer level lies inside one of each coarser level, and all are connected (8 neighbours). Running
Felzenszwalb at several scales instead gives no nesting and, with little contrast, one region.

Deterministic for the same versions of NumPy and scikit-image on the same kind of processor.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from samprior.pipeline.checks import check_float, check_int
from samprior.storage import MaskSet
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb

# H x W pixels, R fine regions, K masks
Labels = npt.NDArray[np.intp]

MAX_WORK_PIXELS = 1_000_000
"""Larger pictures are segmented at this size and the regions scaled up."""

_REFERENCE_PIXELS = 150_000
_MAX_COST = np.inf


@dataclass(frozen=True, kw_only=True)
class SuperpixelSettings:
    """Settings of the `superpixel` segmenter.

    Raises:
        UsageError: a value outside its range.
    """

    levels: tuple[int, ...] = (5, 15, 45, 100)
    """Most regions of each level, increasing; the sum bounds the number of masks."""

    scale: float = 100.0
    """Felzenszwalb's preference for large fine regions, for 150,000 pixels; scaled by area."""

    sigma: float = 0.8
    """Gaussian smoothing before segmenting, in pixels."""

    min_area: float = 0.001
    """Smallest fine region as a share of the picture; never below 16 pixels."""

    def __post_init__(self) -> None:
        if not isinstance(self.levels, Sequence) or isinstance(self.levels, str):
            raise UsageError(
                f"levels must be a list of whole numbers, such as [5, 15, 45], got {self.levels!r}"
            )
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels:
            raise UsageError("levels must name at least one number of regions, got none")
        for level in self.levels:
            check_int("each of levels", level, 1)
        if any(a >= b for a, b in pairwise(self.levels)):
            raise UsageError(f"levels must increase, got {self.levels}")
        check_float("scale", self.scale, 1e-6)
        check_float("sigma", self.sigma, 0.0)
        # With regions below this the merging takes minutes.
        check_float("min_area", self.min_area, 0.0005)
        if self.min_area > 1:
            raise UsageError(f"min_area is a share of the picture, at most 1, got {self.min_area}")

    def describe(self) -> dict[str, object]:
        """What determines the masks, as JSON."""
        settings = asdict(self) | {"levels": list(self.levels)}
        return {"segmenter": "superpixel", "algorithm": 1, **settings}

    def build(self) -> "SuperpixelSegmenter":
        """Make the segmenter."""
        return SuperpixelSegmenter(self)


class SuperpixelSegmenter:
    """Nested regions of a picture, coarse levels first, each region once.

    Column: `scale` float32 (K,), the side of an average region of the mask's level as a share
    of the picture's side: 1 / sqrt(regions of the level).
    """

    def __init__(self, settings: SuperpixelSettings) -> None:
        self._settings = settings

    def __call__(self, image: Rgb) -> MaskSet:
        """Masks of uint8 (H, W, 3).

        Raises:
            UsageError: an array of another type or shape, or without pixels.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(f"wanted an image uint8 (H, W, 3), got {image.dtype} {image.shape}")
        work = _shrunk(image)
        fine = _fine_regions(work, self._settings)
        levels = _merge(work, fine, self._settings.levels)
        groups, scales = _distinct(levels)
        labels = _enlarged(fine, image.shape[:2])
        planes = np.empty((len(groups), *labels.shape), np.bool_)
        for plane, group in zip(planes, groups, strict=True):
            plane[:] = group[labels]
        masks = MaskSet.from_masks(planes, scale=scales)
        # Scaling up by nearest neighbour can't lose a region, so no mask is empty here.
        assert masks.areas.all()
        return masks


def _fine_regions(work: Rgb, settings: SuperpixelSettings) -> Labels:
    """(H, W) labels from 0, each connected."""
    # Here, not at the top: scikit-image takes a second to import, and the CLI imports this file.
    from skimage.segmentation import felzenszwalb

    pixels = work.shape[0] * work.shape[1]
    labels = felzenszwalb(
        work,
        scale=settings.scale * pixels / _REFERENCE_PIXELS,
        sigma=settings.sigma,
        min_size=max(16, round(settings.min_area * pixels)),
        channel_axis=-1,
    )
    return np.asarray(labels, np.intp)


def _merge(work: Rgb, fine: Labels, levels: tuple[int, ...]) -> list[Labels]:
    """For each level, coarse first: (R,) the group of each fine region, from 0."""
    from skimage.color import rgb2lab

    area, mean_rgb = _means(work, fine)
    lab = np.asarray(rgb2lab(mean_rgb[None] / 255.0)[0])
    touching = _adjacency(fine, len(area))
    cost = np.stack([_merge_costs(i, area, lab, touching) for i in range(len(area))])
    owner = np.arange(len(area))
    num_left = len(area)
    groups: list[Labels] = []
    for wanted in reversed(levels):
        while num_left > wanted:
            keep, drop = divmod(int(cost.argmin()), len(area))
            lab[keep] = (area[keep] * lab[keep] + area[drop] * lab[drop]) / (
                area[keep] + area[drop]
            )
            area[keep] += area[drop]
            owner[owner == drop] = keep
            touching[keep] |= touching[drop]
            touching[drop] = touching[:, drop] = False
            touching[keep, keep] = False
            touching[:, keep] = touching[keep]
            cost[drop] = cost[:, drop] = _MAX_COST
            cost[keep] = cost[:, keep] = _merge_costs(keep, area, lab, touching)
            num_left -= 1
        groups.insert(0, np.unique(owner, return_inverse=True)[1])
    return groups


def _merge_costs(
    i: int,
    area: npt.NDArray[np.float64],
    lab: npt.NDArray[np.float64],
    touching: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """(R,) growth of the squared error if region i took in each neighbour (Ward 1963)."""
    growth = area[i] * area / (area[i] + area) * ((lab[i] - lab) ** 2).sum(axis=1)
    return np.where(touching[i], growth, _MAX_COST)


def _means(work: Rgb, fine: Labels) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(R,) pixels and (R, 3) mean colour of each fine region."""
    flat = fine.reshape(-1)
    area = np.bincount(flat).astype(np.float64)
    sums = [np.bincount(flat, work[:, :, c].reshape(-1)) for c in range(3)]
    return area, np.stack(sums, axis=1) / area[:, None]


def _adjacency(fine: Labels, num_regions: int) -> npt.NDArray[np.bool_]:
    """(R, R): which regions share an edge of a pixel."""
    touching = np.zeros((num_regions, num_regions), np.bool_)
    for one, other in ((fine[1:], fine[:-1]), (fine[:, 1:], fine[:, :-1])):
        touching[one, other] = True
        touching[other, one] = True
    np.fill_diagonal(touching, False)
    return touching


def _distinct(
    levels: list[Labels],
) -> tuple[list[npt.NDArray[np.bool_]], npt.NDArray[np.float32]]:
    """Each group of fine regions once, at the coarsest level that has it, with its scale."""
    groups: dict[bytes, npt.NDArray[np.bool_]] = {}
    scales: list[float] = []
    for level in levels:
        num_groups = int(level.max()) + 1
        for g in range(num_groups):
            group = level == g
            if group.tobytes() not in groups:
                groups[group.tobytes()] = group
                scales.append(1 / math.sqrt(num_groups))
    return list(groups.values()), np.array(scales, np.float32)


def _shrunk(image: Rgb) -> Rgb:
    height, width = image.shape[:2]
    factor = math.sqrt(MAX_WORK_PIXELS / (height * width))
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _enlarged(labels: Labels, shape: tuple[int, ...]) -> Labels:
    """The label of the nearest pixel, for each pixel of `shape`."""
    rows = np.arange(shape[0]) * labels.shape[0] // shape[0]
    columns = np.arange(shape[1]) * labels.shape[1] // shape[1]
    return np.asarray(labels[rows[:, None], columns[None, :]])
