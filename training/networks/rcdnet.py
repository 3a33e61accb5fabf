"""RCDNet (Wang et al., "A Model-Driven Deep Neural Network for Single Image Rain Removal", 2020).

A rainy image is background plus rain, and rain is a sum of streak kernels placed by sparse maps.
Each stage takes one gradient step on the maps and one on the background, both followed by a small
residual network.

The names and shapes of all parameters are those of the official code, so official checkpoints (a
bare state_dict) load strictly. Images are (B, 3, H, W) in [0, 1]; the weights are for [0, 255], so
images are scaled on the way in and out. Some official parameters are never used: `mnet.*`, `eta1`
and all of `conv` but its index 1. They are kept for the sake of checkpoints, and have no gradient
or one of zero.

Letters: B images of H x W pixels, S stages, N rain maps, Z dual channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage.errors import UsageError
from samprior.training.networks.rain_kernels import KERNEL_PX, rain_kernels

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # 3,166,355 parameters, 209.35 GMACs at 256 x 256
    "rcdnet": {"stages": 17, "rain_maps": 32, "dual_channels": 32, "blocks": 4},
    # Ours, not the authors': 42,354 parameters, 2.93 GMACs, for tests and demonstrations on a CPU.
    "tiny": {"stages": 3, "rain_maps": 8, "dual_channels": 9, "blocks": 2},
}
"""Settings by name. `rcdnet` is the authors' network."""

_MIN_STAGES = 3  # the kernel in use is index 1 of S - 1 copies
_RANGE = 255.0
_REACH = KERNEL_PX // 2


@dataclass(frozen=True)
class Unrolled:
    """What every stage gives, as images (B, 3, H, W) in [0, 1], not clamped."""

    initial: Tensor
    """The background before the first stage (B0 of the official code)."""
    backgrounds: tuple[Tensor, ...]
    """One for each stage and the fine-tuned one, the result, last: S + 1 (ListB)."""
    rain_layers: tuple[Tensor, ...]
    """One for each stage: S (ListCM)."""


