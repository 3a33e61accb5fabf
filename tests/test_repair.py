"""`samprior verify --repair` makes a store whole again by the command that it was made with."""

import errno
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samprior.pipeline.job import JobResult
from samprior.pipeline.job_record import JobRecord, read_record
from samprior.pipeline.recompute import recompute
from samprior.storage.errors import StoreError
from samprior.storage.header import JOB
from samprior.storage.images import write_png
from samprior.storage.locks import LOCK
from samprior.storage.manifest import digests_of
from samprior.storage.places import LocalFolder, open_place

Samprior = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rain(tmp_path: Path) -> Path:
    """Three rainy pairs."""
    rng = np.random.default_rng(0)
    for number in range(3):
        clean = np.full((40, 48, 3), 60 + 20 * number, np.uint8)
        clean[10:30, 10:40] = rng.integers(0, 256, 3)
        rainy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        write_png(tmp_path / "rain" / "target" / f"{number:03d}.png", clean)
        write_png(tmp_path / "rain" / "input" / f"{number:03d}.png", rainy)
    return tmp_path / "rain"


def superpixel(root: Path, out: Path, *more: object) -> tuple[object, ...]:
    dataset = ("precompute", "--dataset", "rain", "--root", root, "--segmenter", "superpixel")
    return (*dataset, "--set", "levels=[2, 4]", "--workers", 0, "--out", out, *more)


def damage(shard: Path) -> None:
    victim = next(file for file in sorted(shard.rglob("*")) if file.is_file())
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)


