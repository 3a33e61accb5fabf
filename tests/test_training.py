"""Training: what each stage changes, a comparison that is fair, and runs that survive anything."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samprior.pipeline import build_segmenter
from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.errors import CheckpointError, ConfigError, TrainingError
from samprior.storage.images import read_rgb
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard
from samprior.training.checkpoint import load_checkpoint, load_network, save_checkpoint
from samprior.training.config import TrainConfig, load_config
from samprior.training.data import Batch, Crops
from samprior.training.loader import CropLoader
from samprior.training.metrics import psnr
from samprior.training.networks import build_network
from samprior.training.priors import build_analyzer
from samprior.training.priors.regions import RegionBatch
from samprior.training.restore import restore
from samprior.training.run import RunResult, train
from samprior.training.stage_run import StageRun
from samprior.training.stages import (
    Losses,
    build_networks,
    build_relation,
    distill_stage,
    fusion_stage,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MakeStore = Callable[..., MaskStore]
CPU = torch.device("cpu")
NETWORK = {"width": 4, "enc_blocks": [1], "middle_blocks": 1, "dec_blocks": [1]}
SETTINGS = (
    "seed=3",
    "device=cpu",
    "log_every=1",
    "validate_every=2",
    "save_every=3",
    "data.crop_px=32",
    "data.batch_size=2",
    "data.min_mask_px=4",
    "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
    "optimizer.ema_decay=0.9",
    "optimizer.warmup_steps=2",
    "loss.reconstruction=charbonnier",
    "loss.analyzer=random-vgg",
    "stages.base=5",
    "stages.fusion=4",
    "stages.distill=4",
)
NO_SGR = "loss.lambda_sgr=0"
SHAPES = ((40, 56), (48, 33), (64, 64))
STAGES = ("base", "control", "fusion", "distill")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def store(stores: Path, make_store: MakeStore) -> MaskStore:
    """Training data of all tests, written by the first; none may change it."""
    root = stores / "train"
    return MaskStore.open(root) if root.exists() else make_store(root, SHAPES)


@pytest.fixture
def validation(stores: Path, make_store: MakeStore) -> MaskStore:
    root = stores / "validation"
    shapes = ((24, 31), (16, 16), (17, 40))
    return MaskStore.open(root) if root.exists() else make_store(root, shapes, seed=50)


Configure = Callable[..., TrainConfig]


@pytest.fixture
def configure(tmp_path: Path, store: MaskStore, validation: MaskStore) -> Configure:
    def configured(*overrides: str, out: Path | None = None) -> TrainConfig:
        places = (
            f"out={out or tmp_path / 'run'}",
            f"data.train={store.root}",
            f"data.validation={validation.root}",
        )
        return load_config(None, [*places, *SETTINGS, *overrides])

    return configured


def weights(file: Path) -> dict[str, Tensor]:
    return load_checkpoint(file)[0]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def files_of(out: Path) -> dict[str, bytes]:
    """All files of a run but resolved.toml, which says where the run lies."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "resolved.toml")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def stirred(module: nn.Module) -> None:
    """Give all parameters random values: fresh modules hide paths behind factors of zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


# ---- what a stage changes


def a_batch(store: MaskStore, strides: tuple[int, ...] | None = (4, 8)) -> Batch:
    crops = Crops(store=store, crop_px=32, seed=0, min_mask_px=1)
    return first_batch(crops, batch_size=3, strides=strides)


def first_batch(
    crops: Crops, *, batch_size: int, strides: tuple[int, ...] | None, first: int = 0
) -> Batch:
    loader = CropLoader(crops=crops, batch_size=batch_size, strides=strides, first=first, threads=0)
    return next(iter(loader)).to(CPU)


@pytest.mark.parametrize("prepared", [True, False], ids=["frozen by the run", "not frozen"])
@pytest.mark.parametrize(
    "switch",
    [
        "loss.spd_target=teacher",
        "loss.spd_target=teacher_where_better",
        "loss.spd_distance=reconstruction",
        "loss.spd_input=start",
    ],
)
def test_distillation_gives_gradients_to_network_1_alone(
    configure: Configure, store: MaskStore, switch: str, *, prepared: bool
) -> None:
    config = configure(switch)
    network, teacher = build_networks(config)
    stirred(network), stirred(teacher)
    stage = distill_stage(config, network, teacher, build_relation(config.loss))
    relation = stage.frozen[1]
    if prepared:
        StageRun(stage, config, CPU)
    losses = stage.losses(a_batch(store))
    assert losses.keys() == {"total", "reconstruction", "spd", "sgr"}
    for name in ("spd", "sgr"):
        losses[name].backward(retain_graph=True)
        assert any(p.grad is not None and p.grad.any() for p in network.parameters()), name
        network.zero_grad()
    losses["total"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    for frozen in (teacher.fusion, teacher.network2, relation):
        assert len(list(frozen.parameters())) > 0
        assert all(parameter.grad is None for parameter in frozen.parameters())


def test_the_total_is_the_weighted_sum_of_its_terms(configure: Configure, store: MaskStore) -> None:
    config = configure("loss.lambda_spd=0.25", "loss.lambda_sgr=3")
    network, teacher = build_networks(config)
    stirred(teacher)
    losses = distill_stage(config, network, teacher, build_relation(config.loss)).losses(
        a_batch(store)
    )
    wanted = losses["reconstruction"] + 0.25 * losses["spd"] + 3 * losses["sgr"]
    torch.testing.assert_close(losses["total"], wanted)


def test_the_teacher_may_refine_what_the_stage_began_with(
    configure: Configure, store: MaskStore
) -> None:
    """Its images then stay the same while network 1 learns."""
    batch = a_batch(store)
    for spd_input, stays in (("start", True), ("present", False)):
        config = configure(f"loss.spd_input={spd_input}", NO_SGR, "loss.lambda_spd=1")
        network, teacher = build_networks(config)
        stirred(network), stirred(teacher)
        seen: list[torch.Tensor] = []
        teacher.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        stage = distill_stage(config, network, teacher, None)
        run = StageRun(stage, config, CPU)
        for _ in range(2):
            run.advance(batch)
        assert torch.equal(seen[0], seen[1]) == stays


def test_without_weight_sgr_needs_no_analyzer(configure: Configure) -> None:
    # vgg19 would have to be downloaded.
    config = configure(NO_SGR, "loss.analyzer=vgg19")
    stage = distill_stage(config, *build_networks(config), build_relation(config.loss))
    assert stage.analyzer is None
    assert stage.mask_strides == ()


def test_the_teacher_gives_gradients_to_spf_and_network_2_alone(
    configure: Configure, store: MaskStore
) -> None:
    config = configure()
    network, teacher = build_networks(config)
    stirred(network), stirred(teacher)
    fusion_stage(config, network, teacher).losses(a_batch(store, ()))["total"].backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_no_gradient_passes_through_the_teacher(configure: Configure, store: MaskStore) -> None:
    _, teacher = build_networks(configure())
    batch = a_batch(store)
    assert batch.regions is not None
    restored = batch.degraded.clone().requires_grad_()
    teacher(restored, batch.regions).sum().backward()
    assert restored.grad is None


def test_a_fresh_teacher_is_network_2(configure: Configure, store: MaskStore) -> None:
    network, teacher = build_networks(configure())
    batch = a_batch(store)
    assert batch.regions is not None
    with torch.no_grad():
        restored = network(batch.degraded)
        assert torch.equal(teacher.fusion(restored, batch.regions), restored)
        assert torch.equal(teacher(restored, batch.regions), teacher.network2(restored))


def test_initial_weights_are_fixed_by_the_seed_and_nothing_else(configure: Configure) -> None:
    state = torch.random.get_rng_state()
    first, again = (nn.ModuleList(build_networks(configure())) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(first.state_dict(), again.state_dict())
    other = nn.ModuleList(build_networks(configure("seed=4")))
    assert not equal(first.state_dict(), other.state_dict())


# ---- a whole run


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Batch]]:
    """What each stage of a run is trained on, step by step."""
    batches: dict[str, list[Batch]] = {}
    advance = StageRun.advance

    def spying(run: StageRun, batch: Batch) -> Losses:
        batches.setdefault(run.stage.name, []).append(batch)
        return advance(run, batch)

    monkeypatch.setattr(StageRun, "advance", spying)
    return batches


def test_control_and_distillation_differ_in_the_loss_alone(
    configure: Configure, store: MaskStore, seen: dict[str, list[Batch]]
) -> None:
    """The same start, crops and number of steps, so without weight the same end."""
    config = configure("loss.lambda_spd=0", NO_SGR, "loss.reconstruction=psnr")
    result = train(config)
    control, distill = seen["control"], seen["distill"]
    assert len(control) == len(distill) == config.stages.distill
    for ours, theirs in zip(control, distill, strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.degraded, theirs.degraded)
        assert torch.equal(ours.clean, theirs.clean)
    # The sequence goes on where the base stage left it.
    crops = Crops(store=store, crop_px=32, seed=config.seed)
    for name, first in (("base", 0), ("control", 5 * 2), ("fusion", 5 * 2)):
        batch = first_batch(crops, first=first, batch_size=2, strides=None)
        assert torch.equal(seen[name][0].clean, batch.clean)

    ends = [weights(config.out / stage / "model.safetensors") for stage in STAGES]
    base, control_end, _, distill_end = ends
    assert equal(control_end, distill_end)
    assert not equal(control_end, base)
    assert result.gain_db == 0


def summary_of(config: TrainConfig) -> dict[str, object]:
    summary: dict[str, object] = json.loads((config.out / "summary.json").read_text())
    return summary


@pytest.fixture(scope="module")
def compared(stores: Path) -> dict[str, tuple[TrainConfig, RunResult]]:
    """The run of `compare_run`, made by the first test that asks for it."""
    return {}


@pytest.fixture
def compare_run(
    stores: Path, configure: Configure, compared: dict[str, tuple[TrainConfig, RunResult]]
) -> tuple[TrainConfig, RunResult]:
    """A finished run of all stages, none may change it."""
    if not compared:
        config = configure(out=stores / "run")
        compared["run"] = config, train(config)
    return compared["run"]


def test_what_ships_is_the_distilled_network_and_as_cheap_as_the_plain_one(
    compare_run: tuple[TrainConfig, RunResult],
) -> None:
    config, result = compare_run
    assert result.shipped == config.out / "model.safetensors"
    distilled = config.out / "distill" / "model.safetensors"
    assert result.shipped.read_bytes() == distilled.read_bytes()
    control = weights(config.out / "control" / "model.safetensors")
    assert not equal(control, weights(distilled))

    shipped, _ = load_network(config.out)
    plain = build_network("nafnet", **NETWORK)
    assert list(shipped.state_dict()) == list(plain.state_dict())
    counts = [sum(p.numel() for p in network.parameters()) for network in (shipped, plain)]
    assert counts[0] == counts[1]
    operations = []
    for network in (shipped, plain.eval()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, 32, 48))
        operations.append(counter.get_flop_counts())
    assert operations[0] == operations[1]
    assert sum(operations[0]["Global"].values()) > 0


def test_a_run_says_how_it_was_made(compare_run: tuple[TrainConfig, RunResult]) -> None:
    config, result = compare_run
    _, record = load_network(config.out)
    assert record["analyzer"] == "random-vgg"
    assert record["masks"] == {"segmenter": "rectangles", "seed": 0}
    assert record["config"]["loss"]["lambda_sgr"] == config.loss.lambda_sgr
    summary = summary_of(config)
    assert summary["analyzer"] == "random-vgg"
    assert summary["gain_over_control_db"] == result.gain_db
    assert summary["protocol"] == result.protocol
    assert result.protocol.startswith("mean PSNR of 3 whole validation images, RGB")
    assert summary["stages"] == {name: asdict(stage) for name, stage in result.stages.items()}
    assert load_config(config.out / "resolved.toml") == config


def test_scores_are_the_psnr_of_the_weights_that_are_kept(
    compare_run: tuple[TrainConfig, RunResult], validation: MaskStore
) -> None:
    config, result = compare_run
    for stage in ("base", "control", "distill"):
        network, _ = load_network(config.out / stage)
        scores = [psnr(restore(network, r.degraded, device=CPU), r.clean) for r in validation]
        assert result.stages[stage].psnr_db == pytest.approx(np.mean(scores), abs=1e-9)
    for stage in ("control", "distill"):
        assert result.stages[stage].start_psnr_db == result.stages["base"].psnr_db
    distilled, control = result.stages["distill"].psnr_db, result.stages["control"].psnr_db
    assert distilled is not None
    assert control is not None
    assert result.gain_db == distilled - control != 0
    assert all("teacher" in advice for advice in result.advice)  # nothing about a missing control


def test_the_teacher_starts_as_network_1_over_again(
    compare_run: tuple[TrainConfig, RunResult], validation: MaskStore
) -> None:
    config, result = compare_run
    base, _ = load_network(config.out / "base")
    twice = nn.Sequential(base, base)
    scores = [psnr(restore(twice, r.degraded, device=CPU), r.clean) for r in validation]
    assert result.stages["fusion"].start_psnr_db == pytest.approx(np.mean(scores), abs=1e-9)


def test_the_log_has_every_loss_and_every_score(
    compare_run: tuple[TrainConfig, RunResult],
) -> None:
    config, _ = compare_run
    text = (config.out / "distill" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines if "total" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "validation_psnr_db" in line] == [0, 2, 4]
    assert all({"reconstruction", "spd", "sgr"} <= line.keys() for line in lines if "total" in line)


@pytest.mark.parametrize(("mode", "last"), [("plain", "base"), ("control", "control")])
def test_a_mode_runs_its_stages_and_ships_the_last(
    configure: Configure, mode: str, last: str
) -> None:
    config = configure(f"mode={mode}")
    result = train(config)
    assert list(result.stages)[-1] == last
    assert result.shipped.read_bytes() == (config.out / last / "model.safetensors").read_bytes()
    assert result.gain_db is None
    assert summary_of(config)["analyzer"] is None
    assert {p.name for p in config.out.iterdir() if p.is_dir()} == set(result.stages)


def test_distill_mode_ends_as_compare_mode_does(
    configure: Configure, compare_run: tuple[TrainConfig, RunResult]
) -> None:
    """The control stage leaves no trace in the others."""
    config = configure("mode=distill")
    assert list(train(config).stages) == ["base", "fusion", "distill"]
    ours, theirs = files_of(config.out), files_of(compare_run[0].out)
    for name in ("base", "fusion", "distill"):
        file = f"{name}/model.safetensors"
        assert ours[file] == theirs[file]


def test_the_average_is_what_ships(compare_run: tuple[TrainConfig, RunResult]) -> None:
    config, _ = compare_run
    state = weights(config.out / "base" / "state.safetensors")
    model = weights(config.out / "base" / "model.safetensors")
    assert equal({k: state[f"average.{k}"] for k in model}, model)
    assert not equal({k: state[f"weights.{k}"] for k in model}, model)


def test_without_average_the_weights_ship(configure: Configure) -> None:
    config = configure("optimizer.ema_decay=0", "mode=plain", "stages.base=2")
    train(config)
    state = weights(config.out / "base" / "state.safetensors")
    model = weights(config.out / "base" / "model.safetensors")
    assert equal({k: state[f"weights.{k}"] for k in model}, model)


# ---- resume


class _BrokenOffError(Exception):
    """Stands for whatever ends a process."""


def breaking_at(stage: str, step: int) -> Callable[..., None]:
    def progress(name: str, done: int, total: int, losses: dict[str, float]) -> None:
        if (name, done) == (stage, step):
            raise _BrokenOffError

    return progress


def test_a_run_broken_off_anywhere_ends_with_the_same_bytes(
    tmp_path: Path, configure: Configure, compare_run: tuple[TrainConfig, RunResult]
) -> None:
    config = configure(out=tmp_path / "broken")
    # Before the first checkpoint, right at one, between two, and after the last step.
    for stage, step in (
        ("base", 0), ("base", 2), ("base", 3), ("base", 4), ("control", 1), ("control", 4),
        ("fusion", 2), ("fusion", 3), ("distill", 2), ("distill", 4),
    ):  # fmt: skip
        with pytest.raises(_BrokenOffError):
            train(config, progress=breaking_at(stage, step))
    result = train(config)
    unbroken, wanted = compare_run
    assert files_of(config.out) == files_of(unbroken.out)
    assert result.stages == wanted.stages


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, configure: Configure, compare_run: tuple[TrainConfig, RunResult]
) -> None:
    finished, wanted = compare_run
    out = shutil.copytree(finished.out, tmp_path / "copy")
    steps: list[tuple[str, int, int]] = []
    again = train(configure(out=out), progress=lambda *call: steps.append(call[:3]))
    assert steps == [("base", 5, 5), ("control", 4, 4), ("fusion", 4, 4), ("distill", 4, 4)]
    assert files_of(out) == files_of(finished.out)
    assert again.stages == wanted.stages


# SIGKILL while a draft is written (each file is synced, then its folder): no time to tidy up.
_KILLED_WHILE_WRITING = """
import os, signal
from samprior.cli.main import main

