"""The study of distillation: its data, its runs, its table, and that it goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError, UsageError
from samprior.storage.verify import verify_store
from samprior.training.checkpoint import load_checkpoint

MakeStore = Callable[..., MaskStore]
TINY = ("width=4", "enc_blocks=[1]", "dec_blocks=[1]", "middle_blocks=1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten pairs of shapes and noise, of two sizes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "real_noise"
    folder.mkdir(parents=True)
    for number in range(10):
        clean = np.zeros((40, 56, 3), np.uint8)
        clean[8:30, 5 + number : 40] = rng.integers(80, 255, 3)
        noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        for side, picture in (("real", noisy), ("mean", clean)):
            Image.fromarray(picture).save(folder / f"{number}_{side}.JPG", quality=95)
    return folder.parent


def test_shuffled_stores_hold_the_same_pictures_and_other_masks(
    benchmarks: dict[str, ModuleType], data: Path, tmp_path: Path
) -> None:
    make, shuffle = (benchmarks["study_data"].make_splits, benchmarks["study_data"].add_shuffled)
    splits = make(tmp_path / "stores", data=data, task="real-noise", masks="superpixel")
    keys: set[str] = set()
    for name, count in (("train", 8), ("test", 2)):
        shuffle(splits[name])
        right = MaskStore.open(splits[name])
        shuffled = MaskStore.open(splits[name], masks="shuffled")
        assert right.keys == shuffled.keys
        assert len(right) == count
        keys |= set(right.keys)
        sets = [record.masks for record in right]
        for place, record in enumerate(shuffled):
            assert np.array_equal(record.degraded, right[place].degraded)
            assert record.masks.equals(sets[(place + 1) % count])
    assert len(keys) == 10
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "stores").rglob("*.json")}
    make(tmp_path / "stores", data=data, task="real-noise", masks="superpixel")
    shuffle(splits["train"])
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with pytest.raises(UsageError, match="no human segmentation"):
        make(tmp_path / "other", data=data, task="real-noise", masks="human")


def test_the_table_compares_with_the_control_of_the_same_seed(
    benchmarks: dict[str, ModuleType],
) -> None:
    scores = {
        "control": [[20.0, 30.0], [22.0, 32.0]],
        "spd": [[20.5, 30.5], [22.5, 32.7]],
    }
    control, spd = benchmarks["study_table"].rows(scores)
    assert (control["PSNR dB"], control["to control dB"]) == ("26.000", "")
    assert (spd["PSNR dB"], spd["to control dB"]) == ("26.550", "+0.550")
    assert spd["seeds"] == "+0.500 +0.600"
    # Two seeds: 0.55 +- 12.706 * 0.0707 / sqrt(2)
    assert spd["95 % over seeds"] == "-0.085 to +1.185"


def test_what_masks_are_worth_is_told_apart(benchmarks: dict[str, ModuleType]) -> None:
    scores = {
        "control": [[20.0, 30.0], [22.0, 32.0]],
        "spd": [[20.5, 30.5], [22.5, 32.7]],
        "spd-none": [[20.4, 30.4], [22.5, 32.7]],
        "spd-sgr-shuffled": [[20.4, 30.4], [22.5, 32.7]],
    }
    (row,) = benchmarks["study_table"].mask_rows(scores)
    assert (row["arm"], row["less"], row["dB"]) == ("spd", "spd-none", "+0.050")
    assert row["seeds"] == "+0.100 +0.000"


def test_the_command_of_a_study_names_no_folder_of_the_machine(
    benchmarks: dict[str, ModuleType],
) -> None:
    typed = ["x.py", "--data", "/my data/all", "--out=/tmp/x", "--set", "a=[1, 2]", "--seeds", "3"]
    told = benchmarks["study_table"].command(typed)
    assert told == (
        "python benchmarks/distillation.py --data DIR --out STUDY --set 'a=[1, 2]' --seeds 3"
    )


def test_a_study_runs_and_goes_on_where_it_was(
    benchmarks: dict[str, ModuleType], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [f"stages.{stage}=2" for stage in ("base", "fusion", "distill")]
    network = [f"network.settings.{setting}" for setting in TINY]
    settings = [*steps, *network, "data.crop_px=16", "data.batch_size=2"]
    command = [
        *("--data", str(data), "--task", "real-noise", "--masks", "superpixel"),
        *("--out", str(tmp_path / "study"), "--seeds", "2", "--name", "study", "--only", "spd"),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    done = CliRunner().invoke(benchmarks["distillation"].main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    file = benchmarks["measure"].RESULTS / "study.json"
    first = json.loads(file.read_text())
    arms = ["degraded", "base", "control", "spd", "refined"]
    assert [row["arm"] for row in first["table"]] == arms
    assert list(first["scores"]) == arms
    assert first["base_steps"] == 2
    assert all(len(values) == 2 and len(values[0]) == 2 for values in first["scores"].values())
    # Nothing is trained or scored twice, and other settings are refused.
    state = tmp_path / "study" / "seed-1" / "spd" / "distill" / "state.safetensors"
    before = state.stat().st_mtime_ns
    monkeypatch.setattr(
        benchmarks["distillation"], "score", lambda *asked: pytest.fail("scored again")
    )
    CliRunner().invoke(benchmarks["distillation"].main, command, catch_exceptions=False)
    assert json.loads(file.read_text())["scores"] == first["scores"]
    assert state.stat().st_mtime_ns == before
    other = [*command, "--set", "optimizer.lr=0.5"]
    with pytest.raises(CheckpointError, match="other settings"):
        CliRunner().invoke(benchmarks["distillation"].main, other, catch_exceptions=False)


def test_a_run_brings_the_one_that_trains_its_teacher(benchmarks: dict[str, ModuleType]) -> None:
    choose = benchmarks["distillation"].chosen_runs
    names = [run.name for run in choose(["spd-sgr"], has_large=False)]
    assert names == ["control", "spd", "spd-sgr"]
    names = [run.name for run in choose(["large-sgr"], has_large=True)]
    assert names == ["control", "large", "large-sgr"]
    assert not any(run.large for run in choose([], has_large=False))
    with pytest.raises(UsageError, match="needs --teacher"):
        choose(["large"], has_large=False)


def test_masks_are_swapped_among_pictures_of_one_size(
    benchmarks: dict[str, ModuleType], make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(tmp_path / "store", ((40, 56), (33, 48), (40, 56), (33, 48)))
    benchmarks["study_data"].add_shuffled(tmp_path / "store")
    assert verify_store(tmp_path / "store").ok
    shuffled = MaskStore.open(tmp_path / "store", masks="shuffled")
    for place, other in enumerate((2, 3, 0, 1)):
        assert shuffled[place].masks.equals(store[other].masks)
    make_store(tmp_path / "odd", ((40, 56), (33, 48), (40, 56)))
    with pytest.raises(UsageError, match="is the only picture of its size"):
        benchmarks["study_data"].add_shuffled(tmp_path / "odd")


def test_mistakes_are_told_before_anything_is_trained(
    benchmarks: dict[str, ModuleType], data: Path, tmp_path: Path
) -> None:
    def told(*words: str) -> str:
        command = ["--out", str(tmp_path / "study"), *words]
        ended = CliRunner().invoke(benchmarks["distillation"].main, command)
        assert ended.exit_code != 0
        assert not (tmp_path / "study").exists()
        return f"{ended.output} {ended.exception}"

    ours = ("--data", str(data), "--task", "real-noise")
    assert "give --data and --task, or --train and --test" in told("--data", str(data))
    assert "--teacher-steps goes with --teacher" in told(*ours, "--teacher-steps", "3")
    assert "width" in told(*ours, "--teacher", "settings.widht=8")
    refused = told(*ours, "--teacher", "settings.width=8", "--set", "loss.spd_distance=bounded")
    assert "would change what spd-unbounded is" in refused


def test_joint_and_a_larger_teacher_are_scored(
    benchmarks: dict[str, ModuleType], data: Path, tmp_path: Path
) -> None:
    steps = [f"stages.{stage}=1" for stage in ("base", "fusion", "distill")]
    network = [f"network.settings.{setting}" for setting in TINY]
    settings = [*steps, *network, "data.crop_px=16", "data.batch_size=2"]
    command = [
        *("--data", str(data), "--task", "real-noise", "--masks", "superpixel"),
        *("--out", str(tmp_path / "study"), "--seeds", "1", "--name", "study"),
        *("--only", "joint", "--only", "large", "--teacher", "settings.width=8"),
        *("--teacher-steps", "2"),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    done = CliRunner().invoke(benchmarks["distillation"].main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((benchmarks["measure"].RESULTS / "study.json").read_text())
    assert found["scores"].keys() == {
        "degraded",
        "base",
        "control",
        "joint",
        "large",
        "large-teacher",
    }
    assert found["larger_teacher"] == ["network2.settings.width=8", "stages.fusion=2"]
    teacher = load_checkpoint(tmp_path / "study/seed-0/large/fusion/model.safetensors")[0]
    assert teacher["network2.intro.weight"].shape[0] == 8
