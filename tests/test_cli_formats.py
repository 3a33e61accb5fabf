"""The command line where stores meet other formats: export, import-masks, precompute --format."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.images import write_png
from samprior.storage.manifest import Header, digests_of, write_header
from samprior.storage.shards import read_webdataset
from samprior.storage.writer import write_shard

Samprior = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three pictures alone with two masks of SAM's columns each."""
    rng = np.random.default_rng(0)
    records = []
    for place in range(3):
        picture = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        masks = MaskSet.from_masks(
            rng.random((2, 20, 30)) < 0.5,
            predicted_iou=rng.random(2, dtype=np.float32),
            stability=rng.random(2, dtype=np.float32),
            point=rng.random((2, 2), dtype=np.float32),
        )
        records.append(Record(f"seq/{place}", picture, picture, masks))
    header = Header(num_images=3, num_shards=1, images_per_shard=3, paired=False, made_of={})
    write_header(tmp_path / "store", header)
    write_shard(tmp_path / "store", 0, records, paired=False)
    return tmp_path / "store"


def told(err: str) -> str:
    """The one line of a mistake."""
    (line,) = (line for line in err.splitlines() if line.startswith("samprior: "))
    assert "Traceback" not in err
    return line


IMPORTS = {
    "coco": lambda out: ("--coco", out / "annotations.json", "--images", out / "images"),
    "sa1b": lambda out: ("--sa1b", out),
    "png": lambda out: ("--amg", out / "masks", "--images", out / "images"),
}


@pytest.mark.parametrize("to", IMPORTS)
def test_what_is_exported_can_be_imported(
    samprior: Samprior, store: Path, tmp_path: Path, to: str
) -> None:
    code, out, err = samprior("export", store, "--to", to, tmp_path / "out")
    assert code == 0, err
    assert "3 images with 6 masks" in out
    code, out, err = samprior(
        "import-masks", *IMPORTS[to](tmp_path / "out"), "--out", tmp_path / "s"
    )
    assert code == 0, err
    assert "3 images in 1 shard" in out
    for one, other in zip(MaskStore.open(tmp_path / "s"), MaskStore.open(store), strict=True):
        assert one.key == other.key
        assert one.masks.equals(other.masks)


def test_tars_of_run_lengths(samprior: Samprior, store: Path, tmp_path: Path) -> None:
    options = ("--to", "webdataset", "--mask-format", "rle", "--images-per-tar", 2)
    code, out, err = samprior("export", store, *options, tmp_path / "out")
    assert code == 0, err
    assert "3 images in 2 tars" in out
    for one, other in zip(read_webdataset(tmp_path / "out"), MaskStore.open(store), strict=True):
        assert one.masks.equals(other.masks)


def test_precompute_writes_the_tars_of_the_export(samprior: Samprior, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for side in ("input", "target"):
        for number in range(3):
            picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            write_png(tmp_path / "rain" / side / f"{number:03d}.png", picture)
    job = (
        *("precompute", "--dataset", "rain", "--root", tmp_path / "rain"),
        *("--segmenter", "superpixel", "--workers", 0, "--images-per-shard", 2),
    )
    code, out, err = samprior(*job, "--out", tmp_path / "tars", "--format", "webdataset")
    assert code == 0, err
    assert "3 images in 2 shards" in out
    assert samprior(*job, "--out", tmp_path / "store")[0] == 0
    assert samprior("export", tmp_path / "store", tmp_path / "out")[0] == 0
    direct, _ = digests_of(tmp_path / "tars")
    for name, digest in digests_of(tmp_path / "out")[0].items():
        assert name == ".fingerprint" or direct[name] == digest
    code, out, _ = samprior(*job, "--out", tmp_path / "x", "--format", "webdataset", "--dry-run")
    assert code == 0
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "coco", "--mask-format", "rle"), "--mask-format and --images-per-tar go with"),
        (("--to", "png", "--images-per-tar", 2), "--mask-format and --images-per-tar go with"),
        (("--to", "webdataset", "--picture", "clean"), "tars hold both"),
        (("--to", "webdataset", "--images-per-tar", 0), "at least 1, got 0"),
        (("--to", "coco", "--picture", "degraded"), "no degraded one"),
    ],
)
def test_options_that_would_be_ignored_or_can_not_be_are_refused(
    samprior: Samprior, store: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    code, _, err = samprior("export", store, *arguments, tmp_path / "out")
    assert code == 2
    assert message in told(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--coco", "x"),
        ("--images", "x"),
        ("--amg", "x", "--images", "x", "--image", "x"),
        ("--sa1b", "x", "--images", "x"),
        ("--coco", "x", "--images", "x", "--split", "train"),
    ],
)
def test_sources_that_do_not_go_together_are_refused(
    samprior: Samprior, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    code, _, err = samprior("import-masks", *arguments, "--out", tmp_path / "s")
    assert code == 2
    assert "--coco with --images" in told(err)
