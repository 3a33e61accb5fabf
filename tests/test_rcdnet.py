"""RCDNet: the official keys, sizes and values, the rain kernels, and the loss of all stages."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samprior.storage.errors import CheckpointError, UsageError
from samprior.training.networks import RestorationNetwork
from samprior.training.networks.rain_kernels import rain_kernels, read_rain_kernels
from samprior.training.networks.rcdnet import PRESETS, RCDNet, Unrolled, deep_supervision


@pytest.fixture
def tiny() -> RCDNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RCDNet(**PRESETS["tiny"]).eval()


@pytest.fixture(scope="module")
def official() -> nn.Module:
    with torch.device("meta"):
        return RCDNet(**PRESETS["rcdnet"]).eval()


def scatter(count: int, start: int, scale: float) -> Tensor:
    """Numbers in [-scale, scale] that look random, equal on every machine."""
    wave = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + 78.233 * start)
    return (scale * (2 * torch.frac(torch.frac(wave * 43758.5453) + 1) - 1)).float()


def test_size_and_work_are_the_official_ones(official: nn.Module) -> None:
    assert sum(p.numel() for p in official.parameters()) == 3_166_355
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        official(torch.empty(1, 3, 256, 256, device="meta"))
    assert counter.get_total_flops() / 2 / 1e9 == pytest.approx(209.35, abs=0.005)


def test_keys_are_the_official_ones(official: nn.Module) -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = {f"{conv}.{kind}" for conv in (0, 3) for kind in ("weight", "bias")}
    layers |= {f"{place}.{kind}" for place in (1, 4) for kind in norm}
    wanted = {"eta1", "eta2", "eta11", "eta12", "weight0", "conv", "w_z_f", "tau"}
    for net in ("xnet", "fxnet", *(f"x_stage.{stage}" for stage in range(17))):
        wanted |= {f"{net}.resx{block}.{layer}" for block in (1, 2, 3, 4) for layer in layers}
    for net in ("mnet", *(f"m_stage.{stage}" for stage in range(17))):
        wanted |= {f"{net}.resm{block}.{layer}" for block in (1, 2, 3, 4) for layer in layers}
        wanted.add(f"{net}.tau")
    assert set(official.state_dict()) == wanted
    assert len(wanted) == 2098


def test_shapes_of_the_official_checkpoint(official: nn.Module) -> None:
    shapes = {key: tuple(value.shape) for key, value in official.state_dict().items()}
    assert shapes["eta1"] == shapes["eta2"] == shapes["tau"] == (1,)
    assert shapes["eta11"] == shapes["eta12"] == (16, 1)
    assert shapes["weight0"] == (3, 32, 9, 9)
    assert shapes["conv"] == (16, 3, 32, 9, 9)
    assert shapes["w_z_f"] == (32, 3, 3, 3)
    assert shapes["m_stage.0.tau"] == (1, 32, 1, 1)
    assert shapes["m_stage.16.resm4.3.weight"] == (32, 32, 3, 3)
    assert shapes["x_stage.16.resx4.0.weight"] == shapes["fxnet.resx1.3.weight"] == (35, 35, 3, 3)
    assert shapes["xnet.resx1.1.running_mean"] == (35,)


def test_values_are_those_of_the_official_code() -> None:
    # Computed once by the official code with these weights, in [0, 255].
    network = RCDNet(stages=3, rain_maps=8, dual_channels=9, blocks=4).eval()
    with torch.no_grad():
        for place, (name, value) in enumerate(sorted(network.named_parameters())):
            if value.dim() == 4 and "." in name:
                scale = 0.7 * (3 / value[0].numel()) ** 0.5
                value.copy_(scatter(value.numel(), place, scale).view_as(value))
            elif name.endswith(".bias"):
                value.copy_(scatter(value.numel(), place, 0.1))
        image = 0.5 + scatter(240, 0, 0.5).view(1, 3, 8, 10)
        found = network.unroll(image)
    for got, pixel, mean in (
        (found.initial, (0.0, 0.870815, 1.256802), 0.482891),
        (found.backgrounds[0], (0.166134, 1.452725, 0.546852), 0.478616),
        (found.backgrounds[-1], (4.804103, 6.040781, 0.0), 2.554053),
        (found.rain_layers[0], (0.035861, 0.035861, 0.035861), 0.029333),
        (found.rain_layers[-1], (0.045938, 0.045938, 0.045938), 0.039286),
    ):
        assert got[0, :, 3, 4].tolist() == pytest.approx(pixel, abs=1e-4)
        assert got.mean().item() == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 30), (5, 3)])
def test_any_size_comes_back(tiny: RCDNet, height: int, width: int) -> None:
    assert tiny(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


def test_the_tiny_one_is_a_restoration_network_of_the_documented_size(tiny: RCDNet) -> None:
    assert isinstance(tiny, RestorationNetwork)
    assert tiny.padding_multiple == 1
    assert sum(p.numel() for p in tiny.parameters()) == 42_354


def test_every_stage_is_reachable(tiny: RCDNet) -> None:
    image = torch.rand(2, 3, 9, 12)
    found = tiny.unroll(image)
    assert len(found.backgrounds) == 3 + 1
    assert len(found.rain_layers) == 3
    images = (found.initial, *found.backgrounds, *found.rain_layers)
    assert all(stage.shape == image.shape for stage in images)
    assert torch.equal(found.backgrounds[-1], tiny(image))


def test_the_loss_trains_all_that_is_used(tiny: RCDNet) -> None:
    tiny.train()
    degraded, clean = torch.rand(2, 2, 3, 16, 16)
    deep_supervision(tiny.unroll(degraded), degraded, clean).backward()  # type: ignore[no-untyped-call]
    without = {name for name, value in tiny.named_parameters() if value.grad is None}
    assert {name.split(".")[0] for name in without} == {"eta1", "mnet"}
    gradient = tiny.conv.grad
    assert gradient is not None
    assert gradient[1].any()
    assert not gradient[0].any()


def test_the_loss_weighs_the_stages_as_published() -> None:
    clean = torch.rand(1, 3, 4, 4)
    rain = 0.1 * torch.rand(1, 3, 4, 4)
    perfect = Unrolled(clean, (clean,) * 4, (rain,) * 3)
    assert deep_supervision(perfect, clean + rain, clean).item() == pytest.approx(0, abs=1e-12)
    # Off by 1, 2, ... the squares are 1, 4, ...; the last of each list weighs more.
    off = Unrolled(clean + 1, (clean + 2, clean + 3, clean + 4), (rain + 5, rain + 6))
    wanted = 0.1 * (1 + 4 + 9 + 25 + 36) + 16 + 0.9 * 36
    assert deep_supervision(off, clean + rain, clean).item() == pytest.approx(wanted, rel=1e-5)


def test_kernels_are_upright_streaks_of_sum_one() -> None:
    kernels = rain_kernels(32)
    assert kernels.shape == (3, 32, 9, 9)
    assert kernels.dtype == np.float32
    assert (kernels == kernels[:1]).all()  # one for all colours
    np.testing.assert_allclose(kernels.sum((2, 3)), 1, rtol=1e-6)
    np.testing.assert_array_equal(kernels, kernels[..., ::-1, :])
    np.testing.assert_array_equal(kernels, kernels[..., ::-1])
    height = (kernels[0] * np.arange(-4, 5)[:, None] ** 2).sum((1, 2))
    width = (kernels[0] * np.arange(-4, 5) ** 2).sum((1, 2))
    assert (height > width).all()
    assert (np.diff(height[:12]) > 0).all()
    assert (np.diff(height[12:]) > 0).all()
    # By the authors' formula: exp(-(3 / 2.75)^2 / (2 * 0.25^2)) relative to the centre.
    assert kernels[0, 0, 7, 4] / kernels[0, 0, 4, 4] == pytest.approx(np.exp(-9.5206612), rel=1e-4)
    assert kernels[0, 31, 8, 8] / kernels[0, 31, 4, 4] == pytest.approx(np.exp(-18.18), rel=1e-4)


def test_fewer_kernels_span_the_same_lengths() -> None:
    few, all_kernels = rain_kernels(4), rain_kernels(32)
    np.testing.assert_array_equal(few[:, [0, -1]], all_kernels[:, [0, -1]])
    with pytest.raises(UsageError, match="at least 1"):
        rain_kernels(0)


def test_kernels_of_a_file_become_the_start(
    tiny: RCDNet, tmp_path: Path, rng: np.random.Generator
) -> None:
    file, kernels = tmp_path / "init_kernel.mat", rng.random((3, 8, 9, 9))
    savemat(file, {"C9": kernels, "note": "left alone"}, do_compression=True)
    read = read_rain_kernels(file)
    np.testing.assert_array_equal(read, kernels.astype(np.float32))
    tiny.set_rain_kernels(read)
    np.testing.assert_array_equal(tiny.weight0.detach(), read)
    np.testing.assert_array_equal(tiny.conv.detach(), np.stack([read, read]))
    with pytest.raises(UsageError, match=re.escape("(3, 8, 9, 9), got (3, 7, 9, 9)")):
        tiny.set_rain_kernels(read[:, :7])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"K": np.ones((3, 4, 9, 9))}, "has no variable C9 of numbers (3, N, 9, 9)"),
        ({"C9": np.ones((3, 4, 9, 7))}, "has no variable C9"),
        ({"C9": np.ones((1, 4, 9, 9))}, "has no variable C9"),
        ({"C9": np.ones((9, 9))}, "has no variable C9"),
        ({"C9": np.ones((3, 4, 9, 9), np.uint8)}, "has no variable C9"),
        ({"C9": np.ones((3, 2000, 9, 9))}, "has no variable C9"),
        ({"C9": np.full((3, 4, 9, 9), "a", object)}, "has no variable C9"),
        ({"C9": np.full((3, 4, 9, 9), np.nan)}, "aren't finite"),
        ({"C9": np.full((3, 4, 9, 9), 1j)}, "aren't finite"),
    ],
)
def test_other_files_are_refused(
    variables: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "kernels.mat"
    savemat(file, variables, do_compression=True)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_rain_kernels(file)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "kernels.mat"
    with pytest.raises(CheckpointError, match=r"kernels\.mat can't be read"):
        read_rain_kernels(file)
    savemat(file, {"C9": np.ones((3, 4, 9, 9))}, do_compression=True)
    whole = file.read_bytes()
    for damaged in (b"", b"\x80\x04N.", b"\0" * 500, whole[:140], whole[:-20], whole * 20000):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"kernels\.mat"):
            read_rain_kernels(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 2}, "stages >= 3 and the others >= 1; got stages 2"),
        ({"rain_maps": 0}, "got stages 17, rain_maps 0"),
        ({"blocks": 1.0}, "a whole number for each setting"),
        ({"dual_channels": True}, "dual_channels True"),
        ({"stages": [3]}, "got stages [3]"),
    ],
)
def test_mistakes_name_the_way_out(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        RCDNet(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