write_through, calls = os.fsync, []

def fsync(descriptor):
    calls.append(descriptor)
    if len(calls) == 61:
        os.kill(os.getpid(), signal.SIGKILL)
    write_through(descriptor)

os.fsync = fsync
main()
"""


def test_a_killed_process_is_resumed_to_the_same_bytes(
    tmp_path: Path, configure: Configure, compare_run: tuple[TrainConfig, RunResult]
) -> None:
    config = configure(out=tmp_path / "killed")
    places = {
        "out": config.out,
        "data.train": config.data.train,
        "data.validation": config.data.validation,
    }
    overrides = [*(f"{key}={place}" for key, place in places.items()), *SETTINGS]
    arguments = [word for override in overrides for word in ("--set", override)]
    process = subprocess.run(
        [sys.executable, "-c", _KILLED_WHILE_WRITING, "train", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as here
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (config.out / "base" / "model.safetensors").exists()
    assert not (config.out / "summary.json").exists()
    assert any(name.endswith(".part") for name in files_of(config.out))
    train(config)
    unbroken, _ = compare_run
    assert files_of(config.out) == files_of(unbroken.out)


# ---- what a run refuses


@pytest.fixture
def copied_run(tmp_path: Path, compare_run: tuple[TrainConfig, RunResult]) -> Path:
    return shutil.copytree(compare_run[0].out, tmp_path / "copied")


@pytest.mark.parametrize(
    ("override", "stage", "words"),
    [
        ("seed=4", "base", "config.seed: 3 there, 4 now"),
        ("optimizer.lr=0.5", "base", "config.optimizer.lr: 0.001 there, 0.5 now"),
        ("stages.base=6", "base", "config.stages.base: 5 there, 6 now"),
        ("stages.distill=5", "control", "config.stages.distill: 4 there, 5 now"),
        ("fusion.channels=8", "fusion", "config.fusion.channels: 32 there, 8 now"),
        ("loss.lambda_spd=0.7", "distill", "config.loss.lambda_spd: 0.5 there, 0.7 now"),
    ],
)
def test_other_settings_are_refused_by_the_first_stage_they_change(
    configure: Configure, copied_run: Path, override: str, stage: str, words: str
) -> None:
    before = files_of(copied_run), (copied_run / "resolved.toml").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        train(configure(override, out=copied_run))
    message = str(caught.value)
    assert words in message
    assert f"remove {copied_run / stage} " in message
    assert "\n" not in message
    assert (files_of(copied_run), (copied_run / "resolved.toml").read_bytes()) == before


def test_stages_that_a_setting_does_not_touch_are_kept(
    configure: Configure, copied_run: Path
) -> None:
    """After a change of lambda_spd only the distilled network is trained anew."""
    before = files_of(copied_run)
    shutil.rmtree(copied_run / "distill")
    steps: dict[str, list[int]] = {}
    train(
        configure("loss.lambda_spd=0.7", out=copied_run),
        progress=lambda stage, step, *_: steps.setdefault(stage, []).append(step),
    )
    assert steps == {"base": [5], "control": [4], "fusion": [4], "distill": [0, 1, 2, 3, 4]}
    after = files_of(copied_run)
    for name, content in before.items():
        if name.startswith(("base/", "control/", "fusion/")):
            assert after[name] == content
    assert after["distill/model.safetensors"] != before["distill/model.safetensors"]


def test_another_store_is_refused_and_a_moved_one_is_not(
    tmp_path: Path, configure: Configure, store: MaskStore, make_store: MakeStore
) -> None:
    config = configure("mode=plain")
    train(config)
    before = files_of(config.out)
    moved = shutil.copytree(store.root, tmp_path / "moved")
    train(configure("mode=plain", f"data.train={moved}"))
    assert files_of(config.out) == before

    # Made alike by its header, but of other pixels.
    alike = make_store(tmp_path / "alike", SHAPES, made_of=dict(store.header.made_of), seed=9)
    assert alike.fingerprint == store.fingerprint
    with pytest.raises(CheckpointError, match="store_sha256"):
        train(configure("mode=plain", f"data.train={alike.root}"))


def test_scores_of_different_validation_images_are_not_mixed(
    tmp_path: Path, configure: Configure, validation: MaskStore, make_store: MakeStore
) -> None:
    config = configure("mode=plain")
    first = train(config).stages["base"]
    other = make_store(tmp_path / "other", ((20, 20),), seed=70)
    moved = train(configure("mode=plain", f"data.validation={other.root}")).stages["base"]
    network, _ = load_network(config.out)
    (record,) = other
    wanted = psnr(restore(network, record.degraded, device=CPU), record.clean)
    assert moved.psnr_db == pytest.approx(wanted, abs=1e-9)
    assert moved.start_psnr_db is None  # those weights are gone
    assert train(config).stages["base"] == first


def test_the_users_own_settings_are_left_alone(configure: Configure) -> None:
    """`samprior train --config runs/x/config.toml` with out = "runs/x"."""
    config = configure("mode=plain", "stages.base=1")
    own = config.out / "config.toml"
    config.out.mkdir()
    own.write_text("# tried 3e-4, too slow\n")
    train(config)
    assert own.read_text() == "# tried 3e-4, too slow\n"


def vgg_weights(file: Path, seed: int) -> Path:
    """A state dict with torchvision's keys, all cut from the same random numbers."""
    generator = torch.Generator().manual_seed(seed)
    numbers = 0.02 * torch.randn(512 * 512 * 9, generator=generator)
    state = build_analyzer("random-vgg").state_dict()
    torch.save({k: numbers[: v.numel()].view(v.shape) for k, v in state.items()}, file)
    return file


