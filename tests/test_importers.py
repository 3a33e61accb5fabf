"""Ready-made masks: found again bit for bit, and any other content is a MaskFormatError."""

import contextlib
import errno
import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from samprior.pipeline import mask_files
from samprior.pipeline.importers import read_amg_folder, read_sa1b
from samprior.storage import MaskSet
from samprior.storage.errors import MaskFormatError
from samprior.storage.interchange import AMG_HEADER

SHAPE = (7, 10)
reuse_folder = settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def some_masks(*, num_masks: int = 3, shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((num_masks, *shape)) < 0.4


def write_amg(folder: Path, masks: np.ndarray) -> None:
    """Write masks as scripts/amg.py does."""
    folder.mkdir()
    lines = [AMG_HEADER]
    for k, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{k}.png")
        lines.append(f"{k},{mask.sum()},0,0,9,6,{k}.5,2.25,0.9{k},0.95,0,0,10,7")
    (folder / "metadata.csv").write_text("\n".join(lines))


def sa1b(masks: np.ndarray) -> dict[str, Any]:
    """The record of one image as SA-1B has it."""
    annotations = []
    for k, mask in enumerate(masks):
        code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                "area": int(mask.sum()),
                "bbox": [0.0, 0.0, 9.0, 6.0],
                "predicted_iou": 0.9 + k / 100,
                "point_coords": [[k + 0.5, 2.25]],
                "crop_box": [0.0, 0.0, 10.0, 7.0],
                "id": 500 + k,
                "stability_score": 0.95,
            }
        )
    height, width = masks.shape[1:]
    image = {"image_id": 1, "width": width, "height": height, "file_name": "sa_1.jpg"}
    return {"image": image, "annotations": annotations}


@pytest.fixture
def amg(tmp_path: Path) -> Path:
    write_amg(tmp_path / "masks", some_masks())
    return tmp_path / "masks"


@pytest.fixture
def sa1b_file(tmp_path: Path) -> Path:
    path = tmp_path / "sa_1.json"
    path.write_text(json.dumps(sa1b(some_masks())))
    return path


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def assert_columns(masks: MaskSet) -> None:
    assert masks.columns.keys() == {"predicted_iou", "stability", "point"}
    assert {column.dtype for column in masks.columns.values()} == {np.dtype(np.float32)}
    assert masks.columns["point"].shape == (len(masks), 2)


@pytest.mark.parametrize(("name", "num_masks"), [("dog", 66), ("truck", 47)])
def test_real_sam_output_is_found_again_bit_for_bit(
    shared_data: Path, name: str, num_masks: int
) -> None:
    root = shared_data / "sam_masks" / name
    with Image.open(root / "image.jpg") as image:
        shape = (image.height, image.width)
    masks = read_amg_folder(root / "masks", shape=shape)
    assert len(masks) == num_masks
    assert masks.shape == shape
    for k in range(num_masks):
        with Image.open(root / "masks" / f"{k}.png") as plane:
            assert np.array_equal(masks.mask(k), np.asarray(plane) > 0)
    table = np.loadtxt(root / "masks" / "metadata.csv", delimiter=",", skiprows=1)
    assert table[:, 0].tolist() == list(range(num_masks))
    assert table[:, 1].tolist() == masks.areas.tolist()
    assert np.array_equal(masks.columns["point"], table[:, 6:8].astype(np.float32))
    assert np.array_equal(masks.columns["predicted_iou"], table[:, 8].astype(np.float32))
    assert np.array_equal(masks.columns["stability"], table[:, 9].astype(np.float32))
    x0, y0, x1, y1 = masks.boxes.T
    assert np.array_equal(table[:, 2:6], np.stack([x0, y0, x1 - 1 - x0, y1 - 1 - y0], axis=1))


def test_amg_masks_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    planes = some_masks(num_masks=12)
    folder = tmp_path / "masks"
    write_amg(folder, planes)
    header, *rows = (folder / "metadata.csv").read_text().split("\n")
    (folder / "metadata.csv").write_text("\r\n".join([header, *reversed(rows)]) + "\r\n")
    masks = read_amg_folder(folder)
    assert np.array_equal(masks.to_masks(), planes)
    assert masks.columns["point"][:, 0].tolist() == [k + 0.5 for k in range(12)]
    assert_columns(masks)


def test_one_bit_pngs_are_masks_too(amg: Path) -> None:
    before = read_amg_folder(amg)
    Image.fromarray(some_masks()[1]).save(amg / "1.png")
    assert read_amg_folder(amg).equals(before)


