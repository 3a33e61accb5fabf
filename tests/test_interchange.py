"""Exports for other tools: read by those tools' own rules, and found again bit for bit."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from samprior.pipeline.imports import amg_image, amg_pictures, coco_pictures, sa1b_folder
from samprior.pipeline.precompute import import_pictures
from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.images import read_rgb
from samprior.storage.interchange import AMG_HEADER, export_coco, export_png, export_sa1b
from samprior.storage.manifest import Header, digests_of, write_header
from samprior.storage.writer import write_shard

Make = Callable[..., Any]
EXPORTS = {"coco": export_coco, "sa1b": export_sa1b, "png": export_png}
KEYS = ("a/000", "a/b/001", "c", "d")


def sam_masks(shape: tuple[int, int], *, num_masks: int, seed: int) -> MaskSet:
    """Overlapping masks with SAM's columns; the last one is empty, and its stability NaN."""
    rng = np.random.default_rng(seed)
    planes = rng.random((num_masks, *shape)) < rng.random((num_masks, 1, 1))
    stability = rng.random(num_masks, dtype=np.float32)
    if num_masks:
        planes[-1], stability[-1] = False, np.nan
    return MaskSet.from_masks(
        planes,
        predicted_iou=rng.random(num_masks, dtype=np.float32),
        stability=stability,
        point=(rng.random((num_masks, 2)) * 1e3).astype(np.float32),
    )


def store_of(root: Path, records: list[Record], *, paired: bool = True) -> MaskStore:
    """A store of two images a shard."""
    num_shards = -(-len(records) // 2)
    header = Header(
        num_images=len(records),
        num_shards=num_shards,
        images_per_shard=2,
        paired=paired,
        made_of={"segmenter": {"segmenter": "sam"}},
    )
    write_header(root, header)
    for shard in range(num_shards):
        write_shard(root, shard, records[2 * shard : 2 * shard + 2], paired=paired)
    return MaskStore.open(root)


@pytest.fixture
def store(tmp_path: Path, make_record: Make) -> MaskStore:
    """Four pairs with SAM's columns, the third without masks."""
    records = []
    for place, (key, num_masks) in enumerate(zip(KEYS, (3, 5, 0, 1), strict=True)):
        pictures = make_record(key, shape=(20 + place, 33), seed=place)
        masks = sam_masks((20 + place, 33), num_masks=num_masks, seed=place)
        records.append(Record(key, pictures.degraded, pictures.clean, masks))
    return store_of(tmp_path / "store", records)


def find_again(to: str, out: Path) -> Any:  # noqa: ANN401  # pairs and their maker
    if to == "coco":
        return coco_pictures(out / "annotations.json", out / "images")
    return sa1b_folder(out) if to == "sa1b" else amg_pictures(out / "masks", out / "images")


def imported(to: str, out: Path, root: Path) -> MaskStore:
    result = import_pictures(*find_again(to, out), out=root)
    assert result.quarantined == {}
    return MaskStore.open(root).require_complete()


def assert_same_masks(found: MaskStore, wanted: MaskStore) -> None:
    assert found.keys == wanted.keys
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one.clean, other.clean)
        assert one.masks.equals(other.masks)


@pytest.mark.parametrize("to", EXPORTS)
def test_masks_come_back_bit_for_bit(tmp_path: Path, store: MaskStore, to: str) -> None:
    calls: list[tuple[int, int]] = []
    EXPORTS[to](store, tmp_path / "out", progress=lambda *done: calls.append(done))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert_same_masks(imported(to, tmp_path / "out", tmp_path / "again"), store)


@pytest.mark.parametrize("to", EXPORTS)
@pytest.mark.parametrize("name", ["dog", "truck"])
def test_real_masks_come_back_bit_for_bit(
    tmp_path: Path, shared_data: Path, to: str, name: str
) -> None:
    source = shared_data / "sam_masks" / name
    import_pictures(*amg_image(source / "masks", source / "image.jpg"), out=tmp_path / "store")
    store = MaskStore.open(tmp_path / "store")
    EXPORTS[to](store, tmp_path / "out")
    assert_same_masks(imported(to, tmp_path / "out", tmp_path / "again"), store)


