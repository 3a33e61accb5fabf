"""`MaskSet` loses nothing, is the same however it was made, and counts as planes count.

The masks drawn by hypothesis overlap, nest, repeat and may be empty.
"""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from samprior.storage import MaskSet
from samprior.storage.errors import UsageError

Planes = npt.NDArray[np.bool_]


@st.composite
def plane_stacks(draw: st.DrawFn) -> Planes:
    """(K, H, W): rectangles and free shapes, some of them twice."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    planes = []
    for _ in range(draw(st.integers(0, 9))):
        kind = draw(st.sampled_from(["rectangle", "pixels", "repeat", "empty"]))
        plane = np.zeros((height, width), bool)
        if kind == "rectangle":
            y0, y1 = sorted(draw(st.tuples(*[st.integers(0, height)] * 2)))
            x0, x1 = sorted(draw(st.tuples(*[st.integers(0, width)] * 2)))
            plane[y0:y1, x0:x1] = True
        elif kind == "pixels":
            plane = draw(hnp.arrays(np.bool_, (height, width)))
        elif kind == "repeat" and planes:
            plane = draw(st.sampled_from(planes)).copy()
        planes.append(plane)
    return np.array(planes, bool).reshape(-1, height, width)


def brute_boxes(planes: Planes) -> npt.NDArray[np.int32]:
    boxes = np.zeros((len(planes), 4), np.int32)
    for box, plane in zip(boxes, planes, strict=True):
        ys, xs = np.nonzero(plane)
        if len(ys):
            box[:] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return boxes


def check_against_planes(masks: MaskSet, planes: Planes) -> None:
    # float32 counts exactly up to 16 million pixels, and fast.
    flat = planes.reshape(len(planes), planes.shape[1] * planes.shape[2]).astype(np.float32)
    assert masks.to_masks().dtype == np.bool_
    assert np.array_equal(masks.to_masks(), planes)
    np.testing.assert_array_equal(masks.areas, planes.sum(axis=(1, 2)))
    np.testing.assert_array_equal(masks.intersections, flat @ flat.T)
    np.testing.assert_array_equal(masks.boxes, brute_boxes(planes))
    assert masks.coverage == pytest.approx(planes.any(axis=0).mean())
    assert masks.atom_areas.sum() == planes.shape[1] * planes.shape[2]


@given(plane_stacks())
@example(np.zeros((0, 3, 4), bool))
@example(np.zeros((17, 1, 1), bool))
@example(np.ones((9, 2, 2), bool))
def test_masks_come_back_and_count_like_planes(planes: Planes) -> None:
    masks = MaskSet.from_masks(planes)
    assert len(masks) == len(planes)
    assert masks.shape == planes.shape[1:]
    check_against_planes(masks, planes)
    for k, plane in enumerate(planes):
        np.testing.assert_array_equal(masks.mask(k), plane)
    # The line of the format's documentation that any NumPy user can apply.
    np.testing.assert_array_equal(masks.members[masks.atoms], np.moveaxis(planes, 0, 2))


@given(plane_stacks())
def test_the_form_is_canonical(planes: Planes) -> None:
    masks = MaskSet.from_masks(planes)
    assert MaskSet.from_masks(masks.to_masks()).equals(masks)
    assert not masks.members[0].any()
    # Atoms are numbered without gaps by first appearance, and no two are the same.
    values = masks.atoms.reshape(-1)
    _, firsts = np.unique(values[values > 0], return_index=True)
    assert np.array_equal(np.unique(values[values > 0]), np.arange(1, len(masks.members)))
    assert np.all(np.diff(firsts) > 0)
    assert len(np.unique(masks.members, axis=0)) == len(masks.members) or not len(masks)


@given(plane_stacks(), st.data())
def test_a_crop_is_the_set_of_the_cropped_planes(planes: Planes, data: st.DataObject) -> None:
    _, height, width = planes.shape
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    scores = np.arange(len(planes), dtype=np.float32)
    cropped = MaskSet.from_masks(planes, score=scores).crop(y0, x0, y1 - y0, x1 - x0)
    cut = planes[:, y0:y1, x0:x1]
    met = cut.any(axis=(1, 2))
    assert cropped.equals(MaskSet.from_masks(cut[met], score=scores[met]))


@given(plane_stacks(), st.data())
def test_a_selection_is_the_set_of_the_selected_planes(planes: Planes, data: st.DataObject) -> None:
    masks = MaskSet.from_masks(planes, score=np.arange(len(planes)))
    places = st.integers(0, len(planes) - 1) if len(planes) else st.nothing()
    order = data.draw(st.lists(places))
    chosen = masks.select(order)
    index = np.array(order, int)
    assert chosen.equals(MaskSet.from_masks(planes[index], score=index))
    keep = data.draw(hnp.arrays(np.bool_, len(planes)))
    assert masks.select(keep).equals(masks.select(np.flatnonzero(keep)))


@given(plane_stacks())
def test_equal_only_if_all_is(planes: Planes) -> None:
    masks = MaskSet.from_masks(planes, score=np.zeros(len(planes)))
    assert masks.equals(MaskSet.from_masks(planes.copy(), score=np.zeros(len(planes))))
    assert not masks.equals(MaskSet.from_masks(planes))
    assert not masks.equals(MaskSet.from_masks(planes, score=np.zeros(len(planes), np.float32)))
    if len(planes):
        assert not masks.equals(MaskSet.from_masks(planes, score=np.ones(len(planes))))
        other = planes.copy()
        other[-1, -1, -1] ^= True
        assert not masks.equals(MaskSet.from_masks(other, score=np.zeros(len(planes))))


# pycocotools 2.0.11 hands its arrays to NumPy 2 in the way of NumPy 1.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@given(plane_stacks().filter(len))
def test_areas_boxes_and_planes_equal_those_of_coco(planes: Planes) -> None:
    """pycocotools encodes what `to_masks` gives and decodes it to the same set."""
    masks = MaskSet.from_masks(planes)
    codes = coco.encode(np.asfortranarray(masks.to_masks().transpose(1, 2, 0).astype(np.uint8)))
    np.testing.assert_array_equal(coco.area(codes), masks.areas)
    x0, y0, x1, y1 = masks.boxes.T
    np.testing.assert_array_equal(coco.toBbox(codes), np.stack([x0, y0, x1 - x0, y1 - y0], axis=1))
    decoded = coco.decode(codes).transpose(2, 0, 1).astype(bool)
    assert MaskSet.from_masks(decoded).equals(masks)


def test_more_atoms_than_uint16_holds() -> None:
    """Each pixel's number, written in binary over 17 masks, makes it an atom of its own."""
    shape = (300, 300)
    numbers = np.arange(1, 300 * 300 + 1).reshape(shape)
    planes = (numbers >> np.arange(17)[:, None, None] & 1).astype(bool)
    masks = MaskSet.from_masks(planes)
    assert masks.atoms.dtype == np.uint32
    assert len(masks.members) == 300 * 300 + 1
    np.testing.assert_array_equal(masks.atoms, numbers)
    check_against_planes(masks, planes)
    assert masks.crop(0, 0, 250, 250).atoms.dtype == np.uint16