def test_other_analyzer_weights_are_refused_and_moved_ones_are_not(
    tmp_path: Path, configure: Configure
) -> None:
    file = vgg_weights(tmp_path / "vgg.pth", 0)
    short = [f"stages.{stage}=1" for stage in ("base", "fusion", "distill")]
    settings = ["mode=distill", "loss.analyzer=vgg19", *short]
    config = configure(*settings, f"loss.analyzer_weights={file}")
    train(config)
    states = [file for file in files_of(config.out) if file.endswith("state.safetensors")]
    before = files_of(config.out)

    moved = file.rename(tmp_path / "moved.pth")
    train(configure(*settings, f"loss.analyzer_weights={moved}"))
    after = files_of(config.out)
    assert all(after[state] == before[state] for state in states)

    vgg_weights(file, 1)
    with pytest.raises(CheckpointError, match=r"config\.loss\.analyzer_weights: [0-9a-f]+"):
        train(config)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"vgg\.pth can't be read"):
        train(config)
    # Without SGR the file isn't looked at: what differs is the weight of SGR.
    with pytest.raises(CheckpointError, match=r"config\.loss\.lambda_sgr"):
        train(configure(*settings, f"loss.analyzer_weights={file}", NO_SGR))


def test_the_analyzer_is_told_with_its_layers_and_neither_may_change(configure: Configure) -> None:
    short = [f"stages.{stage}=1" for stage in ("base", "fusion", "distill")]
    settings = ["mode=distill", "loss.analyzer=random-vgg16", *short]
    config = configure(*settings, 'loss.analyzer_layers=["relu2_2", "relu3_3"]')
    train(config)
    assert summary_of(config)["analyzer"] == "random-vgg16 at relu2_2, relu3_3"
    for other, key in (
        (['loss.analyzer_layers=["relu2_2"]'], "analyzer_layers"),
        (['loss.analyzer_layers=["relu2_2", "relu3_3"]', "loss.analyzer=random-vgg"], "analyzer"),
    ):
        with pytest.raises(CheckpointError, match=rf"config\.loss\.{key}: "):
            train(configure(*settings, *other))


