"""`import-checkpoint` takes in published weights: all of them, as they are, and no code."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError
from samprior.storage.files import sha256_of
from samprior.training.building import load_initial_weights
from samprior.training.checkpoint import load_checkpoint, load_network, read_record, save_checkpoint
from samprior.training.config import load_config
from samprior.training.networks import build_network
from samprior.training.official import import_official
from samprior.training.run import train

Samprior = Callable[..., tuple[int, str, str]]
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "params": lambda state: {"params": state},
    "state_dict": lambda state: {
        "epoch": 3,
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]},
    },
    "bare": lambda state: state,
}
OFFICIAL = {
    "nafnet": "params",
    "restormer": "params",
    "uformer": "state_dict",
    "rcdnet": "bare",
    "efficientderain": "bare",
}
"""How the authors wrap their files."""


def equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", OFFICIAL)
def test_a_published_file_becomes_ours(
    tmp_path: Path, samprior: Samprior, name: str, wrapper: str
) -> None:
    torch.manual_seed(1)
    network = build_network(name, preset="tiny")
    official, out = tmp_path / "official.pth", tmp_path / "new" / "ours.safetensors"
    torch.save(WRAPPERS[wrapper](network.state_dict()), official)
    code, said, err = samprior(
        "import-checkpoint", official, out, "--network", name, "--preset", "tiny"
    )
    assert (code, err) == (0, "")
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in said
    loaded, record = load_network(out)
    assert equal(loaded, network)
    assert not loaded.training
    assert record == {
        "network": {"name": name, "preset": "tiny", "settings": {}},
        "origin": {"file": "official.pth", "sha256": sha256_of(official)},
    }


def test_a_run_starts_from_it(tmp_path: Path, make_store: Callable[..., MaskStore]) -> None:
    settings = {"width": 4, "enc_blocks": [1], "middle_blocks": 1, "dec_blocks": [1]}
    torch.manual_seed(2)
    network = build_network("nafnet", **settings)
    torch.save({"params": network.state_dict()}, tmp_path / "o.pth")
    out = tmp_path / "o.safetensors"
    assert equal(
        import_official(tmp_path / "o.pth", out, name="nafnet", settings=settings), network
    )
    store = make_store(tmp_path / "store")
    toml = ", ".join(f"{key} = {value}" for key, value in settings.items())
    overrides = (
        f"out={tmp_path / 'run'}",
        f"data.train={store.root}",
        "data.crop_px=16",
        "device=cpu",
        "mode=plain",
        "stages.base=0",
        f"network.init={out}",
        f"network.settings={{{toml}}}",
    )
    result = train(load_config(None, overrides))
    assert equal(load_network(result.shipped)[0], network)
    assert read_record(result.shipped)["config"]["network"]["init"] == sha256_of(out)


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    torch.save(build_network("uformer", preset="tiny").state_dict(), tmp_path / "o.pth")
    for name in ("1.safetensors", "2.safetensors"):
        import_official(tmp_path / "o.pth", tmp_path / name, name="uformer", preset="tiny")
    contents = [(tmp_path / name).read_bytes() for name in ("1.safetensors", "2.safetensors")]
    assert contents[0] == contents[1]
    assert load_checkpoint(tmp_path / "1.safetensors")[1]["network"]["name"] == "uformer"


def test_settings_shape_the_network(tmp_path: Path, samprior: Samprior) -> None:
    network = build_network("efficientderain", width=2, kernel_size=5)
    torch.save(network.state_dict(), tmp_path / "o.pth")
    code, _, err = samprior(
        "import-checkpoint", tmp_path / "o.pth", tmp_path / "o.safetensors",
        "--network", "efficientderain", "--set", "width=2", "--set", "kernel_size=5",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert equal(load_network(tmp_path / "o.safetensors")[0], network)


def test_counters_of_batch_norms_alone_may_be_missing(tmp_path: Path) -> None:
    network, file = build_network("rcdnet", preset="tiny"), tmp_path / "model_best.pt"
    whole = network.state_dict()
    old = {key: value for key, value in whole.items() if "num_batches_tracked" not in key}
    assert len(old) < len(whole)
    torch.save(old, file)
    imported = import_official(file, tmp_path / "o.safetensors", name="rcdnet", preset="tiny")
    found, begun = load_network(file, name="rcdnet", preset="tiny")[0], deepcopy(network)
    load_initial_weights(begun, file)
    for loaded in (imported, found, begun):
        assert equal(loaded, network)  # whose counters are 0
    # Ours have them all, and a file that lacks anything else is refused for that alone.
    save_checkpoint(tmp_path / "ours.safetensors", old, {})
    with pytest.raises(CheckpointError, match="num_batches_tracked is missing"):
        load_initial_weights(network, tmp_path / "ours.safetensors")
    torch.save({key: old[key] for key in old if key != "fxnet.resx1.1.running_var"}, file)
    with pytest.raises(
        CheckpointError, match=r"1 differences, such as \S+running_var is missing$"
    ) as no:
        load_network(file, name="rcdnet", preset="tiny")
    assert "num_batches_tracked" not in str(no.value)


def test_counters_that_are_there_are_taken(tmp_path: Path) -> None:
    network, file = build_network("rcdnet", preset="tiny"), tmp_path / "model_best.pt"
    counted = {k: v + 7 if "tracked" in k else v for k, v in network.state_dict().items()}
    torch.save(counted, file)
    loaded = load_network(file, name="rcdnet", preset="tiny")[0].state_dict()
    assert all(torch.equal(loaded[key], counted[key]) for key in counted)


def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    tmp_path: Path, samprior: Samprior
) -> None:
    state = build_network("nafnet", preset="tiny").state_dict()
    torch.save({"params": {**state, "more": torch.ones(1)}}, tmp_path / "more.pth")
    torch.save({"params": {**state, "intro.weight": torch.ones(1)}}, tmp_path / "shape.pth")
    torch.save({"params": {"intro.weight": nn.Identity()}}, tmp_path / "code.pth")
    out = tmp_path / "ours.safetensors"
    for file, said in {
        "more.pth": "more is not known",
        "shape.pth": "intro.weight is (1,)",
        "code.pth": "more than tensors",
        "none.pth": "does not exist",
    }.items():
        code, _, err = samprior(
            "import-checkpoint", tmp_path / file, out, "--network", "nafnet", "--preset", "tiny"
        )
        assert code == 1
        assert said in err
        assert err.count("\n") == 1
    for arguments in (("--network", "nafnot"), ("--network", "nafnet", "--set", "widht=3")):
        code, _, err = samprior("import-checkpoint", tmp_path / "more.pth", out, *arguments)
        assert code == 2
        assert err.count("\n") == 1
    assert not out.exists()
    with pytest.raises(CheckpointError):
        import_official(tmp_path / "shape.pth", out, name="nafnet", preset="tiny")
    code, _, err = samprior(
        "import-checkpoint", tmp_path / "more.pth", tmp_path / "o.pth", "--network", "nafnet"
    )
    assert code == 2
    assert ".safetensors" in err
