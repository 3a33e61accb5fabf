"""Restormer: official keys, sizes and operations, the attention, padding, two views, refusals."""

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
from samprior.training.networks.restormer import PRESETS, ChannelAttention, Restormer, ScaleNorm2d

# Counted by instantiating the official code: parameters and tensors of the state dict.
OFFICIAL_SIZE = {
    "deraining": (26_126_644, 494),
    "deblurring": (26_126_644, 494),
    "denoising": (26_111_668, 406),
    "dual_pixel": (26_132_548, 495),
}
# The official code's for one image of 256 x 256, as multiply-adds of convolutions and of matrix
# products; counters that leave out the products of attention see the convolutions alone.
CONVOLUTION_MACS = 140_990_496_768
ATTENTION_MACS = 13_891_534_848
BLOCK_KEYS = {
    "attn.temperature",
    *(f"attn.{part}.weight" for part in ("qkv", "qkv_dwconv", "project_out")),
    *(f"ffn.{part}.weight" for part in ("project_in", "dwconv", "project_out")),
    *(f"{norm}.body.{kind}" for norm in ("norm1", "norm2") for kind in ("weight", "bias")),
}


def with_weights(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture
def tiny() -> nn.Module:
    return with_weights(Restormer(**PRESETS["tiny"]))


@pytest.mark.parametrize("preset", OFFICIAL_SIZE)
def test_official_presets_have_the_official_size(preset: str) -> None:
    with torch.device("meta"):
        network = Restormer(**PRESETS[preset])
    num_parameters = sum(p.numel() for p in network.parameters())
    assert (num_parameters, len(network.state_dict())) == OFFICIAL_SIZE[preset]


def test_keys_are_the_official_ones() -> None:
    with torch.device("meta"):
        keys = set(Restormer(**PRESETS["deraining"]).state_dict())
    stages = {"latent": 8, "refinement": 4}
    for level, num_blocks in ((1, 4), (2, 6), (3, 6)):
        stages |= {f"{side}_level{level}": num_blocks for side in ("encoder", "decoder")}
    wanted = {
        f"{stage}.{block}.{key}"
        for stage, num_blocks in stages.items()
        for block in range(num_blocks)
        for key in BLOCK_KEYS
    }
    wanted |= {f"{name}.body.0.weight" for name in ("down1_2", "down2_3", "down3_4")}
    wanted |= {f"{name}.body.0.weight" for name in ("up4_3", "up3_2", "up2_1")}
    wanted |= {"patch_embed.proj.weight", "output.weight"}
    wanted |= {"reduce_chan_level3.weight", "reduce_chan_level2.weight"}
    assert keys == wanted


def test_variants_differ_from_it_in_their_own_keys_alone() -> None:
    with torch.device("meta"):
        keys = {preset: set(Restormer(**PRESETS[preset]).state_dict()) for preset in OFFICIAL_SIZE}
    plain = keys["deraining"]
    assert keys["deblurring"] == plain
    assert keys["denoising"] == {key for key in plain if not key.endswith("body.bias")}
    assert keys["dual_pixel"] == plain | {"skip_conv.weight"}


def test_shapes_of_the_official_checkpoint() -> None:
    with torch.device("meta"):
        state = Restormer(**PRESETS["dual_pixel"]).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["patch_embed.proj.weight"] == (48, 6, 3, 3)
    assert shapes["encoder_level2.0.attn.temperature"] == (2, 1, 1)
    assert shapes["latent.7.attn.qkv_dwconv.weight"] == (1152, 1, 3, 3)
    assert shapes["latent.0.norm1.body.bias"] == (384,)
    assert shapes["refinement.0.ffn.project_in.weight"] == (510, 96, 1, 1)
    assert shapes["down1_2.body.0.weight"] == (24, 48, 3, 3)
    assert shapes["up2_1.body.0.weight"] == (192, 96, 3, 3)
    assert shapes["skip_conv.weight"] == (96, 48, 1, 1)
    assert shapes["output.weight"] == (3, 96, 3, 3)


@pytest.mark.parametrize("preset", ["deraining", "denoising"])
def test_operations_are_the_official_ones(preset: str) -> None:
    with torch.device("meta"):
        network, image = Restormer(**PRESETS[preset]), torch.empty(1, 3, 256, 256)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    flops = {str(kind): number for kind, number in counter.get_flop_counts()["Global"].items()}
    assert flops == {"aten.convolution": 2 * CONVOLUTION_MACS, "aten.bmm": 2 * ATTENTION_MACS}


def test_published_checkpoint_loads(tmp_path: Path, tiny: nn.Module) -> None:
    file = tmp_path / "deraining.pth"
    torch.save({"params": tiny.state_dict()}, file)
    loaded = Restormer(**PRESETS["tiny"])
    load_strictly(loaded, read_official(file), file)
    image = torch.rand(1, 3, 8, 16)
    assert torch.equal(loaded(image), tiny(image))


def test_attention_is_the_one_of_the_paper() -> None:
    attention = with_weights(ChannelAttention(6, heads=2, bias=True)).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    qkv = attention.get_submodule("qkv_dwconv")(attention.get_submodule("qkv")(x))
    wanted = torch.empty_like(x)
    for image in range(2):
        q, k, v = qkv[image].reshape(3, 6, 20)
        for head in range(2):
            own = slice(3 * head, 3 * head + 3)
            cosines = F.cosine_similarity(q[own][:, None], k[own][None], dim=-1)
            logits = cosines * attention.get_parameter("temperature")[head]
            wanted[image, own] = (logits.softmax(-1) @ v[own]).reshape(3, 5, 4)
    wanted = attention.get_submodule("project_out")(wanted)
    torch.testing.assert_close(attention(x), wanted)


def test_bias_free_norm_scales_and_keeps_the_mean() -> None:
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64) + 3
    norm = with_weights(ScaleNorm2d(6, 1e-5)).double()
    weight = norm.get_parameter("weight").reshape(6, 1, 1)
    wanted = x / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(norm(x), wanted)


