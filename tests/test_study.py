"""The study of distillation: its data, its runs, its table, and that it goes on where it was."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from samprior.storage import MaskStore
from samprior.storage.errors import UsageError

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = ("measure", "rounds", "distillation_cost", "study_data", "study_table", "distillation")
TINY = ("width=4", "enc_blocks=[1]", "dec_blocks=[1]", "middle_blocks=1")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(FOLDER)
    modules = {name: importlib.import_module(name) for name in NAMES}
    whole = modules["measure"].photographs()
    monkeypatch.setattr(modules["measure"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        modules["measure"], "photographs", lambda: [photo[80:160, 100:196] for photo in whole]
    )
    yield modules
    for name in NAMES:
        del sys.modules[name]


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
    study: dict[str, ModuleType], data: Path, tmp_path: Path
) -> None:
    make = study["study_data"].make_splits
    splits = make(tmp_path / "stores", data=data, task="real-noise", masks="superpixel")
    keys: set[str] = set()
    for name, count in (("train", 8), ("test", 2)):
        right, shuffled = (
            MaskStore.open(root) for root in (splits[name].right, splits[name].shuffled)
        )
        assert right.keys == shuffled.keys
        assert len(right) == count
        keys |= set(right.keys)
        sets = [record.masks for record in right]
        for place, record in enumerate(shuffled):
            assert np.array_equal(record.degraded, right[place].degraded)
            assert record.masks.equals(sets[(place + 1) % count])
    assert len(keys) == 10
    before = splits["train"].right.stat().st_mtime_ns
    make(tmp_path / "stores", data=data, task="real-noise", masks="superpixel")
    assert splits["train"].right.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="no human segmentation"):
        make(tmp_path / "other", data=data, task="real-noise", masks="human")


def test_the_table_compares_with_the_control_of_the_same_seed(
    study: dict[str, ModuleType],
) -> None:
    scores = {
        "control": [[20.0, 30.0], [22.0, 32.0]],
        "spd": [[20.5, 30.5], [22.5, 32.7]],
    }
    control, spd = study["study_table"].rows(scores)
    assert (control["PSNR dB"], control["to control dB"]) == ("26.000", "")
    assert (spd["PSNR dB"], spd["to control dB"]) == ("26.550", "+0.550")
    assert spd["seeds"] == "+0.500 +0.600"
    # Two seeds: 0.55 +- 12.706 * 0.0707 / sqrt(2)
    assert spd["95 % over seeds"] == "-0.085 to +1.185"


def test_a_study_runs_and_goes_on_where_it_was(
    study: dict[str, ModuleType], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [f"stages.{stage}=2" for stage in ("base", "fusion", "distill")]
    network = [f"network.settings.{setting}" for setting in TINY]
    settings = [*steps, *network, "data.crop_px=16", "data.batch_size=2"]
    command = [
        *("--data", str(data), "--task", "real-noise", "--masks", "superpixel"),
        *("--out", str(tmp_path / "study"), "--seeds", "2", "--name", "study", "--only", "spd"),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    done = CliRunner().invoke(study["distillation"].main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    file = study["measure"].RESULTS / "study.json"
    first = json.loads(file.read_text())
    assert [row["arm"] for row in first["table"]] == ["base", "control", "spd", "refined"]
    assert first["scores"].keys() == {"base", "control", "spd", "refined"}
    assert all(len(values) == 2 and len(values[0]) == 2 for values in first["scores"].values())
    # Nothing is trained twice.
    monkeypatch.setattr(study["distillation"], "train", lambda config: pytest.fail("trained"))
    CliRunner().invoke(study["distillation"].main, command, catch_exceptions=False)
    assert json.loads(file.read_text())["scores"] == first["scores"]
