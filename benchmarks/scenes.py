"""Outputs of a decoder without a checkpoint, made of regions, for benchmarks/everything.py.

Random weights give noise: hardly a mask passes the filters, or all do, and borders are as long as
the picture is large. What follows the decoder would then do too little or too much. A `Scene` says
instead what every prompt sees: three nested superpixel regions around it, as logits of a signed
distance with slopes that spread the stability around 0.95, and predicted IoUs of which some 40 %
pass the usual threshold. How far SAM's own outputs are from that was not checked.

P prompts, R regions, S samples of a side of the decoder's logits.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from samprior.pipeline import build_segmenter
from samprior.pipeline.everything.crops import Crop
from samprior.storage.images import Rgb

REGIONS = {"levels": (6, 30, 120), "scale": 10.0, "sigma": 0.5, "min_area": 0.0005}
"""Settings of the superpixel segmenter: some 150 regions, small to large."""

MASKS_PER_PROMPT = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Logits and predicted IoUs of all prompts of a picture, the same whoever asks."""

    maps: Tensor
    """float32 (R, S, S)"""
    which: Tensor
    """int64 (P, 3): the map of each mask."""
    slope: Tensor
    """float32 (P, 3): a mask's logits are slope * (map + shift)."""
    shift: Tensor
    """float32 (P, 3)"""
    predicted_iou: Tensor
    """float32 (P, 3)"""
    points: Tensor
    """float64 (P, 2): x and y of each prompt in pixels of the encoder's input."""

    def __len__(self) -> int:
        return len(self.which)

    def logits(self, prompts: Tensor | slice, *, rows: int, columns: int) -> Tensor:
        """(Q, 3, rows, columns) of some prompts, the first rows and columns of the samples."""
        maps = self.maps[:, :rows, :columns][self.which[prompts]]
        return maps.add_(self.shift[prompts][..., None, None]).mul_(
            self.slope[prompts][..., None, None]
        )

    def prompts_at(self, points: Tensor) -> Tensor:
        """(Q,) which prompts these are, by their places (Q, 2)."""
        return torch.cdist(points.double(), self.points).argmin(1)

    def to(self, device: str) -> Self:
        """The same on another device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def superpixel_scene(photo: Rgb, crop: Crop, *, samples: int, seed: int = 0) -> Scene:
    """A scene of a photograph (H, W, 3), for the prompts of its one crop; S is `samples`."""
    rng = np.random.default_rng(seed)
    masks = build_segmenter("superpixel", **REGIONS)(photo)
    regions = np.ascontiguousarray(_sampled(masks.atoms, crop, samples, masks.members))
    distances = np.stack([_signed_distance(region) for region in regions])
    padding = [(0, 0), *((0, samples - side) for side in regions.shape[1:])]
    around = masks.members[_at(masks.atoms, crop.points)]  # (P, R)
    which = np.stack([_nested(np.flatnonzero(row), masks.areas) for row in around])
    slope = _slopes(distances, rng, which)
    return Scene(
        maps=torch.from_numpy(np.pad(distances, padding, mode="edge")),
        which=torch.from_numpy(which),
        slope=torch.from_numpy(slope.astype(np.float32)),
        shift=torch.from_numpy(rng.normal(0, 0.3, which.shape).astype(np.float32)),
        predicted_iou=torch.from_numpy(rng.normal(0.86, 0.08, which.shape).astype(np.float32)),
        points=torch.from_numpy(crop.input_points),
    )


def recorded_scene(logits: Tensor, predicted_iou: Tensor, crop: Crop) -> Scene:
    """What a real decoder gave: logits (P, 3, S, S) and predicted IoUs (P, 3)."""
    place = logits.device
    return Scene(
        maps=logits.flatten(0, 1),
        which=torch.arange(predicted_iou.numel(), device=place).view(predicted_iou.shape),
        slope=torch.ones_like(predicted_iou),
        shift=torch.zeros_like(predicted_iou),
        predicted_iou=predicted_iou,
        points=torch.from_numpy(crop.input_points).to(place),
    )


def _at(atoms: npt.NDArray[np.unsignedinteger], points: npt.NDArray[np.float64]) -> np.ndarray:
    x, y = points.astype(int).T
    return atoms[y, x]


def _sampled(atoms: np.ndarray, crop: Crop, samples: int, members: np.ndarray) -> np.ndarray:
    """Regions (R, h, w) where the decoder's samples are that lie in the picture."""
    ratio = samples / max(crop.input_size)
    height, width = atoms.shape
    rows, columns = (max(1, round(side * ratio)) for side in crop.input_size)
    y = ((np.arange(rows) + 0.5) * height / rows).astype(int)
    x = ((np.arange(columns) + 0.5) * width / columns).astype(int)
    return members[atoms[np.ix_(y, x)]].transpose(2, 0, 1)


def _signed_distance(region: np.ndarray) -> np.ndarray:
    """Samples from the border, above 0 inside, no more than 3, and smooth, as SAM's logits are."""
    distance = distance_transform_edt(region) - distance_transform_edt(~region)
    return gaussian_filter(distance.clip(-3, 3), 1.0).astype(np.float32)


def _nested(regions: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The smallest, a middle and the largest of the regions around a prompt."""
    ordered = regions[np.argsort(areas[regions], kind="stable")]
    return ordered[[0, len(ordered) // 2, -1]]


def _slopes(distances: np.ndarray, rng: np.random.Generator, which: np.ndarray) -> np.ndarray:
    """Slopes (P, 3) that make the stability of the masks spread around 0.95.

    Between the thresholds -1 and 1 lies a band of width 2 / slope along the border, so stability is
    about 1 - 2 / slope * border / area.
    """
    border = (np.abs(distances) < 0.5).sum((1, 2))
    area = (distances > 0).sum((1, 2))
    unstable = 0.035 * np.exp(rng.normal(0, 0.5, which.shape))
    return (2 * (border / np.maximum(area, 1))[which] / unstable).clip(1, 20)
