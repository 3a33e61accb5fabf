"""Uformer (Wang et al., CVPR 2022), a U-Net whose attention is within windows.

The names of all parameters are those of the official code, so official checkpoints
(`{"state_dict": ...}`, keys after `module.`) load without renaming. Images are (B, 3, H, W) in
[0, 1]. The official scripts pad each image with zeros around it to a square; here each side is
padded to its own multiple, which gives the same for square images and less work for others.
"""

# B images, C channels, H x W pixels, Y x X windows of N pixels each

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage.errors import UsageError
from samprior.training.networks.padding import around
from samprior.training.networks.windows import WindowAttention, from_windows, to_windows

_HEADS = (1, 2, 4, 8, 16, 16, 8, 4, 2)

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # 5.29, 20.75 and 50.88 million parameters
    "t": {"width": 16, "depths": (2,) * 9, "heads": _HEADS},
    "s": {"width": 32, "depths": (2,) * 9, "heads": _HEADS},
    "b": {"width": 32, "depths": (1, 2, 8, 8, 2, 8, 8, 2, 1), "heads": _HEADS},
    # Ours, not the authors': 326,170 parameters, for tests and demonstrations on a CPU.
    "tiny": {"width": 16, "depths": (1, 2, 2, 2, 1), "heads": (1, 2, 4, 4, 2)},
}
"""Settings by name. Weights were published for `b`, trained on SIDD and on GoPro."""

