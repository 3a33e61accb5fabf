"""NAFNet (Chen et al., "Simple Baselines for Image Restoration", ECCV 2022).

The names of all parameters are those of the official code, so official checkpoints
(`{"params": state_dict}`) load without renaming. Images are (B, 3, H, W) in [0, 1].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samprior.storage.errors import UsageError
from samprior.training.networks.padding import beyond

_GOPRO = {"enc_blocks": (1, 1, 1, 28), "middle_blocks": 1, "dec_blocks": (1, 1, 1, 1)}
_SIDD = {"enc_blocks": (2, 2, 4, 8), "middle_blocks": 12, "dec_blocks": (2, 2, 2, 2)}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # 17.11, 67.89, 29.16 and 115.98 million parameters; 15.96, 63.05, 16.05 and 63.24 GMACs at
    # 256 x 256
    "gopro_w32": {"width": 32, **_GOPRO},
    "gopro_w64": {"width": 64, **_GOPRO},
    "sidd_w32": {"width": 32, **_SIDD},
    "sidd_w64": {"width": 64, **_SIDD},
    # Ours, not the authors': 319,475 parameters, for tests and demonstrations on a CPU.
    "tiny": {"width": 16, "enc_blocks": (1, 1, 2), "middle_blocks": 1, "dec_blocks": (1, 1, 1)},
}
"""Settings by name. `gopro_*` and `sidd_*` are the authors' deblurring and denoising networks."""


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of each pixel, with a weight and a bias per channel."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W); half precision in gives single precision out."""
        # Squares of half-precision values would overflow above 255.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if torch.is_grad_enabled():
            normalised: Tensor = _ChannelNorm.apply(x, self.weight, self.bias, self.eps)
            return normalised
        return _scaled(_normalised(x, self.eps)[0], self.weight, self.bias)


class _ChannelNorm(torch.autograd.Function):
    """The norm with its gradient written out.

    It keeps one map where autograd keeps two, and makes fewer passes over memory than the plain
    operations do, or functional.layer_norm on permuted axes.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch types it so
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        y, scale = _normalised(x, eps)
        ctx.save_for_backward(y, scale, weight)
        return _scaled(y, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
        y, scale, weight = ctx.saved_tensors
        grad_y = grad * y
        grad_weight, grad_bias = grad_y.sum((0, 2, 3)), grad.sum((0, 2, 3))
        # With g = grad * weight and means over the channels: scale * (g - mean(g) - y mean(g y)).
        per_channel = weight.view(1, -1, 1, 1)
        along_y = grad_y.mul_(per_channel).mean(1, keepdim=True)
        g = grad * per_channel
        grad_x = g.sub_(g.mean(1, keepdim=True)).addcmul_(y, along_y, value=-1).mul_(scale)
        return grad_x, grad_weight, grad_bias, None


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) at mean 0 and variance 1 over C, and the factor (B, 1, H, W) that did it."""
    y = x - x.mean(1, keepdim=True)
    scale = torch.rsqrt((y * y).mean(1, keepdim=True) + eps)
    return y * scale, scale


def _scaled(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias.view(1, -1, 1, 1), y, weight.view(1, -1, 1, 1))


def simple_gate(x: Tensor) -> Tensor:
    """Multiply the two halves of the channels: (B, 2C, H, W) to (B, C, H, W)."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """One block: gated depth-wise convolution with channel attention, then a gated 1x1 pair.

    `beta` and `gamma` scale the two residual branches and start at zero, so a fresh block is
    the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv4 = nn.Conv2d(channels, wide, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = LayerNorm2d(channels)
        self.norm2 = LayerNorm2d(channels)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = simple_gate(self.conv2(self.conv1(self.norm1(x))))
        y = x + self.conv3(y * self.sca(y)) * self.beta
        z = simple_gate(self.conv4(self.norm2(y)))
        out: Tensor = y + self.conv5(z) * self.gamma
        return out


class NAFNet(nn.Module):
    """A U-Net of NAF blocks with additive skips and a global residual.

    Args:
        width: channels at full resolution; doubled at each level down.
        enc_blocks: blocks of each encoder level, from full resolution down.
        middle_blocks: blocks at the lowest resolution.
        dec_blocks: blocks of each decoder level, from the lowest up; as many as `enc_blocks`.

    Raises:
        UsageError: settings of other types, a width below 1, a negative number of blocks, or
            lists of unequal length.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        enc_blocks: Sequence[int] = (1, 1, 1, 28),
        middle_blocks: int = 1,
        dec_blocks: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        _check_settings(width, enc_blocks, middle_blocks, dec_blocks)
        self.padding_multiple = 2 ** len(enc_blocks)
        self.intro = nn.Conv2d(3, width, 3, padding=1)
        self.ending = nn.Conv2d(width, 3, 3, padding=1)
        self.encoders = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        channels = width
        for num_blocks in enc_blocks:
            self.encoders.append(_blocks(channels, num_blocks))
            self.downs.append(nn.Conv2d(channels, 2 * channels, 2, stride=2))
            channels *= 2
        self.middle_blks = _blocks(channels, middle_blocks)
        for num_blocks in dec_blocks:
            widen = nn.Conv2d(channels, 2 * channels, 1, bias=False)
            self.ups.append(nn.Sequential(widen, nn.PixelShuffle(2)))
            channels //= 2
            self.decoders.append(_blocks(channels, num_blocks))

    def forward(self, image: Tensor) -> Tensor:
        """Restore (B, 3, H, W) in [0, 1]; the result has the same shape and isn't clamped."""
        height, width = image.shape[-2:]
        # Zeros below and to the right, as in the official code.
        multiple = self.padding_multiple
        padded = F.pad(image, (0, beyond(width, multiple), 0, beyond(height, multiple)))
        x = self.intro(padded)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up, skip in zip(self.decoders, self.ups, reversed(skips), strict=True):
            x = decoder(up(x) + skip)
        restored: Tensor = self.ending(x) + padded
        return restored[..., :height, :width]


def _blocks(channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(num_blocks)))


def _check_settings(
    width: int, enc_blocks: Sequence[int], middle_blocks: int, dec_blocks: Sequence[int]
) -> None:
    got = (
        f"got width {width}, enc_blocks {enc_blocks}, middle_blocks {middle_blocks}, "
        f"dec_blocks {dec_blocks}"
    )
    # Settings come from files and may be of any type; True would pass as an int.
    lists_given = all(isinstance(blocks, list | tuple) for blocks in (enc_blocks, dec_blocks))
    if not lists_given or any(
        type(number) is not int for number in (width, middle_blocks, *enc_blocks, *dec_blocks)
    ):
        raise UsageError(
            "nafnet takes a whole number each for width and middle_blocks, and lists of whole "
            f"numbers, such as [1, 1, 2], for enc_blocks and dec_blocks; {got}"
        )
    if width < 1 or min((middle_blocks, *enc_blocks, *dec_blocks)) < 0:
        raise UsageError(f"nafnet needs width >= 1 and numbers of blocks >= 0; {got}")
    if len(enc_blocks) != len(dec_blocks):
        raise UsageError(
            f"nafnet needs as many dec_blocks as enc_blocks, got {len(dec_blocks)} for "
            f"{len(enc_blocks)}; each level down has one level up"
        )
