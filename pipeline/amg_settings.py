"""Settings of SAM's "segment everything", checked before any model is loaded."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from samprior.pipeline.checks import check_float, check_int
from samprior.storage.errors import UsageError

PointGrid = tuple[tuple[float, float], ...]
"""Prompt points (x, y), each from 0 to 1 of the picture's width and height."""


@dataclass(frozen=True, kw_only=True)
class AmgSettings:
    """Settings of the official SamAutomaticMaskGenerator, with its names and defaults.

    Raises:
        UsageError: a value of the wrong type or outside its range.
    """

    points_per_side: int | None = 32
    """Prompts along one side; SAM is asked at the square of this. None: use point_grids."""

    points_per_batch: int = 64
    """Prompts decoded at once: memory and speed only. On a CPU the fast engine takes fewer."""

    pred_iou_thresh: float = 0.88
    """Masks whose IoU SAM predicts to be at most this are dropped; 0 or less keeps all."""

    stability_score_thresh: float = 0.95
    """Masks of smaller stability are dropped; 0 or less keeps all."""

    stability_score_offset: float = 1.0
    """Stability is the IoU of the masks at logit thresholds of plus and minus this."""

    box_nms_thresh: float = 0.7
    """Of two masks whose boxes have a larger IoU only the better is kept; above 1 keeps both."""

    crop_n_layers: int = 0
    """Further runs on crops: layer i has 4**i of them."""

    crop_nms_thresh: float = 0.7
    """As box_nms_thresh, between crops."""

    crop_overlap_ratio: float = 512 / 1500
    """Overlap of the crops of layer 1, as a share of the short side; from 0 to below 1."""

    crop_n_points_downscale_factor: int = 1
    """points_per_side is divided by this to the power of the layer."""

    point_grids: tuple[PointGrid, ...] | None = None
    """One grid of prompts per layer, instead of points_per_side; arrays (N, 2) are taken too."""

    min_mask_region_area: int = 0
    """Holes and islands with fewer pixels are removed; 0: none."""

    def __post_init__(self) -> None:
        if self.point_grids is not None:
            object.__setattr__(self, "point_grids", _grids(self.point_grids))
        if (self.points_per_side is None) == (self.point_grids is None):
            raise UsageError("give either points_per_side or point_grids, and None for the other")
        check_int("points_per_batch", self.points_per_batch, 1)
        check_int("crop_n_layers", self.crop_n_layers, 0)
        check_int("crop_n_points_downscale_factor", self.crop_n_points_downscale_factor, 1)
        check_int("min_mask_region_area", self.min_mask_region_area, 0)
        for name in ("pred_iou_thresh", "stability_score_thresh"):
            check_float(name, getattr(self, name), -math.inf)
        for name in ("stability_score_offset", "box_nms_thresh", "crop_nms_thresh"):
            check_float(name, getattr(self, name), 0.0)
        check_float("crop_overlap_ratio", self.crop_overlap_ratio, 0.0)
        if self.crop_overlap_ratio >= 1:
            raise UsageError(f"crop_overlap_ratio must be below 1, got {self.crop_overlap_ratio}")
        self._check_points()

    def _check_points(self) -> None:
        if self.point_grids is not None:
            if len(self.point_grids) != self.crop_n_layers + 1:
                raise UsageError(
                    f"point_grids must have {self.crop_n_layers + 1} grids, one per layer, got "
                    f"{len(self.point_grids)}"
                )
            return
        side = self.points_per_side
        check_int("points_per_side", side, 1)
        assert side is not None
        last = side // self.crop_n_points_downscale_factor**self.crop_n_layers
        if last < 1:
            raise UsageError(
                f"points_per_side={side} leaves no point in crop layer {self.crop_n_layers}; "
                "lower crop_n_layers or crop_n_points_downscale_factor"
            )

    def describe(self) -> dict[str, object]:
        """What determines the masks, as JSON: all but points_per_batch."""
        settings = asdict(self)
        del settings["points_per_batch"]
        if self.point_grids is not None:
            settings["point_grids"] = [[[x, y] for x, y in grid] for grid in self.point_grids]
        return settings

    def grid_arrays(self) -> list[npt.NDArray[np.float64]] | None:
        """The point grids as the official generator takes them: a list of (N, 2)."""
        if self.point_grids is None:
            return None
        return [np.array(grid, np.float64) for grid in self.point_grids]


def _grids(grids: Sequence[npt.ArrayLike]) -> tuple[PointGrid, ...]:
    if not isinstance(grids, Sequence) or isinstance(grids, str):
        raise UsageError(f"point_grids must be a list of grids, one per crop layer, got {grids!r}")
    checked = []
    for layer, grid in enumerate(grids):
        try:
            points = np.asarray(grid, np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"point grid {layer} holds no numbers ({error})") from error
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise UsageError(f"point grid {layer} must be (N, 2), got {points.shape}")
        if not ((points >= 0) & (points <= 1)).all():
            raise UsageError(f"point grid {layer} has coordinates outside 0 to 1")
        checked.append(tuple((float(x), float(y)) for x, y in points))
    return tuple(checked)
