"""Score a stage on whole images of a store during training."""

import numpy as np
import torch
from torch import Tensor

from samprior.storage import MaskSet, MaskStore
from samprior.training.config import TrainConfig
from samprior.training.data import to_tensor
from samprior.training.metrics import psnr
from samprior.training.priors.regions import RegionBatch, keep_masks
from samprior.training.restore import to_uint8
from samprior.training.stages import Stage


@torch.no_grad()
def validate(stage: Stage, store: MaskStore, config: TrainConfig, device: torch.device) -> float:
    """Mean PSNR in dB over all images of a store: RGB, 8 bit, no border cut, whole images."""
    scores = []
    for record in store:
        degraded = to_tensor([record.degraded]).to(device)
        regions = None
        if stage.restores_with_masks:
            regions = _regions(record.masks, config).to(device)
        restored: Tensor = stage.restore(degraded, regions)
        scores.append(psnr(to_uint8(restored[0]), record.clean))
    return float(np.mean(scores))


def _regions(masks: MaskSet, config: TrainConfig) -> RegionBatch:
    keep = keep_masks(
        masks.areas,
        masks.intersections,
        min_area_px=config.data.min_mask_px,
        max_iou=config.data.max_mask_iou,
    )
    return RegionBatch.collate([masks.select(keep)])