@pytest.mark.parametrize("to", EXPORTS)
def test_equal_stores_give_equal_bytes_however_often_the_export_was_broken_off(
    tmp_path: Path, store: MaskStore, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    EXPORTS[to](store, tmp_path / "unbroken")
    out = tmp_path / "out"

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EXPORTS[to](store, out, progress=stop)
    assert not (out / "annotations.json").exists()
    # A kill that nothing can catch leaves its drafts too.
    (out / ".annotations.json.01234567.part").touch()
    (out / "a" / ".000.json.01234567.part").parent.mkdir(exist_ok=True)
    (out / "a" / ".000.json.01234567.part").touch()
    EXPORTS[to](store, out)
    if to != "sa1b":
        (out / "a").rmdir()
    assert digests_of(out) == digests_of(tmp_path / "unbroken")

    kept = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    EXPORTS[to](store, out)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.png")} == kept
    assert digests_of(out) == digests_of(tmp_path / "unbroken")


@pytest.mark.parametrize("to", EXPORTS)
def test_either_picture_of_a_pair_may_be_written(
    tmp_path: Path, store: MaskStore, to: str, make_store: Make
) -> None:
    EXPORTS[to](store, tmp_path / "out", side="degraded")
    folder = tmp_path / "out" / ("" if to == "sa1b" else "images")
    for record in store:
        assert np.array_equal(read_rgb(folder / f"{record.key}.png"), record.degraded)
    with pytest.raises(StoreError, match="other options"):
        EXPORTS[to](store, tmp_path / "out")
    alone = make_store(tmp_path / "alone", paired=False)
    with pytest.raises(UsageError, match="no degraded one"):
        EXPORTS[to](alone, tmp_path / "other", side="degraded")


@pytest.mark.parametrize("to", EXPORTS)
def test_other_folders_are_refused(
    tmp_path: Path, store: MaskStore, to: str, make_record: Make
) -> None:
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    (strangers / "letter.txt").touch()
    with pytest.raises(StoreError, match="no export of samprior"):
        EXPORTS[to](store, strangers)
    with pytest.raises(StoreError, match="is a file"):
        EXPORTS[to](store, strangers / "letter.txt")
    assert [file.name for file in strangers.iterdir()] == ["letter.txt"]

    bad = make_record("../escape")
    masks = sam_masks(bad.masks.shape, num_masks=1, seed=0)
    escaping = store_of(tmp_path / "bad", [Record(bad.key, bad.degraded, bad.clean, masks)])
    with pytest.raises(UsageError, match="no path below"):
        EXPORTS[to](escaping, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_coco_is_read_by_pycocotools(tmp_path: Path, store: MaskStore) -> None:
    export_coco(store, tmp_path / "out")
    with contextlib.redirect_stdout(io.StringIO()):
        listing = COCO(str(tmp_path / "out" / "annotations.json"))
    assert listing.getImgIds() == [1, 2, 3, 4]
    assert [cat["name"] for cat in listing.loadCats(listing.getCatIds())] == ["object"]
    assert listing.getAnnIds() == list(range(1, 10))
    for number, record in enumerate(store, 1):
        (image,) = listing.loadImgs(number)
        picture = tmp_path / "out" / "images" / image["file_name"]
        assert np.array_equal(read_rgb(picture), record.clean)
        assert (image["height"], image["width"]) == record.masks.shape
        notes = listing.loadAnns(listing.getAnnIds(imgIds=number))
        for note, plane in zip(notes, record.masks.to_masks(), strict=True):
            code = coco.encode(np.asfortranarray(plane.astype(np.uint8)))
            assert note["segmentation"]["counts"].encode() == code["counts"]
            assert note["area"] == coco.area(code)
            assert note["iscrowd"] == 0
            if plane.any():
                assert note["bbox"] == coco.toBbox(code).tolist()


def test_any_columns_go_through_coco(tmp_path: Path, make_record: Make) -> None:
    records = []
    for place, num_masks in enumerate((2, 0, 3)):
        record = make_record(f"{place}", num_masks=num_masks, seed=place)
        rng = np.random.default_rng(place)
        masks = MaskSet.from_masks(
            record.masks.to_masks(),
            scale=rng.random(num_masks),
            level=rng.integers(-9, 9, num_masks).astype(np.int16),
            chosen=rng.random(num_masks) < 0.5,
            corners=rng.random((num_masks, 2, 3)).astype(np.float16),
        )
        records.append(Record(record.key, record.degraded, record.clean, masks))
    store = store_of(tmp_path / "store", records)
    export_coco(store, tmp_path / "out")
    assert_same_masks(imported("coco", tmp_path / "out", tmp_path / "again"), store)
    for to in ("sa1b", "png"):
        with pytest.raises(UsageError, match=r"needs SAM's column 'predicted_iou'.*--to coco"):
            EXPORTS[to](store, tmp_path / to)
        assert not (tmp_path / to).exists()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"area": [1.0]}, "'area' can't be exported"),
        ({"score": [np.inf]}, "'score' has infinite numbers"),
    ],
)
def test_columns_that_json_can_not_hold_are_told(
    tmp_path: Path, make_record: Make, column: dict[str, Any], message: str
) -> None:
    record = make_record("a", num_masks=1)
    masks = MaskSet.from_masks(record.masks.to_masks(), **column)
    store = store_of(tmp_path / "s", [Record("a", record.degraded, record.clean, masks)])
    with pytest.raises(StoreError, match=message):
        export_coco(store, tmp_path / "out")
    assert not (tmp_path / "out" / "annotations.json").exists()


