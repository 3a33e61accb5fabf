"""From a decoder's outputs to masks, against the official generator, on realistic logits.

The logits are signed distances to the regions that people drew in photographs, blurred and scaled
so that the stability of the masks lies on both sides of its threshold. Both engines get the same
ones, so that everything behind the decoder is compared with no rounding of a network in between.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from segment_anything.modeling import Sam
from torch import Tensor

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.everything.crop_logits import MaskLogits
from samprior.pipeline.everything.crops import Crop
from samprior.pipeline.everything.engine import EverythingEngine
from samprior.pipeline.everything.resampling import Resampling
from samprior.pipeline.official_engine import OfficialEngine
from samprior.pipeline.sam import random_sam

LOW_RES, INPUT = 256, 1024

pytestmark = pytest.mark.usefixtures("two_threads")


@dataclass(frozen=True, eq=False)
class Scene:
    """Outputs of a decoder for every prompt of a picture."""

    size: tuple[int, int]
    logits: Tensor
    """(P, 3, 256, 256)"""
    predicted_iou: Tensor
    """(P, 3)"""


@pytest.fixture(scope="module")
def sam() -> Sam:
    """Only its sizes are used."""
    return random_sam(0, image_size_px=INPUT)


def logits_of(region: npt.NDArray[np.bool_], slope: float) -> npt.NDArray[np.float32]:
    """(256, 256) signed distance to a region (h, w) of the low-resolution frame; outside is far."""
    inside = np.zeros((LOW_RES, LOW_RES), np.bool_)
    inside[: region.shape[0], : region.shape[1]] = region
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    smooth = gaussian_filter(np.clip(distance, -8, 8), 1.0)
    return (slope * smooth).astype(np.float32)


def scene_of(
    file: Path, size: tuple[int, int], points_per_side: int, seed: int, *, specks: int = 0
) -> Scene:
    """Three people's regions at each prompt of a grid, with small holes and islands if asked."""
    rng = np.random.default_rng(seed)
    labels = np.load(file)["segmentations"]
    scale = LOW_RES / max(size)
    frame = max(1, round(size[1] * scale)), max(1, round(size[0] * scale))
    maps = [
        np.array(Image.fromarray(one).resize(frame, Image.Resampling.NEAREST)) for one in labels
    ]
    made: dict[tuple[int, int], npt.NDArray[np.float32]] = {}
    logits = []
    for row in range(points_per_side):
        for column in range(points_per_side):
            y = int((row + 0.5) / points_per_side * maps[0].shape[0])
            x = int((column + 0.5) / points_per_side * maps[0].shape[1])
            for person in rng.choice(len(maps), 3, replace=False):
                key = int(person), int(maps[person][y, x])
                if key not in made:
                    region = maps[person] == key[1]
                    for top, left in rng.integers(0, region.shape, (specks, 2)):
                        region[top : top + 4, left : left + 4] ^= True
                    made[key] = logits_of(region, slope=rng.uniform(0.5, 12))
                noise = rng.normal(0, 0.05, (LOW_RES // 8, LOW_RES // 8)).repeat(8, 0).repeat(8, 1)
                logits.append(made[key] + noise.astype(np.float32))
    count = points_per_side**2
    predicted = torch.from_numpy(rng.uniform(0.7, 1.0, (count, 3)).astype(np.float32))
    return Scene(
        size, torch.from_numpy(np.stack(logits)).view(count, 3, LOW_RES, LOW_RES), predicted
    )


class SceneLogits:
    """Stands for `CropLogits`: the scene's outputs instead of a decoder's."""

    def __init__(self, scene: Scene, crop: Crop) -> None:
        self.scene = scene
        self.resampling = Resampling.of(
            LOW_RES, img_size=INPUT, input_size=crop.input_size, original_size=crop.size
        )

    def above(self, prompts: Tensor, threshold: float) -> MaskLogits:
        predicted = self.scene.predicted_iou[prompts]
        wanted = predicted > threshold if threshold > 0 else torch.ones_like(predicted).bool()
        rows, channels = wanted.nonzero(as_tuple=True)
        return MaskLogits(
            prompts[rows], channels, predicted[rows, channels], self.again(prompts[rows], channels)
        )

    def again(self, prompts: Tensor, channels: Tensor) -> Tensor:
        return self.scene.logits[prompts, channels]


def official_predictions(sam: Sam, scene: Scene, crop: Crop) -> Callable[..., Any]:
    """Stands for `SamPredictor.predict_torch`: the scene's outputs, officially resized."""
    batches = iter(torch.split(torch.arange(len(scene.logits)), 64))

    def predict(points: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
        rows = next(batches)
        assert len(rows) == len(points)
        low_res = scene.logits[rows]
        masks = sam.postprocess_masks(low_res, crop.input_size, crop.size)
        return masks, scene.predicted_iou[rows], low_res

    return predict


def both(
    sam: Sam, scene: Scene, amg: AmgSettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The masks of the engine, then those of the official generator."""
    image = np.zeros((*scene.size, 3), np.uint8)
    engine = EverythingEngine(sam, amg)
    monkeypatch.setattr(engine, "encoder", lambda inputs: torch.zeros(1, 1, 1, 1))
    monkeypatch.setattr(engine.search.decoder, "crop", lambda crop, _: SceneLogits(scene, crop))
    yield engine(image)
    official = OfficialEngine(sam, amg)
    predictor = official._generator.predictor
    (crop,) = engine._plan(image)
    monkeypatch.setattr(predictor, "set_image", lambda image: None)
    monkeypatch.setattr(predictor, "predict_torch", official_predictions(sam, scene, crop))
    yield official(image)


@pytest.mark.parametrize(
    ("picture", "size", "side", "nms"),
    [
        (0, (321, 481), 12, 0.7),
        (1, (481, 321), 9, 2.0),
        (2, (720, 1280), 9, 0.7),
        (3, (100, 77), 12, 0.7),
        (4, (1, 2000), 6, 2.0),
        (5, (1080, 200), 9, 0.7),
    ],
)
def test_masks_are_the_official_ones_bit_for_bit(
    shared_data: Path,
    sam: Sam,
    picture: int,
    size: tuple[int, int],
    side: int,
    nms: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = sorted((shared_data / "bsds500" / "train").rglob("*.npz"))
    scene = scene_of(files[7 * picture], size, side, seed=picture)
    amg = AmgSettings(points_per_side=side, box_nms_thresh=nms)
    ours, official = both(sam, scene, amg, monkeypatch)
    passed = int((scene.predicted_iou > amg.pred_iou_thresh).sum())
    assert 0 < len(official) < passed
    # The same masks in the same order with the same scores, and not one pixel of all differs.
    assert ours.equals(official)


def test_masks_that_are_cleaned_are_the_official_ones(
    shared_data: Path, sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2")
    file = sorted((shared_data / "bsds500" / "train").rglob("*.npz"))[3]
    scene = scene_of(file, (321, 481), 8, seed=3, specks=3)
    amg = AmgSettings(points_per_side=8, min_mask_region_area=100)
    ours, official = both(sam, scene, amg, monkeypatch)
    assert len(official) > 3
    assert ours.equals(official)
    plain, _ = both(sam, scene, AmgSettings(points_per_side=8), monkeypatch)
    assert not ours.equals(plain)
