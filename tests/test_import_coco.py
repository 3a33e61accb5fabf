"""COCO files of others: the masks that pycocotools sees, and any other content is an error."""

import contextlib
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from samprior.pipeline import import_coco, mask_files
from samprior.pipeline.import_coco import read_coco
from samprior.pipeline.imports import coco_pictures
from samprior.pipeline.polygons import polygon_mask
from samprior.pipeline.precompute import import_pictures
from samprior.storage import MaskStore
from samprior.storage.errors import LayoutError, MaskFormatError
from samprior.storage.images import write_png
from samprior.storage.interchange import export_coco

HEIGHT, WIDTH = 24, 31
POLYGONS = [[3.2, 4.1, 25.5, 2.0, 20.0, 21.7], [1, 1, 1, 9, 9, 9, 9, 1]]
reuse_folder = settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def plane_of_pycocotools(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    codes = coco.frPyObjects(polygons, height, width)
    return coco.decode(coco.merge(codes)).astype(bool)


def some_plane(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.4


def code_of(plane: np.ndarray) -> dict[str, Any]:
    code = coco.encode(np.asfortranarray(plane.astype(np.uint8)))
    return {"size": list(plane.shape), "counts": code["counts"].decode()}


def runs_of(plane: np.ndarray) -> dict[str, Any]:
    changes = np.flatnonzero(np.diff(plane.T.reshape(-1), prepend=False))
    runs = np.diff(np.concatenate([[0], changes, [plane.size]]))
    return {"size": list(plane.shape), "counts": runs.tolist()}


def listing() -> dict[str, Any]:
    """Two pictures of others' making: three masks on the second, none on the first."""
    note = {"image_id": 70, "category_id": 18, "area": 12.5, "bbox": [0, 0, 1, 1]}
    return {
        "info": {"year": 2017, "description": "of others"},
        "annotations": [
            note | {"id": 9, "segmentation": deepcopy(POLYGONS), "iscrowd": 0},
            note | {"id": 7, "segmentation": code_of(some_plane(1)), "category_id": 3},
            note | {"id": 8, "segmentation": runs_of(some_plane(2)), "iscrowd": 1},
        ],
        "licenses": [{"id": 1}],
        "images": [
            {"id": 5, "file_name": "0005.png", "height": HEIGHT, "width": WIDTH, "license": 1},
            {"id": 70, "file_name": "sub/0070.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 3, "name": "car", "supercategory": "x"}, {"id": 18, "name": "dög"}],
    }


@pytest.fixture
def images(tmp_path: Path, rng: np.random.Generator) -> Path:
    for name in ("0005.png", "sub/0070.png"):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        write_png(tmp_path / "images" / name, pixels)
    return tmp_path / "images"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(listing()))
    return path


coordinates = st.one_of(
    st.floats(-20, 60), st.integers(-20, 60), st.integers(-200, 600).map(lambda tenth: tenth / 10)
)


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9),
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_drawn_as_pycocotools_does(
    height: int, width: int, corners: list[tuple[float, float]]
) -> None:
    numbers = [float(number) for corner in corners for number in corner]
    found = polygon_mask(numbers, height=height, width=width)
    assert np.array_equal(found, plane_of_pycocotools([numbers], height, width))


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ([1, 1, 2, 2], "at least 3 corners"),
        ([1, 1, 2, 2, 3, 3, 4], "got 7 numbers"),
        ([0, 0, 1e9, 1, 1, 1], "far outside"),
        ([0, 0, 3e6, 0, 3e6, 1], "longer than"),
    ],
)
def test_polygons_that_are_none_are_refused(corners: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polygon_mask(corners, height=9, width=9)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_files_of_others_are_imported(tmp_path: Path, file: Path, images: Path) -> None:
    result = import_pictures(*coco_pictures(file, images), out=tmp_path / "store")
    assert result.quarantined == {}
    store = MaskStore.open(tmp_path / "store")
    assert store.keys == ("0005", "sub/0070")
    assert len(store["0005"].masks) == 0
    masks = store["sub/0070"].masks
    assert np.array_equal(masks.mask(0), plane_of_pycocotools(POLYGONS, HEIGHT, WIDTH))
    assert np.array_equal(masks.mask(1), some_plane(1))
    assert np.array_equal(masks.mask(2), some_plane(2))
    assert masks.columns["category_id"].tolist() == [18, 3, 18]
    assert masks.columns["iscrowd"].tolist() == [0, 0, 1]

    # Categories keep their numbers and names through another export and import.
    export_coco(store, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "annotations.json").read_bytes())
    assert content["categories"] == [{"id": 3, "name": "car"}, {"id": 18, "name": "dög"}]
    assert [note["category_id"] for note in content["annotations"]] == [18, 3, 18]
    assert [note["iscrowd"] for note in content["annotations"]] == [0, 0, 1]
    again = coco_pictures(tmp_path / "out" / "annotations.json", tmp_path / "out" / "images")
    import_pictures(*again, out=tmp_path / "again")
    for one, other in zip(MaskStore.open(tmp_path / "again"), store, strict=True):
        assert one.masks.equals(other.masks)


