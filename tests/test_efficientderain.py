"""EfficientDeRain: the official keys, sizes and values, and its loss."""

import re

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from samprior.storage.errors import UsageError
from samprior.training.networks import RestorationNetwork
from samprior.training.networks.efficientderain import PRESETS, EfficientDeRain, filter_pixels
from samprior.training.ssim_loss import l1_ssim, mean_ssim


@pytest.fixture
def tiny() -> EfficientDeRain:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EfficientDeRain(**PRESETS["tiny"])
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def scatter(count: int, start: int, scale: float) -> Tensor:
    """Numbers in [-scale, scale] that look random, equal on every machine."""
    wave = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + 78.233 * start)
    return (scale * (2 * torch.frac(torch.frac(wave * 43758.5453) + 1) - 1)).float()


@pytest.mark.parametrize(
    ("preset", "parameters", "gmacs"),
    [("k3", 27_395_406, 48.43), ("k5", 27_654_510, 52.92), ("k9", 29_250_846, 81.68)],
)
def test_size_and_work_are_the_official_ones(preset: str, parameters: int, gmacs: float) -> None:
    with torch.device("meta"):
        network = EfficientDeRain(**PRESETS[preset])
        assert sum(p.numel() for p in network.parameters()) == parameters
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, 256, 256))
    assert counter.get_total_flops() / 2 / 1e9 == pytest.approx(gmacs, abs=0.005)


def test_keys_and_shapes_are_the_official_ones() -> None:
    with torch.device("meta"):
        state = EfficientDeRain(**PRESETS["k3"]).state_dict()
    places = ["outc", "conv_final"]
    places += [f"conv{level}.conv1.{layer}" for level in range(1, 9) for layer in (0, 2, 4)]
    assert set(state) == {f"{place}.{kind}" for place in places for kind in ("weight", "bias")}
    assert len(state) == 52
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["conv1.conv1.0.weight"] == (64, 3, 3, 3)
    assert shapes["conv5.conv1.4.weight"] == (512, 512, 3, 3)
    assert shapes["conv6.conv1.0.weight"] == (512, 1024, 3, 3)
    assert shapes["conv7.conv1.0.weight"] == (256, 768, 3, 3)
    assert shapes["conv8.conv1.0.weight"] == (27, 384, 3, 3)
    assert shapes["outc.weight"] == (27, 27, 1, 1)
    assert shapes["conv_final.weight"] == (3, 12, 3, 3)


def test_values_are_those_of_the_official_code() -> None:
    # Computed once by the official code with these weights.
    network = EfficientDeRain(**PRESETS["k3"]).eval()
    with torch.no_grad():
        for place, (name, value) in enumerate(sorted(network.named_parameters())):
            scale = 0.1 if name.endswith(".bias") else 1.4 * (3 / value[0].numel()) ** 0.5
            value.copy_(scatter(value.numel(), place, scale).view_as(value))
        image = 0.5 + scatter(3 * 16 * 32, 0, 0.5).view(1, 3, 16, 32)
        derained = network(image)
    assert derained[0, :, 7, 20].tolist() == pytest.approx(
        (0.257560, 1.835950, -2.111434), abs=1e-4
    )
    assert derained[0, :, 0, 0].tolist() == pytest.approx((-0.353015, 0.156265, 0.498066), abs=1e-4)
    assert derained.mean().item() == pytest.approx(0.281555, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (17, 30), (5, 3)])
def test_any_size_comes_back(tiny: EfficientDeRain, height: int, width: int) -> None:
    assert tiny(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


def test_padding_repeats_the_last_pixels(tiny: EfficientDeRain) -> None:
    image = torch.rand(1, 3, 13, 10)
    padded = image[..., torch.arange(16).clamp(max=12), :][..., torch.arange(16).clamp(max=9)]
    assert torch.equal(tiny(image), tiny(padded)[..., :13, :10])


def test_the_tiny_one_is_a_restoration_network_of_the_documented_size(
    tiny: EfficientDeRain,
) -> None:
    assert isinstance(tiny, RestorationNetwork)
    assert tiny.padding_multiple == 16
    assert sum(p.numel() for p in tiny.parameters()) == 453_246


def test_every_parameter_learns(tiny: EfficientDeRain) -> None:
    degraded, clean = torch.rand(2, 1, 3, 32, 32)
    l1_ssim(tiny(degraded), clean).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.any() for p in tiny.parameters())


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_one_kernel_for_all_pixels_is_a_convolution(side: int, dilation: int) -> None:
    image, kernel = torch.rand(2, 3, 9, 12), torch.rand(3, side, side)
    kernels = kernel.reshape(1, 3, side**2, 1, 1).expand(2, 3, side**2, 9, 12)
    wanted = F.conv2d(
        image, kernel[:, None], padding=side // 2 * dilation, dilation=dilation, groups=3
    )
    torch.testing.assert_close(filter_pixels(image, kernels, dilation=dilation), wanted)


def test_each_pixel_has_its_own_kernel() -> None:
    image, kernels = torch.rand(1, 3, 4, 5), torch.zeros(1, 3, 9, 4, 5)
    kernels[0, 1, 4, 2, 3] = 2.0  # the centre
    kernels[0, 1, 3, 2, 2] = 1.0  # the left neighbour
    found = filter_pixels(image, kernels, dilation=1)
    wanted = torch.zeros(1, 3, 4, 5)
    wanted[0, 1, 2, 3] = 2 * image[0, 1, 2, 3]
    wanted[0, 1, 2, 2] = image[0, 1, 2, 1]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width >= 1 and an odd kernel_size; got width 0"),
        ({"kernel_size": 4}, "got width 64, kernel_size 4"),
        ({"kernel_size": [3]}, "a whole number for each setting; got width 64, kernel_size [3]"),
        ({"width": True}, "got width True"),
    ],
)
def test_mistakes_name_the_way_out(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        EfficientDeRain(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_ssim_is_that_of_skimage_with_zeros_around() -> None:
    ours, truth = torch.rand(2, 2, 3, 20, 17, dtype=torch.float64)
    values = []
    for first, second in zip(ours.flatten(0, 1), truth.flatten(0, 1), strict=True):
        padded = [np.pad(image.numpy(), 5) for image in (first, second)]
        _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
            *padded,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        values.append(similarity[5:-5, 5:-5].mean())
    assert mean_ssim(ours, truth).item() == pytest.approx(np.mean(values), rel=1e-9)


def test_the_loss_is_lowest_for_equal_images() -> None:
    clean = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert l1_ssim(clean, clean).item() == pytest.approx(-0.2)
    assert l1_ssim(clean + 0.1, clean).item() > -0.1
    wanted = F.l1_loss(clean.flip(-1), clean) - 0.2 * mean_ssim(clean.flip(-1), clean)
    assert l1_ssim(clean.flip(-1), clean).item() == pytest.approx(wanted.item())


def test_the_loss_has_the_right_gradient() -> None:
    clean = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    restored = (clean + 0.1 + 0.1 * torch.rand_like(clean)).requires_grad_()
    assert torch.autograd.gradcheck(lambda image: l1_ssim(image, clean), restored)


def test_ssim_keeps_its_precision_under_autocast() -> None:
    ours = torch.rand(1, 3, 16, 16)
    truth = ours + 0.01 * torch.rand_like(ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mean_ssim(ours, truth)
    assert torch.equal(found, mean_ssim(ours, truth))
