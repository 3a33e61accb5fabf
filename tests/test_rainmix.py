"""RainMix: determinism, range, what stays as it was, and the layers we draw."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from samprior.storage.errors import UsageError
from samprior.training import rainmix
from samprior.training.rainmix import (
    Floats,
    RainMixSettings,
    mixed_layer,
    rain_mix,
    synthetic_rain_layers,
)


@pytest.fixture
def layers() -> Floats:
    return synthetic_rain_layers(3, height=48, width=60, rng=np.random.default_rng(5))


@pytest.fixture
def pictures(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Rainy and clean images."""
    rainy, clean = rng.random((2, 4, 3, 32, 40), dtype=np.float32)
    return rainy, clean


def test_rain_mix_is_a_function_of_its_generator(
    pictures: tuple[Floats, Floats], layers: Floats
) -> None:
    rainy, clean = pictures
    before = [array.copy() for array in (rainy, clean, layers)]
    first, again, other = (
        rain_mix(rainy, layers, np.random.default_rng(seed), clean=clean) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for array, kept in zip((rainy, clean, layers), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_rain_mix_stays_in_range_and_adds_light(
    pictures: tuple[Floats, Floats], rng: np.random.Generator
) -> None:
    rainy, clean = pictures
    strong = np.ones((2, 40, 50), np.float32)
    for layers in (strong, rng.random((2, 40, 50), dtype=np.float32)):
        mixed = rain_mix(rainy, layers, rng, clean=clean)
        assert mixed.dtype == np.float32
        assert mixed.shape == rainy.shape
        assert 0 <= mixed.min() <= mixed.max() <= 1
        assert (mixed >= np.minimum(rainy, clean)).all()


def test_no_rain_changes_nothing(pictures: tuple[Floats, Floats], rng: np.random.Generator) -> None:
    rainy, clean = pictures
    dry = np.zeros((1, 32, 40), np.float32)
    settings = RainMixSettings(clean_share=0)
    np.testing.assert_array_equal(rain_mix(rainy, dry, rng, clean=clean, settings=settings), rainy)
    settings = RainMixSettings(clean_share=1)
    np.testing.assert_array_equal(rain_mix(rainy, dry, rng, clean=clean, settings=settings), clean)
    both = rain_mix(
        np.zeros((200, 3, 1, 1), np.float32), dry, rng, clean=np.ones((200, 3, 1, 1), np.float32)
    )
    assert both.mean() == pytest.approx(4 / 11, abs=0.12)  # 3.5 standard deviations


def test_rain_falls_alike_on_all_colours(layers: Floats, rng: np.random.Generator) -> None:
    black = np.zeros((2, 3, 32, 40), np.float32)
    mixed = rain_mix(black, layers, rng, clean=black)
    assert mixed.any()
    assert (mixed == mixed[:, :1]).all()


def test_a_mixed_layer_has_the_layer_itself_and_more(
    layers: Floats, rng: np.random.Generator
) -> None:
    for _ in range(10):
        mixed = mixed_layer(layers[0], rng, settings=RainMixSettings())
        assert mixed.shape == layers[0].shape
        assert (mixed >= np.float32(0.7) * layers[0] - 1e-6).all()
        assert mixed.max() <= 1


@pytest.mark.parametrize("operation", rainmix._OPERATIONS)
def test_operations_move_rain_and_keep_its_range(
    operation: Callable[..., rainmix.Image.Image], rng: np.random.Generator
) -> None:
    layer = rng.random((30, 41), dtype=np.float32)
    for level in (0.1, 1.0, 3.0):
        moved = np.asarray(operation(rainmix.Image.fromarray(layer), level, rng))
        assert moved.shape == layer.shape
        assert moved.min() >= 0
        assert moved.max() <= layer.max() + 1e-6
    assert not np.array_equal(moved, layer)


def test_shifts_are_whole_pixels_with_nothing_behind(rng: np.random.Generator) -> None:
    layer = rng.random((30, 60), dtype=np.float32)
    picture = rainmix.Image.fromarray(layer)
    moved = [np.asarray(rainmix._shift_x(picture, 3, rng)) for _ in range(10)]
    right, left = np.zeros((2, 30, 60), np.float32)
    right[:, 6:], left[:, :-6] = layer[:, :-6], layer[:, 6:]  # 10 % of the width
    assert all(np.array_equal(each, right) or np.array_equal(each, left) for each in moved)
    assert len({each.tobytes() for each in moved}) == 2


def test_synthetic_layers_are_sparse_streaks() -> None:
    layers = synthetic_rain_layers(5, height=64, width=90, rng=np.random.default_rng(0))
    again = synthetic_rain_layers(5, height=64, width=90, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(layers, again)
    assert layers.shape == (5, 64, 90)
    assert layers.dtype == np.float32
    assert 0 <= layers.min() <= layers.max() <= 1
    assert all(layer.max() > 0.1 and layer.mean() < 0.25 for layer in layers)
    # Longer down than across: neighbours above are more alike than neighbours beside.
    down, across = (np.abs(np.diff(layers, axis=axis)).mean() for axis in (1, 2))
    assert down < across


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rainy": np.zeros((3, 8, 8))}, "(B, 3, h, w), got (3, 8, 8)"),
        ({"clean": np.zeros((1, 3, 8, 9))}, "got (1, 3, 8, 8) and (1, 3, 8, 9)"),
        ({"layers": np.zeros((0, 8, 8))}, "at least one rain layer"),
        ({"layers": np.zeros((8, 8))}, "(N, H, W), got (8, 8)"),
        ({"layers": np.zeros((1, 8, 7))}, "at least as large as the images, got (8, 7)"),
        ({"layers": np.full((1, 8, 8), 255.0)}, "layers from 255.0 to 255.0"),
        ({"rainy": np.full((1, 3, 8, 8), np.nan)}, "rainy images from nan"),
        ({"clean": np.full((1, 3, 8, 8), -1.0)}, "clean images from -1.0"),
    ],
)
def test_mistakes_of_rain_mix_are_named(
    change: dict[str, Floats], message: str, rng: np.random.Generator
) -> None:
    image = np.zeros((1, 3, 8, 8), np.float32)
    given = {"rainy": image, "clean": image, "layers": np.zeros((1, 8, 8), np.float32), **change}
    with pytest.raises(UsageError, match=re.escape(message)):
        rain_mix(given["rainy"], given["layers"], rng, clean=given["clean"])


@pytest.mark.parametrize(
    "setting",
    [{"chains": 0}, {"severity": 0.1}, {"severity": 11.0}, {"alpha": 0.0}, {"clean_share": 1.1}],
)
def test_settings_outside_their_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"got {next(iter(setting.values()))}"):
        RainMixSettings(**setting)  # type: ignore[arg-type]


def test_layers_have_a_size(rng: np.random.Generator) -> None:
    with pytest.raises(UsageError, match="got 1 of 0x5"):
        synthetic_rain_layers(1, height=0, width=5, rng=rng)
