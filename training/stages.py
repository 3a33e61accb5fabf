"""The stages of a run: which modules learn, which are frozen, and the loss of one batch.

    base      network 1 alone, with the network's own loss
    control   network 1, further, with the same loss: what a distilled network is compared with
    fusion    stage A: SPF and network 2, network 1 frozen
    distill   stage B: network 1, SPF and network 2 frozen; L_recon + l1 * L_SPD + l2 * L_SGR

That the teacher is trained in a stage of its own is our choice: summaries of the paper give only
the three terms of the loss (see docs/method.md).
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samprior.storage.errors import ConfigError
from samprior.training.config import LossConfig, TrainConfig
from samprior.training.data import Batch
from samprior.training.networks import build_network
from samprior.training.networks.rain_kernels import read_rain_kernels
from samprior.training.networks.rcdnet import RCDNet
from samprior.training.priors import (
    RelationLoss,
    SemanticPriorFusion,
    bounded_psnr,
    build_analyzer,
    spd_loss,
    teacher_where_better,
)
from samprior.training.priors.regions import RegionBatch
from samprior.training.reconstruction import image_loss, require_fitting_loss, restored_with_loss
from samprior.training.schedule import Phases, base_phases, later_phases, samples_before

Losses = dict[str, Tensor]
"""Scalars by name; `total` is what is minimised."""

STAGES_OF_MODE = {
    "plain": ("base",),
    "control": ("base", "control"),
    "distill": ("base", "fusion", "distill"),
    "compare": ("base", "control", "fusion", "distill"),
}


class Teacher(nn.Module):
    """SPF, then network 2: a restored image and its masks in, a refined image out."""

    def __init__(self, fusion: SemanticPriorFusion, network: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        self.network2 = network

    def forward(self, restored: Tensor, regions: RegionBatch) -> Tensor:
        """Refine (B, 3, H, W) images; no gradient reaches network 1 through `restored`."""
        refined: Tensor = self.network2(self.fusion(restored.detach(), regions))
        return refined


@dataclass
class Stage:
    """One stage: what learns, how, and for how long."""

    name: str
    learns: nn.Module
    iterations: int
    peak_lr: float
    first_sample: int
    """Place in the sequence of crops where the stage starts; equal for control and distill."""
    phases: Phases
    """Sizes of the crops and batches, one after the other; see `samprior.training.schedule`."""
    losses: Callable[[Batch], Losses]
    restore: Callable[[Tensor, RegionBatch | None], Tensor]
    """What is scored on the validation data: (B, 3, H, W) in, (B, 3, H, W) out."""
    restores_with_masks: bool = False
    """Whether `restore` needs the masks, as only the teacher does."""
    frozen: Sequence[nn.Module] = ()
    mask_strides: tuple[int, ...] | None = None
    """Strides at which SGR pools masks; None when the stage looks at no masks."""
    mask_dropout: float = 0.0
    schedule: str = "cosine"
    """How the learning rate falls; a name of `learning_rate`."""
    analyzer: str | None = None
    """Name of SGR's analyzer, reported with every result."""


def base_stage(config: TrainConfig, network: nn.Module) -> Stage:
    """Train network 1 from its initial weights."""
    stage = _plain(config, network, "base", config.stages.base, config.optimizer.lr, 0)
    stage.phases, stage.schedule = base_phases(config), config.optimizer.schedule
    return stage


def control_stage(config: TrainConfig, network: nn.Module) -> Stage:
    """Train network 1 further, exactly as long and on the same crops as `distill_stage`."""
    return _plain(
        config, network, "control", config.stages.distill, _extra_lr(config), _extra_start(config)
    )


def fusion_stage(config: TrainConfig, network: nn.Module, teacher: Teacher) -> Stage:
    """Stage A: train the teacher on the output of the frozen network 1."""

    def restore(degraded: Tensor, regions: RegionBatch | None) -> Tensor:
        assert regions is not None
        with torch.no_grad():
            restored = network(degraded)
        refined: Tensor = teacher(restored, regions)
        return refined

    def losses(batch: Batch) -> Losses:
        assert batch.regions is not None
        with torch.no_grad():
            restored = network(batch.degraded)
        fused = teacher.fusion(restored, batch.regions)
        _, loss = restored_with_loss(
            teacher.network2, fused, batch.clean, loss=config.loss.reconstruction
        )
        return {"total": loss}

    return Stage(
        name="fusion",
        learns=teacher,
        frozen=(network,),
        iterations=config.stages.fusion,
        peak_lr=_extra_lr(config),
        first_sample=_extra_start(config),
        phases=later_phases(config, config.stages.fusion),
        losses=losses,
        restore=restore,
        restores_with_masks=True,
        mask_strides=(),
        mask_dropout=config.data.mask_dropout,
    )