def test_areas_that_are_known_are_not_counted() -> None:
    made = MaskSet.from_masks(np.ones((1, 2, 3), bool))
    known = np.array([0, 6])
    masks = MaskSet.counted(made.atoms, made.members, made.columns, atom_areas=known)
    assert masks.atom_areas is known
    assert masks.areas.tolist() == [6]
    assert masks.equals(made)


def test_exactly_as_many_atoms_as_uint16_holds() -> None:
    numbers = np.arange(1 << 16).reshape(256, 256)
    masks = MaskSet.from_masks((numbers >> np.arange(16)[:, None, None] & 1).astype(bool))
    assert masks.atoms.dtype == np.uint16
    assert len(masks.members) == 1 << 16
    np.testing.assert_array_equal(masks.atoms, numbers)


def test_no_masks_are_a_set() -> None:
    masks = MaskSet.from_masks(np.zeros((0, 5, 7), bool), score=np.zeros(0), point=np.zeros((0, 2)))
    assert len(masks) == 0
    assert masks.coverage == 0
    assert masks.atoms.dtype == np.uint16
    assert masks.to_masks().shape == (0, 5, 7)
    assert masks.boxes.shape == (0, 4)
    assert masks.intersections.shape == (0, 0)
    assert masks.columns["point"].shape == (0, 2)
    assert masks.crop(1, 1, 2, 3).equals(masks.select([]).crop(0, 0, 2, 3))


