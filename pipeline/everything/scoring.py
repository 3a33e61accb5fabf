"""Stability, area and box of masks at full resolution, from their low-resolution logits.

Equal to the official code's `postprocess_masks`, `calculate_stability_score` and
`batched_mask_to_box` on the same device, number for number, but no mask is ever made: on the CPU
most pixels are counted by whole cells (`cells`), elsewhere masks pass through in small chunks.

Letters: M masks, h x w samples, H x W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from segment_anything.utils.amg import batched_mask_to_box
from torch import Tensor

from samprior.pipeline.everything.cells import TALLY, X0, Y1, tally_masks
from samprior.pipeline.everything.resampling import Resampling
from samprior.pipeline.everything.workspace import Thresholds, workspace

# Full-size float32 logits that exist at once on other devices.
_CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Scores:
    """What the generator's filters need to know of M masks."""

    stability: Tensor
    """float32 (M,): pixels above the upper threshold per pixel above the lower; NaN for 0/0."""

    areas: Tensor
    """int64 (M,): pixels of the mask."""

    boxes: Tensor
    """int64 (M, 4): x0, y0, x1, y1, the last two inclusive; zeros for an empty mask."""


def score_masks(
    logits: Tensor, resampling: Resampling, *, mask_threshold: float, offset: float
) -> Scores:
    """Scores of float32 logits (M, h, w), on their device; h and w may be cut to what is needed.

    A pixel is in the mask if its logit is above `mask_threshold`; stability compares the masks at
    thresholds higher and lower by `offset`, at least 0. The official code counts rows in int16
    and errs for pictures wider than 32,767 pixels; this doesn't.
    """
    assert logits.dtype == torch.float32, logits.dtype
    assert logits.shape[1] >= resampling.rows_needed, logits.shape
    assert logits.shape[2] >= resampling.columns_needed, logits.shape
    if logits.device.type == "cpu":
        return _by_cells(logits, resampling, mask_threshold=mask_threshold, offset=offset)
    return _by_chunks(logits, resampling, mask_threshold=mask_threshold, offset=offset)


def _by_cells(
    logits: Tensor, resampling: Resampling, *, mask_threshold: float, offset: float
) -> Scores:
    samples = logits.detach().contiguous().numpy()
    tallies = np.empty((len(samples), TALLY), np.int64)
    at = Thresholds(
        np.float32(mask_threshold - offset),
        np.float32(mask_threshold),
        np.float32(mask_threshold + offset),
    )

    tally_masks(samples, resampling.tables, at, workspace(resampling), tallies)
    return _scores(tallies)


def _scores(tallies: npt.NDArray[np.int64]) -> Scores:
    tallies[tallies[:, 1] == 0, X0 : Y1 + 1] = 0  # an empty mask's box
    # The official code divides int32, which PyTorch does in float32.
    lower, upper = tallies[:, 0].astype(np.float32), tallies[:, 2].astype(np.float32)
    with np.errstate(invalid="ignore"):
        stability = upper / lower
    counts = torch.from_numpy(tallies)
    return Scores(torch.from_numpy(stability), counts[:, 1], counts[:, X0 : Y1 + 1])


def _by_chunks(
    logits: Tensor, resampling: Resampling, *, mask_threshold: float, offset: float
) -> Scores:
    """The official arithmetic of the logits' device, on as many masks at once as fit the bound."""
    # Begun with no masks, so that there is something to join where there are none.
    stability = [logits.new_empty(0)]
    areas = [logits.new_empty(0, dtype=torch.int64)]
    boxes = [logits.new_empty((0, 4), dtype=torch.int64)]
    for values in _resized(logits, resampling):
        masks = values > mask_threshold
        lower, upper = (
            (values > mask_threshold + away).sum((1, 2), dtype=torch.int32)
            for away in (-offset, offset)
        )
        stability.append(upper / lower)
        areas.append(masks.sum((1, 2)))
        boxes.append(batched_mask_to_box(masks))
    return Scores(stability=torch.cat(stability), areas=torch.cat(areas), boxes=torch.cat(boxes))


def _resized(logits: Tensor, resampling: Resampling) -> Iterator[Tensor]:
    """The logits at full size, in chunks (m, H, W)."""
    factor, (height, width) = resampling.factor, resampling.input_size
    cut = logits[:, : resampling.rows_needed, : resampling.columns_needed]
    # Without the padding's samples the scale is the same and so is each value inside the picture.
    enlarged = (factor * cut.shape[1], factor * cut.shape[2])
    pixels = max(enlarged[0] * enlarged[1], resampling.size[0] * resampling.size[1])
    step = max(1, _CHUNK_BYTES // (4 * pixels))
    for start in range(0, len(cut), step):
        chunk = cut[start : start + step, None]
        values = F.interpolate(chunk, enlarged, mode="bilinear", align_corners=False)
        inside = values[..., :height, :width]
        yield F.interpolate(inside, resampling.size, mode="bilinear", align_corners=False)[:, 0]
