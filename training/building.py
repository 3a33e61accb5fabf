"""Make the modules of a run as its settings say: network 1, the teacher, and SGR.

Initial weights are those of the seed, or of the files that network.init and network2.init name.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from samprior.storage.errors import ConfigError
from samprior.training.checkpoint import load_checkpoint, load_official, load_strictly
from samprior.training.config import LossConfig, TrainConfig
from samprior.training.networks import build_network
from samprior.training.networks.rain_kernels import read_rain_kernels
from samprior.training.networks.rcdnet import RCDNet
from samprior.training.priors import RelationLoss, SemanticPriorFusion, build_analyzer
from samprior.training.priors.regions import RegionBatch
from samprior.training.reconstruction import require_fitting_loss


class Teacher(nn.Module):
    """SPF, then network 2: an image and its masks in, a refined image out."""

    def __init__(self, fusion: SemanticPriorFusion, network: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        self.network2 = network

    def forward(self, image: Tensor, regions: RegionBatch) -> Tensor:
        """Refine (B, 3, H, W) images, restored or degraded; no gradient goes back through them."""
        refined: Tensor = self.network2(self.fusion(image.detach(), regions))
        return refined


def build_networks(config: TrainConfig) -> tuple[nn.Module, Teacher]:
    """Network 1 and a teacher; initial weights are fixed by the seed.

    Raises:
        UsageError: a network that can't be built as it is set.
        ConfigError: a loss or rain kernels that don't fit it.
        CheckpointError: rain kernels that can't be read.
    """
    made, second = config.network, config.network2.beside(config.network)
    assert second.name is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(made.name, preset=made.preset, **made.settings)
        network2 = build_network(second.name, preset=second.preset, **second.settings)
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
    return network, Teacher(fusion, network2)


def load_initial_weights(network: nn.Module, file: Path) -> None:
    """Start a network from one of our checkpoints or an official file.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """
    if file.suffix == ".safetensors":
        load_strictly(network, load_checkpoint(file)[0], file)
    else:
        load_official(network, file)


def starts_as_network_1(config: TrainConfig, network: nn.Module, teacher: Teacher) -> bool:
    """Whether network 2 takes the weights of network 1: they fit, and no others were given."""
    if config.network2.init is not None:
        return False
    ours, theirs = config.network, config.network2.beside(config.network)
    if (ours.name, ours.preset, ours.settings) == (theirs.name, theirs.preset, theirs.settings):
        # A factory may make its class anew each time, so types say nothing here.
        return True
    kinds = [
        (type(each), {name: value.shape for name, value in each.state_dict().items()})
        for each in (network, teacher.network2)
    ]
    return kinds[0] == kinds[1]


def build_relation(settings: LossConfig) -> RelationLoss | None:
    """SGR as configured, or None when its weight is 0.

    Raises:
        UsageError: an untrained analyzer with weights.
        CheckpointError: the analyzer's weights can't be had.
    """
    if settings.lambda_sgr == 0:
        return None
    analyzer = build_analyzer(
        settings.analyzer, layers=settings.analyzer_layers, weights=settings.analyzer_weights
    )
    return RelationLoss(analyzer, eta=settings.eta, max_regions=settings.max_regions)
