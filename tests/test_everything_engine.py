"""The mask engine against the official generator: the same masks in the same order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.everything import encoder
from samprior.pipeline.everything.crops import plan_crops
from samprior.pipeline.everything.engine import EverythingEngine
from samprior.pipeline.everything.search import Search
from samprior.pipeline.official_engine import OfficialEngine
from samprior.pipeline.sam import load_sam, random_sam
from samprior.pipeline.sam_segmenter import PRECISIONS
from samprior.pipeline.segmenters import BatchSegmenter, build_segmenter
from samprior.storage import MaskSet
from samprior.storage.errors import ImageError, UsageError
from samprior.storage.images import Rgb

LOOSE = {"points_per_side": 6, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.3}
ALL = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 2.0,
}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return random_sam(0)


def picture(height: int, width: int, seed: int = 0) -> Rgb:
    """Coloured blocks, so that embeddings differ from place to place."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).astype(np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]


def differing_pixels(ours: MaskSet, official: MaskSet) -> int:
    """Pixels that differ between two sets that must agree otherwise.

    The network's rounding can move a pixel over the threshold, and with it an area by 1.
    """
    assert len(ours) == len(official)
    assert ours.shape == official.shape
    assert np.array_equal(ours.columns["point"], official.columns["point"])
    for name, tolerance in (("predicted_iou", 1e-5), ("stability", 0.01)):
        values, wanted = ours.columns[name], official.columns[name]
        assert values.dtype == wanted.dtype
        assert np.allclose(values, wanted, rtol=0, atol=tolerance, equal_nan=True)
    count = 0
    for k in range(len(ours)):
        here = int((ours.mask(k) != official.mask(k)).sum())
        assert abs(ours.areas[k] - official.areas[k]) <= here
        assert here or np.array_equal(ours.boxes[k], official.boxes[k])
        assert here or np.allclose(
            ours.columns["stability"][k],
            official.columns["stability"][k],
            atol=1e-3,
            equal_nan=True,
        )
        count += here
    return count


def few(masks: MaskSet) -> int:
    """Two pixels in a million, and at least one: for masks of a single picture.

    Random weights give logits that are normally distributed about the threshold, where the
    rounding of either network decides on some pixels.
    """
    return max(1, round(2e-6 * len(masks) * masks.atoms.size))


