"""An exported network restores as the network does, and holds nothing else."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError, UsageError
from samprior.training.checkpoint import load_network, save_checkpoint
from samprior.training.config import load_config
from samprior.training.export import TOLERANCE, export_network
from samprior.training.networks import PRESETS, build_network
from samprior.training.run import train

Samprior = Callable[..., tuple[int, str, str]]
SMALL: dict[str, dict[str, Any]] = {
    "nafnet": {"width": 4, "enc_blocks": [1], "middle_blocks": 1, "dec_blocks": [1]},
    "restormer": {
        "dim": 4,
        "num_blocks": [1, 1, 1, 1],
        "num_refinement_blocks": 1,
        "heads": [1, 1, 1, 1],
        "ffn_expansion": 2.0,
    },
    "uformer": {"width": 4, "depths": [2, 1, 1], "heads": [1, 2, 2]},
    "rcdnet": {"stages": 3, "rain_maps": 2, "dual_channels": 2, "blocks": 1},
    "efficientderain": {"width": 2, "kernel_size": 3},
}
RECORD = {"network": {"name": "nafnet", "preset": None, "settings": SMALL["nafnet"]}}


def stirred(network: nn.Module) -> nn.Module:
    """With random values for all parameters: fresh networks hide paths behind factors of zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def reader(file: Path) -> Callable[[Tensor], Tensor]:
    """The exported network, run by the library whose format it is."""
    if file.suffix == ".pt2":
        return torch.export.load(file).module()
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def differences(file: Path, network: nn.Module, shapes: list[tuple[int, ...]]) -> list[float]:
    run = reader(file)
    images = [torch.rand(shape) for shape in shapes]
    with torch.no_grad():
        return [float((run(image) - network(image)).abs().max()) for image in images]


# ---- equal output


# What is written as ONNX was a program of torch.export before, so that is tried for all networks.
@pytest.mark.parametrize(
    ("name", "to", "suffix"),
    [
        *((name, "onnx", ".onnx") for name in SMALL),
        ("nafnet", "torch", ".pt2"),
        ("uformer", "torch", ".pt2"),
    ],
)
def test_an_export_restores_images_of_any_size_as_the_network_does(
    tmp_path: Path, name: str, to: str, suffix: str
) -> None:
    network = stirred(build_network(name, **SMALL[name]))
    file = tmp_path / f"model{suffix}"
    result = export_network(network, file, to=to, record=RECORD)
    assert len({shape[2:] for shape in result.compared}) >= 2
    assert result.largest_difference <= TOLERANCE
    least = result.smallest_px
    assert least is not None
    shapes: list[tuple[int, ...]] = [(1, 3, 50, 67), (3, 3, 64, 96), (1, 3, least, 71)]
    assert max(differences(file, network, shapes)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torch", "onnx"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_tiny_preset_of_every_network_is_exported(tmp_path: Path, name: str, to: str) -> None:
    network = stirred(build_network(name, preset="tiny"))
    result = export_network(network, tmp_path / "model", to=to, record=RECORD)
    assert result.largest_difference <= TOLERANCE


@pytest.mark.parametrize(("to", "suffix"), [("torch", ".pt2"), ("onnx", ".onnx")])
def test_an_export_of_one_size_takes_that_alone(tmp_path: Path, to: str, suffix: str) -> None:
    network = stirred(build_network("nafnet", **SMALL["nafnet"]))
    file = tmp_path / f"model{suffix}"
    result = export_network(network, file, to=to, record=RECORD, size=(33, 20))
    assert result.smallest_px is None
    assert differences(file, network, [(1, 3, 33, 20)])[0] <= TOLERANCE
    run = reader(file)
    with pytest.raises(Exception, match=r"33|[Gg]uard|INVALID_ARGUMENT"):
        run(torch.rand(1, 3, 34, 20))


class Forgetful(nn.Module):
    """Restores otherwise each time."""

    padding_multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        return image + self.bias + self.calls


class Moody(nn.Module):
    """Takes another path for bright images."""

    padding_multiple = 1

    def forward(self, image: Tensor) -> Tensor:
        return image * (2 if int(image.sum()) > 3 else 1)


@pytest.mark.parametrize("to", ["torch", "onnx", "safetensors"])
def test_an_export_that_restores_otherwise_is_not_written(tmp_path: Path, to: str) -> None:
    with pytest.raises(CheckpointError, match=r"differs from the network by .*nothing was written"):
        export_network(Forgetful(), tmp_path / "model", to=to, record={})
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_branches_on_pixels_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"torch.export can't express .*--size HxW") as caught:
        export_network(Moody(), tmp_path / "model", to="torch", record={})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ---- what is inside


