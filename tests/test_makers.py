"""Makers of masks: imports that are mended, keys of single pictures, and the number of workers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from samprior.pipeline.datasets import Pair
from samprior.pipeline.imports import amg_dataset, amg_image, sa1b_folder
from samprior.pipeline.job import JobResult, MaskMaker, run_job
from samprior.pipeline.makers import Segmented, segmenter_maker, worker_pool
from samprior.pipeline.plan import plan_header, plan_shards
from samprior.pipeline.sam_segmenter import SamSettings
from samprior.storage import MaskStore
from samprior.storage.errors import LayoutError, UsageError
from samprior.storage.images import write_png
from samprior.storage.interchange import AMG_HEADER

SHAPE = (8, 10)


def write_picture(path: Path, *, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    write_png(path, rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8))
    return path


def write_amg(folder: Path, *, iou: float = 0.9) -> Path:
    """A folder of one mask, the left half, as scripts/amg.py writes it."""
    plane = np.zeros(SHAPE, np.uint8)
    plane[:, :5] = 255
    write_png(folder / "0.png", plane)
    row = f"0,40,0,0,4,7,2.0,2.0,{iou},0.95,0,0,10,8"
    (folder / "metadata.csv").write_text(f"{AMG_HEADER}\n{row}")
    return folder


def write_sa1b(picture: Path, *, iou: float = 0.9) -> Path:
    """The JSON beside a picture, with one mask, its left half."""
    note = {
        "segmentation": {"size": list(SHAPE), "counts": [0, 40, 40]},
        "area": 40,
        "predicted_iou": iou,
        "stability_score": 0.95,
        "point_coords": [[2.0, 2.0]],
    }
    image = {"width": SHAPE[1], "height": SHAPE[0]}
    path = picture.with_suffix(".json")
    path.write_text(json.dumps({"image": image, "annotations": [note]}))
    return path


def run(out: Path, pairs: list[Pair], maker: MaskMaker) -> JobResult:
    plan = plan_shards(pairs, images_per_shard=1)
    header = plan_header(
        plan,
        dataset="pictures",
        layout="pictures",
        split=None,
        segmenter=maker.describe(),
        source="clean",
        images_per_shard=1,
        paired=False,
    )
    return run_job(out, plan, header, maker, workers=0)


def ious(out: Path) -> dict[str, float]:
    return {
        record.key: round(float(record.masks.columns["predicted_iou"][0]), 3)
        for record in MaskStore.open(out)
    }


@pytest.fixture(params=["amg.py", "SA-1B"])
def imported(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Callable[[], tuple[list[Pair], MaskMaker]], dict[str, Path]]:
    """How to look for two pictures with ready masks, and the listing of each by key."""
    pictures = [write_picture(tmp_path / "in" / f"{key}.png") for key in ("a", "b")]
    if request.param == "SA-1B":
        files = {picture.stem: write_sa1b(picture) for picture in pictures}
        return lambda: sa1b_folder(tmp_path / "in"), files
    pairs = [Pair(picture.stem, picture, picture) for picture in pictures]
    masks = tmp_path / "masks"
    files = {pair.key: write_amg(masks / pair.key) / "metadata.csv" for pair in pairs}
    return lambda: (pairs, amg_dataset(masks, pairs)), files


def test_mended_masks_are_taken_up_by_the_same_command(
    tmp_path: Path, imported: tuple[Callable[[], tuple[list[Pair], MaskMaker]], dict[str, Path]]
) -> None:
    look, listings = imported
    out = tmp_path / "out"
    whole = listings["b"].read_text()
    listings["b"].write_text(whole.replace("40", "41"))
    assert list(run(out, *look()).quarantined) == ["b"]

    listings["b"].write_text(whole)
    result = run(out, *look())
    assert (result.shards_written, result.quarantined) == (1, {})
    assert run(out, *look()).shards_written == 0


def test_changed_masks_replace_the_old_ones_of_their_image_alone(
    tmp_path: Path, imported: tuple[Callable[[], tuple[list[Pair], MaskMaker]], dict[str, Path]]
) -> None:
    look, listings = imported
    out = tmp_path / "out"
    run(out, *look())
    # As many bytes as before: only the digest tells.
    listings["a"].write_text(listings["a"].read_text().replace("0.9,", "0.8,", 1))
    assert run(out, *look()).shards_written == 1
    assert ious(out) == {"a": 0.8, "b": 0.9}


def test_keys_of_single_pictures_are_those_of_data_sets(tmp_path: Path) -> None:
    masks = write_amg(tmp_path / "masks")
    picture = write_picture(tmp_path / "in" / "my dog.v2 (e\u0301).png")
    pairs, maker = amg_image(masks, picture)
    assert pairs == [Pair("my_dog_v2__\u00e9_", picture, picture)]
    assert run(tmp_path / "out", pairs, maker).num_images == 1

    write_sa1b(picture)
    pairs, maker = sa1b_folder(tmp_path / "in")
    assert [pair.key for pair in pairs] == ["my_dog_v2__\u00e9_"]
    assert run(tmp_path / "sa1b", pairs, maker).num_images == 1


@pytest.mark.parametrize(
    "names", [("a.b.png", "a_b.png"), ("sa_1.jpg", "sa_1.png"), ("a b.png", "a-b.png", "a_b.png")]
)
def test_pictures_of_one_key_are_told(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_sa1b(write_picture(tmp_path / name))
    with pytest.raises(LayoutError, match="keys are equal") as told:
        sa1b_folder(tmp_path)
    assert names[0] in str(told.value)
    assert names[-1] in str(told.value)


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "empty", lambda *size, device: real(*size))


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("device", "workers", "pool"),
    [
        (None, None, (3, 1.0)),
        ("cuda", None, (3, 1.0)),
        ("cuda", 2, (2, 1.0)),
        ("cuda", 6, (6, 0.5)),
        ("cuda", 0, (0, 1.0)),
        ("cuda:1", None, (0, 0.0)),
        ("cuda:1", 0, (0, 0.0)),
        ("cuda:1", 1, (0, 0.0)),
        ("cpu", None, (1, 0.0)),
        ("cpu", 4, (4, 0.0)),
    ],
)
def test_sam_gets_a_worker_per_gpu(
    device: str | None, workers: int | None, pool: tuple[int, float]
) -> None:
    assert worker_pool(Segmented(SamSettings(device=device)), workers) == pool


@pytest.mark.usefixtures("three_gpus")
def test_one_gpu_by_its_number_takes_one_worker() -> None:
    maker = Segmented(SamSettings(device="cuda:1"))
    with pytest.raises(UsageError, match=r"cuda:1 is one GPU.*--device cuda, or.*CUDA_VISIBLE"):
        worker_pool(maker, 2)


def test_fewer_than_no_workers_are_refused() -> None:
    maker = segmenter_maker("superpixel")
    assert worker_pool(maker, 0) == (0, 0.0)
    assert worker_pool(maker)[0] >= 1
    for one in (maker, Segmented(SamSettings(device="cpu"))):
        with pytest.raises(UsageError, match="--workers must be a whole number of at least 0"):
            worker_pool(one, -1)
