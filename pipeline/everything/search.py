"""One crop, from its embedding to the masks that survive: decode, filter, score, NMS.

The steps and their order are those of the official `SamAutomaticMaskGenerator._process_crop`; what
a filter drops is not computed further.
"""

from dataclasses import dataclass

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import is_box_near_crop_edge
from torch import Tensor

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.everything.candidates import HELD_BYTES, Candidates, Scored
from samprior.pipeline.everything.crop_logits import MaskDecoder, MaskLogits
from samprior.pipeline.everything.crops import Crop
from samprior.pipeline.everything.raster import PixelBox
from samprior.pipeline.everything.resampling import TAPS, Axis, Resampling
from samprior.pipeline.everything.scoring import score_masks


@dataclass(frozen=True, eq=False)
class Found:
    """A mask that a crop contributes, not yet drawn."""

    crop: Crop
    resampling: Resampling
    box: PixelBox
    """x0, y0, x1, y1 in pixels of the crop, x1 and y1 inside the mask."""
    point: tuple[float, float]
    """The prompt's x and y in pixels of the picture."""
    predicted_iou: float
    stability: float
    patch: Tensor
    """float32 logits on the CPU, of the part that the box depends on."""
    corner: tuple[int, int]
    """Row and column of the patch's first logit."""

    @property
    def logits(self) -> Tensor:
        """(h, w) with the patch in its place, and zeros where nobody looks."""
        resampling, (top, left) = self.resampling, self.corner
        logits = np.zeros((resampling.rows_needed, resampling.columns_needed), np.float32)
        height, width = self.patch.shape
        logits[top : top + height, left : left + width] = self.patch.numpy()
        return torch.from_numpy(logits)


class Search:
    """Finds the masks of crops with one SAM and one set of settings."""

    def __init__(self, sam: Sam, amg: AmgSettings, *, held_bytes: int = HELD_BYTES) -> None:
        self._amg = amg
        self._held_bytes = held_bytes
        self._mask_threshold: float = sam.mask_threshold
        self.decoder = MaskDecoder(sam, prompts_at_once=amg.points_per_batch)

    @torch.no_grad()
    def __call__(self, crop: Crop, embedding: Tensor, *, shape: tuple[int, int]) -> list[Found]:
        """Masks of a crop of a picture of (H, W) pixels, from its embedding (C, rows, columns).

        Best first, as NMS leaves them.
        """
        logits = self.decoder.crop(crop, embedding)
        found = Candidates(nms_thresh=self._amg.box_nms_thresh, held_bytes=self._held_bytes)
        for prompts in torch.split(torch.arange(len(crop.points)), self.decoder.prompts_at_once):
            drawn = logits.above(prompts, self._amg.pred_iou_thresh)
            found.add(*self._passing(drawn, logits.resampling, crop, shape))
        scored, kept = found.kept(logits.again)
        return [
            _found(crop, logits.resampling, scored, row, plane) for row, plane in enumerate(kept)
        ]

    def _passing(
        self, drawn: MaskLogits, resampling: Resampling, crop: Crop, shape: tuple[int, int]
    ) -> tuple[Scored, Tensor, Tensor]:
        """The masks that are stable and don't end at a crop's edge, as `Candidates` take them."""
        amg, (height, width) = self._amg, shape
        scores = score_masks(
            drawn.logits,
            resampling,
            mask_threshold=self._mask_threshold,
            offset=amg.stability_score_offset,
        )
        stability, boxes = scores.stability.cpu(), scores.boxes.cpu()
        passing = torch.ones(len(boxes), dtype=torch.bool)
        if crop.size != shape:
            passing = ~is_box_near_crop_edge(boxes, list(crop.box), [0, 0, width, height])
        if amg.stability_score_thresh > 0:
            passing &= stability >= amg.stability_score_thresh
        scored = Scored(drawn.prompts, drawn.channels, drawn.predicted_iou, stability, boxes)
        places = torch.flatten(passing.nonzero())
        return scored.select(places), drawn.logits, places


def _found(crop: Crop, resampling: Resampling, scored: Scored, row: int, logits: Tensor) -> Found:
    x0, y0, x1, y1 = scored.boxes[row].tolist()
    rows = _lines(resampling.tables.rows, y0, y1)
    columns = _lines(resampling.tables.columns, x0, x1)
    x, y = crop.points[int(scored.prompts[row])]
    return Found(
        crop=crop,
        resampling=resampling,
        box=(x0, y0, x1, y1),
        point=(x + crop.box[0], y + crop.box[1]),
        predicted_iou=float(scored.predicted_iou[row]),
        stability=float(scored.stability[row]),
        patch=logits[rows, columns].cpu().clone(),
        corner=(rows.start, columns.start),
    )


def _lines(axis: Axis, first: int, last: int) -> slice:
    """The rows or columns of logits that the pixels from `first` to `last` depend on."""
    return slice(int(axis.starts[first]), int(axis.starts[last]) + TAPS)
