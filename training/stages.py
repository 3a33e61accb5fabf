"""The stages of a run: which modules learn, which are frozen, and the loss of one batch.

    base      network 1 alone, with the network's own loss
    control   network 1, further, with the same loss: what a distilled network is compared with
    fusion    stage A: SPF and network 2, network 1 frozen
    distill   stage B: network 1, SPF and network 2 frozen; L_recon + l1 * L_SPD + l2 * L_SGR
    joint     network 1 as in distill, and SPF and network 2 as in fusion, in the same steps

That the teacher is trained in a stage of its own is our choice: summaries of the paper give only
the three terms of the loss (see docs/method.md).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samprior.training.building import (
    Teacher,
    build_networks,
    build_relation,
    starts_as_network_1,
)
from samprior.training.config import LossConfig, TrainConfig
from samprior.training.data import Batch
from samprior.training.priors import RelationLoss, bounded_psnr, spd_loss, teacher_where_better
from samprior.training.priors.regions import RegionBatch
from samprior.training.reconstruction import fitting_loss, image_loss, restored_with_loss
from samprior.training.schedule import Phases, base_phases, later_phases, samples_before

__all__ = [
    "STAGES_OF_MODE",
    "Losses",
    "Stage",
    "Teacher",
    "base_stage",
    "build_networks",
    "build_relation",
    "control_stage",
    "distill_stage",
    "distillation_losses",
    "fusion_stage",
    "joint_stage",
]

Losses = dict[str, Tensor]
"""Scalars by name; `total` is what is minimised."""

STAGES_OF_MODE = {
    "plain": ("base",),
    "control": ("base", "control"),
    "distill": ("base", "fusion", "distill"),
    "joint": ("base", "joint"),
    "compare": ("base", "control", "fusion", "distill"),
}


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
    result_part: str = ""
    """Name of the part of `learns` that is the stage's result; empty: all of it."""
    clipped_apart: Sequence[nn.Module] = ()
    """Parts of `learns` with losses of their own, each clipped by its own norm; empty: all is one.
    """
    frozen: Sequence[nn.Module] = ()
    mask_strides: tuple[int, ...] | None = None
    """Strides at which SGR pools masks; None when the stage looks at no masks."""
    mask_dropout: float = 0.0
    schedule: str = "cosine"
    """How the learning rate falls; a name of `learning_rate`."""
    analyzer: str | None = None
    """Name of SGR's analyzer, reported with every result."""

    def result_of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is kept of weights of `learns` once the stage has ended, under its own keys."""
        prefix = f"{self.result_part}." if self.result_part else ""
        return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


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
    """Stage A: train the teacher on the output of the frozen network 1, or on its input."""
    sees_degraded = config.fusion.image == "degraded"
    starts_anew = config.network2.init is None and not starts_as_network_1(config, network, teacher)

    def image_of(degraded: Tensor) -> Tensor:
        if sees_degraded:
            return degraded
        with torch.no_grad():
            restored: Tensor = network(degraded)
        return restored

    def restore(degraded: Tensor, regions: RegionBatch | None) -> Tensor:
        assert regions is not None
        refined: Tensor = teacher(image_of(degraded), regions)
        return refined

    def losses(batch: Batch) -> Losses:
        return {"total": _refined_with_loss(config, teacher, image_of(batch.degraded), batch)[1]}

    return Stage(
        name="fusion",
        learns=teacher,
        frozen=() if sees_degraded else (network,),
        iterations=config.stages.fusion,
        peak_lr=config.optimizer.lr if starts_anew else _extra_lr(config),
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
            if config.fusion.image == "degraded":
                image = batch.degraded
            else:
                image = start(batch.degraded) if start else restored
            refined = teacher(image, batch.regions)
        return distillation_losses(
            restored, loss, refined, batch.clean, batch.regions, settings, relation
        )

    stage = _plain(
        config, network, "distill", config.stages.distill, _extra_lr(config), _extra_start(config)
    )
    stage.losses = losses
    stage.frozen = (teacher,)
    stage = _with_relation(stage, relation)
    stage.frozen = (*stage.frozen, start) if start else stage.frozen
    return stage


def joint_stage(
    config: TrainConfig, network: nn.Module, teacher: Teacher, relation: RelationLoss | None
) -> Stage:
    """Both stages at once: network 1 on L, the teacher on L_recon of its own images.

    Nothing of L reaches the teacher, and nothing of its loss network 1. So without weights of SPD
    and SGR network 1 ends as `control_stage` leaves it (where networks draw at random, as Uformer
    does, only if steps are computed in one part: the teacher draws between the parts).
    """

    def losses(batch: Batch) -> Losses:
        assert batch.regions is not None
        restored, loss = restored_with_loss(
            network, batch.degraded, batch.clean, loss=config.loss.reconstruction
        )
        image = batch.degraded if config.fusion.image == "degraded" else restored.detach()
        refined, of_teacher = _refined_with_loss(config, teacher, image, batch)
        terms = distillation_losses(
            restored, loss, refined.detach(), batch.clean, batch.regions, config.loss, relation
        )
        return {**terms, "total": terms["total"] + of_teacher, "teacher": of_teacher}

    stage = _plain(
        config, network, "joint", config.stages.distill, _extra_lr(config), _extra_start(config)
    )
    stage.learns = nn.ModuleDict({"network1": network, "teacher": teacher})
    stage.result_part, stage.clipped_apart = "network1", (network, teacher)
    stage.losses = losses
    stage.mask_dropout = config.data.mask_dropout
    return _with_relation(stage, relation)


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


def _with_relation(stage: Stage, relation: RelationLoss | None) -> Stage:
    """The stage with SGR beside it, frozen; its masks are pooled as SGR asks."""
    stage.mask_strides = ()
    if relation is not None:
        stage.frozen = (*stage.frozen, relation)
        stage.mask_strides = relation.analyzer.strides
        stage.analyzer = relation.analyzer.name
    return stage


def _refined_with_loss(
    config: TrainConfig, teacher: Teacher, image: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The teacher's images (B, 3, H, W) and its own reconstruction loss."""
    assert batch.regions is not None
    fused = teacher.fusion(image, batch.regions)
    loss = fitting_loss(teacher.network2, config.loss.reconstruction)
    return restored_with_loss(teacher.network2, fused, batch.clean, loss=loss)


def _extra_lr(config: TrainConfig) -> float:
    return config.optimizer.lr * config.optimizer.extra_lr_share


def _extra_start(config: TrainConfig) -> int:
    return samples_before(base_phases(config), config.stages.base)