SETTINGS = {
    "defaults-but-loose": LOOSE | {"points_per_side": 20},
    "crops": LOOSE | {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "two-layers-of-crops": LOOSE | {"crop_n_layers": 2, "crop_nms_thresh": 0.4},
    "no-nms": LOOSE | {"box_nms_thresh": 1.5, "stability_score_thresh": 0.0},
    "strict-nms": LOOSE | {"box_nms_thresh": 0.1},
    "all": ALL | {"points_per_side": 10},
    "none": LOOSE | {"pred_iou_thresh": 99.0},
    "none-stable": LOOSE | {"stability_score_thresh": 1.5},
    "none-in-crops": LOOSE | {"pred_iou_thresh": 99.0, "crop_n_layers": 1},
    "own-points": ALL | {"points_per_side": None, "point_grids": [[[0.5, 0.5], [0.2, 0.7]]]},
    "wide-offset": ALL | {"stability_score_offset": 7.5},
    "one-at-a-time": LOOSE | {"points_per_batch": 1},
}


def test_masks_are_the_official_ones_with_any_settings(sam: Sam) -> None:
    """In all at most one pixel in a million differs, of masks as ragged as random weights give."""
    differing = compared = 0
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        image, amg = picture(90, 130, seed), AmgSettings(**settings)
        ours, official = EverythingEngine(sam, amg)(image), OfficialEngine(sam, amg)(image)
        assert (len(official) == 0) == name.startswith("none"), name
        differing += differing_pixels(ours, official)
        compared += len(official) * image[..., 0].size
    assert compared > 6e6
    assert differing <= 1e-6 * compared


def test_small_regions_are_cleaned_alike(sam: Sam) -> None:
    pytest.importorskip("cv2")
    image = picture(90, 130)
    for settings in (LOOSE, ALL, LOOSE | {"crop_n_layers": 1}):
        amg = AmgSettings(**settings, min_mask_region_area=60)
        ours, official = EverythingEngine(sam, amg)(image), OfficialEngine(sam, amg)(image)
        assert len(official) > 0
        assert differing_pixels(ours, official) <= few(official)


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (16, 16), (7, 5), (1, 200), (200, 1), (480, 33), (321, 481)]
)
def test_pictures_of_any_size(sam: Sam, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    for settings in (ALL, LOOSE):
        amg = AmgSettings(**settings)
        ours, official = EverythingEngine(sam, amg)(image), OfficialEngine(sam, amg)(image)
        assert differing_pixels(ours, official) <= few(official)


@pytest.fixture(scope="module")
def full_size_sam() -> Sam:
    """Small layers, but SAM's input of 1024 x 1024."""
    return random_sam(0, image_size_px=1024)


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (720, 1280)])
def test_extreme_and_usual_shapes_at_full_size(full_size_sam: Sam, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    amg = AmgSettings(**ALL | {"points_per_side": 4})
    official = OfficialEngine(full_size_sam, amg)(image)
    assert len(official) == 48
    assert differing_pixels(EverythingEngine(full_size_sam, amg)(image), official) <= few(official)


def test_a_random_vit_b_gives_the_official_masks() -> None:
    sam = random_sam(0, model="vit_b")
    image = picture(200, 320)
    amg = AmgSettings(**ALL | {"points_per_side": 4, "pred_iou_thresh": 0.5})
    official = OfficialEngine(sam, amg)(image)
    assert len(official) > 10
    assert differing_pixels(EverythingEngine(sam, amg)(image), official) <= few(official)


def test_several_pictures_at_once_are_as_one_by_one(sam: Sam) -> None:
    images = [picture(90, 130), picture(40, 30, seed=1), picture(90, 130, seed=2)]
    amg = AmgSettings(**LOOSE, crop_n_layers=1)
    one_by_one, batched = EverythingEngine(sam, amg), EverythingEngine(sam, amg, images_at_once=4)
    for image, masks in zip(images, batched.many(images), strict=True):
        assert differing_pixels(masks, one_by_one(image)) <= few(masks)
    assert batched.images_at_once == 4
    assert batched.take_notes() == ()


def test_a_batch_too_large_for_the_memory_is_halved_and_noted(sam: Sam) -> None:
    images = [picture(40, 30, seed=seed) for seed in range(5)]
    amg = AmgSettings(**LOOSE)
    engine = EverythingEngine(sam, amg, images_at_once=4)
    encode = engine.encoder

    def cramped(inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > 1:
            raise torch.OutOfMemoryError
        return encode(inputs)

    engine.encoder = cramped  # type: ignore[assignment]
    wanted = EverythingEngine(sam, amg)
    for image, masks in zip(images, engine.many(images), strict=True):
        assert masks.equals(wanted(image))
    assert engine.images_at_once == 1
    first, second = engine.take_notes()
    assert "halved to 2" in first
    assert "halved to 1" in second
    assert engine.take_notes() == ()


def test_little_memory_for_candidates_changes_nothing_but_rounding(sam: Sam) -> None:
    amg = AmgSettings(**LOOSE | {"box_nms_thresh": 0.3})
    for seed in range(4):
        image, engine = picture(90, 130, seed), EverythingEngine(sam, amg)
        usual = engine(image)
        engine.search = Search(sam, amg, held_bytes=0)
        assert differing_pixels(engine(image), usual) <= few(usual)


def test_masks_drawn_again_are_the_same(sam: Sam) -> None:
    engine, image = EverythingEngine(sam, AmgSettings(**ALL)), picture(90, 130)
    (crop,) = plan_crops((90, 130), AmgSettings(**ALL), input_side=256)
    embedding = engine.encoder(engine.encoder_input(image, crop))[0]
    logits = engine.search.decoder.crop(crop, embedding)
    first = torch.cat([logits.above(part, 0.0).logits for part in torch.arange(36).split(8)])
    prompts, channels = torch.tensor([30, 2, 2, 35, 0, 7, 8, 9, 21, 2]), torch.arange(10) % 3
    again = logits.again(prompts, channels)
    assert torch.allclose(again, first[3 * prompts + channels], rtol=1e-4, atol=1e-3)


def test_sixteen_bits_that_overflow_are_told() -> None:
    sam = random_sam(0)
    with torch.no_grad():
        sam.image_encoder.neck[3].bias.fill_(torch.inf)
    with pytest.raises(ImageError, match="overflowed in bfloat16"):
        EverythingEngine(sam, AmgSettings(**LOOSE), precision="bfloat16")(picture(50, 60))


def test_prompts_at_once_change_nothing_but_rounding(sam: Sam) -> None:
    image = picture(90, 130)
    usual = EverythingEngine(sam, AmgSettings(**ALL))(image)
    for at_once in (5, 64):
        engine = EverythingEngine(sam, AmgSettings(**ALL))
        # What a GPU does: more prompts, and their masks drawn together.
        engine.search.decoder.prompts_at_once = engine.search.decoder.drawn_at_once = at_once
        assert differing_pixels(engine(image), usual) <= few(usual)


def test_the_fast_engine_is_the_default_and_takes_batches(sam: Sam) -> None:
    segment = build_segmenter("sam", model=sam, **LOOSE)
    assert isinstance(segment, EverythingEngine)
    assert isinstance(segment, BatchSegmenter)
    official = build_segmenter("sam", model=sam, engine="official", **LOOSE)
    assert not isinstance(official, BatchSegmenter)
    image = picture(50, 60)
    assert segment(image).equals(EverythingEngine(sam, AmgSettings(**LOOSE))(image))


def test_lower_precision_gives_nearly_the_same_masks(sam: Sam) -> None:
    image = picture(90, 130)
    exact = EverythingEngine(sam, AmgSettings(**ALL))(image)
    rough = EverythingEngine(sam, AmgSettings(**ALL), precision="bfloat16")(image)
    assert len(rough) == len(exact)
    by_point = np.lexsort(np.concatenate([exact.columns["point"].T, exact.areas[None]]))
    same = np.lexsort(np.concatenate([rough.columns["point"].T, rough.areas[None]]))
    ious = [
        (exact.mask(i) & rough.mask(j)).sum() / max(1, (exact.mask(i) | rough.mask(j)).sum())
        for i, j in zip(by_point, same, strict=True)
    ]
    assert np.median(ious) > 0.9
    with pytest.raises(UsageError, match="float16 is for GPUs"):
        EverythingEngine(sam, AmgSettings(), precision="float16")
    assert tuple(encoder.PRECISIONS) == PRECISIONS


def test_what_cannot_be_segmented_is_told(sam: Sam) -> None:
    engine = EverythingEngine(sam, AmgSettings(**LOOSE))
    with pytest.raises(ImageError, match="too thin"):
        engine(np.zeros((1, 2000, 3), np.uint8))
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)):
        with pytest.raises(UsageError, match=r"uint8 \(H, W, 3\)"):
            engine(wrong)  # type: ignore[arg-type]


@pytest.fixture
def vit_h_checkpoint(tmp_path: Path) -> Iterator[Path]:
    """2.6 GB of random numbers under the official keys and shapes."""
    path = tmp_path / "sam_vit_h_random.pth"
    torch.save(random_sam(0, model="vit_h").state_dict(), path)
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_vit_h_from_a_checkpoint_to_masks(vit_h_checkpoint: Path) -> None:
    image = picture(180, 320)
    settings = ALL | {"points_per_side": 4, "pred_iou_thresh": 0.5}
    segment = build_segmenter(
        "sam", model="vit_h", checkpoint=vit_h_checkpoint, device="cpu", **settings
    )
    masks = segment(image)
    official = OfficialEngine(
        load_sam("vit_h", checkpoint=vit_h_checkpoint), AmgSettings(**settings)
    )(image)
    assert len(official) > 10
    assert differing_pixels(masks, official) <= few(official)
