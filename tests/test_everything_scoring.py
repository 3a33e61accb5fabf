"""Scores of masks from low-resolution logits: every number as the official code computes it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, gaussian_filter
from segment_anything.modeling import Sam
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from samprior.pipeline.everything import cells, scoring
from samprior.pipeline.everything.resampling import Resampling
from samprior.pipeline.everything.scoring import Scores, score_masks
from samprior.pipeline.everything.workspace import Thresholds, workspace

# (height, width, side of the model's input)
SIZES = [
    (720, 1280, 1024),
    (1280, 720, 1024),
    (321, 481, 1024),
    (1, 2000, 1024),
    (2000, 1, 1024),
    (7, 5, 1024),
    (64, 64, 1024),
    (2000, 3000, 1024),
    (576, 1024, 1024),
    (90, 130, 256),
    (40, 56, 256),
    (20, 30, 64),
]

pytestmark = pytest.mark.usefixtures("two_threads")


def resampling_of(height: int, width: int, img_size: int) -> Resampling:
    rows, columns = ResizeLongestSide.get_preprocess_shape(height, width, img_size)
    return Resampling.of(
        img_size // 4,
        img_size=img_size,
        input_size=(max(rows, 1), max(columns, 1)),
        original_size=(height, width),
    )


def official_logits(logits: Tensor, resampling: Resampling) -> Tensor:
    """(M, H, W) of logits (M, h, h), three to a prompt as SAM's decoder gives them."""
    model = SimpleNamespace(
        image_encoder=SimpleNamespace(img_size=logits.shape[-1] * resampling.factor)
    )
    prompts = logits.reshape(-1, 3, *logits.shape[1:])
    planes: Tensor = Sam.postprocess_masks(
        model, prompts, input_size=resampling.input_size, original_size=resampling.size
    )
    return planes.flatten(0, 1)


def official_scores(values: Tensor, *, mask_threshold: float, offset: float) -> Scores:
    masks = values > mask_threshold
    return Scores(
        stability=calculate_stability_score(values, mask_threshold, offset),
        areas=masks.sum((1, 2)),
        boxes=batched_mask_to_box(masks),
    )


def assert_same(found: Scores, wanted: Scores) -> None:
    assert found.areas.dtype == found.boxes.dtype == torch.int64
    assert found.stability.dtype == torch.float32
    assert torch.equal(found.areas, wanted.areas)
    assert torch.equal(found.boxes, wanted.boxes)
    np.testing.assert_array_equal(found.stability.numpy(), wanted.stability.numpy())


def noise(rng: np.random.Generator, side: int) -> Tensor:
    """Six masks: raw and smooth noise, and whole numbers, of which many lie on the thresholds."""
    raw = rng.standard_normal((6, side, side))
    smooth = gaussian_filter(raw, (0, 3, 3)) * 60
    logits = np.stack([*(5 * raw[:2]), *smooth[2:4], np.round(raw[4]), np.round(smooth[5])])
    return torch.from_numpy(logits.astype(np.float32))


def human_masks(shared_data: Path, side: int, count: int) -> Tensor:
    """Blurred signed distances, in samples, to human segmentations."""
    logits: list[npt.NDArray[np.float32]] = []
    for path in sorted((shared_data / "bsds500" / "train").rglob("*.npz")):
        segments = np.load(path)["segmentations"][0]
        at = [np.linspace(0, length - 1, side).astype(int) for length in segments.shape]
        segments = segments[np.ix_(*at)]
        for label in np.unique(segments)[:4]:
            inside = segments == label
            distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
            slope = 1 + len(logits) % 4
            logits.append(np.float32(slope) * gaussian_filter(distance, 1.0).astype(np.float32))
        if len(logits) >= count:
            break
    return torch.from_numpy(np.stack(logits[:count]))


