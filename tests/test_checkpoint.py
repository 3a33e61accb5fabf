"""Checkpoints of networks: nothing lost, official files load, and nothing foreign ever runs."""

import contextlib
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from samprior.storage.errors import CheckpointError
from samprior.training.checkpoint import (
    load_checkpoint,
    load_network,
    load_strictly,
    read_official,
    read_record,
    require_same_settings,
    save_checkpoint,
)
from samprior.training.networks import build_network

SETTINGS = {"width": 4, "enc_blocks": [1], "middle_blocks": 1, "dec_blocks": [1]}
MADE = {"network": {"name": "nafnet", "preset": None, "settings": SETTINGS}}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network("nafnet", **SETTINGS)


@pytest.fixture
def tiny() -> nn.Module:
    """Of a preset, which is what official files need."""
    return build_network("nafnet", preset="tiny")


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_tensors_and_record_come_back(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 4).t(),
        "a": torch.tensor(7.5),
        "c": torch.arange(5),
        "d": torch.randn(2).bfloat16().requires_grad_(),
    }
    record = {"step": 3, "names": ["ä", "b"], "nested": {"lr": 1e-7, "none": None}}
    file = tmp_path / "new" / "state.safetensors"
    save_checkpoint(file, tensors, record)
    found, found_record = load_checkpoint(file)
    assert found_record == read_record(file) == record
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "b": torch.zeros(2)}
    backwards = {"b": torch.zeros(2), "a": torch.ones(3)}
    save_checkpoint(tmp_path / "1", tensors, {"x": 1, "y": 2})
    save_checkpoint(tmp_path / "2", backwards, {"y": 2, "x": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_network_loads_from_its_file_and_from_the_folder_of_its_run(
    tmp_path: Path, network: nn.Module
) -> None:
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, network.state_dict(), {**MADE, "stage": "base"})
    for path in (file, tmp_path):
        loaded, record = load_network(path)
        assert record["stage"] == "base"
        assert not loaded.training
        assert same_weights(loaded, network)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params": state},
        lambda state: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: state,
        lambda state: {f"module.{k}": v for k, v in state.items()},
    ],
    ids=["params", "state_dict of DataParallel", "bare", "bare of DataParallel"],
)
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_official_files_load(
    tmp_path: Path, tiny: nn.Module, wrap: Callable[[Any], Any], *, as_zip: bool
) -> None:
    file = tmp_path / "official.pth"
    torch.save(wrap(tiny.state_dict()), file, _use_new_zipfile_serialization=as_zip)
    loaded, record = load_network(file, name="nafnet", preset="tiny")
    assert same_weights(loaded, tiny)
    assert record["network"]["preset"] == "tiny"


def test_an_official_file_needs_to_be_told_what_it_is(tmp_path: Path, tiny: nn.Module) -> None:
    torch.save(tiny.state_dict(), tmp_path / "official.pth")
    message = refusal(lambda: load_network(tmp_path / "official.pth"))
    assert "--network" in message


class _Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, *, as_zip: bool) -> None:
    trace, file = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"params": {"w": torch.ones(1), "x": _Runs(trace)}}
    torch.save(content, file, _use_new_zipfile_serialization=as_zip)
    pickle.loads(pickle.dumps(_Runs(trace)))
    assert trace.exists()  # the file would do harm if it were run
    trace.unlink()
    message = refusal(lambda: read_official(file))
    assert str(file) in message
    assert "holds more than tensors" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"a": 1.5}, {"params": [torch.ones(1)]}, {0: torch.ones(1)}, torch.ones(3)],
    ids=["list", "number", "list below params", "keys are no names", "one tensor"],
)
def test_a_file_without_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "other.pth"
    torch.save(content, file)
    assert f"{file} holds no state dict" in refusal(lambda: read_official(file))


@pytest.mark.parametrize("name", ["zip.pth", "old.pth", "ours.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """Cut anywhere or altered in a few bytes: our error, or (if it still reads) tensors."""
    state, file = {"a.w": torch.ones(4, 4), "b.w": torch.zeros(2)}, tmp_path / name
    if name == "ours.safetensors":
        save_checkpoint(file, state, {"x": 1})
    else:
        torch.save(state, file, _use_new_zipfile_serialization=name == "zip.pth")
    content, rng = file.read_bytes(), random.Random(0)
    read = load_checkpoint if name == "ours.safetensors" else read_official
    for length in (0, 1, 7, 8, *(rng.randrange(len(content) - 1) for _ in range(40))):
        file.write_bytes(content[:length])
        assert str(file) in refusal(lambda: read(file))
    for _ in range(100):
        altered = bytearray(content)
        altered[rng.randrange(8, min(len(content), 600))] = rng.randrange(256)
        file.write_bytes(altered)
        with contextlib.suppress(CheckpointError):
            read(file)


def test_what_is_missing_or_something_else_is_named(tmp_path: Path, network: nn.Module) -> None:
    for name in ("none.safetensors", "none.pth", "none"):
        message = refusal(lambda name=name: load_network(tmp_path / name, name="nafnet"))
        assert f"{tmp_path / name} does not exist" in message
    assert "model.safetensors does not exist; train one" in refusal(lambda: load_network(tmp_path))
    (tmp_path / "resolved.toml").touch()  # as of a run that was begun
    message = refusal(lambda: load_network(tmp_path))
    assert f"the run {tmp_path} has not ended" in message

    import safetensors.torch

    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file(network.state_dict(), foreign)
    assert "not one of samprior's" in refusal(lambda: load_network(foreign))
    text = tmp_path / "text.safetensors"
    text.write_text("no weights")
    assert str(text) in refusal(lambda: load_network(text))
    teacher = tmp_path / "teacher.safetensors"
    save_checkpoint(teacher, network.state_dict(), {"stage": "fusion"})
    assert "holds no network to run" in refusal(lambda: load_network(teacher))


def test_weights_of_another_network_are_refused(tmp_path: Path, network: nn.Module) -> None:
    wider = build_network("nafnet", **{**SETTINGS, "width": 8})
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, wider.state_dict(), MADE)
    message = refusal(lambda: load_network(file))
    assert re.search(r"does not fit the network: \d+ differences", message)
    assert "beta is (1, 8, 1, 1), not (1, 4, 1, 1)" in message or "is (16,), not (8,)" in message

    state = network.state_dict()
    lacking = {k: v for k, v in state.items() if k != "intro.bias"}
    message = refusal(lambda: load_strictly(network, {**lacking, "more": torch.ones(1)}, file))
    assert "2 differences" in message
    assert "intro.bias is missing" in message
    assert "more is not known" in message


def test_other_settings_are_named_with_both_values(tmp_path: Path) -> None:
    file = tmp_path / "run" / "distill" / "state.safetensors"
    found = {"config": {"loss": {"lambda_spd": 0.5, "eta": 1}, "seed": 1}, "step": 3}
    require_same_settings(file, found, {"config": {"seed": 1}})
    wanted = {"config": {"loss": {"lambda_spd": 1.0, "eta": 1}, "seed": 1}, "more": 2}
    message = refusal(lambda: require_same_settings(file, found, wanted))
    assert "config.loss.lambda_spd: 0.5 there, 1.0 now" in message
    assert "more: None there, 2 now" in message
    assert "eta" not in message
    assert f"remove {file.parent}" in message