def test_changed_annotations_replace_those_of_their_picture(
    tmp_path: Path, file: Path, images: Path
) -> None:
    out = tmp_path / "store"
    import_pictures(*coco_pictures(file, images), out=out)
    assert import_pictures(*coco_pictures(file, images), out=out).shards_written == 0
    file.write_text(file.read_text().replace('"category_id": 3', '"category_id": 18'))
    assert import_pictures(*coco_pictures(file, images), out=out).shards_written == 1
    columns = MaskStore.open(out)["sub/0070"].masks.columns
    assert columns["category_id"].tolist() == [18, 18, 18]


def test_pictures_that_do_not_fit_are_quarantined(tmp_path: Path, file: Path, images: Path) -> None:
    (images / "0005.png").unlink()
    pixels = np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8)
    write_png(images / "sub" / "0070.png", pixels)
    result = import_pictures(*coco_pictures(file, images), out=tmp_path / "store")
    assert "does not exist" in result.quarantined["0005"]
    assert "masks of 31x24 for a picture of 32x24" in result.quarantined["sub/0070"]


def test_the_wrong_folder_of_pictures_is_told(tmp_path: Path, file: Path, images: Path) -> None:
    with pytest.raises(LayoutError, match=r"none of the 2 pictures .* such as 0005\.png"):
        coco_pictures(file, tmp_path)
    with pytest.raises(LayoutError, match="is no folder"):
        coco_pictures(file, images / "0005.png")


