"""The training loop of one stage: steps, checkpoints, scores; resumed by running it again.

Every random choice is a pure function of (seed, samples seen) and the state is saved whole, so a
run that was killed ends with the same bytes as an unbroken one (on the CPU; some CUDA kernels add
in any order).
"""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samprior.storage import MaskStore
from samprior.training.checkpoint import load_strictly, save_checkpoint
from samprior.training.config import TrainConfig
from samprior.training.data import Batch, Crops
from samprior.training.loader import CropLoader, RawBatch
from samprior.training.mixing import open_rain_layers
from samprior.training.model_card import model_record
from samprior.training.parallel import ALONE, Team
from samprior.training.reports import Progress, Reports, StageResult
from samprior.training.schedule import pieces, samples_before
from samprior.training.stage_run import StageRun
from samprior.training.stages import Stage


def run_stage(
    stage: Stage,
    config: TrainConfig,
    train: MaskStore,
    validation: MaskStore | None,
    device: torch.device,
    *,
    record: dict[str, Any],
    team: Team = ALONE,
    progress: Progress | None = None,
) -> StageResult:
    """Bring a stage to its end, from where an earlier run left it; load the averaged weights.

    Rank 0 writes below `<out>/<stage>`: state.safetensors (resumable), metrics.jsonl, result.json,
    best/ and pictures/. All ranks of a team call this and get the same result.
    """
    folder = config.out / stage.name
    state_file = folder / "state.safetensors"
    team.meet(f"stage {stage.name}")
    run = StageRun(stage, config, device, team)
    with team.together():
        if state_file.exists():
            run.load(state_file, record)

    def keep_weights(file: Path, weights: dict[str, Tensor], step: int, psnr_db: float) -> None:
        scores = {"step": step, "psnr_db": psnr_db}
        kept = stage.result_of(weights)
        save_checkpoint(file, kept, model_record(record, stage, scores, validation))

    with closing(
        Reports(run, validation, folder, keep_weights=keep_weights, progress=progress)
    ) as reports:
        if run.step < stage.iterations:
            if run.step == 0:
                reports.score()
            for parts in _steps(run, train):
                rate = run.learning_rate
                losses = run.advance(*parts)
                reports.after_step(losses, rate, state_file=state_file, record=record)
        result = reports.conclude()
    load_strictly(stage.learns, run.average, state_file)
    stage.learns.requires_grad_(False).eval()
    return result


def _steps(run: StageRun, store: MaskStore) -> Iterator[tuple[Batch, ...]]:
    """What this rank computes in each step to the end of the stage, in parts."""
    batches = _batches(run, store)
    while True:
        with run.team.together():
            # To the device one by one: the next one is read into the memory of the one before.
            parts = tuple(raw.to(run.device) for raw in islice(batches, run.config.accumulate))
        if not parts:
            return
        yield parts


def _batches(run: StageRun, store: MaskStore) -> Iterator[RawBatch]:
    """The parts of the batches of a stage from a step to its end, phase by phase."""
    stage, config, step, team = run.stage, run.config, run.step, run.team
    data = config.data
    largest_px = max(phase.crop_px for phase in stage.phases)
    rain_layers = open_rain_layers(data.rain_layers, largest_px, seed=config.seed)
    first = stage.first_sample + samples_before(stage.phases, step)
    for phase, steps in pieces(stage.phases, step, stage.iterations):
        crops = Crops(
            store=store,
            crop_px=phase.crop_px,
            seed=config.seed,
            augment=data.augment,
            min_mask_px=data.min_mask_px,
            max_mask_iou=data.max_mask_iou,
            mask_dropout=stage.mask_dropout,
            outline_tries=data.outline_tries,
            mixup_alpha=data.mixup_alpha,
            mixup_share=data.mixup_share,
            rain_layers=rain_layers,
        )
        yield from CropLoader(
            crops=crops,
            batch_size=team.share_of_batch(phase.batch_size, config.accumulate),
            first=first,
            num_batches=steps * config.accumulate,
            strides=stage.mask_strides,
            threads=data.loader_threads,
            rank=team.rank,
            world_size=team.size,
            pinned=run.device.type == "cuda",
        )
        first += steps * phase.batch_size