def test_bias_free_norm_does_not_overflow_in_half_precision() -> None:
    x = torch.tensor([-3000.0, 0.0, 3000.0], dtype=torch.float16).reshape(1, 3, 1, 1)
    torch.testing.assert_close(ScaleNorm2d(3, 1e-5)(x), ScaleNorm2d(3, 1e-5)(x.float()))


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 30), (5, 3), (1, 1)])
def test_any_size_comes_back(tiny: nn.Module, height: int, width: int) -> None:
    assert tiny(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


def test_padding_is_a_reflection_below_and_to_the_right(tiny: nn.Module) -> None:
    image = torch.rand(1, 3, 13, 10)
    padded = F.pad(image, (0, 6, 0, 3), mode="reflect")
    assert torch.equal(tiny(image), tiny(padded)[..., :13, :10])


def test_small_images_are_reflected_back_and_forth(tiny: nn.Module) -> None:
    row = torch.rand(1, 3, 8, 3)
    padded = row[..., [0, 1, 2, 1, 0, 1, 2, 1]]
    assert torch.equal(tiny(row), tiny(padded)[..., :3])


def test_gradients_reach_every_parameter(tiny: nn.Module) -> None:
    tiny(torch.rand(1, 3, 13, 16)).square().sum().backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_half_precision_stays_near_single() -> None:
    torch.manual_seed(0)
    network, image = Restormer(**PRESETS["tiny"]).eval(), torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        change = network(image) - image
        with torch.autocast("cpu", torch.bfloat16):
            half_change = network(image) - image
    assert torch.linalg.norm(half_change - change) < 0.03 * torch.linalg.norm(change)


def test_two_views_become_one_image_without_a_global_residual() -> None:
    views = torch.rand(1, 6, 12, 16)
    network = with_weights(Restormer(**{**PRESETS["tiny"], "dual_pixel": True}))
    assert network(views).shape == (1, 3, 12, 16)
    nn.init.zeros_(network.get_parameter("output.weight"))
    assert not network(views).any()


def test_one_view_has_a_global_residual(tiny: nn.Module) -> None:
    image = torch.rand(1, 3, 12, 16)
    nn.init.zeros_(tiny.get_parameter("output.weight"))
    assert torch.equal(tiny(image), image)


def test_tiny_size_is_the_documented_one() -> None:
    network = Restormer(**PRESETS["tiny"])
    assert sum(p.numel() for p in network.parameters()) == 237_023
    assert isinstance(network, RestorationNetwork)
    assert network.padding_multiple == 8


def test_defaults_are_the_published_shape() -> None:
    parameters = inspect.signature(Restormer).parameters
    for setting, value in PRESETS["deraining"].items():
        assert parameters[setting].default == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "even dim >= 2"),
        ({"dim": 9, "heads": [1, 1, 1, 1]}, "even dim >= 2"),
        ({"dim": True}, "got dim True"),
        ({"dim": 8.0}, "got dim 8.0"),
        ({"num_blocks": 4}, "lists of four"),
        ({"num_blocks": [1, 1, 1]}, "lists of four"),
        ({"num_blocks": "1111"}, "num_blocks 1111"),
        ({"num_blocks": [1, 1, 1, -1]}, "numbers of blocks >= 0"),
        ({"num_refinement_blocks": 1.5}, "num_refinement_blocks 1.5"),
        ({"heads": [1, 2, 4, 0]}, "of heads >= 1"),
        ({"heads": [1, 5, 4, 8]}, "heads that divide 96"),
        ({"ffn_expansion": "2"}, "a number for ffn_expansion"),
        ({"ffn_expansion": 0}, "at least 1 / dim"),
        ({"ffn_expansion": float("nan")}, "at least 1 / dim"),
        ({"ffn_expansion": float("inf")}, "at least 1 / dim"),
        ({"bias": 1}, "true or false for bias, got 1"),
        ({"norm_bias": "BiasFree"}, "true or false for norm_bias, got 'BiasFree'"),
        ({"dual_pixel": None}, "true or false for dual_pixel, got None"),
    ],
)
def test_mistakes_name_the_way_out(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        Restormer(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
