"""The training loop of one stage: steps, checkpoints, scores; resumed by running it again.

Every random choice is a pure function of (seed, samples seen) and the state is saved whole, so a
run that was killed ends with the same bytes as an unbroken one (on the CPU; some CUDA kernels add
in any order).
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samprior.storage import MaskStore
from samprior.storage.errors import TrainingError
from samprior.storage.files import write_bytes
from samprior.training.checkpoint import (
    load_checkpoint,
    load_strictly,
    require_same_settings,
    save_checkpoint,
)
from samprior.training.config import OptimizerConfig, TrainConfig
from samprior.training.data import Batch, Crops, content_digest
from samprior.training.loader import CropLoader, RawBatch
from samprior.training.stages import Losses, Stage
from samprior.training.validation import validate

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with (stage, steps done, steps in all, last losses)."""


@dataclass(frozen=True)
class StageResult:
    """How a stage ended."""

    psnr_db: float | None
    """Mean over the validation images; None without validation data."""
    start_psnr_db: float | None
    """The same before the stage's first step."""


class StageRun:
    """The changing state of a stage: weights, their average, optimizer, step."""

    def __init__(self, stage: Stage, config: TrainConfig, device: torch.device) -> None:
        self.stage, self.config, self.device = stage, config, device
        self.step = 0
        for module in stage.frozen:
            module.requires_grad_(False).eval().to(device)
        stage.learns.requires_grad_(True).train().to(device)
        self.parameters = list(stage.learns.parameters())
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=stage.peak_lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            # torch's default on the CPU is a loop over tensors, slow where they are many and small.
            foreach=True,
        )
        self.average = {k: v.clone() for k, v in stage.learns.state_dict().items()}
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def advance(self, batch: Batch) -> Losses:
        """One optimizer step.

        Raises:
            TrainingError: the loss or its gradient is not finite; names the images.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.step, self.stage.iterations, self.stage.peak_lr, self.config.optimizer
            )
        with autocast(self.device, self.config.precision):
            losses = self.stage.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses["total"]).backward()  # type: ignore[no-untyped-call]  # torch
        self.scaler.unscale_(self.optimizer)
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        self._require_finite(losses["total"], norm, batch.keys)
        if clip_norm := self.config.optimizer.clip_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, clip_norm, norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._update_average()
        return losses

    def _require_finite(self, loss: Tensor, norm: Tensor, keys: Sequence[str]) -> None:
        # The scaler of fp16 skips steps whose gradients overflow, and goes on with a smaller scale.
        checked = loss if self.scaler.is_enabled() else loss + norm
        if torch.isfinite(checked):  # one look at the GPU's result, not two
            return
        raise TrainingError(
            f"stage {self.stage.name}, step {self.step}: the loss is {loss.item():g} and its "
            f"gradient's norm {norm.item():g} on {', '.join(keys)}; lower optimizer.lr or set "
            "precision to fp32"
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        # The usual warm-up, so that the initial weights don't linger in a short run.
        decay = min(self.config.optimizer.ema_decay, self.step / (self.step + 9))
        learning = self.stage.learns.state_dict()
        blended = [name for name, value in learning.items() if decay and value.is_floating_point()]
        if blended:
            torch._foreach_lerp_(
                [self.average[name] for name in blended],
                [learning[name] for name in blended],
                1 - decay,
            )
        for name in learning.keys() - blended:
            self.average[name].copy_(learning[name])

    def save(self, file: Path, record: dict[str, Any]) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"weights.{k}": v for k, v in self.stage.learns.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index:05d}.{k}": v for k, v in state.items()}
        record = {**record, "step": self.step, "scaler": self.scaler.state_dict()}
        save_checkpoint(file, tensors, record)

    def load(self, file: Path, record: dict[str, Any]) -> None:
        """Continue from what `save` wrote.

        Raises:
            CheckpointError: the file is damaged, or of a run with other settings.
        """
        tensors, found = load_checkpoint(file)
        require_same_settings(file, found, record)
        load_strictly(self.stage.learns, _below(tensors, "weights."), file)
        self.average = {k: v.to(self.device) for k, v in _below(tensors, "average.").items()}
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, "optimizer.").items():
            index, _, field = name.partition(".")
            state.setdefault(int(index), {})[field] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(found["scaler"])
        self.step = int(found["step"])


def run_stage(
    stage: Stage,
    config: TrainConfig,
    train: MaskStore,
    validation: MaskStore | None,
    device: torch.device,
    *,
    record: dict[str, Any],
    progress: Progress | None = None,
) -> StageResult:
    """Bring a stage to its end, from where an earlier run left it; load the averaged weights.

    Writes below `<out>/<stage>`: state.safetensors (resumable), metrics.jsonl, result.json.
    """
    folder = config.out / stage.name
    state_file, result_file = folder / "state.safetensors", folder / "result.json"
    run = StageRun(stage, config, device)
    if state_file.exists():
        run.load(state_file, record)
    log = _Log(folder / "metrics.jsonl", run.step)
    scores = _Scores(stage, run, validation, config, log)
    if progress:
        progress(stage.name, run.step, stage.iterations, {})
    if run.step < stage.iterations:
        batches = _batches(stage, config, train, run.step, device)
        if run.step == 0:
            scores.take()
        for batch in batches:
            losses = run.advance(batch.to(device))
            _after_step(run, losses, log, scores, state_file, record, progress)
    if scores.at(stage.iterations) is None:
        scores.take()  # a stage without steps, or one that ended before there were these images
    load_strictly(stage.learns, run.average, state_file)
    stage.learns.requires_grad_(False).eval()
    result = StageResult(scores.at(stage.iterations), scores.at(0))
    write_bytes(result_file, json.dumps(vars(result)).encode() + b"\n")
    return result


def learning_rate(step: int, iterations: int, peak: float, settings: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine from `peak`; it would reach min_lr one step after the last."""
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    span = max(1, iterations - settings.warmup_steps)
    done = (step - settings.warmup_steps) / span
    floor = min(settings.min_lr, peak)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision; does nothing for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def _batches(
    stage: Stage, config: TrainConfig, store: MaskStore, step: int, device: torch.device
) -> Iterator[RawBatch]:
    data = config.data
    crops = Crops(
        store=store,
        crop_px=data.crop_px,
        seed=config.seed,
        augment=data.augment,
        min_mask_px=data.min_mask_px,
        max_mask_iou=data.max_mask_iou,
        mask_dropout=stage.mask_dropout,
        outline_tries=data.outline_tries,
    )
    loader = CropLoader(
        crops=crops,
        batch_size=data.batch_size,
        first=stage.first_sample + step * data.batch_size,
        num_batches=stage.iterations - step,
        strides=stage.mask_strides,
        threads=data.loader_threads,
        pinned=device.type == "cuda",
    )
    return iter(loader)


