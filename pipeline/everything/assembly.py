"""The masks of all crops of a picture as one `MaskSet`: NMS between crops, small regions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import batched_nms, box_area

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.everything.raster import Raster, mask_plane
from samprior.pipeline.everything.regions import remove_small_regions
from samprior.pipeline.everything.search import Found
from samprior.storage import MaskSet
from samprior.storage.masks import Bools


def assemble(
    found: Sequence[Sequence[Found]],
    *,
    shape: tuple[int, int],
    amg: AmgSettings,
    mask_threshold: float,
) -> MaskSet:
    """The masks of each crop of a picture of (H, W) pixels, in the official generator's order."""
    masks = [_Drawable(mask, shape, mask_threshold) for crop in found for mask in crop]
    if len(found) > 1:
        masks = _unrepeated(masks, amg.crop_nms_thresh)
    if amg.min_mask_region_area > 0:
        masks = _cleaned(masks, amg)
    raster = Raster(*shape)
    for mask in masks:
        mask.draw(raster)
    return raster.finish(
        {
            "predicted_iou": np.array([mask.found.predicted_iou for mask in masks], np.float32),
            "stability": np.array([mask.found.stability for mask in masks], np.float32),
            "point": np.array([mask.found.point for mask in masks], np.float32).reshape(-1, 2),
        }
    )


@dataclass(frozen=True, eq=False)
class _Drawable:
    """A mask by its logits, or by its pixels once these were changed."""

    found: Found
    shape: tuple[int, int]
    mask_threshold: float
    changed: npt.NDArray[np.uint8] | None = None
    """Bits of the (H, W) pixels, if they differ from what the logits say."""

    @property
    def box(self) -> npt.NDArray[np.int64]:
        """x0, y0, x1, y1 in pixels of the picture, x1 and y1 inside the mask."""
        if self.changed is not None:
            return _box_of(self.plane())
        x0, y0, _, _ = self.found.crop.box
        moved: npt.NDArray[np.int64] = np.array(self.found.box) + np.array([x0, y0, x0, y0])
        return moved

    def plane(self) -> Bools:
        """(H, W) pixels."""
        height, width = self.shape
        if self.changed is not None:
            bits = np.unpackbits(self.changed, count=height * width)
            return bits.view(np.bool_).reshape(height, width)
        plane = np.zeros(self.shape, np.bool_)
        x0, y0, x1, y1 = self.found.crop.box
        plane[y0:y1, x0:x1] = mask_plane(
            self.found.logits,
            self.found.resampling,
            self.found.box,
            mask_threshold=self.mask_threshold,
        )
        return plane

    def draw(self, raster: Raster) -> None:
        """Add the mask to a raster of its picture."""
        if self.changed is not None:
            raster.add_plane(self.plane())
            return
        x0, y0, _, _ = self.found.crop.box
        raster.add(
            self.found.logits,
            self.found.resampling,
            self.found.box,
            x0=x0,
            y0=y0,
            mask_threshold=self.mask_threshold,
        )


def _unrepeated(masks: Sequence[_Drawable], threshold: float) -> list[_Drawable]:
    """Without duplicates between crops, of which those of the smaller crop are kept."""
    boxes = torch.tensor([mask.found.crop.box for mask in masks]).reshape(-1, 4)
    return _suppressed(masks, 1 / box_area(boxes), threshold)


def _cleaned(masks: Sequence[_Drawable], amg: AmgSettings) -> list[_Drawable]:
    """With small holes filled and small islands dropped, and without duplicates of that.

    The official generator prefers masks that needed no cleaning.
    """
    cleaned, untouched = [], []
    for mask in masks:
        plane, changed = remove_small_regions(mask.plane(), amg.min_mask_region_area)
        bits = np.packbits(plane) if changed else None
        cleaned.append(_Drawable(mask.found, mask.shape, mask.mask_threshold, bits))
        untouched.append(float(not changed))
    threshold = max(amg.box_nms_thresh, amg.crop_nms_thresh)
    return _suppressed(cleaned, torch.tensor(untouched), threshold)


def _suppressed(
    masks: Sequence[_Drawable], scores: torch.Tensor, threshold: float
) -> list[_Drawable]:
    """What NMS keeps, best first; the official call."""
    boxes = torch.tensor(np.array([mask.box for mask in masks])).reshape(-1, 4)
    keep = batched_nms(boxes.float(), scores, torch.zeros(len(masks)), iou_threshold=threshold)
    return [masks[row] for row in keep.tolist()]


def _box_of(plane: Bools) -> npt.NDArray[np.int64]:
    """x0, y0, x1, y1 of the pixels (H, W), inclusive; zeros for none."""
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    if not len(rows):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])
