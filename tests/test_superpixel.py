"""The superpixel segmenter: deterministic, nested, of bounded number, and never called SAM."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label

from samprior.pipeline.segmenters import build_segmenter, segmenter_settings
from samprior.storage import MaskSet
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb, read_rgb


def scene(height: int = 90, width: int = 120, *, seed: int = 0) -> Rgb:
    """Overlapping rectangles of random colours under a little noise."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128.0)
    for _ in range(12):
        y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
        h, w = rng.integers(8, height // 2), rng.integers(8, width // 2)
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def assert_nested(masks: MaskSet) -> None:
    """Two masks of a tree share nothing, or the smaller one whole."""
    shared = masks.intersections
    smaller = np.minimum(masks.areas[:, None], masks.areas[None, :])
    assert ((shared == 0) | (shared == smaller)).all()


def test_real_photographs_give_tens_of_nested_masks(shared_data: Path) -> None:
    segment = build_segmenter("superpixel")
    for name in ("001", "013"):
        image = read_rgb(shared_data / "rain" / "target" / f"{name}.png")
        masks = segment(image)
        assert masks.shape == image.shape[:2]
        assert 30 <= len(masks) <= 165
        assert masks.coverage == 1.0
        assert_nested(masks)


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_are_nested_connected_and_each_there_once(seed: int) -> None:
    masks = build_segmenter("superpixel", levels=(2, 4, 8))(scene(seed=seed))
    assert_nested(masks)
    planes = masks.to_masks()
    assert len({plane.tobytes() for plane in planes}) == len(masks)
    for plane in planes:
        assert label(plane, connectivity=2).max() == 1
    assert len(masks) <= 14


def test_coarse_masks_come_first_and_scale_tells_their_level() -> None:
    masks = build_segmenter("superpixel", levels=(2, 4, 8))(scene())
    scale = masks.columns["scale"]
    assert scale.dtype == np.float32
    assert (np.diff(scale) <= 0).all()
    assert scale[:2].tolist() == pytest.approx([0.5**0.5] * 2)
    coarsest = masks.select(scale == scale[0])
    assert coarsest.coverage == 1.0
    assert int(coarsest.areas.sum()) == coarsest.atoms.size


def test_same_image_same_masks_whoever_asks() -> None:
    image = scene()
    first = build_segmenter("superpixel")
    again = pickle.loads(pickle.dumps(segmenter_settings("superpixel"))).build()
    assert first(image).equals(again(image))
    assert first(image).equals(first(np.asfortranarray(image)))


def test_regions_follow_edges_exactly() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:] = 200
    masks = build_segmenter("superpixel", levels=(2,), sigma=0.0)(image)
    left = np.zeros((60, 80), bool)
    left[:, :40] = True
    assert np.array_equal(masks.to_masks(), np.stack([left, ~left]))


def test_large_pictures_are_segmented_small_and_scaled_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("samprior.pipeline.superpixel.MAX_WORK_PIXELS", 5000)
    masks = build_segmenter("superpixel", levels=(2, 4, 8))(scene(181, 243))
    assert masks.shape == (181, 243)
    assert masks.coverage == 1.0
    assert_nested(masks)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_any_size_works_down_to_one_pixel(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    masks = build_segmenter("superpixel")(image)
    assert masks.shape == (height, width)
    assert masks.coverage == 1.0
    assert_nested(masks)


def test_a_flat_picture_is_one_region() -> None:
    assert len(build_segmenter("superpixel")(np.full((50, 70, 3), 9, np.uint8))) == 1


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"uint8 \(H, W, 3\)"):
        build_segmenter("superpixel")(image)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"levels": ()}, "levels"),
        ({"levels": 5}, "levels must be a list"),
        ({"levels": "5"}, "levels must be a list"),
        ({"levels": (0, 3)}, "levels"),
        ({"levels": (5, 5)}, "increase"),
        ({"levels": (2.5,)}, "levels"),
        ({"scale": 0}, "scale"),
        ({"sigma": float("nan")}, "sigma"),
        ({"min_area": 0.00001}, "min_area"),
        ({"min_area": 2}, "min_area"),
        ({"sigm": 1.0}, "did you mean 'sigma'"),
    ],
)
def test_wrong_settings_are_told(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        segmenter_settings("superpixel", **setting)


def test_description_is_json_and_tells_settings_apart() -> None:
    variants: list[dict[str, object]] = [{}, {"sigma": 1.0}, {"scale": 90}, {"levels": (3, 9)}]
    described = [segmenter_settings("superpixel", **variant).describe() for variant in variants]
    for one, other in itertools.combinations(described, 2):
        assert one != other
    assert json.loads(json.dumps(described)) == described
    assert {entry["segmenter"] for entry in described} == {"superpixel"}


def test_unknown_segmenters_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'superpixel'"):
        build_segmenter("superpixels")