class ResidualBlocks(nn.Module):
    """Residual blocks with batch norm, each with a ReLU after it; named `<prefix>1` and so on."""

    def __init__(self, channels: int, blocks: int, *, prefix: str) -> None:
        super().__init__()
        for number in range(1, blocks + 1):
            self.add_module(f"{prefix}{number}", _block(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, nowhere negative."""
        for block in self.children():
            x = F.relu(x + block(x))
        return x


class RainMapNet(ResidualBlocks):
    """The same, and a soft threshold per map that keeps the maps sparse."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__(channels, blocks, prefix="resm")
        self.tau = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, H, W) to the same shape, nowhere negative."""
        return F.relu(super().forward(x) - self.tau)


class RCDNet(nn.Module):
    """The unrolled optimisation of rain maps and background, for images of any size.

    Args:
        stages: S, the number of updates; at least 3.
        rain_maps: N, the number of rain kernels.
        dual_channels: Z, channels that the stages hand on besides the background.
        blocks: residual blocks of each small network.

    Raises:
        UsageError: settings that aren't whole numbers, fewer than 3 stages or 1 of the others.
    """

    leaves_parameters_unused = True
    """Says to several ranks that some parameters never get a gradient."""

    padding_multiple = 1

    def __init__(
        self,
        *,
        stages: int = 17,
        rain_maps: int = 32,
        dual_channels: int = 32,
        blocks: int = 4,
    ) -> None:
        super().__init__()
        _check_settings(stages, rain_maps, dual_channels, blocks)
        kernels = torch.tensor(rain_kernels(rain_maps))
        wide = dual_channels + 3
        # Step sizes; the forward pass divides them by 10, and the kernels as well.
        self.eta1 = nn.Parameter(torch.ones(1))
        self.eta2 = nn.Parameter(torch.full((1,), 5.0))
        self.eta11 = nn.Parameter(torch.ones(stages - 1, 1))
        self.eta12 = nn.Parameter(torch.full((stages - 1, 1), 5.0))
        self.weight0 = nn.Parameter(kernels.clone())  # (3, N, 9, 9)
        self.conv = nn.Parameter(kernels.repeat(stages - 1, 1, 1, 1, 1))  # (S - 1, 3, N, 9, 9)
        self.w_z_f = nn.Parameter(torch.full((dual_channels, 3, 3, 3), 1 / 9))
        self.xnet = ResidualBlocks(wide, blocks, prefix="resx")
        self.mnet = RainMapNet(rain_maps, blocks)
        self.x_stage = nn.Sequential(
            *(ResidualBlocks(wide, blocks, prefix="resx") for _ in range(stages))
        )
        self.m_stage = nn.Sequential(*(RainMapNet(rain_maps, blocks) for _ in range(stages)))
        self.fxnet = ResidualBlocks(wide, blocks, prefix="resx")
        self.tau = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        """Derain (B, 3, H, W) in [0, 1]; the result has the same shape and isn't clamped."""
        return self.unroll(image).backgrounds[-1]

    def unroll(self, image: Tensor) -> Unrolled:
        """Derain (B, 3, H, W) in [0, 1] and give what every stage found, for `deep_supervision`."""
        rainy = image * _RANGE
        state = self.xnet(torch.cat((rainy, F.conv2d(rainy, self.w_z_f, padding=1)), dim=1))
        initial = background = state[:, :3]
        maps, rain = self._first_maps(rainy, background)
        backgrounds, rain_layers = [], []
        for stage, refine in enumerate(self.x_stage):
            if stage > 0:
                maps, rain = self._next_maps(stage, maps, rain - (rainy - background))
            step = (self.eta12[stage - 1] if stage > 0 else self.eta2) / 10
            moved = background - step * (background - (rainy - rain))
            state = refine(torch.cat((moved, state[:, 3:]), dim=1))  # (B, 3 + Z, H, W)
            background = state[:, :3]
            backgrounds.append(background)
            rain_layers.append(rain)
        backgrounds.append(self.fxnet(state)[:, :3])
        return Unrolled(
            initial / _RANGE,
            tuple(background / _RANGE for background in backgrounds),
            tuple(rain / _RANGE for rain in rain_layers),
        )

    def set_rain_kernels(self, kernels: npt.NDArray[np.float32]) -> None:
        """Start from other kernels (3, N, 9, 9), such as `read_rain_kernels` gives.

        Raises:
            UsageError: kernels of another shape.
        """
        if kernels.shape != self.weight0.shape:
            raise UsageError(
                f"this RCDNet takes rain kernels of shape {tuple(self.weight0.shape)}, got "
                f"{kernels.shape}; its setting rain_maps is the number of kernels"
            )
        with torch.no_grad():
            self.weight0.copy_(torch.tensor(kernels))
            self.conv.copy_(torch.tensor(kernels).expand_as(self.conv))

    def _first_maps(self, rainy: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        """Rain maps (B, N, H, W) of the first stage and their rain (B, 3, H, W)."""
        likely = F.relu(rainy - background - self.tau)
        maps = self.m_stage[0](F.conv_transpose2d(likely, self.weight0 / 10, padding=_REACH))
        return maps, self._rain(maps)

    def _next_maps(self, stage: int, maps: Tensor, excess: Tensor) -> tuple[Tensor, Tensor]:
        """Maps and rain after a step against `excess` (B, 3, H, W), rain beyond the residual."""
        gradient = F.conv_transpose2d(excess, self.conv[1] / 10, padding=_REACH)
        maps = self.m_stage[stage](maps - self.eta11[stage - 1] / 10 * gradient)
        return maps, self._rain(maps)

    def _rain(self, maps: Tensor) -> Tensor:
        # The stages share one kernel; the official code keeps S - 1 copies and takes this one.
        return F.conv2d(maps, self.conv[1] / 10, padding=_REACH)


def deep_supervision(unrolled: Unrolled, degraded: Tensor, clean: Tensor) -> Tensor:
    """The authors' loss: squared errors of all stages, of backgrounds and of rain.

    0.1 * (B0 + sum_j B_j + sum_j R_j) + B_last + 0.9 * R_S over the stages j = 1..S, where B stands
    for the MSE of a background against `clean` and R for that of a rain layer against
    `degraded - clean`. Images are (B, 3, H, W) in [0, 1]; the authors' are in [0, 255], which makes
    their value larger by 255².
    """
    rain = degraded - clean
    total = F.mse_loss(unrolled.backgrounds[-1], clean)
    total = total + 0.9 * F.mse_loss(unrolled.rain_layers[-1], rain)
    for background in (unrolled.initial, *unrolled.backgrounds[:-1]):
        total = total + 0.1 * F.mse_loss(background, clean)
    for layer in unrolled.rain_layers:
        total = total + 0.1 * F.mse_loss(layer, rain)
    return total


def _block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
    )


def _check_settings(stages: int, rain_maps: int, dual_channels: int, blocks: int) -> None:
    got = (
        f"got stages {stages}, rain_maps {rain_maps}, dual_channels {dual_channels}, "
        f"blocks {blocks}"
    )
    # Settings come from files and may be of any type; True would pass as an int.
    if any(type(number) is not int for number in (stages, rain_maps, dual_channels, blocks)):
        raise UsageError(f"rcdnet takes a whole number for each setting; {got}")
    if stages < _MIN_STAGES or min(rain_maps, dual_channels, blocks) < 1:
        raise UsageError(f"rcdnet needs stages >= {_MIN_STAGES} and the others >= 1; {got}")
