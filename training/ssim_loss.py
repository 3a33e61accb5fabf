"""The loss of EfficientDeRain: L1 less a share of SSIM, with a gradient.

Scores of results are those of `metrics.py`; this SSIM is for training, and differs at the edges.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_WINDOW_PX, _SIGMA_PX = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SSIM_SHARE = 0.2


def l1_ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference less 0.2 SSIM (EfficientDeRain v3); -0.2 for equal images."""
    return F.l1_loss(restored, clean) - _SSIM_SHARE * mean_ssim(restored, clean)


def mean_ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) of (B, 3, H, W) images in [0, 1], mean over all pixels and channels.

    As the authors compute it: a Gaussian window of 11x11 and sigma 1.5, K1 = 0.01, K2 = 0.03, and
    zeros beyond the edges, which count as part of the image.
    """
    # Variances are small differences of squares: half precision would lose them.
    with torch.autocast(restored.device.type, enabled=False):
        ours, truth = (image.to(_at_least_float32(image.dtype)) for image in (restored, clean))
        ours_mean, truth_mean = _blurred(ours), _blurred(truth)
        ours_square, truth_square, product = (
            ours_mean * ours_mean,
            truth_mean * truth_mean,
            ours_mean * truth_mean,
        )
        ours_variance = _blurred(ours * ours) - ours_square
        truth_variance = _blurred(truth * truth) - truth_square
        covariance = _blurred(ours * truth) - product
        similarity = (2 * product + _C1) * (2 * covariance + _C2)
        similarity = similarity / (ours_square + truth_square + _C1)
        return (similarity / (ours_variance + truth_variance + _C2)).mean()


def _blurred(images: Tensor) -> Tensor:
    """(B, C, H, W) after the Gaussian window, by rows and then by columns."""
    reach = _WINDOW_PX // 2
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-(offsets**2) / (2 * _SIGMA_PX**2))
    window = window / window.sum()
    planes = images.flatten(0, 1)[:, None]  # (B * C, 1, H, W)
    planes = F.conv2d(planes, window.view(1, 1, 1, -1), padding=(0, reach))
    planes = F.conv2d(planes, window.view(1, 1, -1, 1), padding=(reach, 0))
    return planes.view_as(images)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
