"""Mode joint: network 1 and its teacher learn in the same steps, and neither disturbs the other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from samprior.cli.main import cli
from samprior.storage import MaskStore
from samprior.storage.errors import ConfigError
from samprior.training.checkpoint import load_checkpoint, load_network, read_record
from samprior.training.config import TrainConfig, load_config
from samprior.training.data import Batch, Crops
from samprior.training.loader import CropLoader
from samprior.training.networks import build_network
from samprior.training.run import train
from samprior.training.stages import (
    build_networks,
    build_relation,
    distill_stage,
    fusion_stage,
    joint_stage,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MakeStore = Callable[..., MaskStore]
Configure = Callable[..., TrainConfig]
SHAPE = {"width": 4, "enc_blocks": [1], "middle_blocks": 1, "dec_blocks": [1]}
SETTINGS = (
    "seed=3",
    "mode=joint",
    "device=cpu",
    "log_every=1",
    "validate_every=2",
    "save_every=2",
    "validation_pictures=0",
    "data.crop_px=16",
    "data.batch_size=2",
    "data.min_mask_px=4",
    "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
    "optimizer.ema_decay=0.9",
    "loss.reconstruction=charbonnier",
    "loss.analyzer=random-vgg",
    "stages.base=2",
    "stages.distill=4",
)
NO_SGR = "loss.lambda_sgr=0"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def store(stores: Path, make_store: MakeStore) -> MaskStore:
    root = stores / "train"
    return MaskStore.open(root) if root.exists() else make_store(root, ((40, 56), (33, 48)))


@pytest.fixture
def configure(tmp_path: Path, store: MaskStore) -> Configure:
    def configured(*overrides: str, out: str = "run") -> TrainConfig:
        root = store.root
        places = (f"out={tmp_path / out}", f"data.train={root}", f"data.validation={root}")
        return load_config(None, [*places, *SETTINGS, *overrides])

    return configured


@pytest.fixture
def batch(store: MaskStore) -> Batch:
    crops = Crops(store=store, crop_px=16, seed=0, min_mask_px=1)
    loader = CropLoader(crops=crops, batch_size=3, strides=(4, 8), threads=0)
    return next(iter(loader)).to(torch.device("cpu"))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients of all parameters, which are then cleared."""
    found = {name: value.grad for name, value in module.named_parameters()}
    assert all(value is not None and value.any() for value in found.values())
    module.zero_grad()
    return {name: value for name, value in found.items() if value is not None}