_HIDDEN_RATIO = 4
"""Hidden channels of a feed-forward part over its channels."""


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch for whole images at a time.

    The draws come from torch's generator of the device. Kept branches are scaled up, so that the
    mean stays; in eval mode nothing happens.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop and scale (B, ...) along B."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class LocalFeedForward(nn.Module):
    """A feed-forward part with a depth-wise convolution between its linear layers (LeFF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = _HIDDEN_RATIO * channels
        depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.linear1 = nn.Sequential(nn.Linear(channels, hidden), nn.GELU())
        self.dwconv = nn.Sequential(depthwise, nn.GELU())
        self.linear2 = nn.Sequential(nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        out: Tensor = self.linear2(_on_planes(self.dwconv, self.linear1(x)))
        return out


class UformerBlock(nn.Module):
    """Window attention, then the local feed-forward part, each normalised and residual.

    Args:
        channels: of the feature map.
        heads: attention heads.
        window: side of a window.
        shifted: whether windows lie half a window further down and to the right, around the end.
        modulated: whether a learned map is added to each window before attention (decoder).
        drop_path: probability that a residual branch is dropped in training.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        window: int,
        shifted: bool,
        modulated: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.modulator = nn.Embedding(window**2, channels) if modulated else None
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads=heads, window=window, shifted=shifted)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = LocalFeedForward(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape; H and W are multiples of the window."""
        y = self._rolled(self.norm1(x), -self.shift)
        windows = to_windows(y, self.window)  # (B, Y, X, N, C)
        if self.modulator is not None:
            windows = windows + self.modulator.weight
        y = self._rolled(from_windows(self.attn(windows), self.window), self.shift)
        x = x + self.drop_path(y)
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _rolled(self, x: Tensor, shift: int) -> Tensor:
        return torch.roll(x, (shift, shift), (1, 2)) if shift else x


class Uformer(nn.Module):
    """A U-Net of window-attention blocks with concatenated skips and a global residual.

    Args:
        width: channels at full resolution; doubled at each level down. The decoder of a level runs
            on twice the channels of its encoder.
        depths: blocks of each stage: encoder from full resolution down, bottleneck, decoder up.
        heads: attention heads of each stage, in the same order.
        window: side of a window.
        drop_path: greatest probability that a residual branch is dropped in training; it grows
            from 0 along the encoder and falls back along the decoder.
        shift_bottleneck: shift the windows of every second block of the bottleneck too. The
            official code does so when it was built for crops above `padding_multiple`. Its test
            scripts never build it so, not even for GoPro, whose training did, with 256 px crops.

    Raises:
        UsageError: settings of other types, numbers outside their range, lists of even or unequal
            length, or heads that don't divide the channels of their stage.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        depths: Sequence[int] = (1, 2, 8, 8, 2, 8, 8, 2, 1),
        heads: Sequence[int] = _HEADS,
        window: int = 8,
        drop_path: float = 0.1,
        shift_bottleneck: bool = False,
    ) -> None:
        super().__init__()
        _check_settings(width, depths, heads, window, drop_path, shift_bottleneck)
        self.levels = len(depths) // 2
        self.padding_multiple = window * 2**self.levels
        rates = _drop_rates(depths, drop_path)
        channels = _stage_channels(width, self.levels)

        def stage(place: int) -> nn.Sequential:
            may_shift = place != self.levels or shift_bottleneck
            blocks = (
                UformerBlock(
                    channels[place],
                    heads=heads[place],
                    window=window,
                    shifted=may_shift and number % 2 == 1,
                    modulated=place > self.levels,
                    drop_path=rate,
                )
                for number, rate in enumerate(rates[place])
            )
            return _named("blocks", nn.Sequential(*blocks))

        self.input_proj = _named(
            "proj", nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU())
        )
        for level in range(self.levels):
            self.add_module(f"encoderlayer_{level}", stage(level))
            down = nn.Conv2d(channels[level], 2 * channels[level], 4, stride=2, padding=1)
            # Spelt so in the official code.
            self.add_module(f"dowsample_{level}", _named("conv", nn.Sequential(down)))
        self.conv = stage(self.levels)
        for level in range(self.levels):
            below = self.levels + level
            up = nn.ConvTranspose2d(channels[below], channels[below + 1] // 2, 2, stride=2)
            self.add_module(f"upsample_{level}", _named("deconv", nn.Sequential(up)))
            self.add_module(f"decoderlayer_{level}", stage(below + 1))
        self.output_proj = _named("proj", nn.Sequential(nn.Conv2d(2 * width, 3, 3, padding=1)))
        self.apply(_fresh_linear)

    def forward(self, image: Tensor) -> Tensor:
        """Restore (B, 3, H, W) in [0, 1]; the result has the same shape and isn't clamped."""
        height, width = image.shape[-2:]
        top, bottom = around(height, self.padding_multiple)
        left, right = around(width, self.padding_multiple)
        # Zeros all around, as in the official scripts.
        padded = F.pad(image, (left, right, top, bottom))
        x = self.input_proj(padded).permute(0, 2, 3, 1)  # (B, H, W, C)
        skips = []
        for level in range(self.levels):
            x = self.get_submodule(f"encoderlayer_{level}")(x)
            skips.append(x)
            x = _on_planes(self.get_submodule(f"dowsample_{level}"), x)
        x = self.conv(x)
        for level, skip in enumerate(reversed(skips)):
            x = _on_planes(self.get_submodule(f"upsample_{level}"), x)
            x = self.get_submodule(f"decoderlayer_{level}")(torch.cat([x, skip], dim=-1))
        restored: Tensor = self.output_proj(x.permute(0, 3, 1, 2)) + padded
        return restored[..., top : top + height, left : left + width]


def _named(name: str, module: nn.Module) -> nn.Sequential:
    """The module under one more name, as the official keys have it."""
    return nn.Sequential(OrderedDict({name: module}))


def _on_planes(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer that takes (B, C, H, W) to (B, H, W, C)."""
    y: Tensor = layer(x.permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1)


def _stage_channels(width: int, levels: int) -> list[int]:
    """Channels of each stage; those of the decoder hold as many again from the encoder."""
    encoder = [width << level for level in range(levels)]
    return [*encoder, width << levels, *(2 * channels for channels in reversed(encoder))]


def _drop_rates(depths: Sequence[int], greatest: float) -> list[list[float]]:
    """Rates of each block of each stage: up to the greatest, constant, and down again."""
    levels = len(depths) // 2

    def ramp(number: int) -> list[float]:
        return [greatest * place / max(number - 1, 1) for place in range(number)]

    going_down = ramp(sum(depths[:levels]))
    coming_up = ramp(sum(depths[levels + 1 :]))[::-1]
    rates = iter([*going_down, *[greatest] * depths[levels], *coming_up])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _fresh_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _check_settings(
    width: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    drop_path: float,
    shift_bottleneck: bool,
) -> None:
    got = (
        f"got width {width}, depths {depths}, heads {heads}, window {window}, "
        f"drop_path {drop_path}, shift_bottleneck {shift_bottleneck}"
    )
    # Settings come from files and may be of any type; True would pass as an int.
    lists_given = all(isinstance(each, list | tuple) for each in (depths, heads))
    if not lists_given or any(type(n) is not int for n in (width, window, *depths, *heads)):
        raise UsageError(
            "uformer takes a whole number each for width and window, and lists of whole numbers, "
            f"such as [1, 2, 2, 2, 1], for depths and heads; {got}"
        )
    if type(drop_path) not in (int, float) or type(shift_bottleneck) is not bool:
        raise UsageError(
            "uformer takes a number for drop_path and true or false for shift_bottleneck; " + got
        )
    if not len(depths) == len(heads) or len(depths) % 2 == 0:
        raise UsageError(
            "uformer needs as many heads as depths, and an odd number: encoder stages, the "
            f"bottleneck, as many decoder stages; {got}"
        )
    if min(width, window, *heads) < 1 or min(depths) < 0 or not 0 <= drop_path < 1:
        raise UsageError(
            f"uformer needs width, window and heads >= 1, depths >= 0, 0 <= drop_path < 1; {got}"
        )
    for channels, number in zip(_stage_channels(width, len(depths) // 2), heads, strict=True):
        if channels % number:
            raise UsageError(f"uformer has no {number} heads in {channels} channels; {got}")
