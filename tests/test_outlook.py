"""What `samprior train` says before it begins: true counts, and a floor of memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from samprior.training.config import load_config
from samprior.training.networks import NETWORKS, build_network
from samprior.training.outlook import kept_bytes, outlook
from samprior.training.stages import build_networks, build_relation

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "out=runs/x",
    "data.train=stores/x",
    "data.crop_px=32",
    "data.batch_size=4",
    "loss.analyzer=random-vgg",
    "loss.reconstruction=charbonnier",
    "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
)
SHAPES = {"uformer": "t", "restormer": None, "rcdnet": None, "efficientderain": "tiny"}


def test_the_backward_pass_is_counted_without_computing() -> None:
    """On the meta device as on the CPU: every tensor that autograd keeps, once."""
    network = build_network("nafnet", width=4, enc_blocks=[1], middle_blocks=1, dec_blocks=[1])
    counts = [
        kept_bytes(module, [module], image=torch.zeros((2, 3, 32, 40), device=device))
        for device in ("cpu", "meta")
        for module in (network.to(device),)
    ]
    assert counts[0] == counts[1]
    # Two convolutions that keep their inputs; the second keeps nothing but the first's output.
    pair = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 1, 1))
    image = torch.zeros((1, 3, 8, 8), device="meta")
    assert kept_bytes(pair.to("meta"), [pair], image=image) == 4 * 8 * 8 * (3 + 5)


@pytest.mark.parametrize("mode", ["plain", "compare", "joint"])
def test_the_floor_follows_the_law(mode: str) -> None:
    config = load_config(None, [*SMALL, f"mode={mode}"])
    network, teacher = build_networks(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    told = outlook(
        config,
        network,
        teacher,
        build_relation(config.loss),
        num_images=3,
        num_validated=0,
        device=torch.device("cpu"),
    )
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    ours = sum(value.numel() for value in network.parameters())
    theirs = sum(value.numel() for value in teacher.parameters())
    assert told.num_parameters == ours
    learning = {"base": ours, "fusion": theirs, "distill": ours, "joint": ours + theirs}
    assert told.memory.parameter_bytes >= 20 * learning[told.memory.stage]
    assert told.memory.activation_bytes
    text = "\n".join(told.lines())
    assert f"{ours:,} parameters" in text
    assert ("teacher" in text) == (mode != "plain")
    assert "at least" in text
    halves = outlook(
        load_config(None, [*SMALL, f"mode={mode}", "accumulate=2"]),
        network,
        teacher,
        build_relation(config.loss),
        num_images=3,
        num_validated=0,
        device=torch.device("cpu"),
    )
    assert halves.memory.activation_bytes is not None
    assert halves.memory.activation_bytes < told.memory.activation_bytes


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_network_can_be_counted(name: str) -> None:
    assert SHAPES.keys() | {"nafnet"} == NETWORKS.keys()
    network = build_network(name, preset=SHAPES[name]).to("meta").train()
    assert kept_bytes(network, [network], image=torch.zeros((1, 3, 64, 64), device="meta")) > 0


class Looks(nn.Module):
    padding_multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.layer(image) * float(image.mean())
        return result


class KnowsTwoDevices(Looks):
    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.layer(image) * {"cpu": 1, "cuda": 1}[image.device.type]
        return result


@pytest.mark.parametrize("network", [Looks(), KnowsTwoDevices()])
def test_a_network_that_can_not_be_counted_is_said_to_be_unknown(network: nn.Module) -> None:
    config = load_config(None, [*SMALL, "mode=plain"])
    _, teacher = build_networks(config)
    told = outlook(
        config,
        network,
        teacher,
        None,
        num_images=3,
        num_validated=0,
        device=torch.device("cpu"),
    )
    assert told.memory.activation_bytes is None
    assert "unknown for this network" in "\n".join(told.lines())


@pytest.mark.parametrize(
    ("setting", "share"), [("precision=fp32", 1.0), ("precision=bf16", 0.5), ("compile=true", 0.0)]
)
def test_at_least_is_true_of_half_precision_and_compiled_networks(
    setting: str, share: float
) -> None:
    config = load_config(None, [*SMALL, "mode=plain", setting])
    network, teacher = build_networks(config)
    told = outlook(
        config,
        network,
        teacher,
        None,
        num_images=3,
        num_validated=0,
        device=torch.device("cpu"),
    )
    kept = told.memory.activation_bytes
    assert kept
    assert told.floor_bytes == told.memory.parameter_bytes + int(share * kept)
    assert f"at least {told.floor_bytes / 1e9:.2f} GB" in "\n".join(told.lines())


def test_train_says_it_before_it_begins(
    samprior: Callable[..., tuple[int, str, str]],
    make_store: Callable[..., object],
    tmp_path: Path,
) -> None:
    make_store(tmp_path / "store", [(40, 56)] * 2)
    settings = [*SMALL, f"data.train={tmp_path}/store", f"out={tmp_path}/run", "mode=plain"]
    settings += ["stages.base=2", "loss.lambda_sgr=0"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    code, _, err = samprior("train", *arguments)
    assert code == 0, err
    assert "  network  nafnet" in err
    assert err.index("base 2") < err.index("base    : 2/2")
    code, _, err = samprior("train", *arguments)
    assert code == 0, err
    assert "base 2 (2 done)" in err
