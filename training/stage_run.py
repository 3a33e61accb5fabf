"""The changing state of a stage while it trains, and one step of it, on one rank or on several.

A step takes the mean of the losses over the crops of all parts and ranks. So the gradient is that
of the whole batch, up to rounding, however it is split; networks with batch norm are the exception:
they normalise over the crops that a rank computes at once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samprior.storage.errors import TrainingError
from samprior.training.checkpoint import (
    load_checkpoint,
    load_strictly,
    require_same_settings,
    save_checkpoint,
)
from samprior.training.config import TrainConfig
from samprior.training.data import Batch
from samprior.training.networks import RestorationNetwork
from samprior.training.parallel import ALONE, Team, without_averaging
from samprior.training.schedule import learning_rate, samples_before
from samprior.training.stages import Losses, Stage


class StageRun:
    """The changing state of a stage: weights, their average, optimizer, step."""

    def __init__(
        self, stage: Stage, config: TrainConfig, device: torch.device, team: Team = ALONE
    ) -> None:
        self.stage, self.config, self.device, self.team = stage, config, device, team
        self.step = 0
        for module in stage.frozen:
            module.requires_grad_(False).eval().to(device)
        stage.learns.requires_grad_(True).train().to(device)
        _prepare(stage, config, device)
        self.parameters = list(stage.learns.parameters())
        # Each has a gradient and so a norm of its own.
        self.parts = [list(part.parameters()) for part in stage.clipped_apart or (stage.learns,)]
        self.optimizer = _optimizer(stage, config)
        self.average = {k: v.clone() for k, v in stage.learns.state_dict().items()}
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.losses = team.averaging(
            _Losses(stage), unused_parameters=_leaves_parameters_unused(stage.learns)
        )

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return learning_rate(
            self.step,
            self.stage.iterations,
            self.stage.peak_lr,
            self.config.optimizer,
            schedule=self.stage.schedule,
        )

    def advance(self, *parts: Batch) -> Losses:
        """One optimizer step on a batch, given in one or more parts of equal size.

        Returns the means of the losses over all parts and ranks.

        Raises:
            TrainingError: the loss or its gradient is not finite; names the images.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        seed, rank = self.config.seed, self.team.rank
        with step_generator(seed, self.stage, self.step, self.device, rank=rank):
            losses = self._backward(parts)
        self.scaler.unscale_(self.optimizer)
        norms = [_norm_of_gradient(part) for part in self.parts]
        self._require_finite(losses["total"], torch.stack(norms).norm(), parts)
        if clip_norm := self.config.optimizer.clip_norm:
            for part, norm in zip(self.parts, norms, strict=True):
                nn.utils.clip_grads_with_norm_(part, clip_norm, norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._update_average()
        return losses

    def _backward(self, parts: Sequence[Batch]) -> Losses:
        """Leave the gradient of the mean over parts and ranks; the mean losses."""
        means: Losses = {}
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts)
            with nullcontext() if is_last else without_averaging(self.losses):
                with autocast(self.device, self.config.precision):
                    losses = self.losses(self._laid_out(part))
                self.scaler.scale(losses["total"] / len(parts)).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / len(parts)
        return self.team.mean(means)

    def _laid_out(self, batch: Batch) -> Batch:
        if not self.config.channels_last:
            return batch
        degraded, clean = (
            images.contiguous(memory_format=torch.channels_last)
            for images in (batch.degraded, batch.clean)
        )
        return replace(batch, degraded=degraded, clean=clean)

    def _require_finite(self, loss: Tensor, norm: Tensor, parts: Sequence[Batch]) -> None:
        # The scaler of fp16 skips steps whose gradients overflow, and goes on with a smaller scale.
        checked = loss if self.scaler.is_enabled() else loss + norm
        if torch.isfinite(checked):  # one look at the GPU's result, not two
            return
        # Both are means over all ranks, so all of them come here.
        seen = [(part.samples, part.keys) for part in parts]
        seen = sorted(chain(*self.team.gather(seen)), key=lambda one: one[0].start)
        first, last = seen[0][0].start, seen[-1][0].stop - 1
        raise TrainingError(
            f"stage {self.stage.name}, step {self.step}: the loss is {loss.item():g} and its "
            f"gradient's norm {norm.item():g} on {', '.join(chain(*(keys for _, keys in seen)))} "
            f"(samples {first} to {last}); lower optimizer.lr or set precision to fp32"
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

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A block in which the averaged weights restore; the learning ones are put back."""
        module = self.stage.learns
        learning = {k: v.clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.average)
        module.eval()
        try:
            with _not_compiled(self.config):
                yield
        finally:
            module.load_state_dict(learning)
            module.train()

    def save(self, file: Path, record: dict[str, Any]) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"weights.{k}": v for k, v in self.stage.learns.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index:05d}.{k}": v for k, v in state.items()}
        record = {**record, "step": self.step, "scaler": self.scaler.state_dict()}
        save_checkpoint(file, tensors, record)

    def load(self, file: Path, record: dict[str, Any]) -> None:
        """Continue from what `save` wrote, with any number of ranks.

        Raises:
            CheckpointError: the file is damaged, or of a run with other settings.
        """
        tensors, found = load_checkpoint(file)
        require_same_settings(file, found, record)
        load_strictly(self.stage.learns, _below(tensors, "weights."), file)
        for name, value in _below(tensors, "average.").items():
            self.average[name].copy_(value)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, "optimizer.").items():
            index, _, field = name.partition(".")
            moments = _like(value, self.parameters[int(index)])
            state.setdefault(int(index), {})[field] = moments
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(found["scaler"])
        self.step = int(found["step"])


class _Losses(nn.Module):
    """The losses of a batch as the forward pass of a module, which DDP can wrap."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.learns = stage.learns
        self._of_batch = stage.losses

    def forward(self, batch: Batch) -> Losses:
        return self._of_batch(batch)


@contextmanager
def step_generator(
    seed: int, stage: Stage, step: int, device: torch.device, *, rank: int = 0
) -> Iterator[None]:
    """Seed torch's generators for one step, and put them back as they were afterwards.

    What a network draws (Uformer drops paths) is then a function of the seed and the place in the
    sequence of crops, so a resumed run draws the same, and control and distillation draw alike.
    """
    place = stage.first_sample + samples_before(stage.phases, step)
    digest = hashlib.sha256(f"{seed} {place} {rank}".encode()).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision; does nothing for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def compile_networks(stage: Stage, *, backend: str = "inductor") -> None:
    """Compile the forward passes of all networks of a stage in place; their keys stay.

    What a loss takes from a network by another way than calling it is not compiled: RCDNet's
    `unroll`, for one.
    """
    for top in (stage.learns, *stage.frozen):
        for module in top.modules():
            if isinstance(module, RestorationNetwork):
                module.compile(backend=backend)


def _optimizer(stage: Stage, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a stage's parameters, without moments as yet."""
    settings = config.optimizer
    maker = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return maker(
        stage.learns.parameters(),
        lr=stage.peak_lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        # torch's default on the CPU is a loop over tensors, slow where they are many and small.
        foreach=True,
    )


def _norm_of_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = [value.grad for value in parameters if value.grad is not None]
    return nn.utils.get_total_norm(gradients, foreach=True)


def _prepare(stage: Stage, config: TrainConfig, device: torch.device) -> None:
    """Make the modules ready for the settings that make steps faster."""
    if config.sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(stage.learns)  # type: ignore[no-untyped-call]  # torch
    if config.channels_last:
        for module in (stage.learns, *stage.frozen):
            for parameter in module.parameters():
                if parameter.dim() == 4:
                    layout = torch.channels_last
                    parameter.data = parameter.data.contiguous(memory_format=layout)
    if config.compile:
        compile_networks(stage)


def _not_compiled(config: TrainConfig) -> AbstractContextManager[object]:
    """Whole images come in many sizes, each of which would be compiled anew."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


def _leaves_parameters_unused(module: nn.Module) -> bool:
    """Whether a network in `module` says that some of its parameters never get a gradient."""
    return any(getattr(part, "leaves_parameters_unused", False) for part in module.modules())


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Loaded moments of a parameter in its layout; a count of steps as it is."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
