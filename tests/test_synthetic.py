"""Synthetic degradations are seeded, keep what they promise, and make sets that are found."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samprior.pipeline.datasets import check_pairs, find_dataset
from samprior.pipeline.synthetic import (
    TEST_PHOTOS,
    TRAIN_PHOTOS,
    camera_noise,
    motion_blur,
    rain_streaks,
    write_demo_datasets,
)
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb, read_rgb

Recipe = Callable[..., Rgb]
RECIPES = [motion_blur, rain_streaks, camera_noise]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_demo_datasets(tmp_path_factory.mktemp("demo"), longest_px=160)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


def psnr_db(first: Rgb, second: Rgb) -> float:
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(64, 80, 3), (41, 57, 3)])
def test_recipes_are_seeded_and_leave_their_input_alone(
    recipe: Recipe, shape: tuple[int, ...]
) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    first = recipe(image, np.random.default_rng(5))
    assert (first.dtype, first.shape) == (np.uint8, shape)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(first, recipe(image, np.random.default_rng(5)))
    assert (first != recipe(image, np.random.default_rng(6))).any()


def test_blur_keeps_flat_areas_light_and_place(rng: np.random.Generator) -> None:
    flat = np.full((48, 64, 3), (200, 90, 3), np.uint8)
    np.testing.assert_array_equal(motion_blur(flat, rng), flat)
    for seed in range(10):
        dot = np.zeros((65, 65, 3), np.uint8)
        dot[32, 32] = 255
        light = (motion_blur(dot, np.random.default_rng(seed))[:, :, 0] / 255.0) ** 2.2
        assert light.sum() == pytest.approx(1, rel=0.03)  # 8 bits round the rim of the kernel
        rows, columns = np.indices(light.shape)
        centre = (light * rows).sum() / light.sum(), (light * columns).sum() / light.sum()
        np.testing.assert_allclose(centre, 32, atol=0.3)


@pytest.mark.parametrize("extent_px", [2.0, 9.5, 20.0])
def test_blur_reaches_as_far_as_asked(rng: np.random.Generator, extent_px: float) -> None:
    dot = np.zeros((99, 99, 3), np.uint8)
    dot[49, 49] = 255
    rows, columns = np.nonzero(motion_blur(dot, rng, extent_px=extent_px)[:, :, 0])
    reach_px = max(np.ptp(rows), np.ptp(columns))
    assert extent_px - 1.5 <= reach_px <= extent_px + 1.5


def test_rain_only_brightens_all_channels_alike() -> None:
    grey = np.full((120, 100, 3), 90, np.uint8)
    amounts = []
    for density in (0.0, 0.5, 1.0):
        rainy = rain_streaks(grey, np.random.default_rng(3), density=density)
        assert (rainy >= grey).all()
        np.testing.assert_array_equal(rainy[:, :, 0], rainy[:, :, 2])
        amounts.append((rainy.astype(int) - grey).sum())
    assert 0 < amounts[0] < amounts[1] < amounts[2]


def test_noise_has_no_bias_and_grows_as_light_fades() -> None:
    spreads = {}
    for full_well in (100.0, 1000.0):
        grey = np.full((128, 128, 3), 130, np.uint8)
        noisy = camera_noise(grey, np.random.default_rng(0), full_well=full_well)
        linear = ((noisy / 255.0) ** 2.2).mean(axis=(0, 1))
        np.testing.assert_allclose(linear, (130 / 255) ** 2.2, rtol=0.03)
        spreads[full_well] = noisy.std(axis=(0, 1))
    assert (spreads[100.0] > 2 * spreads[1000.0]).all()
    assert spreads[1000.0][0] > spreads[1000.0][1]  # red is amplified more than green


@pytest.mark.parametrize(
    ("recipe", "setting"),
    [
        (motion_blur, {"extent_px": 0}),
        (motion_blur, {"extent_px": 30}),
        (rain_streaks, {"density": 1.1}),
        (camera_noise, {"full_well": 0}),
    ],
)
def test_settings_out_of_range_are_refused(
    rng: np.random.Generator, recipe: Recipe, setting: dict[str, float]
) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        recipe(np.zeros((32, 32, 3), np.uint8), rng, **setting)


def test_train_and_test_share_no_scene() -> None:
    scenes = [{name.partition("_")[0] for name in names} for names in (TRAIN_PHOTOS, TEST_PHOTOS)]
    assert not scenes[0] & scenes[1]


def test_demo_sets_are_found_and_whole(demo: dict[str, Path]) -> None:
    assert list(demo) == ["gopro", "rain", "sensenoise"]
    for name, root in demo.items():
        for split, num_pairs in (("train", 16), ("test", 4)):
            dataset = find_dataset(name, root, split=split)
            assert len(dataset.pairs) == num_pairs
            assert check_pairs(dataset) == []
    assert demo["gopro"].name == "GOPRO_Large"
    keys = [pair.key for pair in find_dataset("gopro", demo["gopro"], split="test").pairs]
    assert keys == [f"{photo}/00000{frame}" for photo in ("chelsea", "rocket") for frame in (1, 2)]


def test_demo_degradations_are_as_strong_as_the_benchmarks(demo: dict[str, Path]) -> None:
    for name, root in demo.items():
        scores = [
            psnr_db(read_rgb(pair.degraded), read_rgb(pair.clean))
            for pair in find_dataset(name, root, split="train").pairs
        ]
        assert min(scores) > 16
        assert 20 < np.median(scores) < 28
        assert len(set(scores)) == len(scores)


def test_demo_is_the_same_for_the_same_seed(demo: dict[str, Path], tmp_path: Path) -> None:
    again = write_demo_datasets(tmp_path / "same", longest_px=160)
    assert digests(again["gopro"]) == digests(demo["gopro"])
    assert digests(again["rain"]) == digests(demo["rain"])
    assert digests(again["sensenoise"]) == digests(demo["sensenoise"])
    other = write_demo_datasets(tmp_path / "other", seed=1, num_frames=1, longest_px=160)
    both = digests(demo["sensenoise"]).keys() & digests(other["sensenoise"]).keys()
    assert len(both) == 2 * (len(TRAIN_PHOTOS) + len(TEST_PHOTOS))
    noisy = [path for path in both if "/noisy/" in path]
    mine, others = digests(demo["sensenoise"]), digests(other["sensenoise"])
    assert all(mine[path] != others[path] for path in noisy)


def test_demo_refuses_to_write_over_anything(tmp_path: Path) -> None:
    (tmp_path / "rain").mkdir()
    with pytest.raises(UsageError, match=r"rain exists; remove it or choose another folder"):
        write_demo_datasets(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rain"]
    with pytest.raises(UsageError, match="got 0 and 512"):
        write_demo_datasets(tmp_path / "new", num_frames=0)
