"""Restoration networks, semantic priors, and the training that distils the priors into them."""

from samprior.training.metrics import psnr, ssim
from samprior.training.networks import build_network
from samprior.training.priors import RelationLoss, SemanticPriorFusion

__all__ = ["RelationLoss", "SemanticPriorFusion", "build_network", "psnr", "ssim"]