def test_unpaired_data_is_refused(
    tmp_path: Path, configure: Configure, make_store: MakeStore
) -> None:
    alone = make_store(tmp_path / "alone", ((40, 40),), paired=False)
    for key in ("train", "validation"):
        with pytest.raises(ConfigError, match="without degraded sides"):
            train(configure(f"data.{key}={alone.root}"))


def test_a_crop_that_does_not_fit_is_refused_before_anything_is_computed(
    configure: Configure,
) -> None:
    config = configure("data.crop_px=40", "mode=plain")
    with pytest.raises(ConfigError, match=r"data\.crop_px is 40, but image images/001 is 33x48"):
        train(config)
    assert not config.out.exists()


def test_half_precision_without_a_gpu_is_refused(configure: Configure) -> None:
    config = configure("precision=fp16")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(config)
    assert not config.out.exists()


def test_a_loss_that_is_no_number_names_the_images(configure: Configure) -> None:
    config = configure("mode=plain", "optimizer.lr=1e30", "optimizer.clip_norm=0")
    with pytest.raises(TrainingError, match=r"base, step \d: the loss is (nan|inf) .* on images/"):
        train(config)
    assert not (config.out / "model.safetensors").exists()


# ---- ways to start and to compute


def test_training_starts_from_given_weights(tmp_path: Path, configure: Configure) -> None:
    torch.manual_seed(8)
    network = build_network("nafnet", **NETWORK)
    ours, official = tmp_path / "given.safetensors", tmp_path / "given.pth"
    save_checkpoint(ours, network.state_dict(), {})
    torch.save({"params": network.state_dict()}, official)
    for file in (ours, official):
        out = tmp_path / file.suffix
        config = configure("mode=plain", "stages.base=0", f"network.init={file}", out=out)
        result = train(config)
        assert equal(weights(result.shipped), dict(network.state_dict()))
        assert result.stages["base"].psnr_db is not None
    for missing in (tmp_path / "none.pth", tmp_path / "none.safetensors"):
        with pytest.raises(CheckpointError, match=f"{missing} does not exist"):
            train(configure(f"network.init={missing}", out=tmp_path / "never"))
    assert not (tmp_path / "never").exists()
    wrong = configure("mode=plain", f"network.init={ours}", "network.settings.width=8")
    with pytest.raises(CheckpointError, match=r"given\.safetensors does not fit the network"):
        train(wrong)


