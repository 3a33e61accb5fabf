"""Networks of the user's own: trained, saved and loaded, and no file decides what code runs."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError, UsageError
from samprior.storage.images import write_png
from samprior.training.checkpoint import load_network, save_checkpoint
from samprior.training.config import load_config
from samprior.training.networks import RestorationNetwork, build_network
from samprior.training.run import train

MakeStore = Callable[..., MaskStore]
Command = Callable[..., tuple[int, str, str]]

MODULE = """
import torch
from torch import nn

print("imported")

class Residual(nn.Module):
    def __init__(self, *, width: int = 4, scale: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1)
        )
        self.scale = scale

    def forward(self, image):
        return image + self.scale * self.layers(image)

def anything(**settings):
    return Residual(**settings)

def padded():
    network = Residual()
    network.padding_multiple = 8
    return network

def number():
    return 3

value = 4
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a factory in the current folder, which a console command doesn't look into."""
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield "my_networks:Residual"
    sys.modules.pop("my_networks", None)


def test_a_factory_makes_a_network_with_its_own_keys(name: str) -> None:
    network = build_network(name, width=5)
    assert isinstance(network, RestorationNetwork)
    assert network.padding_multiple == 1
    assert network.state_dict()["layers.0.weight"].shape == (5, 3, 3, 3)
    assert set(network.state_dict()) == {
        f"layers.{number}.{kind}" for number in (0, 2) for kind in ("weight", "bias")
    }
    assert build_network("my_networks:padded").padding_multiple == 8
    assert isinstance(build_network("my_networks:anything", width=2), nn.Module)


