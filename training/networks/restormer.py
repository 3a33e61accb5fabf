"""Restormer (Zamir et al., CVPR 2022), whose attention is between channels instead of pixels.

The names of all parameters are those of the official code, so official checkpoints
(`{"params": state_dict}`) load without renaming. Images are (B, 3, H, W) in [0, 1]; the dual-pixel
network takes (B, 6, H, W), the left view's channels before the right view's.
"""

# B images, C channels, K heads of D channels each, H x W pixels

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage.errors import UsageError
from samprior.training.networks.nafnet import LayerNorm2d
from samprior.training.networks.padding import beyond

_PUBLISHED = {
    "dim": 48,
    "num_blocks": (4, 6, 6, 8),
    "num_refinement_blocks": 4,
    "heads": (1, 2, 4, 8),
    "ffn_expansion": 2.66,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # 26.13 million parameters each; deraining and deblurring differ in their weights alone.
    "deraining": _PUBLISHED,
    "deblurring": _PUBLISHED,
    "denoising": {**_PUBLISHED, "norm_bias": False},
    "dual_pixel": {**_PUBLISHED, "dual_pixel": True},
    # Ours, not the authors': 237,023 parameters, for tests and demonstrations on a CPU.
    "tiny": {
        "dim": 8,
        "num_blocks": (1, 1, 1, 2),
        "num_refinement_blocks": 1,
        "heads": (1, 2, 4, 8),
        "ffn_expansion": 2.0,
    },
}
"""Settings by name. `denoising` is for real noise and Gaussian noise in colour, `deblurring` for
motion and for defocus in one view, `dual_pixel` for defocus in a sensor's two views."""

_NORM_EPS = 1e-5


class ScaleNorm2d(nn.Module):
    """Layer norm over the channels of each pixel that keeps the mean: the bias-free variant."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, C, H, W); half precision in gives single precision out."""
        # Squares of half-precision values would overflow above 255.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = x - x.mean(1, keepdim=True)
        # Tensor.var along the channels takes several times as long on a CPU.
        variance = (centred * centred).mean(1, keepdim=True)  # (B, 1, H, W)
        return x * torch.rsqrt(variance + self.eps) * self.weight.view(1, -1, 1, 1)


class ChannelAttention(nn.Module):
    """Attention of channels to channels (MDTA): its cost is linear in the number of pixels.

    Args:
        channels: divisible by `heads`.
        heads: groups of channels that attend among themselves, by the cosines of their maps.
        bias: whether the convolutions have one.
    """

    def __init__(self, channels: int, *, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = _depthwise(3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        qkv = self.qkv_dwconv(self.qkv(x))
        # Heads lie one after another within q, k and v alike: (B, 3K, D, H W).
        q, k, v = qkv.unflatten(1, (3 * self.heads, -1)).flatten(3).chunk(3, dim=1)
        # Normalised first: sums over all pixels would overflow in half precision.
        cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)  # (B, K, D, D)
        attended = (cosines * self.temperature).softmax(dim=-1) @ v  # (B, K, D, H W)
        out: Tensor = self.project_out(attended.reshape(x.shape))
        return out


class GatedFeedForward(nn.Module):
    """Two depth-wise convolved branches, one gating the other (GDFN)."""

    def __init__(self, channels: int, *, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = _depthwise(2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        gate, y = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        out: Tensor = self.project_out(F.gelu(gate) * y)
        return out


class RestormerBlock(nn.Module):
    """Channel attention, then the gated feed-forward part, each normalised and residual."""

    def __init__(
        self, channels: int, *, heads: int, ffn_expansion: float, bias: bool, norm_bias: bool
    ) -> None:
        super().__init__()
        norm = LayerNorm2d if norm_bias else ScaleNorm2d
        self.norm1 = _named("body", norm(channels, _NORM_EPS))
        self.attn = ChannelAttention(channels, heads=heads, bias=bias)
        self.norm2 = _named("body", norm(channels, _NORM_EPS))
        self.ffn = GatedFeedForward(channels, expansion=ffn_expansion, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class Restormer(nn.Module):
    """A U-Net of channel-attention blocks on four resolutions, with a global residual.

    Args:
        dim: channels at full resolution; doubled at each level down. The decoder and the refinement
            at full resolution run on twice as many.
        num_blocks: blocks of each level, from full resolution down; encoder and decoder alike.
        num_refinement_blocks: blocks after the decoder, at full resolution.
        heads: attention heads of each level, from full resolution down.
        ffn_expansion: hidden channels of a feed-forward part over its channels.
        bias: whether the convolutions have one; no published network does.
        norm_bias: whether layer norms take off the mean and add a bias; the denoisers' do neither.
        dual_pixel: take (B, 6, H, W), two views, and give (B, 3, H, W), without global residual.

    Raises:
        UsageError: settings of other types, numbers below their range, lists that aren't four
            long, or heads that don't divide the channels of their level.
    """

    padding_multiple = 8

    def __init__(
        self,
        *,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion: float = 2.66,
        bias: bool = False,
        norm_bias: bool = True,
        dual_pixel: bool = False,
    ) -> None:
        super().__init__()
        _check_switches(bias=bias, norm_bias=norm_bias, dual_pixel=dual_pixel)
        _check_numbers(dim, num_blocks, num_refinement_blocks, heads, ffn_expansion)

        def blocks(channels: int, level: int, number: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    RestormerBlock(
                        channels,
                        heads=heads[level],
                        ffn_expansion=ffn_expansion,
                        bias=bias,
                        norm_bias=norm_bias,
                    )
                    for _ in range(number)
                )
            )

        channels = 6 if dual_pixel else 3
        self.patch_embed = _named("proj", nn.Conv2d(channels, dim, 3, padding=1, bias=False))
        self.encoder_level1 = blocks(dim, 0, num_blocks[0])
        self.down1_2 = _down(dim)
        self.encoder_level2 = blocks(2 * dim, 1, num_blocks[1])
        self.down2_3 = _down(2 * dim)
        self.encoder_level3 = blocks(4 * dim, 2, num_blocks[2])
        self.down3_4 = _down(4 * dim)
        self.latent = blocks(8 * dim, 3, num_blocks[3])
        self.up4_3 = _up(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = blocks(4 * dim, 2, num_blocks[2])
        self.up3_2 = _up(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = blocks(2 * dim, 1, num_blocks[1])
        self.up2_1 = _up(2 * dim)
        self.decoder_level1 = blocks(2 * dim, 0, num_blocks[0])
        self.refinement = blocks(2 * dim, 0, num_refinement_blocks)
        self.dual_pixel = dual_pixel
        if dual_pixel:
            self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=bias)
        self.output = nn.Conv2d(2 * dim, 3, 3, padding=1, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """Restore (B, 3, H, W) in [0, 1]; the result has the same shape and isn't clamped."""
        height, width = image.shape[-2:]
        padded = _mirrored(image, self.padding_multiple)
        shallow = self.patch_embed(padded)
        level1 = self.encoder_level1(shallow)
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        x = self.up4_3(self.latent(self.down3_4(level3)))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([x, level3], dim=1)))
        x = self.up3_2(x)
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([x, level2], dim=1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), level1], dim=1))
        x = self.refinement(x)
        if self.dual_pixel:
            restored: Tensor = self.output(x + self.skip_conv(shallow))
        else:
            restored = self.output(x) + padded
        return restored[..., :height, :width]


