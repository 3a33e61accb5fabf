"""The two sides of benchmarks/everything.py: the mask engine and the official generator.

Both can run with the encoder, or the encoder and the decoder, taken out: an embedding or a scene
is given instead, and everything else is the real code. With a scene, a decoder that is left in
does all its arithmetic, and then its outputs are replaced by the scene's, on both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import scenes
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import Tensor, nn

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.everything.crop_logits import CropLogits, MaskLogits
from samprior.pipeline.everything.crops import Crop, plan_crops
from samprior.pipeline.everything.decoder import Decoded, Decoder
from samprior.pipeline.everything.engine import EverythingEngine
from samprior.pipeline.everything.image_side import ImageSide
from samprior.pipeline.everything.upscaling import LOGITS_PER_TOKEN, Upscaling
from samprior.pipeline.sam import PIXEL_MEAN, PIXEL_STD, load_sam, random_sam
from samprior.storage.images import Rgb


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What both sides work on; small, so that another process can load it too."""

    model: str
    """tiny, vit_b, vit_l or vit_h."""
    checkpoint: Path | None
    """None: random weights, and a scene."""
    photo: Rgb
    """uint8 (H, W, 3)"""
    points_per_side: int
    points_per_batch: int
    device: str

    @property
    def amg(self) -> AmgSettings:
        """The generator's settings: its defaults, but for the number of points."""
        return AmgSettings(
            points_per_side=self.points_per_side, points_per_batch=self.points_per_batch
        )

    @property
    def on_gpu(self) -> bool:
        """Whether the networks run on an NVIDIA GPU."""
        return torch.device(self.device).type == "cuda"

    def describe(self) -> dict[str, Any]:
        """For the results, as JSON."""
        random = self.checkpoint is None
        return {
            "model": self.model,
            "weights": "random, with a scene" if random else self.checkpoint.name,
            "shape": self.photo.shape[:2],
            "points_per_side": self.points_per_side,
            "points_per_batch": self.points_per_batch,
        }

    def load(self) -> "Bench":
        """Load the model and make the scene."""
        sam = self._sam().to(self.device)
        (crop,) = plan_crops(self.photo.shape[:2], self.amg, input_side=sam.image_encoder.img_size)
        scene = None
        if self.checkpoint is None:
            samples = LOGITS_PER_TOKEN * sam.prompt_encoder.image_embedding_size[0]
            scene = scenes.superpixel_scene(self.photo, crop, samples=samples).to(self.device)
        return Bench(sam, self.amg, self.photo, crop, scene)

    def _sam(self) -> Sam:
        if self.checkpoint is not None:
            return load_sam(self.model, checkpoint=self.checkpoint)
        return random_sam(model=None if self.model == "tiny" else self.model)


@dataclass(frozen=True, eq=False)
class Bench:
    """A loaded subject, and both sides made of it."""

    sam: Sam
    amg: AmgSettings
    photo: Rgb
    crop: Crop
    scene: scenes.Scene | None
    """What the decoders' outputs are replaced by; None: they stay."""
    embedding: Tensor | None = None
    """(1, C, rows, columns): stands in for the encoder; None: it runs."""
    decodes: bool = True
    """Whether the decoders run at all."""

    @torch.no_grad()
    def without_encoder(self) -> Self:
        """The same with the picture's embedding given."""
        engine = EverythingEngine(self.sam, self.amg)
        embedding = engine.encoder(engine.encoder_input(self.photo, self.crop))
        return replace(self, embedding=embedding)

    def without_decoder(self) -> Self:
        """The same with the decoder's outputs given: the scene's, or what the network says."""
        assert self.embedding is not None
        scene = self._recorded() if self.scene is None else self.scene
        return replace(self, scene=scene, decodes=False)

    def with_network_outputs(self) -> Self:
        """The same without a scene: masks are what the network makes of the picture."""
        return replace(self, scene=None)

    def official(self, **settings: Any) -> SamAutomaticMaskGenerator:  # noqa: ANN401
        """The official generator; `settings` are its arguments beyond `amg`."""
        encoder, decoder = self.sam.image_encoder, self.sam.mask_decoder
        if self.embedding is not None:
            encoder = _GivenEmbedding(self.embedding, encoder.img_size)
        if self.scene is not None:
            decoder = _SceneMaskDecoder(self.scene, decoder if self.decodes else None)
        sam = Sam(encoder, self.sam.prompt_encoder, decoder, list(PIXEL_MEAN), list(PIXEL_STD))
        chosen = {"points_per_batch": self.amg.points_per_batch, **self.amg.describe(), **settings}
        generator = SamAutomaticMaskGenerator(sam.to(self.sam.device).eval(), **chosen)
        if not self.decodes:
            predictor = generator.predictor
            predictor.set_image(self.photo)
            predictor.set_image = lambda image: None
            predictor.reset_image = lambda: None
        return generator

    def samprior(self, **settings: Any) -> EverythingEngine:  # noqa: ANN401
        """The mask engine; `settings` are its arguments beyond `amg`."""
        engine = EverythingEngine(self.sam, self.amg, **settings)
        if self.embedding is not None:
            engine.encoder = _GivenEmbedding(self.embedding, self.sam.image_encoder.img_size)
        decoder = engine.search.decoder
        if self.scene is not None:
            decoder.prompts = _ScenePrompts(self.scene, decoder.prompts)
            decoder.upscaling = _SceneUpscaling(self.scene, decoder.upscaling)
        if not self.decodes:
            given = _GivenLogits(decoder.crop(self.crop, self.embedding[0]), self)
            decoder.crop = lambda crop, embedding: given
            inputs = engine.encoder_input(self.photo, self.crop)
            engine.encoder_input = lambda image, crop: inputs
        return engine

    def official_decoding(self, *, at_once: int) -> Callable[[], None]:
        """Decode all prompts with the official prompt encoder and mask decoder."""
        generator = self.official()
        sam = generator.predictor.model
        points = torch.as_tensor(self.crop.input_points, device=sam.device)

        @torch.no_grad()
        def decode() -> None:
            for some in points.split(at_once):
                _decode(sam, self.embedding, some)

        return decode

    def samprior_decoding(self, *, threshold: float) -> Callable[[], None]:
        """Decode all prompts; masks of a higher predicted IoU are drawn, or all at 0."""
        decoder = self.samprior().search.decoder
        embedding = self.embedding

        @torch.no_grad()
        def decode() -> None:
            logits = decoder.crop(self.crop, embedding[0])
            for prompts in torch.arange(len(self.crop.points)).split(decoder.prompts_at_once):
                logits.above(prompts, threshold)

        return decode

    @torch.no_grad()
    def _recorded(self) -> scenes.Scene:
        points = torch.as_tensor(self.crop.input_points, device=self.sam.device)
        parts = [_decode(self.sam, self.embedding, some) for some in points.split(8)]
        logits, predicted = (torch.cat(part) for part in zip(*parts, strict=True))
        return scenes.recorded_scene(logits, predicted, self.crop)