def distill_stage(
    config: TrainConfig, network: nn.Module, teacher: Teacher, relation: RelationLoss | None
) -> Stage:
    """Stage B: train network 1 on its own loss, towards the frozen teacher, and on relations."""
    settings = config.loss
    start = deepcopy(network) if settings.spd_input == "start" else None

    def losses(batch: Batch) -> Losses:
        assert batch.regions is not None
        restored, loss = restored_with_loss(
            network, batch.degraded, batch.clean, loss=settings.reconstruction
        )
        with torch.no_grad():
            refined = teacher(start(batch.degraded) if start else restored, batch.regions)
        return distillation_losses(
            restored, loss, refined, batch.clean, batch.regions, settings, relation
        )

    stage = _plain(
        config, network, "distill", config.stages.distill, _extra_lr(config), _extra_start(config)
    )
    stage.losses = losses
    stage.frozen = tuple(each for each in (teacher, relation, start) if each is not None)
    stage.mask_strides = relation.analyzer.strides if relation else ()
    stage.analyzer = relation.analyzer.name if relation else None
    return stage


def distillation_losses(
    restored: Tensor,
    loss: Tensor,
    refined: Tensor,
    clean: Tensor,
    regions: RegionBatch,
    settings: LossConfig,
    relation: RelationLoss | None,
) -> Losses:
    """L = L_recon + lambda_spd * L_SPD + lambda_sgr * L_SGR, and its terms.

    Args:
        restored: network 1's images (B, 3, H, W).
        loss: their reconstruction loss, L_recon.
        refined: the teacher's images (B, 3, H, W).
        clean: the truth (B, 3, H, W).
        regions: masks of the images.
        settings: weights and the kind of loss.
        relation: SGR, or None when its weight is 0.
    """
    target = refined
    if settings.spd_target == "teacher_where_better":
        target = teacher_where_better(restored, refined, clean)
    if settings.spd_distance == "bounded" and settings.reconstruction == "psnr":
        spd = bounded_psnr(restored, target, clean)
    else:
        spd = spd_loss(restored, target, reconstruction=image_loss(settings.reconstruction))
    terms = {"reconstruction": loss, "spd": spd}
    total = terms["reconstruction"] + settings.lambda_spd * terms["spd"]
    if relation is not None:
        terms["sgr"] = relation(restored, refined, regions)
        total = total + settings.lambda_sgr * terms["sgr"]
    return {"total": total, **terms}


def build_networks(config: TrainConfig) -> tuple[nn.Module, Teacher]:
    """Network 1 and a teacher of the same kind; initial weights are fixed by the seed.

    Raises:
        UsageError: a network that can't be built as it is set.
        ConfigError: a loss or rain kernels that don't fit it.
        CheckpointError: rain kernels that can't be read.
    """
    made = config.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(made.name, preset=made.preset, **made.settings)
        second = build_network(made.name, preset=made.preset, **made.settings)
        fusion = SemanticPriorFusion(
            mask_repr=config.fusion.mask_repr,
            channels=config.fusion.channels,
            use_masks=config.fusion.use_masks,
        )
    require_fitting_loss(network, config.loss.reconstruction)
    if made.rain_kernels is not None:
        if not isinstance(network, RCDNet):
            raise ConfigError(f"network.rain_kernels is for rcdnet; {made.name} has none")
        network.set_rain_kernels(read_rain_kernels(made.rain_kernels))
    return network, Teacher(fusion, second)


def build_relation(settings: LossConfig) -> RelationLoss | None:
    """SGR as configured, or None when its weight is 0.

    Raises:
        CheckpointError: the analyzer's weights can't be had.
    """
    if settings.lambda_sgr == 0:
        return None
    analyzer = build_analyzer(settings.analyzer, weights=settings.analyzer_weights)
    return RelationLoss(analyzer, eta=settings.eta, max_regions=settings.max_regions)


def _plain(
    config: TrainConfig, network: nn.Module, name: str, iterations: int, lr: float, first: int
) -> Stage:

    def losses(batch: Batch) -> Losses:
        loss = config.loss.reconstruction
        return {"total": restored_with_loss(network, batch.degraded, batch.clean, loss=loss)[1]}

    def restore(degraded: Tensor, regions: RegionBatch | None) -> Tensor:
        restored: Tensor = network(degraded)
        return restored

    return Stage(
        name=name,
        learns=network,
        iterations=iterations,
        peak_lr=lr,
        first_sample=first,
        phases=later_phases(config, iterations),
        losses=losses,
        restore=restore,
    )


def _extra_lr(config: TrainConfig) -> float:
    return config.optimizer.lr * config.optimizer.extra_lr_share


def _extra_start(config: TrainConfig) -> int:
    return samples_before(base_phases(config), config.stages.base)
