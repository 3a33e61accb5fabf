"""TLC: local means as the official code takes them, no new weight, small images as before."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage.errors import UsageError
from samprior.training.networks import build_network
from samprior.training.networks.tlc import LocalAvgPool2d, with_local_pooling


def slowly(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Every window's mean taken on its own; the outermost ones are repeated at the border."""
    height, width = x.shape[-2:]
    k, m = min(window[0], height), min(window[1], width)
    means = torch.stack(
        [
            torch.stack(
                [x[..., i : i + k, j : j + m].mean((-2, -1)) for j in range(width - m + 1)], -1
            )
            for i in range(height - k + 1)
        ],
        -2,
    )
    rows = [min(max(i - (k - 1) // 2, 0), height - k) for i in range(height)]
    columns = [min(max(j - (m - 1) // 2, 0), width - m) for j in range(width)]
    return means[..., rows, :][..., columns]


def by_integral_image(x: Tensor, window: tuple[int, int]) -> Tensor:
    """The way of the official code: sums over both axes at once, then replicated borders."""
    height, width = x.shape[-2:]
    k, m = min(window[0], height), min(window[1], width)
    sums = F.pad(x.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    means = sums[..., k:, m:] + sums[..., :-k, :-m] - sums[..., :-k, m:] - sums[..., k:, :-m]
    rows, columns = height - means.shape[-2], width - means.shape[-1]
    pad = (columns // 2, (columns + 1) // 2, rows // 2, (rows + 1) // 2)
    return F.pad(means / (k * m), pad, mode="replicate")


@pytest.mark.parametrize("shape", [(9, 14), (16, 5), (4, 30), (7, 7)])
@pytest.mark.parametrize("window", [(1, 1), (4, 4), (5, 3), (6, 20), (3, 8)])
def test_means_are_those_of_the_official_code(
    shape: tuple[int, int], window: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = LocalAvgPool2d(window)(x)
    for wanted in (slowly(x, window), by_integral_image(x, window)):
        torch.testing.assert_close(ours.expand_as(x), wanted, rtol=0, atol=1e-12)


def test_single_precision_is_kept_on_large_maps() -> None:
    x = torch.rand(1, 1, 700, 900, generator=torch.Generator().manual_seed(0)) + 10
    exact = by_integral_image(x.double(), (384, 384))
    assert (LocalAvgPool2d((384, 384))(x) - exact).abs().max() < 1e-5


def test_half_precision_stays_half() -> None:
    x = torch.rand(1, 2, 40, 50, generator=torch.Generator().manual_seed(0))
    pooled = LocalAvgPool2d((8, 8))(x.bfloat16())
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), LocalAvgPool2d((8, 8))(x), rtol=0.02, atol=0.01)


@pytest.fixture
def network() -> nn.Module:
    """A NAFNet whose attention counts: fresh blocks would be the identity."""
    torch.manual_seed(0)
    made = build_network("nafnet", preset="tiny").eval()
    for name, parameter in made.named_parameters():
        if name.endswith(("beta", "gamma")):
            nn.init.normal_(parameter, std=0.3)
    return made


@torch.no_grad()
def test_images_no_larger_than_the_window_are_restored_as_before(network: nn.Module) -> None:
    local = with_local_pooling(network, 64)
    for shape in ((64, 64), (33, 64), (5, 7)):
        image = torch.rand(1, 3, *shape)
        assert torch.equal(local(image), network(image))
    image = torch.rand(1, 3, 65, 64)
    assert not torch.equal(local(image), network(image))


@torch.no_grad()
def test_a_network_equals_the_same_blocks_with_slow_means(network: nn.Module) -> None:
    image = torch.rand(1, 3, 72, 104)
    local = with_local_pooling(network, 40)
    found = local(image)
    for module in local.modules():
        if isinstance(module, LocalAvgPool2d):
            module.forward = lambda x, window=module.window: slowly(x, window)  # type: ignore[method-assign, misc]
    torch.testing.assert_close(found, local(image), rtol=0, atol=1e-5)
    assert not torch.allclose(found, network(image), rtol=0, atol=1e-4)


def test_windows_shrink_with_the_maps_and_no_weight_is_added(network: nn.Module) -> None:
    local = with_local_pooling(network, 384)
    windows = {
        name: module.window
        for name, module in local.named_modules()
        if isinstance(module, LocalAvgPool2d)
    }
    assert windows["encoders.0.0.sca.0"] == (384, 384)
    assert windows["encoders.2.1.sca.0"] == (96, 96)
    assert windows["middle_blks.0.sca.0"] == (48, 48)
    assert windows["decoders.2.0.sca.0"] == (384, 384)
    assert list(local.state_dict()) == list(network.state_dict())
    for ours, theirs in zip(local.parameters(), network.parameters(), strict=True):
        assert ours is theirs
    assert not any(isinstance(module, LocalAvgPool2d) for module in network.modules())


def test_what_has_nothing_to_make_local_is_refused(network: nn.Module) -> None:
    plain = nn.Conv2d(3, 3, 3)
    with pytest.raises(UsageError, match="Conv2d has no global average pooling"):
        with_local_pooling(plain)
    with pytest.raises(UsageError, match="4 px is less than a pixel"):
        with_local_pooling(network, 4)
