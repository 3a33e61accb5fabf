"""Reconstruction losses equal their formulas; SPD is zero for equal images and moves one side."""

import math

import pytest
import torch
from torch import Tensor

from samprior.training.priors import RECONSTRUCTION_LOSSES, spd_loss, teacher_where_better

LOSSES = sorted(RECONSTRUCTION_LOSSES)


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
    assert not student.grad.any()


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


@pytest.mark.parametrize("name", LOSSES)
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
