"""Masks drawn from logits are the official pixels, and small regions go as with OpenCV."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt, gaussian_filter
from segment_anything.modeling import Sam
from segment_anything.utils import amg
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from samprior.pipeline.everything.raster import Raster, mask_plane
from samprior.pipeline.everything.regions import remove_small_regions
from samprior.pipeline.everything.resampling import Resampling
from samprior.pipeline.everything.scoring import score_masks
from samprior.storage import MaskSet
from samprior.storage.errors import UsageError

Planes = npt.NDArray[np.bool_]

pytestmark = pytest.mark.usefixtures("two_threads")


def resampling_of(height: int, width: int, img_size: int) -> Resampling:
    rows, columns = ResizeLongestSide.get_preprocess_shape(height, width, img_size)
    return Resampling.of(
        img_size // 4,
        img_size=img_size,
        input_size=(max(rows, 1), max(columns, 1)),
        original_size=(height, width),
    )


def official_planes(logits: Tensor, resampling: Resampling, mask_threshold: float = 0.0) -> Planes:
    """(M, H, W) of logits (M, h, h), by the official code."""
    model = SimpleNamespace(
        image_encoder=SimpleNamespace(img_size=logits.shape[-1] * resampling.factor)
    )
    values: Tensor = Sam.postprocess_masks(
        model, logits[:, None], resampling.input_size, resampling.size
    )
    return (values[:, 0] > mask_threshold).numpy()


def blobs(rng: np.random.Generator, side: int, count: int) -> Tensor:
    """Smooth masks that overlap; a nested pair, two equal ones, an empty and a full one."""
    smooth = gaussian_filter(rng.standard_normal((count, side, side)), (0, 3, 3)) * 60 - 1
    logits = torch.from_numpy(smooth.astype(np.float32))
    logits[1] = logits[0] - 2
    logits[3] = logits[2]
    logits[4], logits[5] = -9.0, 9.0
    return logits


def boxes_of(logits: Tensor, resampling: Resampling) -> list[tuple[int, int, int, int]]:
    boxes = score_masks(logits, resampling, mask_threshold=0.0, offset=1.0).boxes
    return [(int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in boxes]


@pytest.mark.parametrize(
    "size",
    [
        (720, 1280, 1024),
        (321, 481, 1024),
        (1, 2000, 1024),
        (2000, 1, 1024),
        (7, 5, 1024),
        (64, 64, 1024),
        (90, 130, 256),
        (300, 200, 64),
    ],
)
def test_a_raster_is_the_set_of_the_official_planes(
    rng: np.random.Generator, size: tuple[int, int, int]
) -> None:
    resampling = resampling_of(*size)
    logits = blobs(rng, size[2] // 4, 12)
    planes = official_planes(logits, resampling)
    raster = Raster(*resampling.size)
    needed = logits[:, : resampling.rows_needed, : resampling.columns_needed]
    for samples, box, plane in zip(needed, boxes_of(logits, resampling), planes, strict=True):
        raster.add(samples, resampling, box, mask_threshold=0.0)
        drawn = mask_plane(samples, resampling, box, mask_threshold=0.0)
        assert (drawn.size, np.count_nonzero(drawn != plane)) == (size[0] * size[1], 0)
    scores = np.arange(12, dtype=np.float32)
    assert raster.finish({"score": scores}).equals(MaskSet.from_masks(planes, score=scores))


@pytest.mark.parametrize("fill", [0.0, 0.5, np.nan])
def test_masks_of_many_small_pieces(rng: np.random.Generator, fill: float) -> None:
    """Noise, much of it exactly on the threshold, changes sides at almost every pixel."""
    for size in (64, 300, 256), (300, 64, 256), (3, 250, 64):
        resampling = resampling_of(*size)
        side = size[2] // 4
        logits = torch.from_numpy(rng.choice([-1, 0, fill, 1], (3, side, side)).astype(np.float32))
        planes = official_planes(logits, resampling, 0.5)
        raster, whole = Raster(*size[:2]), (0, 0, size[1] - 1, size[0] - 1)
        for samples in logits:
            raster.add(samples, resampling, whole, mask_threshold=0.5)
        assert raster.finish({}).equals(MaskSet.from_masks(planes))


def test_real_regions_draw_as_the_official_planes(shared_data: Path) -> None:
    """Regions of six people, so that they overlap and nest: 11 million pixels, none differs."""
    path = sorted((shared_data / "bsds500" / "train").rglob("*.npz"))[0]
    segments = np.load(path)["segmentations"]
    height, width = segments.shape[1:]
    resampling = resampling_of(height, width, 1024)
    rows = np.linspace(0, height - 1, resampling.input_size[0] // 4).astype(int)
    columns = np.linspace(0, width - 1, resampling.input_size[1] // 4).astype(int)
    logits = torch.full((80, 256, 256), -20.0)
    regions = [people == label for people in segments for label in np.unique(people)][:80]
    for samples, region in zip(logits, regions, strict=False):
        inside = region[np.ix_(rows, columns)]
        distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
        samples[: len(rows), : len(columns)] = torch.from_numpy(gaussian_filter(distance, 1.0))
    logits = logits[: len(regions)]
    raster = Raster(height, width)
    for samples, box in zip(logits, boxes_of(logits, resampling), strict=True):
        raster.add(samples, resampling, box, mask_threshold=0.0)
    planes = official_planes(logits, resampling)
    drawn = raster.finish({})
    assert drawn.equals(MaskSet.from_masks(planes))
    assert np.array_equal(drawn.to_masks(), planes)


def test_masks_of_crops_and_planes_keep_their_order(rng: np.random.Generator) -> None:
    shape = (120, 160)
    crops = [(0, 0, 160, 120), (30, 20, 130, 100), (90, 0, 160, 75)]
    drawn: list[Planes] = []
    raster = Raster(*shape)
    for x0, y0, x1, y1 in [crops[k] for k in (1, 0, 2, 1)]:
        resampling = resampling_of(y1 - y0, x1 - x0, 256)
        logits = blobs(rng, 64, 6)
        boxes = boxes_of(logits, resampling)
        for samples, box, cut in zip(
            logits, boxes, official_planes(logits, resampling), strict=True
        ):
            plane = np.zeros(shape, np.bool_)
            plane[y0:y1, x0:x1] = cut
            drawn.append(plane)
            if len(drawn) % 4 == 0:
                raster.add_plane(plane)
            else:
                raster.add(samples, resampling, box, x0=x0, y0=y0, mask_threshold=0.0)
    order = np.arange(24)
    assert raster.finish({"place": order}).equals(MaskSet.from_masks(np.stack(drawn), place=order))


def test_no_mask_at_all_is_a_set() -> None:
    assert Raster(5, 7).finish({}).equals(MaskSet.from_masks(np.zeros((0, 5, 7), np.bool_)))


@given(st.data())
def test_labels_in_any_numbering_make_the_same_set(data: st.DataObject) -> None:
    members = data.draw(hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(0, 5))))
    numbers = st.integers(0, len(members) - 1)
    labels = data.draw(hnp.arrays(np.int32, (4, 6), elements=numbers))
    planes = np.moveaxis(members[labels], 2, 0)
    columns = {"score": np.arange(members.shape[1])}
    assert MaskSet.from_labels(labels, members, columns).equals(
        MaskSet.from_masks(planes, **columns)
    )


def test_labels_without_a_row_of_members_are_refused() -> None:
    members = np.zeros((2, 3), np.bool_)
    for wrong in (2, -1):
        with pytest.raises(UsageError, match="0 to 1"):
            MaskSet.from_labels(np.full((2, 2), wrong), members, {})
    with pytest.raises(UsageError, match=r"labels \(H, W\)"):
        MaskSet.from_labels(np.zeros(4, np.int32), members, {})


def official_regions(plane: Planes, min_area: int) -> tuple[Planes, bool]:
    plane, filled = amg.remove_small_regions(plane, min_area, mode="holes")
    plane, dropped = amg.remove_small_regions(plane, min_area, mode="islands")
    return plane.astype(np.bool_), filled or dropped


def assert_same_regions(plane: Planes, min_area: int) -> None:
    before = plane.copy()
    found, changed = remove_small_regions(plane, min_area)
    wanted, official_changed = official_regions(plane, min_area)
    assert found.dtype == np.bool_
    assert np.array_equal(found, wanted)
    assert changed == official_changed
    assert np.array_equal(plane, before)


@settings(max_examples=300)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14))), st.integers(0, 40))
def test_small_regions_of_any_plane_go_as_with_opencv(plane: Planes, min_area: int) -> None:
    pytest.importorskip("cv2")
    assert_same_regions(plane, min_area)


def test_small_regions_of_blobs_and_noise_go_as_with_opencv(rng: np.random.Generator) -> None:
    pytest.importorskip("cv2")
    for seed in range(40):
        noise = rng.standard_normal((90, 130))
        plane = gaussian_filter(noise, seed % 4 / 2) > rng.uniform(-0.1, 0.3)
        y, x = rng.integers(0, 80), rng.integers(0, 120)
        plane[:y], plane[:, :x] = seed % 3 == 0, seed % 5 == 0
        for min_area in (1, 5, 50, 2000, 20000):
            assert_same_regions(plane, min_area)


def test_of_equally_large_islands_that_are_all_small_opencvs_first_stays() -> None:
    pytest.importorskip("cv2")
    plane = np.zeros((40, 60), np.bool_)
    plane[21, 30], plane[20, 50] = True, True  # one square row; the pixel further left is lower
    assert_same_regions(plane, 10)
    assert_same_regions(plane[1:, 1:], 10)
    assert_same_regions(np.ones((3, 3), np.bool_), 100)
    assert_same_regions(np.zeros((3, 3), np.bool_), 100)