def test_equal_networks_give_equal_bytes_without_paths(tmp_path: Path) -> None:
    network = stirred(build_network("nafnet", **SMALL["nafnet"]))
    for to in ("torch", "onnx", "safetensors"):
        contents = []
        for number in range(2):
            file = tmp_path / f"{to}{number}"
            export_network(network, file, to=to, record=RECORD)
            contents.append(file.read_bytes())
        assert contents[0] == contents[1]
        assert str(Path(__file__).parents[1]).encode() not in contents[0]


def test_nothing_of_ours_is_pickled(tmp_path: Path) -> None:
    """The archive of torch.export has one pickle, of the example, which has nothing but tensors."""
    network = stirred(build_network("nafnet", **SMALL["nafnet"]))
    export_network(network, tmp_path / "model.pt2", to="torch", record=RECORD)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        names = archive.namelist()
        assert [name for name in names if name.endswith((".pkl", ".pickle"))] == []
        for name in names:
            if name.endswith(".pt"):
                (tmp_path / "example.pt").write_bytes(archive.read(name))
                torch.load(tmp_path / "example.pt", weights_only=True)
    told = {"samprior.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=told)
    assert json.loads(told["samprior.json"]) == RECORD


@pytest.fixture
def distilled(tmp_path: Path, make_store: Callable[..., MaskStore]) -> Path:
    """A tiny run with every stage: SPF, network 2 and an analyzer took part."""
    store = make_store(tmp_path / "store", ((40, 56), (48, 33)))
    settings = SMALL["nafnet"]
    network = ", ".join(f"{key} = {value}" for key, value in settings.items())
    overrides = (
        f"out={tmp_path / 'run'}",
        f"data.train={store.root}",
        "device=cpu",
        "data.crop_px=16",
        "data.batch_size=2",
        "data.min_mask_px=4",
        f"network.settings={{{network}}}",
        "loss.analyzer=random-vgg",
        "stages.base=1",
        "stages.fusion=1",
        "stages.distill=1",
        "mode=distill",
    )
    train(load_config(None, overrides))
    return tmp_path / "run"


def operations(run: Callable[[Tensor], object]) -> int:
    """Floating-point operations of one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(torch.rand(1, 3, 32, 48))
    return counter.get_total_flops()


def test_a_distilled_student_is_the_plain_network(distilled: Path, tmp_path: Path) -> None:
    """Keys, parameters and operations; no trace of SPF, network 2 or VGG."""
    plain = build_network("nafnet", **SMALL["nafnet"]).eval()
    student, record = load_network(distilled)
    wanted = {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    num_parameters = sum(parameter.numel() for parameter in plain.parameters())
    assert {key: tuple(value.shape) for key, value in student.state_dict().items()} == wanted

    export_network(student, tmp_path / "s.safetensors", to="safetensors", record=record)
    weights = safetensors.torch.load_file(tmp_path / "s.safetensors")
    assert {key: tuple(value.shape) for key, value in weights.items()} == wanted
    loaded, again = load_network(tmp_path / "s.safetensors")
    assert again == record
    assert operations(loaded) == operations(plain) > 0

    export_network(student, tmp_path / "s.pt2", to="torch", record=record)
    program = torch.export.load(tmp_path / "s.pt2")
    assert {key: tuple(value.shape) for key, value in program.state_dict.items()} == wanted
    assert sum(p.numel() for p in program.parameters()) == num_parameters
    assert operations(program.module()) == operations(plain)
    alone = tmp_path / "plain.pt2"
    export_network(stirred(plain), alone, to="torch", record=record)
    assert ops_of(program) == ops_of(torch.export.load(alone))


def ops_of(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_an_onnx_student_has_the_graph_and_the_weights_of_the_plain_network(
    distilled: Path, tmp_path: Path
) -> None:
    import onnx
    from onnx.numpy_helper import to_array

    plain = stirred(build_network("nafnet", **SMALL["nafnet"]))
    student, record = load_network(distilled)
    export_network(student, tmp_path / "s.onnx", to="onnx", record=record)
    export_network(plain, tmp_path / "plain.onnx", to="onnx", record=record)
    model, other = (onnx.load(tmp_path / f"{name}.onnx") for name in ("s", "plain"))
    assert [node.op_type for node in model.graph.node] == [n.op_type for n in other.graph.node]
    assert not any(node.domain for node in model.graph.node)  # ONNX's own operators alone
    keys = plain.state_dict().keys()
    floats = {i.name: to_array(i) for i in model.graph.initializer if i.data_type == 1}
    named = {name: values for name, values in floats.items() if name in keys}
    assert len(named) > 0.7 * len(keys)  # the exporter folds some into constants
    for name, values in named.items():
        assert np.array_equal(values, student.state_dict()[name].numpy())
    num_parameters = sum(parameter.numel() for parameter in plain.parameters())
    assert sum(values.size for values in floats.values()) <= num_parameters + 16
    assert [prop.key for prop in model.metadata_props] == ["samprior"]
    sides = [
        dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim
    ]
    assert sides == ["batch", 3, "height", "width"]


# ---- the command


def test_the_command_compares_and_says_what_the_file_takes(
    tmp_path: Path, samprior: Samprior
) -> None:
    network = stirred(build_network("nafnet", **SMALL["nafnet"]))
    run = tmp_path / "run"
    save_checkpoint(run / "model.safetensors", network.state_dict(), RECORD)
    code, out, err = samprior("export-model", run, tmp_path / "m.pt2", "--to", "torch")
    assert (code, err) == (0, "")
    assert "takes images from 3x3 px, any number at a time" in out
    assert "largest difference to the network" in out
    assert "1x3x32x48" in out
    code, out, _ = samprior(
        "export-model", run, tmp_path / "m.onnx", "--to", "onnx", "--size", "24x40"
    )
    assert code == 0
    assert "takes images of 24x40 (HxW), one at a time" in out
    code, out, _ = samprior("export-model", run, tmp_path / "w.safetensors", "--to", "safetensors")
    assert code == 0
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="pt") as content:
        assert set(content.keys()) == network.state_dict().keys()


def test_mistakes_are_one_line(tmp_path: Path, samprior: Samprior) -> None:
    network = build_network("nafnet", **SMALL["nafnet"])
    save_checkpoint(tmp_path / "model.safetensors", network.state_dict(), RECORD)
    out = tmp_path / "out"
    for wrong in ("720", "axb", "3x4x5"):
        code, _, err = samprior("export-model", tmp_path, out, "--to", "torch", "--size", wrong)
        assert code == 2
        assert "720x1280" in err
    for more in (("safetensors", "20x20"), ("torch", "0x20")):
        code, _, err = samprior("export-model", tmp_path, out, "--to", more[0], "--size", more[1])
        assert code == 2
        assert err.count("\n") == 1
        assert "--size" in err
    code, _, err = samprior("export-model", tmp_path / "none", out, "--to", "torch")
    assert code == 1
    assert "does not exist" in err
    assert not out.exists()


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="onnx"):
        export_network(nn.Identity(), tmp_path / "m", to="onx", record={})


def test_without_its_libraries_onnx_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"samprior\[export\]"):
        export_network(nn.Identity(), tmp_path / "m", to="onnx", record={})
