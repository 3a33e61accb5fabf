"""A network's own loss on a batch: on its image, or on all that it unrolls.

Letters: B images of H x W pixels.
"""

from torch import Tensor, nn

from samprior.storage.errors import ConfigError
from samprior.training.networks.rcdnet import RCDNet, deep_supervision
from samprior.training.priors.distillation import RECONSTRUCTION_LOSSES, ReconstructionLoss

DEEP_SUPERVISION = "deep_supervision"
"""The loss that looks at all that `unroll` gives; the others look at the image alone."""

_OF_IMAGES = "mse"
"""What deep_supervision takes at every stage, and so the loss that goes with it for two images."""


def image_loss(name: str) -> ReconstructionLoss:
    """The loss of two images that goes with a reconstruction loss; SPD takes it."""
    return RECONSTRUCTION_LOSSES[_OF_IMAGES if name == DEEP_SUPERVISION else name]


def restored_with_loss(
    network: nn.Module, degraded: Tensor, clean: Tensor, *, loss: str
) -> tuple[Tensor, Tensor]:
    """Restore (B, 3, H, W) in [0, 1]: the restored images and their reconstruction loss.

    Args:
        network: what restores; for deep_supervision it has `unroll`.
        degraded: its input. What it takes off is a truth of deep_supervision, and so a constant.
        clean: the truth.
        loss: name of a reconstruction loss.
    """
    if loss == DEEP_SUPERVISION:
        unrolled = network.unroll(degraded)  # type: ignore[operator]  # `require_fitting_loss`
        return unrolled.backgrounds[-1], deep_supervision(unrolled, degraded.detach(), clean)
    restored: Tensor = network(degraded)
    return restored, RECONSTRUCTION_LOSSES[loss](restored, clean)


def fitting_loss(network: nn.Module, loss: str) -> str:
    """The loss that trains network 2: `loss`, or for one that can't unroll its image loss."""
    return loss if loss != DEEP_SUPERVISION or _unrolls(network) else _OF_IMAGES


def require_fitting_loss(network: nn.Module, loss: str) -> None:
    """Check that a network can be trained with a loss.

    Raises:
        ConfigError: deep supervision of a network that gives one image alone.
    """
    if loss == DEEP_SUPERVISION and not _unrolls(network):
        raise ConfigError(
            f"loss.reconstruction deep_supervision is for networks that unroll, such as "
            f"{RCDNet.__name__}, and {type(network).__name__} does not; take mse or charbonnier"
        )


def _unrolls(network: nn.Module) -> bool:
    return callable(getattr(network, "unroll", None))