def test_sa1b_files_have_the_fields_of_sa1b(tmp_path: Path, store: MaskStore) -> None:
    export_sa1b(store, tmp_path / "out")
    numbers = []
    for number, record in enumerate(store, 1):
        file = tmp_path / "out" / f"{record.key}.json"
        content = json.loads(file.read_bytes())
        height, width = record.masks.shape
        assert content["image"] == {
            "image_id": number,
            "width": width,
            "height": height,
            "file_name": file.with_suffix(".png").name,
        }
        for k, note in enumerate(content["annotations"]):
            numbers.append(note.pop("id"))
            x0, y0, x1, y1 = record.masks.boxes[k].tolist()
            assert note.pop("segmentation")["size"] == [height, width]
            assert note == {
                "area": record.masks.areas[k],
                "bbox": [x0, y0, max(0, x1 - 1 - x0), max(0, y1 - 1 - y0)],
                "predicted_iou": record.masks.columns["predicted_iou"][k],
                "stability_score": (
                    None
                    if np.isnan(record.masks.columns["stability"][k])
                    else record.masks.columns["stability"][k]
                ),
                "point_coords": [record.masks.columns["point"][k].tolist()],
                "crop_box": [0, 0, width, height],
            }
    assert numbers == list(range(1, 10))


def test_png_folders_are_those_of_amg(tmp_path: Path, store: MaskStore) -> None:
    export_png(store, tmp_path / "out")
    for record in store:
        folder = tmp_path / "out" / "masks" / record.key
        header, *rows = (folder / "metadata.csv").read_text().split("\n")
        assert header == AMG_HEADER
        assert len(rows) == len(record.masks)
        for k, row in enumerate(rows):
            cells = row.split(",")
            assert cells[:2] == [str(k), str(record.masks.areas[k])]
            assert cells[10:] == ["0", "0", "33", str(record.masks.shape[0])]
            with Image.open(folder / f"{k}.png") as image:
                assert image.mode == "L"
                assert np.array_equal(np.asarray(image), record.masks.mask(k) * 255)


def test_a_key_that_is_a_folder_of_keys_has_no_png_folder(
    tmp_path: Path, make_record: Make
) -> None:
    records = []
    for key in ("a", "a/b/0"):
        record = make_record(key)
        masks = sam_masks(record.masks.shape, num_masks=2, seed=1)
        records.append(Record(key, record.degraded, record.clean, masks))
    store = store_of(tmp_path / "store", records)
    with pytest.raises(UsageError, match="'a' is also the folder of 'a/b/0'"):
        export_png(store, tmp_path / "png")
    for to in ("coco", "sa1b"):
        EXPORTS[to](store, tmp_path / to)
        assert_same_masks(imported(to, tmp_path / to, tmp_path / f"{to}-again"), store)
