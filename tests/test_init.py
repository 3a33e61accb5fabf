"""`samprior init` writes a configuration that is valid as it is and explains every key."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samprior.pipeline.detect import detect_dataset
from samprior.storage.errors import LayoutError, UsageError
from samprior.storage.images import write_png
from samprior.training.config import TrainConfig, load_config
from samprior.training.sections import Section
from samprior.training.setting_words import is_section
from samprior.training.starting import commented_config

Samprior = Callable[..., tuple[int, str, str]]
MakeStore = Callable[..., object]


def make_pairs(root: Path, degraded: str, clean: str, *, side: int = 64) -> Path:
    for folder in (degraded, clean):
        for name in ("000001", "000002"):
            write_png(root / folder / f"{name}.png", np.zeros((side, side + 8, 3), np.uint8))
    return root


def test_every_key_is_there() -> None:
    text = commented_config({"out": "runs/x", "data.train": "stores/x"}, about=["a line"])
    assert max(map(len, text.splitlines())) <= 100
    models = [TrainConfig, *(type(part) for _, part in needed_only() if isinstance(part, Section))]
    for model in models:
        for name, field in model.model_fields.items():
            if not is_section(field):
                assert re.search(rf"^(# )?{name} =", text, re.MULTILINE), name


def needed_only() -> TrainConfig:
    return load_config(None, ["out=runs/x", "data.train=stores/x"])


def test_all_defaults_taken_in_give_the_same_run(tmp_path: Path) -> None:
    """What stands behind each # is really the default."""
    needed = {"out": "runs/x", "data.train": "stores/x"}
    text = commented_config(needed)
    file = tmp_path / "train.toml"
    file.write_text(text)
    config = load_config(file)
    file.write_text(re.sub(r"^# ([a-z]\w+ = .+)$", r"\1", text, flags=re.MULTILINE))
    assert load_config(file) == config == needed_only()


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        # Two teachings of one input, and a second set of pairs: to take either would be a guess.
        (["input", "gt", "target"], "sensenoise or rain"),
        (["noisy", "clean", "degraded"], "sensenoise or folder"),
        (["noisy", "clean", "gt"], "--variant"),
        (["test/noisy", "test/clean", "val/noisy", "val/clean"], "--split"),
        (["data/train/noisy", "data/train/clean"], "data --split train"),
        (
            ["degraded", "clean", "clean/deeper"],
            "2 clean files without degraded side: clean/deeper",
        ),
    ],
)
def test_what_is_not_clear_is_asked_and_not_guessed(
    tmp_path: Path, folders: list[str], wanted: str
) -> None:
    for folder in folders:
        make_pairs(tmp_path / "photos", folder, folder)
    with pytest.raises((LayoutError, UsageError), match=wanted):
        detect_dataset(tmp_path / "photos")


def test_a_data_set_is_found_out_and_the_next_commands_are_told(
    samprior: Samprior, tmp_path: Path
) -> None:
    root = make_pairs(tmp_path / "photos", "train/GOPR1/blur", "train/GOPR1/sharp")
    out = tmp_path / "gopro.toml"
    code, said, err = samprior("init", root, "--out", out)
    assert code == 0, err
    assert f"samprior precompute --dataset gopro --root {root} --split train" in said
    assert f"samprior train --config {out}" in said
    config = load_config(out)
    assert config.network.preset == "gopro_w32"
    assert config.data.train == "stores/gopro"
    assert config.data.crop_px == 64
    before = out.read_bytes()
    code, _, err = samprior("init", root, "--out", out)
    assert code == 2
    assert "--out" in err
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ['two\nout = "x"', "del\x7f", "a'b\"c\\d", "雨 <b>\t"])
def test_folders_may_have_odd_names(samprior: Samprior, tmp_path: Path, name: str) -> None:
    root, out = make_pairs(tmp_path / name, "degraded", "clean"), tmp_path / "train.toml"
    code, _, err = samprior("init", root, "--out", out)
    assert code == 0, err
    assert load_config(out).data.train == f"stores/{name}"


def test_what_no_config_can_say_is_refused(samprior: Samprior, tmp_path: Path) -> None:
    """A name that is no UTF-8, and pictures in which no crop fits."""
    latin = make_pairs(tmp_path / "latin\udce9", "degraded", "clean")
    tiny = make_pairs(tmp_path / "tiny", "degraded", "clean", side=6)
    for root, reason in ((latin, "UTF-8"), (tiny, "6 px")):
        code, _, err = samprior("init", root, "--out", tmp_path / "train.toml")
        assert code == 2
        assert reason in err
        assert err.count("\n") == 1
    assert not (tmp_path / "train.toml").exists()


def test_a_store_that_one_stands_in_has_a_name(
    samprior: Samprior, make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "photos", [(48, 80)])
    monkeypatch.chdir(tmp_path / "photos")
    code, _, err = samprior("init", ".", "--out", tmp_path / "train.toml")
    assert code == 0, err
    assert load_config(tmp_path / "train.toml").out == Path("runs/photos")


def test_layouts_that_several_have_are_told_by_the_name_or_asked_for(tmp_path: Path) -> None:
    make_pairs(tmp_path / "Rain13K", "train/input", "train/target")
    assert detect_dataset(tmp_path / "Rain13K").name == "rain"
    make_pairs(tmp_path / "training", "input", "target")
    with pytest.raises(UsageError, match="--dataset"):
        detect_dataset(tmp_path / "training")
    make_pairs(tmp_path / "mine", "degraded", "clean")
    assert detect_dataset(tmp_path / "mine").name == "folder"
    (tmp_path / "empty" / "papers").mkdir(parents=True)
    with pytest.raises(LayoutError, match="papers"):
        detect_dataset(tmp_path / "empty")
    (tmp_path / "mine" / "clean" / "000001.png").unlink()
    with pytest.raises(LayoutError, match="without clean side"):
        detect_dataset(tmp_path / "mine")


def test_patterns_name_pairs_of_any_kind(samprior: Samprior, tmp_path: Path) -> None:
    root = make_pairs(tmp_path / "my data", "a", "b")
    patterns = ("--degraded-pattern", "a/{key}.png", "--clean-pattern", "b/{key}.png")
    code, said, err = samprior("init", root, *patterns, "--out", tmp_path / "t.toml")
    assert code == 0, err
    assert "--degraded-pattern 'a/{key}.png'" in said
    assert load_config(tmp_path / "t.toml").data.train == "stores/my data"


def test_a_store_is_described_by_itself(
    samprior: Samprior, make_store: MakeStore, tmp_path: Path
) -> None:
    root, out = tmp_path / "store", tmp_path / "t.toml"
    make_store(root, [(48, 80)] * 2, made_of={"dataset": {"name": "rain"}, "segmenter": "none"})
    code, said, err = samprior("init", root, "--out", out, "--validation", "stores/test")
    assert code == 0, err
    assert "precompute" not in said
    config = load_config(out)
    assert (config.data.train, config.data.validation) == (str(root), "stores/test")
    assert (config.data.crop_px, config.loss.reconstruction) == (48, "charbonnier")
    code, _, err = samprior("init", root, "--dataset", "rain", "--out", tmp_path / "u.toml")
    assert code == 2
    assert "is a store" in err
    make_store(tmp_path / "single", [(48, 80)], paired=False)
    code, _, err = samprior("init", tmp_path / "single", "--out", tmp_path / "u.toml")
    assert code == 2
    assert not (tmp_path / "u.toml").exists()