@pytest.mark.parametrize(
    ("wrong", "settings", "words"),
    [
        ("my_network:Residual", {}, "there is no module 'my_network'"),
        ("my_networks.deep:Residual", {}, "no module 'my_networks.deep'"),
        (":Residual", {}, "no module ''"),
        ("my_networks:Residul", {}, "no callable 'Residul'"),
        ("my_networks:", {}, "no callable ''"),
        ("my_networks:value", {}, "no callable 'value'"),
        ("my_networks:number", {}, "gave int, and a network is an nn.Module"),
        ("my_networks:Residual", {"widht": 3}, "did you mean 'width'?"),
    ],
)
def test_mistakes_are_told_in_one_line(
    name: str, wrong: str, settings: dict[str, int], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        build_network(wrong, **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_factory_has_no_presets(name: str) -> None:
    with pytest.raises(UsageError, match="no presets"):
        build_network(name, preset="tiny")


def test_what_a_module_lacks_is_its_own_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken_networks.py").write_text("import not_there_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        build_network("broken_networks:Residual")


# ---- checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path, name: str) -> Path:
    network = build_network(name, width=3)
    file = tmp_path / "model.safetensors"
    made = {"name": name, "preset": None, "settings": {"width": 3}}
    save_checkpoint(file, network.state_dict(), {"network": made})
    sys.modules.pop("my_networks")
    return file


def test_a_checkpoint_runs_no_code_that_the_user_did_not_name(
    checkpoint: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    with pytest.raises(CheckpointError) as caught:
        load_network(checkpoint)
    assert f"give --network {name}" in str(caught.value)
    with pytest.raises(CheckpointError, match="not 'my_networks:anything'"):
        load_network(checkpoint, name="my_networks:anything")
    with pytest.raises(CheckpointError, match="not 'nafnet'"):
        load_network(checkpoint, name="nafnet")
    assert "my_networks" not in sys.modules
    assert capsys.readouterr().out == ""

    network, _ = load_network(checkpoint, name=name)
    assert network(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 5, 7)
    assert not network.training


def test_a_network_of_samprior_is_not_replaced_by_a_factory(tmp_path: Path, name: str) -> None:
    file = tmp_path / "ours.safetensors"
    made = {"name": "nafnet", "preset": "tiny", "settings": {}}
    save_checkpoint(file, build_network("nafnet", preset="tiny").state_dict(), {"network": made})
    with pytest.raises(UsageError, match="leave out --network"):
        load_network(file, name=name)


def test_weights_alone_are_loaded_into_a_factory_s_network(tmp_path: Path, name: str) -> None:
    torch.save(build_network(name).state_dict(), tmp_path / "weights.pth")
    network, record = load_network(tmp_path / "weights.pth", name=name)
    assert record["network"]["name"] == name
    assert set(network.state_dict()) == set(build_network(name).state_dict())


def test_training_and_restoring_with_a_factory(
    tmp_path: Path, name: str, make_store: MakeStore, samprior: Command
) -> None:
    store = make_store(tmp_path / "store", ((40, 56), (33, 48)))
    settings = ("mode=plain", "device=cpu", "stages.base=2", "data.crop_px=32", "data.batch_size=2")
    config = load_config(
        None,
        [f"out={tmp_path / 'run'}", f"data.train={store.root}", *settings, f"network.name={name}"],
    )
    shipped = train(config).shipped
    again = [f"--set={each}" for each in (*settings, f"data.train={store.root}")]
    code, _, err = samprior("train", "--network", name, *again, "--set", f"out={tmp_path / 'cli'}")
    assert code == 0, err
    assert (tmp_path / "cli" / "model.safetensors").read_bytes() == shipped.read_bytes()
    start = ("--init", shipped, "--set=stages.base=0", f"--set=out={tmp_path / 'from'}")
    code, _, err = samprior("train", "--network", name, *again, *start)
    assert code == 0, err
    begun, ended = (load_network(file, name=name)[0] for file in (tmp_path / "from", shipped))
    for key, weights in begun.state_dict().items():
        assert torch.equal(weights, ended.state_dict()[key])

    picture = tmp_path / "picture.png"
    write_png(picture, store[0].degraded)
    code, _, err = samprior("restore", tmp_path / "run", picture, tmp_path / "out.png")
    assert code != 0
    assert f"give --network {name}" in err
    code, _, err = samprior(
        "restore", tmp_path / "run", picture, tmp_path / "out.png", "--network", name
    )
    assert code == 0, err
    assert (tmp_path / "out.png").exists()


def test_networks_of_ones_own_are_compared_with_each_other(
    tmp_path: Path, name: str, samprior: Command
) -> None:
    """A distilled network against its control, and beside one of samprior's."""
    rng = np.random.default_rng(0)
    for folder in ("hazy", "clear"):
        (tmp_path / folder).mkdir()
        write_png(tmp_path / folder / "1.png", rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for run in ("control", "distilled"):
        file = tmp_path / run / "model.safetensors"
        file.parent.mkdir()
        about = {"network": {"name": name, "preset": None, "settings": {}}}
        save_checkpoint(file, build_network(name).state_dict(), about)
    about = {"network": {"name": "nafnet", "preset": "tiny", "settings": {}}}
    nafnet = build_network("nafnet", preset="tiny").state_dict()
    save_checkpoint(tmp_path / "nafnet.safetensors", nafnet, about)
    command = ["evaluate", tmp_path / "control", tmp_path / "distilled", "--dataset", "folder"]
    patterns = [
        "--root",
        tmp_path,
        "--degraded-pattern",
        "hazy/{key}.png",
        "--clean-pattern",
        "clear/{key}.png",
    ]
    code, _, err = samprior(*command, *patterns)
    assert code == 1, err
    assert f"give --network {name}" in err
    for others in ([], [tmp_path / "nafnet.safetensors"]):
        code, out, err = samprior(*command, *others, *patterns, "--network", name)
        assert code == 0, err
        assert "control" in out


def test_the_documented_example_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_store: MakeStore, samprior: Command
) -> None:
    """The module and the command of docs/recipes.md, on two steps."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text("utf-8")
    (module,) = re.findall(
        r"^```python\n(# my_networks\.py\n.*?)^```$", page, re.DOTALL | re.MULTILINE
    )
    (line,) = re.findall(r"^samprior (train --network my_networks.*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("my_networks.py").write_text(module)
    make_store(Path("stores/gopro"), ((40, 56), (33, 48)))
    short = ("mode=plain", "device=cpu", "stages.base=2", "data.crop_px=32", "data.batch_size=2")
    try:
        code, _, err = samprior(*line.split(), *(f"--set={each}" for each in short))
    finally:
        sys.modules.pop("my_networks", None)
    assert code == 0, err
    network, record = load_network(Path("runs/mine"), name="my_networks:Residual")
    assert record["network"]["name"] == "my_networks:Residual"
    assert network.state_dict()["layers.0.weight"].shape == (16, 3, 3, 3)
