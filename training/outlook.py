"""What a run is about to do: networks, data, steps, device, and the least memory it will take.

The memory is a floor that is counted, not a guess: weights and what training keeps beside them by
arithmetic, and what the backward pass needs by letting autograd pass through the network once on
torch's meta device, which has shapes and no numbers.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from samprior.storage.survey import counted
from samprior.training.building import Teacher
from samprior.training.checkpoint import read_record
from samprior.training.config import TrainConfig
from samprior.training.priors import RelationLoss
from samprior.training.reconstruction import fitting_loss, restored_with_loss
from samprior.training.stages import STAGES_OF_MODE

LEARNING_BYTES = 20
"""A learning parameter in float32: weight 4, gradient 4, Adam's two moments 8, average 4."""

FROZEN_BYTES = 4
"""A frozen one: its weight."""

Forward = Callable[[Tensor], object]


@dataclass(frozen=True)
class StageMemory:
    """The least memory of a step."""

    stage: str
    parameter_bytes: int
    activation_bytes: int | None
    """Kept for the backward pass, in float32; None: the network can't be counted."""

    @property
    def total_bytes(self) -> int:
        """Both."""
        return self.parameter_bytes + (self.activation_bytes or 0)


@dataclass(frozen=True)
class Outlook:
    """What a run is about to do."""

    out: Path
    network: str
    num_parameters: int
    teacher: str | None
    """None: the mode has none."""
    num_teacher_parameters: int
    train: str
    num_images: int
    validation: str | None
    num_validated: int
    crop_px: int
    batch_size: int
    stages: dict[str, int]
    """Steps of each, in the order they run."""
    steps_done: dict[str, int]
    """Of these, by an earlier run of the same command."""
    device: str
    precision: str
    ranks: int
    crops_at_once: int
    """That one rank computes in one pass, in the phase that takes most."""
    memory: StageMemory = field(repr=False)
    """Of the stage that takes most, in float32."""
    compiles: bool = False
    """Compiled, a network computes again what it would have kept."""

    @property
    def floor_bytes(self) -> int:
        """What a step takes in any case: of what float32 keeps, half precision has half or more."""
        if self.compiles:
            return self.memory.parameter_bytes
        kept = self.memory.activation_bytes or 0
        return self.memory.parameter_bytes + (kept if self.precision == "fp32" else kept // 2)

    def lines(self) -> list[str]:
        """The outlook in words."""
        told = [f"{self.out}: {' -> '.join(self.stages)}"]
        told.append(f"  network  {self.network}, {self.num_parameters:,} parameters; it ships")
        if self.teacher is not None:
            told.append(
                f"  teacher  {self.teacher}, {self.num_teacher_parameters:,} parameters; "
                "it does not ship"
            )
        crops = f"{self.batch_size} crops of {self.crop_px} px a step"
        told.append(f"  data     {self.train}: {counted(self.num_images, 'pair')}, {crops}")
        scored = f"{self.validation}: {counted(self.num_validated, 'pair')}"
        told.append(f"  scored   {scored if self.validation else 'nothing (data.validation)'}")
        told.append(f"  steps    {', '.join(self._told_steps())}")
        ranks = f", {self.ranks} ranks" if self.ranks > 1 else ""
        told.append(f"  device   {self.device}, {self.precision}{ranks}")
        return [*told, *self._told_memory()]

    def _told_steps(self) -> list[str]:
        told = []
        for name, steps in self.stages.items():
            done = self.steps_done.get(name, 0)
            told.append(f"{name} {steps:,}" + (f" ({done:,} done)" if done else ""))
        return told

    def _told_memory(self) -> list[str]:
        memory = self.memory
        law = f"{LEARNING_BYTES} bytes a learning parameter, {FROZEN_BYTES} a frozen one"
        told = [f"  memory   at least {_gb(self.floor_bytes)} in stage {memory.stage}"]
        told.append(f"             {_gb(memory.parameter_bytes)}: {law}")
        if memory.activation_bytes is None:
            told.append("             and what the backward pass needs, unknown for this network")
        else:
            less = "" if self.precision == "fp32" else f"; half or more of it in {self.precision}"
            less += "; less when compiled" if self.compiles else ""
            told.append(
                f"             {_gb(memory.activation_bytes)}: kept for the backward pass of "
                f"{counted(self.crops_at_once, 'crop')} (in fp32{less})"
            )
        told.append("             workspace of kernels, torch itself and scored images come on top")
        return told


def outlook(
    config: TrainConfig,
    network: nn.Module,
    teacher: Teacher,
    relation: RelationLoss | None,
    *,
    num_images: int,
    num_validated: int,
    device: torch.device,
    ranks: int = 1,
) -> Outlook:
    """Look ahead on a run whose modules are built; nothing of them changes."""
    second = config.network2.beside(config.network)
    names = STAGES_OF_MODE[config.mode]
    teaches = not {"fusion", "joint"}.isdisjoint(names)
    sizes = _sizes(config)
    crop_px, batch_size = max(sizes, key=lambda size: size[0] ** 2 * size[1])
    crops_at_once = batch_size // (ranks * config.accumulate)
    memories = _memories(config, network, teacher, relation, shape=(crops_at_once, 3, crop_px))
    states = {name: config.out / name / "state.safetensors" for name in names}
    # joint and control are as long as distill.
    steps = {name: getattr(config.stages, name, config.stages.distill) for name in names}
    return Outlook(
        out=config.out,
        network=_told(config.network.name, config.network.preset),
        num_parameters=_count(network),
        teacher=f"SPF, then {_told(second.name or '', second.preset)}" if teaches else None,
        num_teacher_parameters=_count(teacher) if teaches else 0,
        train=config.data.train,
        num_images=num_images,
        validation=config.data.validation,
        num_validated=num_validated,
        crop_px=crop_px,
        batch_size=batch_size,
        stages=steps,
        steps_done={
            name: int(read_record(file)["step"]) for name, file in states.items() if file.exists()
        },
        device=_told_device(device),
        precision=config.precision,
        ranks=ranks,
        crops_at_once=crops_at_once,
        memory=max((memories[name] for name in names), key=lambda each: each.total_bytes),
        compiles=config.compile,
    )


def kept_bytes(forward: Forward, modules: Sequence[nn.Module], *, image: Tensor) -> int:
    """Bytes that autograd keeps of `forward(image)` for its backward pass, weights aside.

    Args:
        forward: what is computed; its result is held until all is counted.
        modules: whose parameters and buffers are no part of it.
        image: (B, 3, H, W); on the meta device nothing is computed.
    """
    storages: dict[int, int] = {}
    weights = {
        value.untyped_storage()._cdata
        for module in modules
        for value in (*module.parameters(), *module.buffers())
    }

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward(image)
    total = sum(count for storage, count in storages.items() if storage not in weights)
    del result  # held until here: a storage that is let go may lend its address to the next
    return total


def _memories(
    config: TrainConfig,
    network: nn.Module,
    teacher: Teacher,
    relation: RelationLoss | None,
    *,
    shape: tuple[int, int, int],
) -> dict[str, StageMemory]:
    """The memory of every stage there is; `shape` is (B, 3, crop_px)."""
    loss = config.loss.reconstruction
    ours, theirs = _count(network), _count(teacher)
    restoring = _kept_of_network(network, loss, shape)
    refining = _kept_of_network(teacher.network2, fitting_loss(teacher.network2, loss), shape)
    relating: int | None = 0
    analyzing = 0
    if relation is not None:
        relating, analyzing = _kept(relation.analyzer, shape), _count(relation)
    starts = ours if config.loss.spd_input == "start" else 0
    frozen_in_fusion = 0 if config.fusion.image == "degraded" else ours

    def memory(stage: str, learning: int, frozen: int, *kept: int | None) -> StageMemory:
        known = [each for each in kept if each is not None]
        return StageMemory(
            stage,
            LEARNING_BYTES * learning + FROZEN_BYTES * frozen,
            sum(known) if len(known) == len(kept) else None,
        )

    return {
        "base": memory("base", ours, 0, restoring),
        "control": memory("control", ours, 0, restoring),
        "fusion": memory("fusion", theirs, frozen_in_fusion, refining),
        "distill": memory("distill", ours, theirs + analyzing + starts, restoring, relating),
        "joint": memory("joint", ours + theirs, analyzing, restoring, refining, relating),
    }


def _kept_of_network(network: nn.Module, loss: str, shape: tuple[int, int, int]) -> int | None:
    def of_copy(copy: nn.Module) -> Forward:
        return lambda image: restored_with_loss(copy, image, torch.zeros_like(image), loss=loss)

    return _kept(network, shape, of_copy)


def _kept(
    module: object,
    shape: tuple[int, int, int],
    forward_of: Callable[[nn.Module], Forward] = lambda copy: copy,
) -> int | None:
    """What a copy of a module on the meta device keeps; None if it can't be counted there."""
    assert isinstance(module, nn.Module)
    batch, channels, side = shape
    learns = any(value.requires_grad for value in module.parameters())
    try:
        copy = deepcopy(module).to("meta").train()
        # A frozen analyzer passes the gradient on to the image.
        image = torch.empty((batch, channels, side, side), device="meta", requires_grad=not learns)
        with torch.random.fork_rng(devices=[]):
            return kept_bytes(forward_of(copy), [copy], image=image)
    except Exception:  # of a network of the user's own
        # It may look at values, which the meta device doesn't have, or know two devices only; none
        # of that is a reason not to train it.
        return None


def _sizes(config: TrainConfig) -> list[tuple[int, int]]:
    """Side of the crops and crops of a step, of all phases."""
    data = config.data
    return [(data.crop_px, data.batch_size)] + [
        (phase.crop_px, phase.batch_size) for phase in data.phases
    ]


def _count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _told(name: str, preset: str | None) -> str:
    return name if preset is None else f"{name} {preset}"


def _told_device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device}, {counted(torch.get_num_threads(), 'thread')}"
    about = torch.cuda.get_device_properties(device)
    return f"{device} ({about.name}, {_gb(about.total_memory)})"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
