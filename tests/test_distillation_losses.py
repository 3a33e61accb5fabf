"""Reconstruction losses equal their formulas; SPD is zero for equal images and moves one side."""

import math

import pytest
import torch
from torch import Tensor

from samprior.training.priors import (
    RECONSTRUCTION_LOSSES,
    bounded_psnr,
    spd_loss,
    teacher_where_better,
)
from samprior.training.ssim_loss import mean_ssim

LOSSES = sorted(RECONSTRUCTION_LOSSES)
PIXELWISE = [name for name in LOSSES if name != "l1_ssim"]  # which looks at windows


@pytest.fixture
def images() -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and truth in float64."""
    generator = torch.Generator().manual_seed(0)
    student, teacher, clean = torch.rand(3, 2, 3, 6, 5, generator=generator, dtype=torch.float64)
    return student, teacher, clean


def test_losses_equal_their_formulas(images: tuple[Tensor, Tensor, Tensor]) -> None:
    a, b, _ = (image.numpy() for image in images)
    image_mse = ((a - b) ** 2).mean(axis=(1, 2, 3))
    wanted = {
        "l1": abs(a - b).mean(),
        "mse": ((a - b) ** 2).mean(),
        "charbonnier": (((a - b) ** 2 + 1e-6) ** 0.5).mean(),
        "psnr": sum(10 * math.log10(error + 1e-8) for error in image_mse) / 2,
    }
    wanted["l1_ssim"] = wanted["l1"] - 0.2 * mean_ssim(images[0], images[1]).item()
    got = {name: loss(images[0], images[1]).item() for name, loss in RECONSTRUCTION_LOSSES.items()}
    assert got == pytest.approx(wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_spd_is_zero_with_zero_gradient_for_equal_images(name: str) -> None:
    image = torch.rand(2, 3, 8, 8)
    student = image.clone().requires_grad_()
    loss = spd_loss(student, image, reconstruction=RECONSTRUCTION_LOSSES[name])
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    if name in PIXELWISE:
        assert not student.grad.any()
    assert student.grad.abs().max() < 1e-7


@pytest.mark.parametrize("name", LOSSES)
def test_spd_moves_the_student_as_the_base_loss_would(
    name: str, images: tuple[Tensor, Tensor, Tensor]
) -> None:
    reconstruction = RECONSTRUCTION_LOSSES[name]
    student, teacher = images[0].requires_grad_(), images[1].requires_grad_()
    loss = spd_loss(student, teacher, reconstruction=reconstruction)
    assert loss.item() > 0
    (gradient,) = torch.autograd.grad(loss, student)
    (wanted,) = torch.autograd.grad(reconstruction(student, images[1].detach()), student)
    assert torch.equal(gradient, wanted)
    assert gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_spd_gives_the_teacher_no_gradient(
    name: str, images: tuple[Tensor, Tensor, Tensor]
) -> None:
    student, teacher = images[0].requires_grad_(), images[1].requires_grad_()
    spd_loss(student, teacher, reconstruction=RECONSTRUCTION_LOSSES[name]).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", PIXELWISE)
def test_only_pixels_where_the_teacher_is_better_pull(
    name: str, images: tuple[Tensor, Tensor, Tensor]
) -> None:
    student, teacher, clean = images
    student.requires_grad_()
    teacher.requires_grad_()
    better = ((teacher - clean) ** 2).sum(1) < ((student - clean) ** 2).sum(1)
    assert better.any()
    assert not better.all()
    target = teacher_where_better(student, teacher, clean)
    assert not target.requires_grad
    spd_loss(student, target, reconstruction=RECONSTRUCTION_LOSSES[name]).backward()
    assert student.grad is not None
    assert torch.equal(student.grad.any(dim=1), better)


def test_a_perfect_student_follows_no_teacher(images: tuple[Tensor, Tensor, Tensor]) -> None:
    _, teacher, clean = images
    assert torch.equal(teacher_where_better(clean, teacher, clean), clean)
    assert torch.equal(teacher_where_better(teacher, clean, clean), clean)


def test_bounded_psnr_equals_its_formula(images: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, clean = images
    distance, error = (
        ((teacher - other) ** 2).mean(dim=(1, 2, 3)).tolist() for other in (student, clean)
    )
    ratios = [1 + d / (e + 1e-8) for d, e in zip(distance, error, strict=True)]
    wanted = sum(10 * math.log10(ratio) for ratio in ratios) / 2
    assert bounded_psnr(student, teacher, clean).item() == pytest.approx(wanted)
    # It is a mean over images, whatever their order.
    turned = bounded_psnr(student.flip(0), teacher.flip(0), clean.flip(0))
    assert turned.item() == pytest.approx(wanted)


def test_bounded_psnr_is_zero_without_gradient_where_student_and_teacher_agree(
    images: tuple[Tensor, Tensor, Tensor],
) -> None:
    _, teacher, clean = images
    student = teacher.clone().requires_grad_()
    teacher.requires_grad_()
    loss = bounded_psnr(student, teacher, clean)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()
    assert teacher.grad is None


def test_the_pull_of_bounded_psnr_fades_near_the_teacher_where_that_of_psnr_grows(
    images: tuple[Tensor, Tensor, Tensor],
) -> None:
    """What psnr without a bound would cost: agreement counts for more the less is left of it."""
    _, teacher, clean = images

    def pulls(distance: float) -> tuple[float, float]:
        student = (teacher + distance * (clean - teacher)).requires_grad_()
        bounded = bounded_psnr(student, teacher, clean)
        plain = spd_loss(student, teacher, reconstruction=RECONSTRUCTION_LOSSES["psnr"])
        found = [torch.autograd.grad(loss, student)[0] for loss in (bounded, plain)]
        return found[0].norm().item(), found[1].norm().item()

    (near, near_plain), (far, far_plain) = pulls(0.01), pulls(0.5)
    assert near < far / 10
    assert near_plain > 10 * far_plain