def test_without_validation_data_nothing_is_scored(tmp_path: Path, store: MaskStore) -> None:
    places = [f"out={tmp_path / 'run'}", f"data.train={store.root}"]
    result = train(load_config(None, [*places, *SETTINGS, NO_SGR]))
    assert all(stage.psnr_db is None for stage in result.stages.values())
    assert result.gain_db is None
    run = tmp_path / "run"
    (advice,) = result.advice
    assert f"score {run / 'control'} and {run / 'distill'} with" in advice


@pytest.mark.parametrize("mask_repr", ["map", "idmap", "topk"])
def test_bfloat16_runs_on_the_cpu(configure: Configure, mask_repr: str) -> None:
    config = configure("precision=bf16", "mode=distill", f"fusion.mask_repr={mask_repr}")
    result = train(config)
    for stage in result.stages:
        model = weights(config.out / stage / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in model.values())
        assert all(tensor.dtype == torch.float32 for tensor in model.values())


def test_the_average_moves_by_its_decay(configure: Configure, store: MaskStore) -> None:
    config = configure("optimizer.ema_decay=0.05", NO_SGR)
    network, teacher = build_networks(config)
    run = StageRun(
        distill_stage(config, network, teacher, build_relation(config.loss)), config, CPU
    )
    before = {k: v.clone() for k, v in run.average.items()}
    run.advance(a_batch(store, ()))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(run.average[name], 0.05 * before[name] + 0.95 * value)


