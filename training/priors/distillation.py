"""Reconstruction losses, and SPD: the same loss, from the teacher's image to the student's.

All losses take (B, 3, H, W) images in [0, 1] and give a scalar.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from samprior.training.ssim_loss import l1_ssim

ReconstructionLoss = Callable[[Tensor, Tensor], Tensor]
"""Takes the restored and the wanted images, gives a scalar."""


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference (Restormer)."""
    return F.l1_loss(restored, clean)


def mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared difference (RCDNet)."""
    return F.mse_loss(restored, clean)


def charbonnier(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean of sqrt(d² + 1e-6) over the differences d (Uformer)."""
    difference = restored - clean
    return torch.sqrt(difference * difference + 1e-6).mean()


def psnr_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Negative PSNR in dB, mean over the images (NAFNet): 10 / ln 10 * mean_b ln(MSE_b + 1e-8)."""
    difference = restored - clean
    image_mse = (difference * difference).mean(dim=(1, 2, 3))
    return 10 / math.log(10) * torch.log(image_mse + 1e-8).mean()


RECONSTRUCTION_LOSSES: Mapping[str, ReconstructionLoss] = {
    "charbonnier": charbonnier,
    "l1": l1,
    "l1_ssim": l1_ssim,
    "mse": mse,
    "psnr": psnr_loss,
}
"""Reconstruction losses by the name that configurations use."""


def spd_loss(student: Tensor, teacher: Tensor, *, reconstruction: ReconstructionLoss) -> Tensor:
    """SPD: `reconstruction` of the student's image against the teacher's, 0 where they agree.

    The base network's own loss keeps the two terms on one scale. Its value for equal images
    (0.001 for charbonnier, -80 dB for psnr) is taken off; the gradient is the same. No gradient
    goes to the teacher. Mind that the gradient of the psnr loss grows as the images draw near.
    """
    target = teacher.detach()
    return reconstruction(student, target) - reconstruction(target, target)


def bounded_psnr(student: Tensor, teacher: Tensor, clean: Tensor) -> Tensor:
    """SPD's psnr loss with a floor, in dB: 10 / ln 10 * mean_b ln(1 + D_b / E_b).

    D_b is the mean squared distance of the student's image from the teacher's, E_b that of the
    teacher's from the truth. `psnr_loss` pays as much for the dB from -60 to -70 as for any other,
    so it draws the student to where it agrees with its teacher to the last digit, however wrong
    both are; here the pull fades once the student is nearer to the teacher than the teacher is to
    the truth. 0 where they agree; no gradient goes to the teacher. Ours, see docs/method.md.
    """
    target = teacher.detach()
    distance = (student - target).square().mean(dim=(1, 2, 3))
    error = (target - clean).square().mean(dim=(1, 2, 3))
    return 10 / math.log(10) * torch.log1p(distance / (error + 1e-8)).mean()


def teacher_where_better(student: Tensor, teacher: Tensor, clean: Tensor) -> Tensor:
    """A target for `spd_loss` that follows the teacher only where it is closer to the truth.

    Each pixel (over its three channels, squared error) is the teacher's where that beats the
    student's, and the student's own elsewhere, where it then neither pulls nor pushes. This is our
    idea: a teacher that is no better on the whole still is better in places. Carries no gradient.
    """
    student, teacher = student.detach(), teacher.detach()
    student_error = (student - clean).square().sum(dim=1, keepdim=True)
    teacher_error = (teacher - clean).square().sum(dim=1, keepdim=True)
    return torch.where(teacher_error < student_error, teacher, student)
