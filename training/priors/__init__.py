"""Semantic priors in training: fusion (SPF), distillation (SPD), relations (SGR)."""

from samprior.training.priors.analyzers import (
    ANALYZERS,
    SemanticAnalyzer,
    VggAnalyzer,
    build_analyzer,
)
from samprior.training.priors.distillation import (
    RECONSTRUCTION_LOSSES,
    ReconstructionLoss,
    bounded_psnr,
    spd_loss,
    teacher_where_better,
)
from samprior.training.priors.fusion import (
    MASK_CHANNELS,
    MaskRepr,
    SemanticPriorFusion,
    mask_boundaries,
    mask_features,
)
from samprior.training.priors.regions import RegionBatch, dropout_masks, keep_masks
from samprior.training.priors.relation import RelationLoss, region_nodes, relation_distance

__all__ = [
    "ANALYZERS",
    "MASK_CHANNELS",
    "RECONSTRUCTION_LOSSES",
    "MaskRepr",
    "ReconstructionLoss",
    "RegionBatch",
    "RelationLoss",
    "SemanticAnalyzer",
    "SemanticPriorFusion",
    "VggAnalyzer",
    "bounded_psnr",
    "build_analyzer",
    "dropout_masks",
    "keep_masks",
    "mask_boundaries",
    "mask_features",
    "region_nodes",
    "relation_distance",
    "spd_loss",
    "teacher_where_better",
]