@pytest.mark.parametrize("size", SIZES)
def test_values_near_thresholds_are_pytorchs_bit_for_bit(
    rng: np.random.Generator, size: tuple[int, int, int]
) -> None:
    """With an infinite margin every pixel is near: each is compared, and none may differ."""
    resampling = resampling_of(*size)
    logits = noise(rng, size[2] // 4)[[0, 2, 5]]
    at, work, margin = (
        Thresholds(*np.float32([-1, 0, 1])),
        workspace(resampling),
        np.float32(np.inf),
    )
    tables = resampling.tables
    rows, columns = tables.rows, tables.columns
    for samples, wanted in zip(logits.numpy(), official_logits(logits, resampling), strict=True):
        found = np.full(resampling.size, np.nan, np.float32)
        for y, t in enumerate(rows.starts):
            cells._classify(samples, at, margin, work, t, 0, len(columns.edges) - 1)
            count = cells._mix_columns(samples, columns, work, t, 0, len(columns.edges) - 1)
            cells._mix_rows(work.mixed, tuple(rows.weights[:, y]), at, margin, work.values, count)
            cells._settle(samples, tables, at, margin, work, y, count)
            found[y, work.places[:count]] = work.values[:count]
        compared, differ = found.size, np.count_nonzero(found != wanted.numpy())
        assert (compared, differ) == (size[0] * size[1], 0)


@pytest.mark.parametrize("size", SIZES)
def test_scores_are_the_official_ones(rng: np.random.Generator, size: tuple[int, int, int]) -> None:
    resampling = resampling_of(*size)
    logits = noise(rng, size[2] // 4)
    if size[0] * size[1] > 1_000_000:
        logits = logits[[0, 2, 5]]
    values = official_logits(logits, resampling)
    cut = logits[:, : resampling.rows_needed, : resampling.columns_needed]
    for mask_threshold, offset in (0.0, 1.0), (0.1 + 0.2, 0.7), (-2.0, 0.0):
        wanted = official_scores(values, mask_threshold=mask_threshold, offset=offset)
        for samples in logits, cut:
            found = score_masks(samples, resampling, mask_threshold=mask_threshold, offset=offset)
            assert_same(found, wanted)


def test_scores_of_human_segmentations_are_the_official_ones(shared_data: Path) -> None:
    """60 masks of 1280x720, 55 million pixels: none differs, as all counts and boxes agree."""
    resampling = resampling_of(720, 1280, 1024)
    logits = human_masks(shared_data, 256, 60)
    found = score_masks(logits, resampling, mask_threshold=0.0, offset=1.0)
    assert 0.9 < float(found.stability.nanmedian()) < 0.99
    for start in range(0, 60, 12):
        part = slice(start, start + 12)
        values = official_logits(logits[part], resampling)
        wanted = official_scores(values, mask_threshold=0.0, offset=1.0)
        assert_same(Scores(found.stability[part], found.areas[part], found.boxes[part]), wanted)


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 128]), st.integers(0, 99))
def test_scores_of_any_size_are_the_official_ones(
    height: int, width: int, img_size: int, seed: int
) -> None:
    resampling = resampling_of(height, width, img_size)
    logits = noise(np.random.default_rng(seed), img_size // 4)
    wanted = official_scores(official_logits(logits, resampling), mask_threshold=0.0, offset=1.0)
    assert_same(score_masks(logits, resampling, mask_threshold=0.0, offset=1.0), wanted)


def test_thresholds_on_the_very_values_of_pixels(rng: np.random.Generator) -> None:
    """Where one unit in the last place decides, for 60 pixels of 481x321."""
    resampling = resampling_of(321, 481, 1024)
    logits = noise(rng, 256)[:3]
    values = official_logits(logits, resampling)
    for threshold in rng.choice(values[2].numpy().reshape(-1), 60).tolist():
        found = score_masks(logits[2:], resampling, mask_threshold=threshold, offset=0.0)
        assert int(found.areas[0]) == int((values[2] > threshold).sum())


def test_constant_logits_on_and_beside_the_thresholds(rng: np.random.Generator) -> None:
    above = np.nextafter(np.float32(1), np.float32(2))
    below = np.nextafter(np.float32(1), np.float32(0))
    constants = np.array([-1, 0, 1, above, below, 1e-42, -1e-42, 30, -30], np.float32)
    logits = torch.from_numpy(np.broadcast_to(constants[:, None, None], (9, 64, 64)).copy())
    resampling = resampling_of(180, 320, 256)
    wanted = official_scores(official_logits(logits, resampling), mask_threshold=0.0, offset=1.0)
    found = score_masks(logits, resampling, mask_threshold=0.0, offset=1.0)
    assert_same(found, wanted)
    assert found.boxes[8].tolist() == [0, 0, 0, 0]
    assert torch.isnan(found.stability[8])


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_wild_logits_are_compared_as_the_official_code_does(
    rng: np.random.Generator, wild: float
) -> None:
    logits = noise(rng, 64)
    logits[:, 20, 20:24] = wild
    resampling = resampling_of(180, 320, 256)
    wanted = official_scores(official_logits(logits, resampling), mask_threshold=0.0, offset=1.0)
    assert_same(score_masks(logits, resampling, mask_threshold=0.0, offset=1.0), wanted)


def test_the_way_of_other_devices_gives_the_same(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (720, 1280, 1024), (40, 56, 256):
        resampling = resampling_of(*size)
        logits = noise(rng, size[2] // 4)
        cut = logits[:, : resampling.rows_needed, : resampling.columns_needed]
        at = {"mask_threshold": 0.0, "offset": 1.0}
        wanted = official_scores(official_logits(logits, resampling), **at)
        for masks_at_once in (1, 4, 6):
            monkeypatch.setattr(scoring, "_CHUNK_BYTES", masks_at_once * 4 * 1280 * 720)
            assert_same(scoring._by_chunks(cut, resampling, **at), wanted)


def test_no_masks_have_no_scores() -> None:
    resampling = resampling_of(90, 130, 256)
    for score in score_masks, scoring._by_chunks:
        scores = score(torch.zeros(0, 64, 64), resampling, mask_threshold=0.0, offset=1.0)
        assert_same(scores, Scores(torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 4).long()))


@pytest.mark.parametrize("size", SIZES)
def test_a_pixel_is_a_mean_of_three_consecutive_samples(size: tuple[int, int, int]) -> None:
    resampling = resampling_of(*size)
    assert (
        Resampling.of(
            size[2] // 4,
            img_size=size[2],
            input_size=resampling.input_size,
            original_size=resampling.size,
        )
        is resampling
    )
    needed = resampling.rows_needed, resampling.columns_needed
    for axis, length, taps in zip(resampling.tables[:2], resampling.size, needed, strict=True):
        assert axis.weights.shape == (3, length)
        assert axis.weights.min() >= 0
        np.testing.assert_allclose(axis.weights.sum(0), 1, rtol=1e-6)
        assert axis.edges[0] == 0
        assert axis.edges[-1] == length
        assert int(axis.starts.max()) + 3 <= taps
        first = np.repeat(np.arange(taps - 2), np.diff(axis.edges))
        assert np.array_equal(axis.starts, first)
