"""What a reader delivers, the same whoever reads: crops of both pictures with the masks' planes.

B crops in a batch, K masks that meet a crop, h x w pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from plain_masks import Bools
from torch import Tensor

from samprior.storage.images import Rgb


class Sample(NamedTuple):
    """One crop."""

    degraded: Rgb
    """uint8 (h, w, 3)"""
    clean: Rgb
    """uint8 (h, w, 3)"""
    planes: Bools
    """(K, h, w), in the order of the masks; none is empty."""


class Batch(NamedTuple):
    """Crops as tensors: few large ones, which pass between processes at the least cost."""

    degraded: Tensor
    """uint8 (B, h, w, 3)"""
    clean: Tensor
    """uint8 (B, h, w, 3)"""
    planes: Tensor
    """bool (sum of K, h, w): those of all crops, end to end."""
    counts: Tensor
    """int64 (B,): K of each crop."""


def collated(samples: Sequence[Sample]) -> Batch:
    """A batch of samples."""
    return Batch(
        torch.from_numpy(np.stack([sample.degraded for sample in samples])),
        torch.from_numpy(np.stack([sample.clean for sample in samples])),
        torch.from_numpy(np.concatenate([sample.planes for sample in samples])),
        torch.tensor([len(sample.planes) for sample in samples]),
    )
