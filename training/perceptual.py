"""LPIPS: distance of two pictures in the features of AlexNet; lower is better.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
The network is that of the authors' own package, `lpips`, which is an extra of samprior.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from samprior.storage.errors import CheckpointError, UsageError
from samprior.storage.images import Rgb
from samprior.training.data import to_tensor

BACKBONE_FILE = "alexnet-owt-7be5be79.pth"
"""torchvision's AlexNet, which the package takes its features from."""

MIN_SIDE_PX = 31
"""AlexNet's pooling leaves nothing of smaller pictures."""


def build_lpips(*, pretrained: bool = True) -> nn.Module:
    """The authors' network, version 0.1 on AlexNet; `pretrained=False` draws all its weights.

    Raises:
        UsageError: the package is not installed.
        CheckpointError: AlexNet's weights are not there and can't be downloaded.
    """
    try:
        import lpips
    except ImportError as error:
        raise UsageError(
            "LPIPS needs the package lpips, which is not installed: pip install 'samprior[lpips]'"
        ) from error
    options: dict[str, Any] = {"net": "alex", "version": "0.1", "verbose": False}
    with warnings.catch_warnings():
        # The package asks torchvision for its weights by an argument that has a newer name.
        warnings.filterwarnings("ignore", message="(The parameter 'pretrained'|Arguments other)")
        try:
            network: nn.Module = lpips.LPIPS(
                pretrained=pretrained, pnet_rand=not pretrained, **options
            )
        except (URLError, OSError, RuntimeError) as error:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise CheckpointError(
                f"LPIPS has no AlexNet weights ({str(error).splitlines()[0]}); put torchvision's "
                f"{BACKBONE_FILE} into {folder}, or point TORCH_HOME to where it is"
            ) from error
    return network.eval().requires_grad_(False)


class LpipsMeasure:
    """LPIPS as a `Measure` of `samprior.training.evaluate`.

    Args:
        network: what `build_lpips` makes: two images (1, 3, H, W) in [-1, 1] to their distance.
        device: where to compute.
    """

    remark = "LPIPS 0.1 on AlexNet, RGB, whole images without cutting a border, lower is better"

    def __init__(self, network: nn.Module, *, device: torch.device) -> None:
        self._network = network.to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, clean: Rgb, pictures: Sequence[Rgb]) -> list[Mapping[str, float]]:
        """The distance of each picture, as `lpips`.

        Raises:
            UsageError: a picture is smaller than AlexNet takes.
        """
        if min(clean.shape[:2]) < MIN_SIDE_PX:
            raise UsageError(
                f"LPIPS needs at least {MIN_SIDE_PX}x{MIN_SIDE_PX} pixels, got "
                f"{clean.shape[1]}x{clean.shape[0]}; leave out --lpips"
            )
        wanted = self._scaled(clean)
        distances = [float(self._network(self._scaled(one), wanted)) for one in pictures]
        if not np.isfinite(distances).all():
            raise CheckpointError(f"LPIPS is not a number ({distances}); its weights are damaged")
        return [{"lpips": distance} for distance in distances]

    def _scaled(self, picture: Rgb) -> Tensor:
        """(1, 3, H, W) in [-1, 1]."""
        return to_tensor([picture]).to(self._device) * 2 - 1