def test_what_is_broken_is_made_again_in_the_store_and_its_mask_sets(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert samprior(*superpixel(rain, store, "--images-per-shard", 1))[0] == 0
    blurred = ("--masks", "rainy", "--source", "degraded")
    assert samprior(*superpixel(rain, store, *blurred))[0] == 0
    whole = digests_of(store)
    damage(store / "shards" / "000001")
    (store / "receipts" / "000002.json").unlink()
    damage(store / "masks" / "rainy" / "shards" / "000000")
    code, out, err = samprior("verify", store, "--repair", "--workers", 0)
    assert code == 0, err
    assert f"{store}: 2 shards made again" in out
    assert "rainy: 1 shard made again" in out
    assert "whole again" in out
    assert f"--root {rain}" in err
    assert digests_of(store) == whole
    assert samprior("verify", store)[0] == 0


def test_a_repair_as_json_prints_one_object_and_nothing_else(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    samprior(*superpixel(rain, store, "--images-per-shard", 1))
    damage(store / "shards" / "000001")
    code, out, err = samprior("verify", store, "--repair", "--workers", 0, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["whole"], record["ok"], list(record["broken"])) == (True, False, ["1"])
    assert "done before" not in err
    damage(store / "shards" / "000001")
    code, out, _ = samprior("verify", store, "--repair", "--no-recompute", "--json")
    assert (code, json.loads(out)["whole"]) == (1, False)


def test_whole_again_is_said_of_what_is(
    samprior: Samprior, rain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    samprior(*superpixel(rain, store, "--images-per-shard", 1))
    damage(store / "shards" / "000001")

    def badly(*given: Any, **more: Any) -> JobResult:  # noqa: ANN401
        result = recompute(*given, **more)
        damage(store / "shards" / "000001")
        return result

    monkeypatch.setattr("samprior.pipeline.recompute.recompute", badly)
    code, out, err = samprior("verify", store, "--repair", "--workers", 0)
    assert code == 1
    assert "whole again" not in out
    assert "shard 1" in err.partition("making again")[2]


@pytest.mark.parametrize(
    ("number", "way_out"), [(errno.EROFS, "mount it for writing"), (errno.EACCES, "who may write")]
)
def test_a_disk_that_is_only_read_is_told_plainly(
    samprior: Samprior,
    rain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    way_out: str,
) -> None:
    store = tmp_path / "store"
    samprior(*superpixel(rain, store, "--images-per-shard", 1))

    def refuse(place: LocalFolder) -> None:
        raise OSError(number, os.strerror(number), str(place.path / LOCK))

    monkeypatch.setattr("samprior.storage.verify.only_writer_of", refuse)
    code, _, err = samprior("verify", store, "--repair")
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith(f"samprior: {os.strerror(number)}: {store / LOCK}; ")
    assert way_out in line
    assert "--out" not in line


def test_a_dataset_that_is_gone_is_told_with_the_command(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    samprior(*superpixel(rain, store, "--images-per-shard", 1))
    whole = digests_of(store)
    damage(store / "shards" / "000001")
    rain.rename(tmp_path / "away")
    code, _, err = samprior("verify", store, "--repair", "--workers", 0)
    assert code == 1
    told = err.splitlines()[-1]
    assert "its dataset is not where it was" in told
    (tmp_path / "away").rename(rain)
    again = shlex.split(told.partition("run: ")[2])[1:]
    assert samprior(*again, "--workers", 0)[0] == 0
    assert digests_of(store) == whole


def test_a_store_of_unknown_origin_is_only_cleared(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    samprior(*superpixel(rain, store, "--images-per-shard", 1))
    damage(store / "shards" / "000001")
    (store / JOB).unlink()
    code, _, err = samprior("verify", store, "--repair")
    assert code == 1
    assert "no job.json" in err
    assert not (store / "shards" / "000001").exists()
    (store / JOB).write_text("{}")
    code, _, err = samprior("verify", store, "--repair")
    assert code == 1
    assert "no record of a job" in err


def test_the_same_command_leaves_the_same_record(
    samprior: Samprior, rain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samprior(*superpixel(rain, tmp_path / "first"))
    monkeypatch.chdir(tmp_path)
    samprior(*superpixel(Path("rain"), tmp_path / "second"))
    assert digests_of(tmp_path / "first") == digests_of(tmp_path / "second")
    record = read_record(open_place(tmp_path / "first"))
    assert record is not None
    assert (record.root, record.settings) == (str(rain), ("levels=[2, 4]",))
    moved = rain.rename(tmp_path / "moved")
    _, out, _ = samprior(*superpixel(moved, tmp_path / "first"))
    assert "nothing to do" in out
    record = read_record(open_place(tmp_path / "first"))
    assert record is not None
    assert record.root == str(moved)


def test_tars_have_a_record_too(samprior: Samprior, rain: Path, tmp_path: Path) -> None:
    assert samprior(*superpixel(rain, tmp_path / "tars", "--format", "webdataset"))[0] == 0
    record = read_record(open_place(tmp_path / "tars"))
    assert record is not None
    assert record.form == "webdataset"
    shutil.rmtree(tmp_path / "tars" / "receipts")
    assert samprior(*superpixel(rain, tmp_path / "tars", "--format", "webdataset"))[0] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("root", 7),
        ("settings", "levels=[2]"),
        ("settings", [1]),
        ("images", "elsewhere"),
        ("images_per_shard", "32"),
        ("images_per_shard", True),
        ("unknown", "x"),
        ("command", "rm"),
    ],
)
def test_records_are_read_strictly(name: str, value: object) -> None:
    from samprior.storage.header import digest

    record = json.loads(JobRecord(dataset="rain", root="/data").to_json())
    assert JobRecord.from_json(json.dumps(record).encode(), "here") == JobRecord(
        dataset="rain", root="/data"
    )
    record[name] = value
    with pytest.raises(StoreError, match="here is no record of a job"):
        JobRecord.from_json(json.dumps(record).encode(), "here")
    del record["sha256"]
    signed = {**record, "sha256": digest(record)}
    with pytest.raises(StoreError, match="here is no record of a job"):
        JobRecord.from_json(json.dumps(signed).encode(), "here")


def test_the_shell_command_has_what_was_given() -> None:
    record = JobRecord(
        dataset="folder",
        root="/my data",
        degraded_pattern="noisy/{key}.png",
        clean_pattern="clean/{key}.png",
        settings=("points_per_side=16", "crop_n_layers=1"),
        checkpoint="/sam.pth",
        form="webdataset",
        images_per_shard=8,
    )
    words = shlex.split(record.shell_command(Path("/out")))
    assert words[:6] == ["samprior", "precompute", "--dataset", "folder", "--root", "/my data"]
    assert words[-2:] == ["--out", "/out"]
    assert words.count("--set") == 2
    assert "--format" in words
    assert "--segmenter" not in words