def test_columns_follow_their_masks() -> None:
    planes = np.zeros((3, 4, 4), bool)
    planes[0, 0, 0] = planes[1, 3, 3] = planes[2, 0] = True
    points = np.arange(6.0).reshape(3, 2)
    masks = MaskSet.from_masks(planes, point=points, score=[0.5, 0.25, 0.125])
    np.testing.assert_array_equal(masks.crop(0, 0, 2, 2).columns["point"], points[[0, 2]])
    np.testing.assert_array_equal(masks.select([2, 0]).columns["score"], [0.125, 0.5])


@pytest.mark.parametrize(
    ("planes", "columns", "message"),
    [
        (np.zeros((4, 4), bool), {}, r"boolean \(K, H, W\), got bool \(4, 4\)"),
        (np.zeros((2, 4, 4), np.uint8), {}, "got uint8"),
        ([], {}, "for no mask at all pass"),
        (np.zeros((2, 4, 4), bool), {"score": [0.5]}, "'score'.*each of the 2 masks"),
        (np.zeros((2, 4, 4), bool), {"score": 0.5}, "'score'.*each of the 2 masks"),
    ],
)
def test_wrong_masks_are_refused(
    planes: npt.ArrayLike, columns: dict[str, npt.ArrayLike], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        MaskSet.from_masks(planes, **columns)


@pytest.mark.parametrize(
    ("atoms", "members"),
    [
        (np.zeros(4, np.uint16), np.zeros((1, 0), bool)),
        (np.zeros((2, 2), np.uint16), np.zeros((0, 0), bool)),
        (np.zeros((2, 2), np.uint16), np.ones((1, 1), bool)),
        (np.zeros((2, 2), np.uint16), np.zeros((1, 1), np.uint8)),
        (np.ones((2, 2), np.uint16), np.zeros((1, 1), bool)),
    ],
)
def test_wrong_arrays_are_refused(
    atoms: npt.NDArray[np.uint16], members: npt.NDArray[np.bool_]
) -> None:
    with pytest.raises(UsageError):
        MaskSet(atoms, members, {})


@pytest.mark.parametrize(
    "window", [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 0, 2), (0, 0, 2, 0), (3, 0, 2, 2), (0, 4, 2, 2)]
)
def test_a_window_outside_is_refused(window: tuple[int, int, int, int]) -> None:
    masks = MaskSet.from_masks(np.ones((1, 4, 5), bool))
    with pytest.raises(UsageError, match="does not lie inside 5x4"):
        masks.crop(*window)


@pytest.mark.parametrize("chosen", [[2], [-3], [True], [0.5], 1, [[0, 1]], [True, False, True]])
def test_a_wrong_selection_is_refused(chosen: npt.ArrayLike) -> None:
    with pytest.raises(UsageError, match="select"):
        MaskSet.from_masks(np.ones((2, 4, 5), bool)).select(chosen)


def sam_planes(folder: Path) -> Planes:
    with (folder / "metadata.csv").open(newline="") as table:
        ids = [row["id"] for row in csv.DictReader(table)]
    return np.stack([np.asarray(Image.open(folder / f"{k}.png")) > 0 for k in ids])


@pytest.mark.parametrize("name", ["dog", "truck"])
def test_masks_of_sam(shared_data: Path, name: str) -> None:
    planes = sam_planes(shared_data / "sam_masks" / name / "masks")
    masks = MaskSet.from_masks(planes)
    check_against_planes(masks, planes)
    codes = coco.encode(np.asfortranarray(planes.transpose(1, 2, 0).astype(np.uint8)))
    np.testing.assert_array_equal(coco.area(codes), masks.areas)
    _, height, width = planes.shape
    y, x = height // 3, width // 3
    cut = planes[:, y : y + 256, x : x + 256]
    assert masks.crop(y, x, 256, 256).equals(MaskSet.from_masks(cut[cut.any(axis=(1, 2))]))


def test_human_segmentations(shared_data: Path) -> None:
    """The regions of all annotators of a picture, as masks that overlap at every pixel."""
    files = sorted((shared_data / "rain" / "human_segmentations").glob("*.npz"))
    assert files
    for file in files[:2]:
        with np.load(file) as content:
            labels = content["segmentations"]
        planes = np.concatenate([own == np.unique(own)[:, None, None] for own in labels])
        masks = MaskSet.from_masks(planes)
        check_against_planes(masks, planes)
        assert masks.coverage == 1.0
        assert masks.members[masks.atoms].sum(axis=2).min() == len(labels)