def _after_step(
    run: StageRun,
    losses: Losses,
    log: "_Log",
    scores: "_Scores",
    state_file: Path,
    record: dict[str, Any],
    progress: Progress | None,
) -> None:
    config, last = run.config, run.step == run.stage.iterations
    values: dict[str, float] = {}
    if run.step % config.log_every == 0 or last:
        values = {name: loss.item() for name, loss in losses.items()}
        log.write(step=run.step, **values)
    if run.step % config.validate_every == 0 or last:
        scores.take()
    if run.step % config.save_every == 0 or last:
        run.save(state_file, record)
    if progress:
        progress(run.stage.name, run.step, run.stage.iterations, values)


class _Log:
    """metrics.jsonl: one JSON object per line; lines after the resumed step are dropped."""

    def __init__(self, file: Path, step: int) -> None:
        self.file = file
        kept = [line for line in self.lines() if line["step"] <= step] if step else []
        write_bytes(file, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def lines(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        whole = self.file.read_text().rpartition("\n")[0]  # a kill may cut the last line short
        return [json.loads(line) for line in whole.splitlines()]

    def write(self, **values: float | str) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(values) + "\n")


class _Scores:
    """PSNR on the validation images, kept in the log with the digest of these images."""

    def __init__(
        self,
        stage: Stage,
        run: StageRun,
        store: MaskStore | None,
        config: TrainConfig,
        log: _Log,
    ) -> None:
        self.stage, self.run, self.store, self.config, self.log = stage, run, store, config, log
        self.digest = content_digest(store) if store else ""

    def take(self) -> None:
        """Score the averaged weights; the learning ones are put back."""
        if self.store is None:
            return
        learning = {k: v.clone() for k, v in self.stage.learns.state_dict().items()}
        self.stage.learns.load_state_dict(self.run.average)
        self.stage.learns.eval()
        psnr_db = validate(self.stage, self.store, self.config, self.run.device)
        self.stage.learns.load_state_dict(learning)
        self.stage.learns.train()
        self.log.write(
            step=self.run.step, validation_psnr_db=psnr_db, validation_sha256=self.digest
        )

    def at(self, step: int) -> float | None:
        """The score that was taken at a step on the images at hand, or None."""
        found = [
            line["validation_psnr_db"]
            for line in self.log.lines()
            if line["step"] == step and line.get("validation_sha256") == self.digest
        ]
        return found[-1] if found else None


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
