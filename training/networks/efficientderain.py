"""EfficientDeRain (Guo et al., "Learning Pixel-wise Dilation Filtering for Efficient Single-Image
Deraining", AAAI 2021).

A U-Net predicts, for each pixel and colour, a small kernel; the image is filtered with it at four
dilations, and a convolution merges the four results.

The names and shapes of all parameters are those of the official code (`KPN`), so official
checkpoints (a bare state_dict) load strictly. The authors' versions v3 (loss of `ssim_loss.py`) and
v4 (the same, with the augmentation of `rainmix.py`) share this network. Images are (B, 3, H, W) in
[0, 1].

Letters: B images of H x W pixels, C channels, K x K taps of a kernel.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage.errors import UsageError
from samprior.training.networks.padding import beyond

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # 27,395,406, 27,654,510 and 29,250,846 parameters; 48.43, 52.92 and 81.68 GMACs at 256 x 256
    "k3": {"width": 64, "kernel_size": 3},
    "k5": {"width": 64, "kernel_size": 5},
    "k9": {"width": 64, "kernel_size": 9},
    # Ours, not the authors': 453,246 parameters, 1.22 GMACs, for tests and demonstrations on a CPU.
    "tiny": {"width": 8, "kernel_size": 3},
}
"""Settings by name. All but `tiny` are the authors' networks."""

_DILATIONS = (1, 2, 3, 4)


class ConvBlock(nn.Module):
    """Three 3x3 convolutions, each followed by a ReLU; called `Basic` in the official code."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels, out_channels):
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()]
        self.conv1 = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        out: Tensor = self.conv1(x)
        return out


class EfficientDeRain(nn.Module):
    """A U-Net that predicts kernels, and the dilated filters that apply them.

    Args:
        width: channels at full resolution; up to eight times as many further down.
        kernel_size: K, taps along a side of the predicted kernels; odd.

    Raises:
        UsageError: settings that aren't whole numbers, a width below 1, an even kernel.
    """

    padding_multiple = 16

    def __init__(self, *, width: int = 64, kernel_size: int = 3) -> None:
        super().__init__()
        _check_settings(width, kernel_size)
        self.kernel_size = kernel_size
        taps = 3 * kernel_size**2
        self.conv1 = ConvBlock(3, width)
        self.conv2 = ConvBlock(width, 2 * width)
        self.conv3 = ConvBlock(2 * width, 4 * width)
        self.conv4 = ConvBlock(4 * width, 8 * width)
        self.conv5 = ConvBlock(8 * width, 8 * width)
        self.conv6 = ConvBlock((8 + 8) * width, 8 * width)
        self.conv7 = ConvBlock((8 + 4) * width, 4 * width)
        self.conv8 = ConvBlock((4 + 2) * width, taps)
        self.outc = nn.Conv2d(taps, taps, 1)
        self.conv_final = nn.Conv2d(3 * len(_DILATIONS), 3, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain=0.02)  # the authors' setting

    def forward(self, image: Tensor) -> Tensor:
        """Derain (B, 3, H, W) in [0, 1]; the result has the same shape and isn't clamped.

        Sides are extended to multiples of 16 by repeating the last pixels. The authors resize such
        images instead and resize the result back, which blurs.
        """
        height, width = image.shape[-2:]
        multiple = self.padding_multiple
        missing = (0, beyond(width, multiple), 0, beyond(height, multiple))
        # An exported graph has no branches, so there even whole multiples are padded, by nothing.
        is_padded = torch.compiler.is_exporting() or any(missing)
        padded = F.pad(image, missing, mode="replicate") if is_padded else image
        kernels = self._kernels(padded)
        filtered = [filter_pixels(padded, kernels, dilation=dilation) for dilation in _DILATIONS]
        derained: Tensor = self.conv_final(torch.cat(filtered, dim=1))
        return derained[..., :height, :width]

    def _kernels(self, image: Tensor) -> Tensor:
        """The kernels (B, 3, K * K, H, W) of all pixels."""
        level1 = self.conv1(image)
        level2 = self.conv2(F.avg_pool2d(level1, 2))
        level3 = self.conv3(F.avg_pool2d(level2, 2))
        level4 = self.conv4(F.avg_pool2d(level3, 2))
        level5 = self.conv5(F.avg_pool2d(level4, 2))
        up = self.conv6(torch.cat((level4, _doubled(level5)), dim=1))
        up = self.conv7(torch.cat((level3, _doubled(up)), dim=1))
        up = self.conv8(torch.cat((level2, _doubled(up)), dim=1))
        kernels: Tensor = self.outc(_doubled(up))
        return kernels.reshape(image.shape[0], 3, -1, *image.shape[-2:])


def filter_pixels(image: Tensor, kernels: Tensor, *, dilation: int) -> Tensor:
    """Filter an image with a kernel of its own for each pixel and channel.

    Args:
        image: (B, C, H, W); beyond the edges it counts as zero.
        kernels: (B, C, K * K, H, W), taps row by row, K odd.
        dilation: pixels between neighbouring taps.

    Returns:
        (B, C, H, W).
    """
    height, width = image.shape[-2:]
    side = round(kernels.shape[2] ** 0.5)
    padded = F.pad(image, [side // 2 * dilation] * 4)
    # Tap by tap: all shifted images at once would take K * K times the memory.
    out = torch.zeros_like(image)
    for tap in range(side * side):
        y, x = (offset * dilation for offset in divmod(tap, side))
        out = out + kernels[:, :, tap] * padded[..., y : y + height, x : x + width]
    return out


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def _check_settings(width: int, kernel_size: int) -> None:
    got = f"got width {width}, kernel_size {kernel_size}"
    # Settings come from files and may be of any type; True would pass as an int.
    if type(width) is not int or type(kernel_size) is not int:
        raise UsageError(f"efficientderain takes a whole number for each setting; {got}")
    if width < 1 or kernel_size < 1 or kernel_size % 2 == 0:
        raise UsageError(f"efficientderain needs width >= 1 and an odd kernel_size; {got}")
