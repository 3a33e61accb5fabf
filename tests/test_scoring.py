"""Several checkpoints, several splits: tables, paired differences, files, and the command."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from torch import nn

from samprior.storage.errors import UsageError
from samprior.storage.images import read_rgb, write_png
from samprior.training.checkpoint import load_network, save_checkpoint
from samprior.training.evaluate import PROTOCOL_SPACES, Evaluation, ImageScore, space_of
from samprior.training.metrics import psnr
from samprior.training.networks import build_network
from samprior.training.networks.tlc import with_local_pooling
from samprior.training.paired import paired_difference
from samprior.training.restore import restore
from samprior.training.scoring import name_checkpoints
from samprior.training.summary import ALL_IMAGES, ALL_SPLITS, Summary, write_summary

Samprior = Callable[..., tuple[int, str, str]]
RECORD: dict[str, Any] = {
    "network": {"name": "nafnet", "preset": "tiny", "settings": {}, "init": None},
    "stage": "base",
    "masks": {"segmenter": "rectangles"},
    "analyzer": None,
}


@pytest.fixture
def rain(tmp_path: Path) -> Path:
    """Two test sets, of three and two pairs."""
    rng = np.random.default_rng(0)
    for split, num in (("Rain100L", 3), ("Rain100H", 2)):
        for number in range(num):
            clean = rng.integers(0, 256, (6, 7, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            rainy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
            for side, picture in (("input", rainy), ("target", clean)):
                write_png(tmp_path / "rain" / "test" / split / side / f"{number}.png", picture)
    return tmp_path / "rain"


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two networks that change pictures, each in its own way."""
    folders = []
    for seed, name in enumerate(("control", "distill")):
        torch.manual_seed(seed)
        network = build_network("nafnet", preset="tiny")
        for key, parameter in network.named_parameters():
            if key.endswith(("beta", "gamma")):
                nn.init.normal_(parameter, std=0.3)
        nn.init.normal_(network.get_parameter("ending.weight"), std=0.001)
        folders.append(tmp_path / "runs" / name)
        save_checkpoint(folders[-1] / "model.safetensors", network.state_dict(), RECORD)
    return folders


def scores(values: list[float]) -> Evaluation:
    images = [ImageScore(str(place), 20.0, value, 0.5, 0.6) for place, value in enumerate(values)]
    return Evaluation(tuple(images), "rgb", 0, None, 32)


def test_each_split_has_the_same_weight_and_images_are_paired() -> None:
    summary = Summary(
        {
            ("a", "x"): scores([30.0, 32.0, 34.0]),
            ("a", "y"): scores([20.0]),
            ("b", "x"): scores([31.0, 32.5, 35.5]),
            ("b", "y"): scores([19.0]),
        }
    )
    means = {(network, split): score for network, split, score in summary.means()}
    assert means["a", ALL_SPLITS].psnr_after_db == 26
    assert means["b", ALL_SPLITS].psnr_after_db == 26
    differences = {
        split: found
        for network, split, value, found in summary.differences()
        if value == "psnr_after_db"
    }
    assert differences["x"] == paired_difference([31.0, 32.5, 35.5], [30.0, 32.0, 34.0])
    assert differences[ALL_IMAGES].mean == pytest.approx((1 + 0.5 + 1.5 - 1) / 4)
    assert differences[ALL_IMAGES].num_images == 4
    text = "\n".join(summary.lines())
    assert "b - a, x: PSNR +1.000 dB" in text
    assert "better on 3 of 3" in text


def test_networks_scored_on_other_images_are_not_compared() -> None:
    with pytest.raises(UsageError, match="b was not scored on the same images of x as a"):
        Summary({("a", "x"): scores([1.0, 2.0]), ("b", "x"): scores([1.0])})
    with pytest.raises(UsageError, match="score all networks at once"):
        Summary({("a", "x"): scores([1.0]), ("a", "y"): scores([1.0]), ("b", "x"): scores([1.0])})


def test_infinite_scores_and_odd_names_break_no_file(tmp_path: Path) -> None:
    odd = "<b>\udce9"
    summary = Summary({("a", ""): scores([np.inf, 2.0]), (odd, ""): scores([3.0, np.inf])})
    files = write_summary(summary, tmp_path, dataset="<i>", reports={})
    assert [file.name for file in files] == [
        "summary.csv",
        "summary.json",
        "differences.csv",
        "summary.html",
    ]
    record = json.loads((tmp_path / "summary.json").read_text())
    first = record["differences"][0]
    assert first["mean"] is first["low"] is None
    page = (tmp_path / "summary.html").read_text()
    assert "&lt;b&gt;\\udce9" in page
    assert "&lt;i&gt;" in page
    assert "n/a" in page


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    for path in ("runs/a/control", "runs/b/control"):
        (tmp_path / path).mkdir(parents=True)
    a, b = tmp_path / "runs/a", tmp_path / "runs/b"
    assert name_checkpoints([a, a / "control"]) == ["a", "control"]
    assert name_checkpoints([a / "control", b / "control"]) == ["a/control", "b/control"]
    assert name_checkpoints([a / "model.safetensors", tmp_path / "x.y.pth"]) == ["a", "x.y"]
    assert name_checkpoints([a]) == ["a"]
    with pytest.raises(UsageError, match="runs/a is given twice"):
        name_checkpoints([a, a / "model.safetensors"])