def _named(name: str, module: nn.Module) -> nn.Sequential:
    """The module under one more name, as the official keys have it."""
    return nn.Sequential(OrderedDict({name: module}))


def _depthwise(channels: int, *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)


def _down(channels: int) -> nn.Sequential:
    """(B, C, H, W) to (B, 2C, H / 2, W / 2)."""
    conv = nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False)
    return _named("body", nn.Sequential(conv, nn.PixelUnshuffle(2)))


def _up(channels: int) -> nn.Sequential:
    """(B, C, H, W) to (B, C / 2, 2H, 2W)."""
    conv = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
    return _named("body", nn.Sequential(conv, nn.PixelShuffle(2)))


def _mirrored(image: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) below and to the right by reflection, as the official scripts do.

    Where the image is smaller than its padding, the reflection goes back and forth.
    """
    height, width = image.shape[-2:]
    down, across = beyond(height, multiple), beyond(width, multiple)
    # An exported graph has no branches, so there it is padded always, maybe by nothing.
    if torch.compiler.is_exporting() or (down < height and across < width):
        return F.pad(image, (0, across, 0, down), mode="reflect")
    for axis, missing in ((2, down), (3, across)):
        length = image.shape[axis]
        period = max(2 * (length - 1), 1)
        place = torch.arange(length + missing, device=image.device) % period
        image = image.index_select(axis, torch.minimum(place, period - place))
    return image


def _check_switches(**switches: object) -> None:
    for name, switch in switches.items():
        if type(switch) is not bool:
            raise UsageError(f"restormer takes true or false for {name}, got {switch!r}")


def _check_numbers(
    dim: int,
    num_blocks: Sequence[int],
    num_refinement_blocks: int,
    heads: Sequence[int],
    ffn_expansion: float,
) -> None:
    got = (
        f"got dim {dim}, num_blocks {num_blocks}, num_refinement_blocks {num_refinement_blocks}, "
        f"heads {heads}, ffn_expansion {ffn_expansion}"
    )
    # Settings come from files and may be of any type; True would pass as an int.
    if (
        not all(isinstance(each, list | tuple) and len(each) == 4 for each in (num_blocks, heads))
        or any(type(n) is not int for n in (dim, num_refinement_blocks, *num_blocks, *heads))
        or type(ffn_expansion) not in (int, float)
    ):
        raise UsageError(
            "restormer takes a whole number each for dim and num_refinement_blocks, lists of four "
            f"such as [4, 6, 6, 8] for num_blocks and heads, and a number for ffn_expansion; {got}"
        )
    if min(num_refinement_blocks, *num_blocks) < 0 or min(heads) < 1:
        raise UsageError(f"restormer needs numbers of blocks >= 0 and of heads >= 1; {got}")
    if dim < 2 or dim % 2:
        raise UsageError(f"restormer needs an even dim >= 2; {got}")
    if not 1 <= dim * ffn_expansion < float("inf"):
        raise UsageError(f"restormer needs an ffn_expansion of at least 1 / dim; {got}")
    # Full resolution runs on dim channels going down and on 2 dim coming up.
    for level, number in enumerate(heads):
        if (dim << level) % number:
            raise UsageError(f"restormer needs heads that divide {dim << level} there; {got}")
