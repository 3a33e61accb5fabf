"""Scores of a dataset: what scikit-image finds on the pictures on disk, with their protocol."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.io import imread
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from samprior.storage.errors import ImageError
from samprior.storage.images import write_png
from samprior.training.evaluate import Evaluation, ImageScore, evaluate, write_evaluation
from samprior.training.restore import restoration_plan, restore_files

CPU = torch.device("cpu")
Pairs = list[tuple[str, Path, Path]]


@pytest.fixture
def network() -> nn.Module:
    """Blurs a little: changes every picture, without leaving [0, 1]."""
    blur = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
    nn.init.constant_(blur.weight, 1 / 9)
    return blur.requires_grad_(False)


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    rng = np.random.default_rng(0)
    found = []
    for number, shape in enumerate([(40, 52), (33, 37), (64, 48)]):
        smooth = rng.integers(0, 256, (8, 8, 3)).repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]]
        clean = np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)
        noisy = np.clip(clean + rng.normal(0, 25, clean.shape), 0, 255).astype(np.uint8)
        degraded_file, clean_file = (
            tmp_path / side / f"{number}.png" for side in ("degraded", "clean")
        )
        write_png(degraded_file, noisy)
        write_png(clean_file, clean)
        found.append((f"key/{number}", degraded_file, clean_file))
    return found


def by_skimage(file: Path, truth: Path, *, space: str, border_px: int) -> tuple[float, float]:
    ours, clean = imread(file), imread(truth)
    if space == "y":
        ours, clean = rgb2ycbcr(ours)[..., 0], rgb2ycbcr(clean)[..., 0]
    if border_px:
        ours, clean = (a[border_px:-border_px, border_px:-border_px] for a in (ours, clean))
    similarity = structural_similarity(
        clean,
        ours,
        data_range=255,
        channel_axis=2 if space == "rgb" else None,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(peak_signal_noise_ratio(clean, ours, data_range=255)), float(similarity)


@pytest.mark.parametrize("space", ["rgb", "y"])
@pytest.mark.parametrize("border_px", [0, 4])
@pytest.mark.parametrize("tile_px", [None, 24])
def test_scores_are_those_of_the_pictures_on_disk(
    tmp_path: Path,
    network: nn.Module,
    pairs: Pairs,
    space: str,
    border_px: int,
    tile_px: int | None,
) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(
        network,
        pairs,
        device=CPU,
        space=space,  # type: ignore[arg-type]
        border_px=border_px,
        tile_px=tile_px,
        overlap_px=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    plan = restoration_plan(tmp_path / "degraded", tmp_path / "restored")
    restore_files(network, plan, device=CPU, tile_px=tile_px, overlap_px=2)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [image.key for image in result.images] == [key for key, _, _ in pairs]
    for image, (_, degraded, clean), (_, restored) in zip(result.images, pairs, plan, strict=True):
        before = by_skimage(degraded, clean, space=space, border_px=border_px)
        after = by_skimage(restored, clean, space=space, border_px=border_px)
        assert (image.psnr_before_db, image.ssim_before) == before
        assert (image.psnr_after_db, image.ssim_after) == after
        assert before != after


def test_means_are_over_images(network: nn.Module, pairs: Pairs) -> None:
    result = evaluate(network, pairs, device=CPU)
    mean = result.mean()
    for name in ("psnr_before_db", "psnr_after_db", "ssim_before", "ssim_after"):
        values = [getattr(image, name) for image in result.images]
        assert getattr(mean, name) == pytest.approx(sum(values) / 3, abs=1e-12)


def test_the_table_and_the_record_hold_what_was_found(
    tmp_path: Path, network: nn.Module, pairs: Pairs
) -> None:
    result = evaluate(network, pairs, device=CPU, space="y", border_px=2)
    write_evaluation(result, tmp_path / "scores", checkpoint="runs/x", made={"seed": 1})
    text = (tmp_path / "scores" / "scores.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["key"] for row in rows] == ["key/0", "key/1", "key/2", "mean"]
    for row, image in zip(rows, [*result.images, result.mean()], strict=True):
        assert float(row["psnr_before_db"]) == image.psnr_before_db
        assert float(row["ssim_after"]) == image.ssim_after
    record = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert record["checkpoint"] == "runs/x"
    assert record["made"] == {"seed": 1}
    assert record["protocol"] == result.protocol
    assert record["mean"]["psnr_after_db"] == result.mean().psnr_after_db
    assert [ImageScore(**image) for image in record["images"]] == list(result.images)


@pytest.mark.parametrize(
    ("space", "border_px", "tile_px", "words"),
    [
        ("rgb", 0, None, ("1 images, RGB, 8 bit, 0 px border", "whole images")),
        ("y", 4, 64, ("Y of BT.601 YCbCr", "4 px border", "tiles of 64 px that overlap by 8 px")),
    ],
)
def test_the_protocol_says_how_the_numbers_were_taken(
    space: str, border_px: int, tile_px: int | None, words: tuple[str, ...]
) -> None:
    image = ImageScore("a", 20.0, 30.0, 0.5, 0.9)
    protocol = Evaluation((image,), space, border_px, tile_px, 8).protocol  # type: ignore[arg-type]
    assert all(word in protocol for word in (*words, "SSIM with an 11x11 Gaussian window", "means"))


def test_a_pair_of_two_sizes_is_refused_by_name(network: nn.Module, pairs: Pairs) -> None:
    _, degraded, clean = pairs[1]
    write_png(degraded, np.zeros((33, 38, 3), np.uint8))
    with pytest.raises(ImageError, match=r"degraded/1\.png is 38x33, .*clean/1\.png is 37x33"):
        evaluate(network, pairs, device=CPU)
    clean.write_bytes(b"")
    with pytest.raises(ImageError, match=r"clean/1\.png is empty"):
        evaluate(network, pairs, device=CPU)