def stirred(module: nn.Module) -> None:
    """Give all parameters random values: fresh modules hide paths behind factors of zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("image", ["restored", "degraded"])
@pytest.mark.parametrize("target", ["teacher", "teacher_where_better"])
def test_each_learns_from_its_own_loss_alone(
    configure: Configure, batch: Batch, image: str, target: str
) -> None:
    config = configure(f"fusion.image={image}", f"loss.spd_target={target}", "loss.lambda_sgr=3")
    network, teacher = build_networks(config)
    stirred(network), stirred(teacher)
    relation = build_relation(config.loss)
    assert relation is not None
    relation.requires_grad_(False)

    distill_stage(config, network, teacher, relation).losses(batch)["total"].backward()
    assert all(value.grad is None for value in teacher.parameters())
    of_network = gradients(network)
    fusion_stage(config, network, teacher).losses(batch)["total"].backward()
    of_teacher = gradients(teacher)

    losses = joint_stage(config, network, teacher, relation).losses(batch)
    assert losses.keys() == {"total", "reconstruction", "spd", "sgr", "teacher"}
    losses["total"].backward()
    for module, wanted in ((network, of_network), (teacher, of_teacher)):
        for name, value in gradients(module).items():
            torch.testing.assert_close(value, wanted[name])


@pytest.fixture(scope="module")
def runs() -> dict[str, TrainConfig]:
    return {}


@pytest.fixture
def finished(configure: Configure, stores: Path, runs: dict[str, TrainConfig]) -> TrainConfig:
    """A finished run, which no test may change."""
    if not runs:
        runs["run"] = configure(f"out={stores / 'run'}", "keep_best=2")
        train(runs["run"])
    return runs["run"]


def test_network_1_alone_ships_and_both_are_kept_to_go_on(finished: TrainConfig) -> None:
    plain = build_network("nafnet", **SHAPE).state_dict()
    best = list((finished.out / "joint" / "best").iterdir())
    assert len(best) == 2
    shipped = finished.out / "model.safetensors"
    for file in (shipped, finished.out / "joint" / "model.safetensors", *best):
        tensors, record = load_checkpoint(file)
        assert list(tensors) == sorted(plain)
        assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in plain.items()}
        assert record["network"]["name"] == "nafnet"
        assert record["stage"] == "joint"
        assert record["analyzer"] == "random-vgg"
    assert shipped.read_bytes() == (finished.out / "joint" / "model.safetensors").read_bytes()
    load_network(finished.out)

    state, _ = load_checkpoint(finished.out / "joint" / "state.safetensors")
    base, _ = load_checkpoint(finished.out / "base" / "model.safetensors")
    for part in ("network1", "teacher.network2"):
        learnt = {k: state[f"weights.{part}.{k}"] for k in base}
        assert any(not torch.equal(learnt[k], base[k]) for k in base), part
    assert any(k.startswith("weights.teacher.fusion.") for k in state)
    tensors, _ = load_checkpoint(shipped)
    assert all(torch.equal(state[f"average.network1.{k}"], v) for k, v in tensors.items())


def test_a_run_tells_of_its_stages(finished: TrainConfig) -> None:
    folders = {path.name for path in finished.out.iterdir() if path.is_dir()}
    assert folders == {"base", "joint"}
    summary = json.loads((finished.out / "summary.json").read_text())
    assert list(summary["stages"]) == ["base", "joint"]
    assert summary["gain_over_control_db"] is None
    assert summary["stages"]["joint"]["start_psnr_db"] == summary["stages"]["base"]["psnr_db"]
    card = (finished.out / "model_card.md").read_text()
    assert "Weights of stage `joint`" in card
    shipped, _ = load_checkpoint(finished.out / "model.safetensors")
    num_parameters = sum(value.numel() for value in shipped.values())
    assert f"{num_parameters:,} parameters" in card
    assert "It learnt from `nafnet`, settings" in card
    log = (finished.out / "joint" / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, log) if "total" in line]
    assert len(lines) == finished.stages.distill
    assert all({"reconstruction", "spd", "sgr", "teacher"} <= line.keys() for line in lines)


class _BrokenOffError(Exception):
    """Stands for whatever ends a process."""


def files_of(out: Path) -> dict[str, bytes]:
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "resolved.toml")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def test_a_run_broken_off_ends_with_the_same_bytes(
    configure: Configure, finished: TrainConfig
) -> None:
    config = configure("keep_best=2", out="broken")
    for stop in (("joint", 0), ("joint", 1), ("joint", 3), ("joint", 4)):

        def progress(
            name: str, done: int, *_: object, stop: tuple[str, int] = stop, **__: object
        ) -> None:
            if (name, done) == stop:
                raise _BrokenOffError

        with pytest.raises(_BrokenOffError):
            train(config, progress=progress)
    train(config)
    assert files_of(config.out) == files_of(finished.out)


@pytest.mark.parametrize("clip_norm", [0, 0.01])
def test_without_weights_of_its_losses_network_1_ends_as_the_control(
    configure: Configure, clip_norm: float
) -> None:
    """The same crops, rate and steps; the teacher's gradient doesn't even count in the clipping."""
    settings = ("loss.lambda_spd=0", NO_SGR, f"optimizer.clip_norm={clip_norm}")
    ends = []
    for mode, overrides in (("control", ()), ("joint", ("network2.settings.width=8",))):
        config = configure(f"mode={mode}", *settings, *overrides, out=mode)
        train(config)
        ends.append(load_checkpoint(config.out / mode / "model.safetensors")[0])
    control, joint = ends
    assert all(torch.equal(control[name], joint[name]) for name in control)


def test_a_joint_run_goes_on_from_the_base_of_its_control(configure: Configure) -> None:
    config = configure("mode=control", NO_SGR)
    train(config)
    states = [config.out / stage / "state.safetensors" for stage in ("base", "control")]
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in states]
    train(configure(NO_SGR))
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in states] == before
    assert read_record(config.out / "model.safetensors")["stage"] == "joint"


def test_the_best_of_a_joint_run_can_ship(configure: Configure) -> None:
    config = configure(NO_SGR, "ship=best", "keep_best=1")
    shipped = load_checkpoint(train(config).shipped)[0]
    assert shipped.keys() == build_network("nafnet", **SHAPE).state_dict().keys()
    ships = json.loads((config.out / "summary.json").read_text())["ships"]
    assert ships.startswith("joint/best/")


@pytest.mark.parametrize("second", ["rcdnet", "nafnet"])
def test_deep_supervision_trains_whatever_teacher(configure: Configure, second: str) -> None:
    rcdnet = "{stages = 3, rain_maps = 3, dual_channels = 2, blocks = 1}"
    other = () if second == "rcdnet" else ("network2.name=nafnet", "network2.preset=tiny")
    config = configure(
        NO_SGR,
        "network.name=rcdnet",
        f"network.settings={rcdnet}",
        "loss.reconstruction=deep_supervision",
        *other,
    )
    assert "network1" not in " ".join(load_checkpoint(train(config).shipped)[0])


def test_the_command_trains_it(configure: Configure) -> None:
    config = configure()
    places = (f"out={config.out}", f"data.train={config.data.train}")
    words = [word for override in (*places, *SETTINGS, NO_SGR) for word in ("--set", override)]
    ended = CliRunner().invoke(cli, ["train", *words], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert f"ships: {config.out / 'model.safetensors'}" in ended.output


def test_images_of_the_start_are_refused() -> None:
    with pytest.raises(ConfigError, match="in mode joint the teacher learns on"):
        load_config(None, ["out=run", "data.train=store", "mode=joint", "loss.spd_input=start"])
