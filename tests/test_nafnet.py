"""NAFNet: the official keys and sizes, the identity at the start, and helpful refusals."""

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from samprior.storage.errors import UsageError
from samprior.training.networks import NETWORKS, PRESETS, RestorationNetwork, build_network
from samprior.training.networks.nafnet import LayerNorm2d

# Counted by instantiating the official code: parameters, and multiply-adds of convolutions for one
# image of 256 x 256. w32 and w64 have the same keys.
OFFICIAL_SIZE = {
    "gopro_w32": (17_111_907, 15_956_027_392),
    "gopro_w64": (67_888_835, 63_054_979_072),
    "sidd_w32": (29_159_715, 16_045_035_520),
    "sidd_w64": (115_982_915, 63_236_423_680),
}
BLOCK_KEYS = {
    "beta",
    "gamma",
    *(
        f"{part}.{kind}"
        for part in ("conv1", "conv2", "conv3", "conv4", "conv5", "sca.1", "norm1", "norm2")
        for kind in ("weight", "bias")
    ),
}


@pytest.fixture
def tiny() -> nn.Module:
    network = build_network("nafnet", preset="tiny")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("preset", OFFICIAL_SIZE)
def test_official_presets_have_the_official_size(preset: str) -> None:
    num_parameters, num_macs = OFFICIAL_SIZE[preset]
    with torch.device("meta"):
        network, image = build_network("nafnet", preset=preset), torch.empty(1, 3, 256, 256)
    assert sum(p.numel() for p in network.parameters()) == num_parameters
    assert len(network.state_dict()) == 664
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    assert counter.get_total_flops() == 2 * num_macs


def test_keys_are_the_official_ones() -> None:
    with torch.device("meta"):
        keys = set(build_network("nafnet", preset="gopro_w32").state_dict())
    blocks = ["middle_blks.0", *(f"decoders.{level}.0" for level in range(4))]
    for level, num_blocks in enumerate((1, 1, 1, 28)):
        blocks += [f"encoders.{level}.{i}" for i in range(num_blocks)]
    wanted = {f"{block}.{key}" for block in blocks for key in BLOCK_KEYS}
    wanted |= {f"{conv}.{kind}" for conv in ("intro", "ending") for kind in ("weight", "bias")}
    wanted |= {f"downs.{level}.{kind}" for level in range(4) for kind in ("weight", "bias")}
    wanted |= {f"ups.{level}.0.weight" for level in range(4)}
    assert keys == wanted


def test_shapes_of_the_official_checkpoint() -> None:
    with torch.device("meta"):
        state = build_network("nafnet", preset="gopro_w32").state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["intro.weight"] == (32, 3, 3, 3)
    assert shapes["encoders.0.0.conv2.weight"] == (64, 1, 3, 3)
    assert shapes["encoders.0.0.beta"] == (1, 32, 1, 1)
    assert shapes["encoders.3.27.sca.1.weight"] == (256, 256, 1, 1)
    assert shapes["downs.3.weight"] == (512, 256, 2, 2)
    assert shapes["ups.0.0.weight"] == (1024, 512, 1, 1)


def test_fresh_blocks_are_the_identity() -> None:
    network = build_network("nafnet", preset="tiny")
    x = torch.rand(1, 16, 8, 8)
    assert torch.equal(network.get_submodule("encoders.0")(x), x)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 30), (5, 3)])
def test_any_size_comes_back(tiny: nn.Module, height: int, width: int) -> None:
    assert tiny(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


def test_padding_is_zeros_below_and_to_the_right(tiny: nn.Module) -> None:
    image = torch.rand(1, 3, 13, 10)
    padded = torch.zeros(1, 3, 16, 16)
    padded[..., :13, :10] = image
    assert torch.equal(tiny(image), tiny(padded)[..., :13, :10])


def test_layer_norm_is_the_one_of_torch() -> None:
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    norm = LayerNorm2d(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    reference = nn.functional.layer_norm(
        x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, norm.eps
    ).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), reference)
    with torch.no_grad():  # takes another way
        torch.testing.assert_close(norm(x), reference)
    inputs = (x, norm.weight, norm.bias)
    ours = torch.autograd.grad(norm(x).cos().sum(), inputs)
    theirs = torch.autograd.grad(reference.cos().sum(), inputs)
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_layer_norm_does_not_overflow_in_half_precision() -> None:
    x = torch.tensor([-3000.0, 0.0, 3000.0], dtype=torch.float16).reshape(1, 3, 1, 1)
    torch.testing.assert_close(LayerNorm2d(3)(x), LayerNorm2d(3)(x.float()))


def test_every_preset_builds_a_restoration_network() -> None:
    for name in NETWORKS:
        for preset in PRESETS[name]:
            with torch.device("meta"):
                network = build_network(name, preset=preset)
            assert isinstance(network, RestorationNetwork)


def test_tiny_size_is_the_documented_one() -> None:
    network = build_network("nafnet", preset="tiny")
    assert sum(p.numel() for p in network.parameters()) == 319_475
    assert isinstance(network, RestorationNetwork)
    assert network.padding_multiple == 8


def test_settings_win_over_the_preset() -> None:
    network = build_network("nafnet", preset="tiny", width=8)
    assert network.get_parameter("intro.weight").shape == (8, 3, 3, 3)
    assert len(network.get_submodule("encoders")._modules) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "nafnt"}, "did you mean 'nafnet'?"),
        ({"name": "xyz"}, "Known: nafnet"),
        ({"name": "nafnet", "preset": "gopro_w23"}, "did you mean 'gopro_w32'?"),
        ({"name": "nafnet", "widht": 8}, "did you mean 'width'?"),
        ({"name": "nafnet", "width": 0}, "width >= 1"),
        ({"name": "nafnet", "middle_blocks": -1}, "numbers of blocks >= 0"),
        ({"name": "nafnet", "width": [1, 2]}, "got width [1, 2]"),
        ({"name": "nafnet", "width": 8.0}, "got width 8.0"),
        ({"name": "nafnet", "width": True}, "got width True"),
        ({"name": "nafnet", "enc_blocks": 5}, "lists of whole numbers"),
        ({"name": "nafnet", "dec_blocks": "1111"}, "dec_blocks 1111"),
        ({"name": "nafnet", "dec_blocks": [1, 1, 1, 0.5]}, "dec_blocks [1, 1, 1, 0.5]"),
        ({"name": "nafnet", "middle_blocks": 1.5}, "(1, 1, 1, 28), middle_blocks 1.5"),
        ({"name": "nafnet", "enc_blocks": [1, 1]}, "as many dec_blocks as enc_blocks"),
    ],
)
def test_mistakes_name_the_way_out(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        build_network(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
