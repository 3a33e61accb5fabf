"""Logits of the masks of one crop's prompts: the decoder's output, of wanted masks only."""

from typing import NamedTuple

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from samprior.pipeline.everything.crops import Crop
from samprior.pipeline.everything.decoder import Decoded, Decoder
from samprior.pipeline.everything.resampling import Resampling
from samprior.pipeline.everything.upscaling import LOGITS_PER_TOKEN, Upscaling

CPU_PROMPTS = 8
"""Prompts decoded at once on a CPU: more of them leave its cache and are slower."""


GPU_DRAWN = 32
"""Prompts whose masks are drawn at once on a GPU: intermediate results of up to 0.7 GB."""


class MaskLogits(NamedTuple):
    """Masks of some prompts, by prompt and then by channel; all but the logits on the CPU."""

    prompts: Tensor
    """int64 (M,): which prompt of the crop."""
    channels: Tensor
    """int64 (M,): which of the prompt's masks."""
    predicted_iou: Tensor
    """float32 (M,)"""
    logits: Tensor
    """float32 (M, h, w), of the part of the crop that is no padding."""


class MaskDecoder:
    """Decodes with one SAM; keeps the memory it works in."""

    def __init__(self, sam: Sam, *, prompts_at_once: int) -> None:
        on_cpu = sam.device.type == "cpu"
        self.prompts_at_once = min(prompts_at_once, CPU_PROMPTS) if on_cpu else prompts_at_once
        self.input_side: int = sam.image_encoder.img_size
        self.prompts = Decoder(sam)
        self.upscaling = Upscaling(sam.mask_decoder)
        # One by one the intermediate results of a prompt stay in a CPU's cache.
        self.drawn_at_once = 1 if on_cpu else min(prompts_at_once, GPU_DRAWN)

    def crop(self, crop: Crop, embedding: Tensor) -> "CropLogits":
        """Take up a crop, from its embedding (C, rows, columns)."""
        return CropLogits(self, crop, embedding)


class CropLogits:
    """Decodes the prompts of one crop; made by `MaskDecoder.crop`."""

    def __init__(self, decoder: MaskDecoder, crop: Crop, embedding: Tensor) -> None:
        self._decoder = decoder
        self._points = torch.as_tensor(crop.input_points, device=embedding.device)
        rows, columns = embedding.shape[1:]
        self._grid = (rows, columns)
        self.resampling = Resampling.of(
            LOGITS_PER_TOKEN * rows,
            img_size=decoder.input_side,
            input_size=crop.input_size,
            original_size=crop.size,
        )
        self._image = decoder.prompts.image(embedding)
        needed = self.resampling.rows_needed, self.resampling.columns_needed
        rows, columns = (-(-lines // LOGITS_PER_TOKEN) for lines in needed)
        self._shared = decoder.upscaling.image(self._image, grid=self._grid, wanted=(rows, columns))

    def above(self, prompts: Tensor, threshold: float) -> MaskLogits:
        """Masks of the prompts (P,) whose predicted IoU is higher; 0 or less keeps all."""
        decoded = self._decoder.prompts(self._image, self._points[prompts])
        predicted = decoded.predicted_iou.cpu()
        wanted = predicted > threshold if threshold > 0 else torch.ones_like(predicted).bool()
        rows, channels = wanted.nonzero(as_tuple=True)
        logits = self._draw(decoded, rows, channels)
        return MaskLogits(prompts[rows], channels, predicted[rows, channels], logits)

    def again(self, prompts: Tensor, channels: Tensor) -> Tensor:
        """Logits (M, h, w) of masks by prompt and channel, (M,) each."""
        parts = [
            self._draw(
                self._decoder.prompts(self._image, self._points[some]),
                torch.arange(len(some)),
                which,
            )
            for some, which in zip(
                torch.split(prompts, self._decoder.prompts_at_once),
                torch.split(channels, self._decoder.prompts_at_once),
                strict=True,
            )
        ]
        return torch.cat(parts)

    def _draw(self, decoded: Decoded, rows: Tensor, channels: Tensor) -> Tensor:
        """Logits of masks by row of `decoded`, ascending, and channel."""
        height, width = (LOGITS_PER_TOKEN * side for side in self._shared.shape[:2])
        logits = self._shared.new_empty(len(rows), height, width)
        prompts = torch.unique(rows)
        for start in range(0, len(prompts), self._decoder.drawn_at_once):
            some = prompts[start : start + self._decoder.drawn_at_once]
            drawn = self._decoder.upscaling(self._shared, decoded, _index(some), grid=self._grid)
            first, end = torch.searchsorted(rows, torch.stack([some[0], some[-1] + 1])).tolist()
            wanted = (
                torch.searchsorted(some, rows[first:end]) * drawn.shape[1] + channels[first:end]
            )
            planes = drawn.view(-1, height, width)
            torch.index_select(planes, 0, wanted.to(planes.device), out=logits[first:end])
        return logits


def _index(rows: Tensor) -> Tensor | slice:
    """Ascending rows as a slice if they are consecutive: that copies nothing."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else rows