def test_an_empty_amg_folder_needs_the_shape(tmp_path: Path) -> None:
    write_amg(tmp_path / "masks", some_masks(num_masks=0))
    masks = read_amg_folder(tmp_path / "masks", shape=SHAPE)
    assert (len(masks), masks.shape) == (0, SHAPE)
    assert_columns(masks)
    with pytest.raises(MaskFormatError, match="pass shape"):
        read_amg_folder(tmp_path / "masks")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id,area", "area,id", "line 1"),
        ("\n1,", "\n-1,", "line 3: id is '-1'"),
        ("\n1,", "\n../1,", "line 3: id"),
        ("\n1,", "\n/etc/passwd,", "line 3: id"),
        ("\n1,", "\n01,", "line 3: id"),
        ("\n1,", "\n\u0661,", "plain text"),
        ("\n1,", "\n0,", "line 3 has id 0 again, first in line 2"),
        ("\n1,", "\n99999999999999999999,", "line 3: id"),
        (",1.5,", ",nan,", "line 3: point_input_x is 'nan'"),
        (",1.5,", ",1_5,", "line 3: point_input_x"),
        (",1.5,", ", 1.5,", "line 3: point_input_x"),
        (",1.5,", ",1e99,", "line 3: point_input_x"),
        (",0.91,", ",inf,", "line 3: predicted_iou"),
        (",0.91,", ",,", "line 3: predicted_iou"),
        (",0.91,", ",0.91,0.91,", "line 3 has 15 columns"),
        ("\n1,", "\n\n1,", "line 3 has 1 columns"),
    ],
)
def test_wrong_tables_are_told_with_their_line(amg: Path, old: str, new: str, message: str) -> None:
    replace_in(amg / "metadata.csv", old, new)
    with pytest.raises(MaskFormatError, match=message) as caught:
        read_amg_folder(amg)
    assert str(amg / "metadata.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_areas_are_told(amg: Path) -> None:
    area = int(some_masks()[2].sum())
    replace_in(amg / "metadata.csv", f"\n2,{area},", f"\n2,{area + 1},")
    with pytest.raises(MaskFormatError, match=f"line 4 .* {area + 1}, but 2.png has {area}"):
        read_amg_folder(amg)


def test_missing_and_unlisted_files_are_told(amg: Path) -> None:
    shutil.copy(amg / "1.png", amg / "3.png")
    with pytest.raises(MaskFormatError, match=r"3\.png is not in metadata\.csv"):
        read_amg_folder(amg)
    (amg / "3.png").unlink()
    (amg / "1.png").unlink()
    with pytest.raises(MaskFormatError, match=r"1\.png is missing"):
        read_amg_folder(amg)
    (amg / "metadata.csv").unlink()
    with pytest.raises(MaskFormatError, match=r"metadata\.csv can't be read"):
        read_amg_folder(amg)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT"
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
        + struct.pack(">I", 0) + data + struct.pack(">I", zlib.crc32(data))
    )  # fmt: skip


def test_wrong_pngs_are_told(amg: Path) -> None:
    path = amg / "1.png"
    grey = some_masks()[1].astype(np.uint8) * 255
    cases: list[tuple[str, Any]] = [
        ("has 7x10 pixels, wanted 10x7", Image.fromarray(np.ascontiguousarray(grey.T))),
        ("has mode RGB", Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))),
        ("other values than 0 and 255", Image.fromarray(grey // 255)),
        ("can't be read as PNG", b"not a png"),
        ("can't be decoded", png_header(10, 7)),
        ("has 12000x12000 pixels, wanted 10x7", png_header(12_000, 12_000)),
    ]
    for message, content in cases:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
        with pytest.raises(MaskFormatError, match=message) as caught:
            read_amg_folder(amg, shape=SHAPE)
        assert str(path) in str(caught.value)


def test_sizes_are_bounded_before_memory_is_taken(
    amg: Path, sa1b_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (amg / "0.png").write_bytes(png_header(12_000, 12_000))
    with pytest.raises(MaskFormatError, match="at most 100,000,000 pixels"):
        read_amg_folder(amg)
    (amg / "0.png").write_bytes(png_header(60_000, 60_000))
    with pytest.raises(MaskFormatError, match=r"0\.png"):
        read_amg_folder(amg)
    monkeypatch.setattr(mask_files, "MAX_MASK_PIXELS", 100)
    with pytest.raises(MaskFormatError, match="3 masks of 10x7"):
        read_sa1b(sa1b_file)
    monkeypatch.setattr(mask_files, "MAX_TABLE_BYTES", 100)
    for read, path in ((read_sa1b, sa1b_file), (read_amg_folder, amg)):
        with pytest.raises(MaskFormatError, match="more than"):
            read(path)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 4), st.integers(0, 99), st.booleans())
@reuse_folder
def test_sa1b_masks_are_those_of_pycocotools(
    tmp_path: Path, height: int, width: int, num_masks: int, seed: int, compressed: bool
) -> None:
    rng = np.random.default_rng(seed)
    planes = rng.random((num_masks, height, width)) < rng.random()
    record = sa1b(planes)
    if not compressed:
        for note, plane in zip(record["annotations"], planes, strict=True):
            changes = np.flatnonzero(np.diff(plane.T.reshape(-1), prepend=False))
            runs = np.diff(np.concatenate([[0], changes, [plane.size]]))
            note["segmentation"]["counts"] = runs.tolist()
    path = tmp_path / "sa_1.json"
    path.write_text(json.dumps(record))
    masks = read_sa1b(path)
    assert np.array_equal(masks.to_masks(), planes)
    assert masks.columns["point"][:, 0].tolist() == [k + 0.5 for k in range(num_masks)]
    assert_columns(masks)


