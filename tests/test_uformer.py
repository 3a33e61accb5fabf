"""Uformer: the official keys, sizes and operations, shifted windows, padding, dropped paths."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from samprior.storage.errors import UsageError
from samprior.training.checkpoint import load_strictly, read_official
from samprior.training.networks import RestorationNetwork
from samprior.training.networks.uformer import PRESETS, DropPath, Uformer, UformerBlock
from samprior.training.networks.windows import WindowAttention, from_windows, to_windows

# Counted by instantiating the official code: parameters, tensors of the state dict, and multiply-
# adds of convolutions, linear layers and attention's products for one image of 256 x 256.
OFFICIAL_SIZE = {
    "t": (5_291_853, 352, 11_268_521_984),
    "s": (20_751_197, 352, 40_991_981_568),
    "b": (50_880_946, 759, 86_573_580_288),
}
DEPTHS_B = (1, 2, 8, 8, 2, 8, 8, 2, 1)
BLOCK_KEYS = {
    "attn.relative_position_bias_table",
    "attn.relative_position_index",
    *(
        f"{part}.{kind}"
        for part in (
            *("norm1", "attn.qkv.to_q", "attn.qkv.to_kv", "attn.proj"),
            *("norm2", "mlp.linear1.0", "mlp.dwconv.0", "mlp.linear2.0"),
        )
        for kind in ("weight", "bias")
    ),
}


def with_weights(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture
def tiny() -> nn.Module:
    return with_weights(Uformer(**PRESETS["tiny"]))


@pytest.mark.parametrize("preset", OFFICIAL_SIZE)
def test_official_presets_have_the_official_size(preset: str) -> None:
    num_parameters, num_tensors, num_macs = OFFICIAL_SIZE[preset]
    with torch.device("meta"):
        network, image = Uformer(**PRESETS[preset]).eval(), torch.empty(1, 3, 256, 256)
    assert sum(p.numel() for p in network.parameters()) == num_parameters
    assert len(network.state_dict()) == num_tensors
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    assert counter.get_total_flops() == 2 * num_macs


def test_keys_are_the_official_ones() -> None:
    with torch.device("meta"):
        keys = set(Uformer(**PRESETS["b"]).state_dict())
    names = [f"encoderlayer_{level}" for level in range(4)]
    names += ["conv", *(f"decoderlayer_{level}" for level in range(4))]
    wanted = set()
    for name, depth in zip(names, DEPTHS_B, strict=True):
        own = BLOCK_KEYS | ({"modulator.weight"} if name.startswith("decoder") else set())
        wanted |= {f"{name}.blocks.{block}.{key}" for block in range(depth) for key in own}
    convs = ["input_proj.proj.0", "output_proj.proj.0"]
    convs += [f"dowsample_{level}.conv.0" for level in range(4)]
    convs += [f"upsample_{level}.deconv.0" for level in range(4)]
    wanted |= {f"{conv}.{kind}" for conv in convs for kind in ("weight", "bias")}
    assert keys == wanted


def test_shapes_of_the_official_checkpoint() -> None:
    with torch.device("meta"):
        state = Uformer(**PRESETS["b"]).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["input_proj.proj.0.weight"] == (32, 3, 3, 3)
    assert shapes["dowsample_3.conv.0.weight"] == (512, 256, 4, 4)
    assert shapes["conv.blocks.1.attn.relative_position_bias_table"] == (225, 16)
    assert shapes["conv.blocks.1.attn.relative_position_index"] == (64, 64)
    assert shapes["upsample_0.deconv.0.weight"] == (512, 256, 2, 2)
    assert shapes["upsample_1.deconv.0.weight"] == (512, 128, 2, 2)
    assert shapes["decoderlayer_0.blocks.0.attn.qkv.to_kv.weight"] == (1024, 512)
    assert shapes["decoderlayer_3.blocks.0.modulator.weight"] == (64, 64)
    assert shapes["decoderlayer_3.blocks.0.mlp.dwconv.0.weight"] == (256, 1, 3, 3)
    assert shapes["output_proj.proj.0.weight"] == (3, 64, 3, 3)


def test_published_checkpoint_loads(tmp_path: Path, tiny: nn.Module) -> None:
    file = tmp_path / "model_best.pth"
    tensors = {f"module.{key}": value for key, value in tiny.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"state": {}}}, file)
    loaded = Uformer(**PRESETS["tiny"]).eval()
    load_strictly(loaded, read_official(file), file)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(image), tiny(image))


def test_relative_positions_are_the_official_ones() -> None:
    attention = WindowAttention(4, heads=1, window=2, shifted=False)
    index = attention.get_buffer("relative_position_index")
    assert index.dtype == torch.int64
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_windows_go_there_and_back() -> None:
    x = torch.arange(2 * 6 * 9 * 4).reshape(2, 6, 9, 4)
    windows = to_windows(x, 3)
    assert windows.shape == (2, 2, 3, 9, 4)
    assert torch.equal(windows[1, 1, 2], x[1, 3:6, 6:9].reshape(9, 4))
    assert torch.equal(from_windows(windows, 3), x)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12), (12, 4)])
def test_windows_attend_as_pixels_of_one_cell_do(shifted: bool, height: int, width: int) -> None:
    """Attention between all pixels of the map, kept apart by cells of a grid that doesn't wrap."""
    window, shift, heads = 4, 2 if shifted else 0, 2
    attention = with_weights(WindowAttention(6, heads=heads, window=window, shifted=shifted))
    attention = attention.double()
    x = torch.randn(2, height, width, 6, dtype=torch.float64)
    rolled = torch.roll(x, (-shift, -shift), (1, 2))
    ours = from_windows(attention(to_windows(rolled, window)), window)
    ours = torch.roll(ours, (shift, shift), (1, 2))

    pixels = torch.arange(height * width)
    place = torch.stack([pixels // width, pixels % width])  # (2, H W)
    cells = (place + window - shift) // window
    same_cell = (cells[:, :, None] == cells[:, None]).all(0)
    below, beside = place[:, :, None] - place[:, None] + window - 1
    side = 2 * window - 1
    table = attention.get_parameter("relative_position_bias_table")
    bias = table[(below * side + beside).clamp(0, side**2 - 1)].permute(2, 0, 1)
    bias = bias.masked_fill(~same_cell, float("-inf"))

    def split(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)

    tokens = x.flatten(1, 2)
    q = split(attention.get_submodule("qkv.to_q")(tokens))
    k, v = map(split, attention.get_submodule("qkv.to_kv")(tokens).chunk(2, -1))
    weights = (q @ k.transpose(-2, -1) / 3**0.5 + bias).softmax(-1)
    wanted = attention.get_submodule("proj")((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours.flatten(1, 2), wanted)


def shifts(network: nn.Module) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, module in network.named_modules():
        if isinstance(module, UformerBlock):
            found.setdefault(name.split(".")[0], []).append(module.shift)
    return found


def test_every_second_block_is_shifted_but_those_of_the_bottleneck() -> None:
    settings = {**PRESETS["tiny"], "depths": (1, 2, 3, 2, 1)}
    official = shifts(Uformer(**settings))
    assert official["encoderlayer_1"] == official["decoderlayer_0"] == [0, 4]
    assert official["conv"] == [0, 0, 0]
    assert shifts(Uformer(**settings, shift_bottleneck=True))["conv"] == [0, 4, 0]


@pytest.mark.parametrize(("height", "width"), [(32, 64), (33, 30), (5, 3)])
def test_any_size_comes_back(tiny: nn.Module, height: int, width: int) -> None:
    assert tiny(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


def test_padding_is_zeros_all_around(tiny: nn.Module) -> None:
    image = torch.rand(1, 3, 27, 50)
    padded = F.pad(image, (7, 7, 2, 3))
    assert torch.equal(tiny(image), tiny(padded)[..., 2:29, 7:57])


def test_images_of_a_batch_do_not_mix(tiny: nn.Module) -> None:
    network, images = tiny.double(), torch.rand(2, 3, 32, 64, dtype=torch.float64)
    torch.testing.assert_close(network(images)[1:], network(images[1:]))


@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_every_parameter(tiny: nn.Module, training: bool) -> None:
    network = Uformer(**PRESETS["tiny"], drop_path=0.0).train(training)
    network.load_state_dict(tiny.state_dict())
    network(torch.rand(1, 3, 64, 30)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_half_precision_stays_near_single() -> None:
    torch.manual_seed(0)
    network, image = Uformer(**PRESETS["tiny"]).eval(), torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        change = network(image) - image
        with torch.autocast("cpu", torch.bfloat16):
            half_change = network(image) - image
    assert torch.linalg.norm(half_change - change) < 0.03 * torch.linalg.norm(change)


def test_paths_are_dropped_for_whole_images_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    x = torch.rand(4000, 3, 2)
    dropped = DropPath(0.25)(x)
    kept = dropped.flatten(1).any(1)
    torch.testing.assert_close(dropped[kept], x[kept] / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_dropped_paths_follow_the_seed_and_spare_eval(tiny: nn.Module) -> None:
    images = torch.rand(4, 3, 32, 32)
    quiet = tiny(images)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(tiny.train()(images))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(tiny.eval()(images), quiet)


def test_drop_rates_rise_and_fall() -> None:
    with torch.device("meta"):
        network = Uformer(**PRESETS["b"])
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert rates[:19] == pytest.approx([0.1 * place / 18 for place in range(19)])
    assert rates[19:21] == [0.1, 0.1]
    assert rates[21:] == rates[18::-1]


def test_global_residual(tiny: nn.Module) -> None:
    for kind in ("weight", "bias"):
        nn.init.zeros_(tiny.get_parameter(f"output_proj.proj.0.{kind}"))
    image = torch.rand(1, 3, 20, 40)
    assert torch.equal(tiny(image), image)


def test_tiny_size_is_the_documented_one() -> None:
    network = Uformer(**PRESETS["tiny"])
    assert sum(p.numel() for p in network.parameters()) == 326_170
    assert isinstance(network, RestorationNetwork)
    assert network.padding_multiple == 32


def test_defaults_are_the_published_base() -> None:
    parameters = inspect.signature(Uformer).parameters
    for setting, value in PRESETS["b"].items():
        assert parameters[setting].default == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width, window and heads >= 1"),
        ({"width": True}, "got width True"),
        ({"width": 8.0}, "got width 8.0"),
        ({"window": 0}, "width, window and heads >= 1"),
        ({"window": [8, 8]}, "window [8, 8]"),
        ({"depths": 2}, "lists of whole numbers"),
        ({"depths": "222222222"}, "depths 222222222"),
        ({"depths": [1, 1, 1]}, "as many heads as depths"),
        ({"depths": [1, 1], "heads": [1, 1]}, "an odd number"),
        ({"depths": [], "heads": []}, "an odd number"),
        ({"depths": [1, -1, 1], "heads": [1, 1, 1]}, "depths >= 0"),
        ({"depths": [1, 1, 1], "heads": [1, 0, 1]}, "heads >= 1"),
        ({"depths": [1, 1, 1], "heads": [1, 3, 1]}, "no 3 heads in 64 channels"),
        ({"drop_path": 1.0}, "0 <= drop_path < 1"),
        ({"drop_path": float("nan")}, "0 <= drop_path < 1"),
        ({"drop_path": "0.1"}, "a number for drop_path"),
        ({"shift_bottleneck": 1}, "true or false for shift_bottleneck"),
    ],
)
def test_mistakes_name_the_way_out(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        Uformer(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