def changed(path_in_record: list[str | int], value: object) -> str:
    record = listing()
    *parents, last = path_in_record
    place: Any = record
    for step in parents:
        place = place[step]
    place[last] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("path_in_record", "value", "message"),
    [
        (["images", 0, "file_name"], "../secret.png", "'../secret.png' is no path"),
        (["images", 0, "file_name"], "/etc/passwd.png", "is no path below"),
        (["images", 0, "file_name"], "a\\b.png", "is no path below"),
        (["images", 0, "file_name"], "ab" * 200 + ".png", "is no path below"),
        (["images", 0, "file_name"], "a\0b.png", "is no path below"),
        (["images", 0, "file_name"], "", "images.0: file_name"),
        (["images", 0, "id"], 70, "images have id 70 twice"),
        (["images", 0, "id"], True, "images.0: id"),
        (["images", 0, "width"], 0, "images.0: width"),
        (["images"], {}, "images: '\\[' was expected"),
        (["categories", 0, "id"], 18, "categories have id 18 twice"),
        (["annotations", 1, "image_id"], 6, "image_id 6, which is no image"),
        (["annotations", 1, "image_id"], None, "annotations.1: image_id"),
        (["annotations", 1], 3, "annotations.1"),
        (["annotations", 1, "area"], float("nan"), "annotations.*NaN is no JSON"),
        (["info"], {"columns": {"x": {"dtype": "object", "shape": []}}}, "'x' has no type"),
        (["info"], {"columns": {"x": {"dtype": "int8", "shape": [9**9]}}}, "'x' has no type"),
        (["info"], {"columns": 3}, "info.columns"),
    ],
)
def test_wrong_listings_are_told(
    file: Path, path_in_record: list[str | int], value: object, message: str
) -> None:
    file.write_text(changed(path_in_record, value))
    with pytest.raises(MaskFormatError, match=message) as caught:
        read_coco(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path_in_record", "value", "message"),
    [
        (["annotations", 1, "category_id"], 4, "annotations.1: category_id 4 is not among"),
        (["annotations", 1, "iscrowd"], 2, "annotations.1.iscrowd"),
        (["annotations", 1, "segmentation"], 3, "annotations.1.segmentation"),
        (["annotations", 1, "segmentation", "size"], [WIDTH, HEIGHT], "annotations.1: size is"),
        (["annotations", 1, "segmentation", "counts"], "0", "annotations.1: the runs add up"),
        (["annotations", 0, "segmentation", 0], [1, 2, 3, 4], "annotations.0: a polygon has"),
        (
            ["annotations", 0, "segmentation", 0, 1],
            1e12,
            "annotations.0.segmentation.polygons.0.1: Input should be less",
        ),
        (["annotations", 0, "segmentation", 0, 1], "1", "annotations.0.segmentation"),
        (["info"], {"columns": {"x": {"dtype": "int8", "shape": []}}}, "annotations.0 has no x"),
        (["info"], {"columns": {"area": {"dtype": "int8", "shape": []}}}, "area should hold int8"),
        (["info"], {"columns": {"image_id": {"dtype": "bool", "shape": []}}}, "should hold bool"),
        (["info"], {"columns": {"bbox": {"dtype": "int8", "shape": [3]}}}, "a list of 3"),
    ],
)
def test_wrong_annotations_are_told(
    file: Path, path_in_record: list[str | int], value: object, message: str
) -> None:
    file.write_text(changed(path_in_record, value))
    found = read_coco(file)
    assert len(found.masks(found.images[0])) == 0
    with pytest.raises(MaskFormatError, match=message) as caught:
        found.masks(found.images[1])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"'\{' was expected"),
        ("[]", r"'\{' was expected"),
        ("{}", "images is missing"),
        ('{"images": [], "annotations": []}', "categories is missing"),
        ('{"images": [], "images": []}', "images is there twice"),
        ('{"images": [] "annotations": []}', "',' was expected"),
        ('{"images": [1,]}', "images"),
        ('{"images": [], "annotations": [], "categories": []} {}', "follows after the end"),
        ("{" + '"a": ' + "[" * 100_000, "recursion"),
    ],
)
def test_texts_that_are_no_listing_are_told(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(MaskFormatError, match=message):
        read_coco(file)


def test_sizes_are_bounded_before_memory_is_taken(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_files, "MAX_MASK_PIXELS", 100)
    found = read_coco(file)
    with pytest.raises(MaskFormatError, match="3 masks of 31x24"):
        found.masks(found.images[1])
    monkeypatch.setattr(import_coco, "MAX_FILE_BYTES", 100)
    with pytest.raises(MaskFormatError, match="more than"):
        read_coco(file)


def survives(read: Callable[[], object]) -> None:
    with contextlib.suppress(MaskFormatError):
        read()


def read_all(path: Path) -> None:
    found = read_coco(path)
    for image in found.images:
        survives(lambda image=image: found.masks(image))  # type: ignore[misc]


@given(st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b'{"images":[' + b"9" * 5000 + b"]}")
@reuse_folder
def test_any_bytes_are_survived(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    survives(lambda: read_all(path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.data())
@reuse_folder
def test_any_change_of_a_listing_is_survived(tmp_path: Path, data: st.DataObject) -> None:
    place: Any = (record := listing())
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(record))
    survives(lambda: read_all(path))
