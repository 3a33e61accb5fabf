"""Score a stage on whole images of a store during training."""

import numpy as np
import torch
from torch import Tensor

from samprior.storage import MaskSet, MaskStore, Record
from samprior.training.config import TrainConfig
from samprior.training.data import to_tensor
from samprior.training.logs import Picture, strip_of
from samprior.training.metrics import psnr
from samprior.training.parallel import ALONE, Team
from samprior.training.priors.regions import RegionBatch, keep_masks
from samprior.training.restore import to_uint8
from samprior.training.stages import Stage


def validate(
    stage: Stage,
    store: MaskStore,
    config: TrainConfig,
    device: torch.device,
    *,
    team: Team = ALONE,
    pictures: int = 0,
) -> tuple[float, list[Picture]]:
    """Mean PSNR in dB over all images of a store: RGB, 8 bit, no border cut, whole images.

    Each rank of the team scores its share; all get the same mean, and strips of the first
    `pictures` images (see `logs.strip_of`).
    """
    mine: list[tuple[float, Picture | None]] = []
    with team.together():
        for index in range(team.rank, len(store), team.size):
            record = store[index]
            restored = _restored(stage, record, config, device)
            strip = strip_of(record.degraded, restored, record.clean) if index < pictures else None
            mine.append((psnr(restored, record.clean), strip))
    of_ranks = team.gather(mine)
    in_order = [of_ranks[i % team.size][i // team.size] for i in range(len(store))]
    scores = [score for score, _ in in_order]
    return float(np.mean(scores)), [strip for _, strip in in_order if strip is not None]


def image_scores(
    stage: Stage, store: MaskStore, config: TrainConfig, device: torch.device
) -> list[float]:
    """PSNR in dB of each image of a store, in its order, as `validate` takes it."""
    return [psnr(_restored(stage, record, config, device), record.clean) for record in store]


@torch.no_grad()
def _restored(stage: Stage, record: Record, config: TrainConfig, device: torch.device) -> Picture:
    degraded = to_tensor([record.degraded]).to(device)
    regions = None
    if stage.restores_with_masks:
        regions = _regions(record.masks, config).to(device)
    restored: Tensor = stage.restore(degraded, regions)
    return to_uint8(restored[0])


def protocol_of(num_images: int) -> str:
    """What the PSNR of `validate` means, in words."""
    return f"mean PSNR of {num_images} whole validation images, RGB, 8 bit"


def _regions(masks: MaskSet, config: TrainConfig) -> RegionBatch:
    keep = keep_masks(
        masks.areas,
        masks.intersections,
        min_area_px=config.data.min_mask_px,
        max_iou=config.data.max_mask_iou,
    )
    return RegionBatch.collate([masks.select(keep)])