def test_large_sa1b_masks_use_numbers_of_several_digits(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:600, :900]
    discs = [(rows - y) ** 2 + (columns - x) ** 2 < r * r for y, x, r in
             [(300, 400, 250), (3, 3, 50), (599, 899, 9)]]  # fmt: skip
    planes = np.stack([*discs, ~discs[0], np.ones_like(discs[0]), np.zeros_like(discs[0])])
    (tmp_path / "sa_1.json").write_text(json.dumps(sa1b(planes)))
    assert np.array_equal(read_sa1b(tmp_path / "sa_1.json").to_masks(), planes)


@pytest.mark.parametrize(
    ("path_in_record", "value", "message"),
    [
        (["image", "width"], 0, "image.width"),
        (["image", "width"], "10", "image.width"),
        (["image", "width"], 11, "annotations.0: size is"),
        (["image", "height"], 10**9, "image.height"),
        (["image"], {"width": 20_000, "height": 20_000}, "20000x20000"),
        (["annotations"], {}, "annotations"),
        (["annotations", 1, "area"], 3, "annotations.1: area is 3"),
        (["annotations", 1, "predicted_iou"], float("nan"), "annotations.1.predicted_iou"),
        (["annotations", 1, "predicted_iou"], 1e300, "annotations.1.predicted_iou"),
        (["annotations", 1, "point_coords"], [], "annotations.1.point_coords"),
        (["annotations", 1, "point_coords"], [[1.0]], "annotations.1.point_coords"),
        (["annotations", 1, "segmentation", "size"], [10, 7], "annotations.1: size is"),
        (["annotations", 1, "segmentation", "counts"], "", "add up to 0 of 70"),
        (["annotations", 1, "segmentation", "counts"], "PPPP`", "ends within"),
        (["annotations", 1, "segmentation", "counts"], "ooooooooooo0", "beyond any image"),
        (["annotations", 1, "segmentation", "counts"], "!", "outside '0' to 'o'"),
        (["annotations", 1, "segmentation", "counts"], "\u00e9", "ASCII"),
        (["annotations", 1, "segmentation", "counts"], "O1", "negative run"),
        (["annotations", 1, "segmentation", "counts"], [30, 41], "add up to 71 of 70"),
        (["annotations", 1, "segmentation", "counts"], [71, -1], "counts"),
        (["annotations", 1, "segmentation", "counts"], None, "counts"),
    ],
)
def test_wrong_sa1b_records_are_told(
    sa1b_file: Path, path_in_record: list[str | int], value: object, message: str
) -> None:
    record = json.loads(sa1b_file.read_text())
    *parents, last = path_in_record
    place = record
    for step in parents:
        place = place[step]
    place[last] = value
    sa1b_file.write_text(json.dumps(record))
    with pytest.raises(MaskFormatError, match=re.escape(message)) as caught:
        read_sa1b(sa1b_file)
    assert str(sa1b_file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_json_is_told(tmp_path: Path) -> None:
    with pytest.raises(MaskFormatError, match="can't be read"):
        read_sa1b(tmp_path / "none.json")


def test_what_the_machine_lacks_is_no_fault_of_the_masks(
    amg: Path, sa1b_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for place in ("PIL.Image.open", "PIL.ImageFile.ImageFile.load", "pathlib.Path.open"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            with pytest.raises(OSError, match="Input/output error"):
                read_amg_folder(amg, shape=SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", fail)
        with pytest.raises(OSError, match="Input/output error"):
            read_sa1b(sa1b_file)


def survives(read: Any, path: Path) -> None:  # noqa: ANN401
    """Reading gives masks or the one error, and nothing else."""
    with contextlib.suppress(MaskFormatError):
        read(path)


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"image":{"width":1,"height":' + b"9" * 5000 + b"}}")
@example(b"\xff\xfe")
@reuse_folder
def test_any_bytes_are_survived(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sa_1.json"
    path.write_bytes(content)
    survives(read_sa1b, path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.integers(0, 99), st.data())
@reuse_folder
def test_any_change_of_a_record_is_survived(tmp_path: Path, seed: int, data: st.DataObject) -> None:
    place: Any = (record := sa1b(some_masks(seed=seed)))
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    path = tmp_path / "sa_1.json"
    path.write_text(json.dumps(record))
    survives(read_sa1b, path)


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
@reuse_folder
def test_any_run_length_code_is_survived(tmp_path: Path, code: str) -> None:
    record = sa1b(some_masks(num_masks=1))
    record["annotations"][0]["segmentation"]["counts"] = code
    path = tmp_path / "sa_1.json"
    path.write_text(json.dumps(record))
    survives(read_sa1b, path)


@given(st.sampled_from(["metadata.csv", "1.png"]), st.data())
@reuse_folder
def test_any_change_of_an_amg_folder_is_survived(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    folder = tmp_path / "masks"
    shutil.rmtree(folder, ignore_errors=True)
    write_amg(folder, some_masks())
    content = bytearray((folder / name).read_bytes())
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 8)))
    content[start:stop] = data.draw(st.binary(max_size=8))
    (folder / name).write_bytes(content)
    survives(read_amg_folder, folder)