# ---- real pictures


@pytest.fixture
def rain(tmp_path: Path, shared_data: Path) -> dict[str, MaskStore]:
    """Real rain pairs with superpixel masks: one part of each to train on, another to score."""
    segment = build_segmenter("superpixel", levels=(5, 15))
    stores = {}
    parts = {"train": np.s_[:, :240], "validation": np.s_[:160, 240:400]}
    for name, part in parts.items():
        records = []
        for number in (1, 2, 3, 4):
            degraded, clean = (
                read_rgb(shared_data / "rain" / side / f"{number:03d}.png")[part]
                for side in ("input", "target")
            )
            records.append(Record(f"{number:03d}", degraded, clean, segment(clean)))
        header = Header(
            num_images=len(records), num_shards=1, images_per_shard=8, paired=True, made_of={}
        )
        write_header(tmp_path / name, header)
        write_shard(tmp_path / name, 0, records, paired=True)
        stores[name] = MaskStore.open(tmp_path / name)
    return stores


def test_training_takes_rain_off_real_pictures(tmp_path: Path, rain: dict[str, MaskStore]) -> None:
    """All stages on real pairs; the base network beats both its start and doing nothing."""
    config = load_config(
        None,
        [
            f"out={tmp_path / 'run'}",
            f"data.train={rain['train'].root}",
            f"data.validation={rain['validation'].root}",
            *SETTINGS,
            "network.settings.width=8",
            "data.batch_size=4",
            "data.crop_px=48",
            "log_every=50",
            "validate_every=1000",
            "optimizer.lr=5e-3",
            "optimizer.clip_norm=1.0",
            "stages.base=100",
            "stages.fusion=10",
            "stages.distill=10",
            "save_every=1000",
        ],
    )
    result = train(config)
    base = result.stages["base"]
    untouched = np.mean([psnr(record.degraded, record.clean) for record in rain["validation"]])
    assert base.psnr_db is not None
    assert base.start_psnr_db is not None
    assert base.psnr_db > base.start_psnr_db + 3
    assert base.psnr_db > untouched + 3


def test_regions_of_real_masks_cover_their_crops(rain: dict[str, MaskStore]) -> None:
    crops = Crops(store=rain["train"], crop_px=64, seed=0)
    batch = first_batch(crops, batch_size=4, strides=(4, 8))
    assert isinstance(batch.regions, RegionBatch)
    assert len(batch.regions.mask_areas) > 4
    masks: MaskSet = Crops(store=rain["train"], crop_px=64, seed=0).read(0)[2]
    assert masks.coverage > 0.9