def read_photo(file: Path) -> Rgb:
    """uint8 (H, W, 3)"""
    return np.array(Image.open(file).convert("RGB"))


def resized(photo: Rgb, size: tuple[int, int]) -> Rgb:
    """The photograph at (width, height) pixels."""
    return np.array(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def _decode(sam: Sam, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (Q, 3, S, S) and predicted IoUs (Q, 3), as the official predictor asks for them."""
    labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
    sparse, dense = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    return sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )


class _GivenEmbedding(nn.Module):
    """An image encoder that has its answer."""

    def __init__(self, embedding: Tensor, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size
        self._embedding = embedding

    def forward(self, inputs: Tensor) -> Tensor:
        return self._embedding.expand(len(inputs), -1, -1, -1)


class _SceneMaskDecoder(nn.Module):
    """The official decoder, if any, and then the scene's outputs, in the order of the prompts."""

    def __init__(self, scene: scenes.Scene, decoder: nn.Module | None) -> None:
        super().__init__()
        self._scene, self._decoder = scene, decoder
        self._next = 0

    def forward(self, **inputs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        if self._decoder is not None:
            self._decoder(**inputs)
        prompts = slice(self._next, self._next + len(inputs["sparse_prompt_embeddings"]))
        # A generator asks for all prompts of a picture, then for the next picture's.
        self._next = prompts.stop % len(self._scene)
        samples = self._scene.maps.shape[-1]
        logits = self._scene.logits(prompts, rows=samples, columns=samples)
        return logits, self._scene.predicted_iou[prompts]


class _Seen(NamedTuple):
    """`Decoded` with the scene's predicted IoUs."""

    predicted_iou: Tensor
    prompts: Tensor
    decoded: Decoded


class _GivenLogits:
    """Stands for `CropLogits`: masks that were drawn before, of the default threshold."""

    def __init__(self, logits: CropLogits, bench: Bench) -> None:
        self.resampling, self.again = logits.resampling, logits.again
        at_once = EverythingEngine(bench.sam, bench.amg).search.decoder.prompts_at_once
        prompts = torch.arange(len(bench.crop.points)).split(at_once)
        self._drawn = {
            int(some[0]): logits.above(some, bench.amg.pred_iou_thresh) for some in prompts
        }

    def above(self, prompts: Tensor, threshold: float) -> MaskLogits:
        return self._drawn[int(prompts[0])]


class _ScenePrompts:
    """The engine's decoder, and then the scene's predicted IoUs."""

    def __init__(self, scene: scenes.Scene, decoder: Decoder) -> None:
        self._scene, self._decoder = scene, decoder

    def image(self, embedding: Tensor) -> ImageSide:
        return self._decoder.image(embedding)

    def __call__(self, image: ImageSide, points: Tensor) -> _Seen:
        decoded = self._decoder(image, points)
        prompts = self._scene.prompts_at(points)
        return _Seen(self._scene.predicted_iou[prompts], prompts, decoded)


class _SceneUpscaling:
    """The engine's upscaling, and then the scene's logits."""

    def __init__(self, scene: scenes.Scene, upscaling: Upscaling) -> None:
        self._scene, self._upscaling = scene, upscaling

    def image(self, image: ImageSide, **places: Any) -> Tensor:  # noqa: ANN401
        return self._upscaling.image(image, **places)

    def __call__(self, shared: Tensor, seen: _Seen, chunk: slice, **places: Any) -> Tensor:  # noqa: ANN401
        self._upscaling(shared, seen.decoded, chunk, **places)
        rows, columns = (LOGITS_PER_TOKEN * side for side in shared.shape[:2])
        return self._scene.logits(seen.prompts[chunk], rows=rows, columns=columns)