def test_protocols_have_names() -> None:
    assert {name: space_of(None, dataset=name) for name in ("gopro", "sensenoise", "rain")} == {
        "gopro": "rgb",
        "sensenoise": "rgb",
        "rain": "y",
    }
    assert space_of(None, dataset="folder") == "rgb"
    assert space_of("rain-matlab", dataset="folder") == "y8"
    with pytest.raises(UsageError, match="'rain'"):
        space_of("rian", dataset="folder")
    assert set(PROTOCOL_SPACES) == {"gopro", "sensenoise", "rain", "rain-matlab"}


def test_matlab_rounds_luma_to_whole_numbers(rng: np.random.Generator) -> None:
    ours, truth = rng.integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    a, b = (np.round(rgb2ycbcr(picture)[..., 0]) for picture in (ours, truth))
    wanted = 10 * np.log10(255**2 / ((a - b) ** 2).mean())
    assert psnr(ours, truth, space="y8") == pytest.approx(wanted, abs=1e-9)
    assert psnr(ours, truth, space="y8") != psnr(ours, truth, space="y")


def test_the_command_compares_checkpoints_on_splits(
    samprior: Samprior, rain: Path, runs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    splits = ("--split", "test/Rain100L", "--split", "test/Rain100H")
    arguments = ("--dataset", "rain", "--root", rain, *splits, "--consistency", "superpixel")
    tlc = ("--tlc-px", "16", "--set", "levels=[5, 15]", "--device", "cpu")
    code, text, err = samprior("evaluate", *runs, *arguments, *tlc, "--out", out)
    assert code == 0, err
    assert "distill - control, test/Rain100L: PSNR" in text
    assert "TLC with a window of 16 px" in text
    assert "mask IoU: masks by superpixel regions" in text
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["network"], row["split"]) for row in rows] == [
        (run, split)
        for run in ("control", "distill")
        for split in ("test/Rain100L", "test/Rain100H", ALL_SPLITS)
    ]
    record = json.loads((out / "distill" / "test/Rain100L" / "scores.json").read_text())
    assert len(record["images"]) == 3
    assert rows[3]["psnr_after_db"] == str(record["mean"]["psnr_after_db"])
    assert 0 < record["mean"]["mask_iou_after"] < 1
    network = with_local_pooling(load_network(runs[1])[0], 16)
    folder = rain / "test" / "Rain100L"
    for image in record["images"]:
        file = f"{image['key'].rpartition('/')[2]}.png"
        restored = restore(network, read_rgb(folder / "input" / file), device=torch.device("cpu"))
        wanted = psnr(restored, read_rgb(folder / "target" / file), space="y")
        assert image["psnr_after_db"] == wanted
    page = (out / "summary.html").read_text()
    assert 'href="distill/test/Rain100H/report.html"' in page
    assert (out / "distill/test/Rain100H/report.html").exists()
    report = (out / "control/test/Rain100L/report.html").read_text()
    assert "mask IoU" in report
    assert "Further scores" in report
    differences = list(csv.DictReader(io.StringIO((out / "differences.csv").read_text())))
    values = {row["value"] for row in differences}
    assert {"psnr_after_db", "ssim_after", "mask_iou_after"} < values


def test_mistakes_are_one_line(samprior: Samprior, rain: Path, runs: list[Path]) -> None:
    base = ("--dataset", "rain", "--root", rain, "--split", "test/Rain100L")
    for arguments, words in (
        ((*runs, runs[0], *base), "is given twice"),
        ((*runs, *base, "--sam-model", "vit_b"), "add --consistency sam"),
        ((runs[0], *base, "--split", "test/Rain100L"), "split test/Rain100L is given twice"),
        ((runs[0], *base, "--set", "x=1"), "--consistency"),
        ((runs[0], *base, "--consistency", "superpixels"), "superpixel"),
        ((runs[0], *base, "--protocol", "rian"), "rain"),
        ((runs[0], *base, "--tlc-px", "3"), "less than a pixel"),
    ):
        code, _, err = samprior("evaluate", *arguments)
        assert code == 2
        assert words in err.splitlines()[-1]


def test_restoring_takes_tlc_too(
    samprior: Samprior, rain: Path, runs: list[Path], tmp_path: Path
) -> None:
    source = rain / "test" / "Rain100L" / "input" / "0.png"
    code, _, err = samprior("restore", runs[0], source, tmp_path / "l.png", "--tlc-px", 16)
    assert code == 0, err
    assert samprior("restore", runs[0], source, tmp_path / "large.png", "--tlc")[0] == 0
    assert samprior("restore", runs[0], source, tmp_path / "plain.png")[0] == 0
    local, large, plain = (read_rgb(tmp_path / f"{name}.png") for name in ("l", "large", "plain"))
    assert np.array_equal(large, plain)  # 384 px cover the picture
    assert not np.array_equal(local, plain)


def test_a_missing_checkpoint_is_told_before_anything_is_scored(
    samprior: Samprior, rain: Path, runs: list[Path], tmp_path: Path
) -> None:
    dataset = ("--dataset", "rain", "--root", rain, "--split", "test/Rain100H")
    missing, out = tmp_path / "runs" / "missing", tmp_path / "scores"
    code, _, err = samprior("evaluate", *runs, missing, *dataset, "--out", out)
    assert code == 1
    assert f"{missing} does not exist" in err
    assert "evaluating" not in err
    assert not out.exists()
