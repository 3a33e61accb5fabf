"""The command line as users meet it: the whole path, and one clear line for each mistake."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from samprior.cli import demo
from samprior.storage import MaskSet, MaskStore
from samprior.storage.images import read_rgb, write_png
from samprior.storage.shards import read_webdataset

Samprior = Callable[..., tuple[int, str, str]]

TINY_RUN = (
    "network.settings={width=4, enc_blocks=[1], middle_blocks=1, dec_blocks=[1]}",
    "data.crop_px=32",
    "data.batch_size=2",
    "optimizer.clip_norm=1",
    "loss.analyzer=random-vgg",
    "loss.reconstruction=charbonnier",
    "stages.base=4",
    "stages.fusion=2",
    "stages.distill=2",
)


@pytest.fixture
def rain(tmp_path: Path) -> Path:
    """Three rainy pairs of a picture of large shapes."""
    rng = np.random.default_rng(0)
    for number in range(3):
        clean = np.full((64, 80, 3), 60 + 20 * number, np.uint8)
        clean[10:40, 20:60] = rng.integers(0, 256, 3)
        clean[45:60, 5:30] = rng.integers(0, 256, 3)
        rainy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        write_png(tmp_path / "rain" / "target" / f"{number:03d}.png", clean)
        write_png(tmp_path / "rain" / "input" / f"{number:03d}.png", rainy)
    return tmp_path / "rain"


def superpixel(root: Path, out: Path, *more: object) -> tuple[object, ...]:
    dataset = ("precompute", "--dataset", "rain", "--root", root, "--segmenter", "superpixel")
    return (*dataset, "--workers", 0, "--out", out, *more)


def assert_one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("samprior: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_from_pictures_to_restored_pictures(samprior: Samprior, rain: Path, tmp_path: Path) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    code, out, err = samprior(*superpixel(rain, store))
    assert code == 0, err
    assert "3 images in 1 shard" in out
    assert "3 pairs, 80x64" in err

    code, out, _ = samprior("verify", store)
    assert code == 0
    assert "1 of 1 shard whole, 3 images" in out

    report = tmp_path / "report.html"
    assert samprior("inspect", store, "-o", report)[0] == 0
    assert "superpixel" in report.read_text()

    assert samprior("export", store, "--to", "webdataset", tmp_path / "tars")[0] == 0
    for streamed, stored in zip(
        read_webdataset(tmp_path / "tars"), MaskStore.open(store), strict=True
    ):
        assert streamed.key == stored.key
        assert streamed.masks.equals(stored.masks)

    settings = (f"data.train={store}", f"data.validation={store}", f"out={run}", *TINY_RUN)
    code, out, err = samprior("train", *(part for s in settings for part in ("--set", s)))
    assert code == 0, err
    assert re.search(r"distilled against a control trained equally long: [+-]\d", out)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["analyzer"] == "random-vgg"
    assert summary["masks"]["segmenter"]["segmenter"] == "superpixel"

    dataset = ("--dataset", "rain", "--root", rain)
    code, out, err = samprior("evaluate", run, *dataset, "--out", tmp_path / "scores")
    assert code == 0, err
    assert "Y of BT.601" in out
    assert len((tmp_path / "scores" / "scores.csv").read_text().splitlines()) == 5

    code, out, err = samprior("restore", run, rain / "input", tmp_path / "restored")
    assert code == 0, err
    names = sorted(file.name for file in (tmp_path / "restored").iterdir())
    assert names == ["000.png", "001.png", "002.png"]
    assert read_rgb(tmp_path / "restored" / "000.png").shape == (64, 80, 3)


def test_the_dry_run_says_what_it_would_take_and_writes_nothing(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    code, out, _ = samprior(*superpixel(rain, tmp_path / "store", "--dry-run"))
    assert code == 0
    assert "3 images in 1 shard" in out
    assert "3 probe images" in out
    assert not (tmp_path / "store").exists()
    code, out, _ = samprior(*superpixel(rain, tmp_path / "store", "--dry-run", "--json"))
    record = json.loads(out)
    assert code == 0
    assert (record["event"], record["num_images"], record["num_probes"]) == ("estimate", 3, 3)


def test_a_wrong_root_is_a_usage_error(samprior: Samprior, tmp_path: Path) -> None:
    code, _, err = samprior(*superpixel(tmp_path / "nowhere", tmp_path / "store"))
    assert code == 2
    assert "nowhere" in assert_one_line(err)
    assert not (tmp_path / "store").exists()


def test_names_are_spelled_for_the_user(samprior: Samprior, rain: Path, tmp_path: Path) -> None:
    code, _, err = samprior(*superpixel(rain, tmp_path / "s", "--segmenter", "superpixels"))
    assert code == 2
    assert "superpixel" in assert_one_line(err)
    code, _, err = samprior("precompute", "--dataset", "gopor", "--root", rain, "--out", "s")
    assert code == 2
    assert "gopro" in assert_one_line(err)
    code, _, err = samprior(*superpixel(rain, tmp_path / "s", "--set", "level=3"))
    assert code == 2
    assert "levels" in assert_one_line(err)


def test_an_unknown_key_in_a_config_names_the_right_one(samprior: Samprior, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('out = "run"\n[data]\ntrain = "store"\ncrop_pix = 64\n')
    code, _, err = samprior("train", "--config", file)
    assert code == 2
    assert "crop_px" in assert_one_line(err)
    code, _, err = samprior("train", "--config", tmp_path / "absent.toml")
    assert code == 2
    assert "absent.toml" in assert_one_line(err)


def test_a_truncated_picture_is_quarantined_and_named(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    bad = rain / "input" / "001.png"
    bad.write_bytes(bad.read_bytes()[:500])
    store = tmp_path / "store"
    code, out, err = samprior(*superpixel(rain, store))
    assert code == 1
    assert str(bad) in err
    assert "2 images" in out
    assert "--allow-quarantine" in assert_one_line(err)
    assert MaskStore.open(store).keys == ("000", "002")

    assert samprior(*superpixel(rain, store, "--allow-quarantine"))[0] == 0
    dataset = ("--dataset", "rain", "--root", rain)
    code, _, err = samprior("evaluate", tmp_path / "none", *dataset)
    assert code == 1


def test_missing_checkpoints_are_named(samprior: Samprior, rain: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pth"
    code, _, err = samprior(
        *superpixel(rain, tmp_path / "s", "--segmenter", "sam", "--checkpoint", absent)
    )
    assert code == 1
    assert str(absent) in assert_one_line(err)
    assert not (tmp_path / "s").exists()
    code, _, err = samprior("restore", tmp_path / "run", rain / "input", tmp_path / "restored")
    assert code == 1
    assert "does not exist" in assert_one_line(err)
    assert not (tmp_path / "restored").exists()


def test_stores_that_are_none_or_unfinished_are_refused(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    for command in (("verify", rain), ("inspect", rain), ("export", rain, tmp_path / "tars")):
        code, _, err = samprior(*command)
        assert code == 1
        assert "no samprior store" in assert_one_line(err)
    store = tmp_path / "store"
    samprior(*superpixel(rain, store, "--images-per-shard", 1))
    (store / "receipts" / "000001.json").unlink()
    code, _, err = samprior("train", "--set", f"data.train={store}", "--set", f"out={tmp_path}/r")
    assert code == 1
    assert "2 of 3 shards" in assert_one_line(err)
    assert not (tmp_path / "r").exists()
    code, _, err = samprior("verify", store)
    assert code == 1
    assert "precompute" in assert_one_line(err)


def test_what_others_wrote_is_never_touched(samprior: Samprior, rain: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    zarr.create_array(foreign, shape=(4,), dtype="uint8")[...] = 7
    before = {file: file.read_bytes() for file in foreign.rglob("*") if file.is_file()}
    code, _, err = samprior(*superpixel(rain, foreign))
    assert code == 1
    assert "no samprior header" in assert_one_line(err)
    after = {file: file.read_bytes() for file in foreign.rglob("*") if file.is_file()}
    assert after == before


def test_options_that_would_be_ignored_are_refused(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    for option, value in (("--model", "vit_b"), ("--engine", "fast"), ("--precision", "float16")):
        code, _, err = samprior(*superpixel(rain, tmp_path / "s", option, value))
        assert code == 2
        assert f"{option} goes with SAM" in assert_one_line(err)
    code, _, err = samprior("import-masks", "--sa1b", rain, "--root", rain, "--out", tmp_path / "s")
    assert code == 2
    assert "--sa1b alone" in assert_one_line(err)
    code, _, err = samprior(*superpixel(rain, tmp_path / "s", "--workers", "-1"))
    assert code == 2
    assert "workers" in assert_one_line(err)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "quick"), "Known: fast, official"),
        (("--precision", "int8"), "Known: float32, bfloat16, float16"),
        (("--engine", "official", "--precision", "bfloat16"), "setting of engine=fast"),
        (("--set", "engine='official'"), "use --engine"),
        (("--set", "points_per_sid=3"), "did you mean 'points_per_side'"),
    ],
)
def test_settings_of_sam_are_checked_before_anything_is_loaded(
    samprior: Samprior, rain: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    sam = ("--segmenter", "sam", "--checkpoint", tmp_path / "absent.pth", *options)
    code, _, err = samprior(*superpixel(rain, tmp_path / "s", *sam))
    assert code == 2
    assert message in assert_one_line(err)


def test_a_flipped_bit_is_found_repaired_and_made_again(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    samprior(*superpixel(rain, store, "--images-per-shard", 1))
    victim = store / "shards" / "000001" / "clean" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 4
    victim.write_bytes(content)
    code, _, err = samprior("verify", store)
    assert code == 1
    assert str(victim) in err
    assert samprior("verify", store, "--repair", "--no-recompute")[0] == 1
    code, out, _ = samprior(*superpixel(rain, store, "--images-per-shard", 1))
    assert code == 0
    assert "1 shard written now" in out
    assert samprior("verify", store)[0] == 0


def test_real_sam_masks_are_imported_bit_for_bit(
    samprior: Samprior, shared_data: Path, tmp_path: Path
) -> None:
    for name in ("dog", "truck"):
        source = shared_data / "sam_masks" / name
        code, _, err = samprior(
            "import-masks",
            *("--amg", source / "masks", "--image", source / "image.jpg"),
            *("--out", tmp_path / name),
        )
        assert code == 0, err
        record = MaskStore.open(tmp_path / name)[0]
        assert np.array_equal(record.clean, read_rgb(source / "image.jpg"))
        assert len(record.masks) == len(list((source / "masks").glob("*.png")))
        for k in range(len(record.masks)):
            with Image.open(source / "masks" / f"{k}.png") as picture:
                assert np.array_equal(record.masks.mask(k), np.asarray(picture) == 255)
        code, _, err = samprior(
            "train", "--set", f"data.train={tmp_path / name}", "--set", f"out={tmp_path}/r"
        )
        assert code == 2
        assert "paired" in assert_one_line(err)


def test_amg_folders_of_a_dataset_make_a_store_to_train_on(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    header = (
        "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,"
        "stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h\n"
    )
    mask = np.zeros((64, 80), np.uint8)
    mask[10:40, 20:60] = 255
    for key in ("000", "001", "002"):
        folder = tmp_path / "amg" / key
        folder.mkdir(parents=True)
        Image.fromarray(mask).save(folder / "0.png")
        row = "0,1200,20,10,39,29,30.0,20.0,0.9,0.97,0,0,80,64\n"
        (folder / "metadata.csv").write_text(header + row)
    arguments = ("import-masks", "--amg", tmp_path / "amg", "--dataset", "rain", "--root", rain)
    assert samprior(*arguments, "--out", tmp_path / "store")[0] == 0
    store = MaskStore.open(tmp_path / "store")
    assert store.paired
    assert store["001"].masks.equals(
        MaskSet.from_masks(
            (mask == 255)[None],
            predicted_iou=np.array([0.9], np.float32),
            stability=np.array([0.97], np.float32),
            point=np.array([[30.0, 20.0]], np.float32),
        )
    )
    (tmp_path / "amg" / "001" / "metadata.csv").unlink()
    code, _, err = samprior(*arguments, "--out", tmp_path / "other")
    assert code == 2
    assert "001" in assert_one_line(err)


def test_official_checkpoints_restore_when_they_are_named(
    samprior: Samprior, rain: Path, tmp_path: Path
) -> None:
    from samprior.training import build_network

    file = tmp_path / "NAFNet.pth"
    torch.save({"params": build_network("nafnet", preset="tiny").state_dict()}, file)
    pictures = (rain / "input" / "000.png", tmp_path / "restored.png")
    code, _, err = samprior("restore", file, *pictures)
    assert code == 1
    assert "--network" in assert_one_line(err)
    named = ("--network", "nafnet", "--preset", "tiny")
    assert samprior("restore", file, *pictures, *named)[0] == 0
    assert read_rgb(pictures[1]).shape == (64, 80, 3)


def test_the_demo_runs_every_step(
    samprior: Samprior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"base": 2, "fusion": 1, "distill": 1}
    monkeypatch.setattr(demo, "DEMO_CONFIG", {**demo.DEMO_CONFIG, "stages": stages})
    out_folder = tmp_path / "demo"
    code, out, err = samprior("demo", "--out", out_folder, "--task", "sensenoise")
    assert code == 0, err
    assert re.search(r"denoising.*\d+\.\d+ -> *\d+\.\d+", out)
    place = out_folder / "sensenoise"
    assert (place / "masks.html").exists()
    assert len(list((place / "restored").rglob("*.png"))) == 4
    code, out, _ = samprior("demo", "--out", out_folder, "--task", "sensenoise")
    assert code == 0
    assert "nothing to do" in out
    code, _, err = samprior("demo", "--out", out_folder, "--seed", 1)
    assert code == 2
    assert "--seed 0" in assert_one_line(err)


def test_a_url_where_a_folder_is_wanted_is_told(samprior: Samprior) -> None:
    code, _, err = samprior("inspect", "s3://bucket/store")
    assert code == 2
    assert "s3://bucket/store is a URL, and this command works on folders" in err
