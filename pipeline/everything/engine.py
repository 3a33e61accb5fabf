"""SAM's "segment everything": the masks of the official generator for a fraction of the work.

Same weights and settings give the same masks in the same order; boxes, areas and scores are equal
but for float32 rounding in the network. `docs/engine.md` says how, and how far it was checked.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.everything.assembly import assemble
from samprior.pipeline.everything.crops import Crop, plan_crops
from samprior.pipeline.everything.encoder import BatchSize, Encoder, encode_batches
from samprior.pipeline.everything.raster import load_kernels
from samprior.pipeline.everything.search import Search
from samprior.storage import MaskSet
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb


class EverythingEngine:
    """Masks of everything in a picture; a `Segmenter` that also takes several pictures at once.

    Columns: `predicted_iou` and `stability` float32 (K,), `point` float32 (K, 2), the prompt's
    (x, y) in pixels.

    Args:
        sam: a model of the official class, float32; it is not changed.
        amg: the official generator's settings.
        precision: float32, or bfloat16 or float16 for the encoder's matrix products.
        images_at_once: encoder inputs (pictures, or crops of them) per batch; fewer when memory
            runs out.
        compile: compile the encoder, here, with that batch.

    Raises:
        UsageError: a precision that the device lacks, or a model of another build than SAM's.
    """

    def __init__(
        self,
        sam: Sam,
        amg: AmgSettings,
        *,
        precision: str = "float32",
        images_at_once: int = 1,
        compile: bool = False,
    ) -> None:
        self._sam = sam
        self._amg = amg
        self.encoder = Encoder(sam, precision=precision, compile=compile)
        self._batch = BatchSize(current=images_at_once)
        self.encoder.warm_up(self._batch)
        self.search = Search(sam, amg)
        load_kernels()
        self._scale = ResizeLongestSide(sam.image_encoder.img_size)
        self._notes_taken = 0

    @property
    def images_at_once(self) -> int:
        """How many pictures `many` encodes together at present."""
        return self._batch.current

    def __call__(self, image: Rgb) -> MaskSet:
        """Masks of uint8 (H, W, 3); none at all is a valid result.

        Raises:
            UsageError: an array of another type or shape.
            ImageError: the image, or a crop of it, is too thin to be scaled to SAM's input.
        """
        (masks,) = self.many([image])
        return masks

    def many(self, images: Sequence[Rgb]) -> Iterator[MaskSet]:
        """Masks of each image, in order, with `images_at_once` of them encoded together.

        Raises:
            UsageError, ImageError: as for one image, before any is encoded.
        """
        plans = [self._plan(image) for image in images]
        inputs = (
            self.encoder_input(image, crop)
            for image, plan in zip(images, plans, strict=True)
            for crop in plan
        )
        embeddings = encode_batches(self.encoder, inputs, batch_size=self._batch)
        for image, plan in zip(images, plans, strict=True):
            height, width = image.shape[:2]
            found = [self.search(crop, next(embeddings)[0], shape=(height, width)) for crop in plan]
            yield assemble(
                found,
                shape=(height, width),
                amg=self._amg,
                mask_threshold=self._sam.mask_threshold,
            )

    def take_notes(self) -> tuple[str, ...]:
        """What was out of the ordinary since the last call: batches halved for want of memory."""
        notes = tuple(self._batch.notes[self._notes_taken :])
        self._notes_taken += len(notes)
        return notes

    def encoder_input(self, image: Rgb, crop: Crop) -> Tensor:
        """(1, 3, S, S) float32 on the model's device: the crop scaled, normalised and padded."""
        x0, y0, x1, y1 = crop.box
        scaled = self._scale.apply_image(image[y0:y1, x0:x1])
        pixels = torch.as_tensor(scaled, device=self._sam.device).permute(2, 0, 1)
        preprocessed: Tensor = self._sam.preprocess(pixels.contiguous()[None])
        return preprocessed

    def _plan(self, image: Rgb) -> list[Crop]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UsageError(f"wanted an image uint8 (H, W, 3), got {image.dtype} {image.shape}")
        height, width = image.shape[:2]
        return plan_crops((height, width), self._amg, input_side=self._scale.target_length)
