"""The `sam` segmenter: which model, which weights, which engine, which settings.

Light to import: torch and segment-anything are imported when a model is built.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.checkpoints import CHECKPOINTS, checkpoint_digest, fetch_checkpoint
from samprior.pipeline.checks import check_bool, check_int
from samprior.storage.choices import check_choice
from samprior.storage.errors import UsageError

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from samprior.pipeline.segmenters import Segmenter


def _official(sam: "Sam", settings: "SamSettings") -> "Segmenter":
    from samprior.pipeline.official_engine import OfficialEngine

    return OfficialEngine(sam, settings.amg)


def _fast(sam: "Sam", settings: "SamSettings") -> "Segmenter":
    from samprior.pipeline.everything.engine import EverythingEngine

    at_once = settings.images_at_once
    if at_once is None:
        at_once = 1 if sam.device.type == "cpu" else GPU_IMAGES
    return EverythingEngine(
        sam,
        settings.amg,
        precision=settings.precision,
        images_at_once=at_once,
        compile=settings.compile,
    )


PRECISIONS = ("float32", "bfloat16", "float16")

GPU_IMAGES = 4
"""Encoder inputs per batch on a GPU by default; a batch that doesn't fit is halved."""

ENGINES: dict[str, Callable[["Sam", "SamSettings"], "Segmenter"]] = {
    "fast": _fast,
    "official": _official,
}
"""What turns a SAM and settings into a segmenter, by the name that `--engine` takes."""


@dataclass(frozen=True, kw_only=True)
class SamSettings:
    """Settings of the `sam` segmenter; picklable, so workers can build it themselves.

    Raises:
        UsageError: an unknown model, engine or precision, settings that the engine has not, or a
            checkpoint beside a model object.
    """

    model: "str | Sam" = "vit_h"
    """vit_h, vit_l, vit_b, or a Sam module, which is used as it is."""

    checkpoint: Path | None = None
    """Weights of the named model; None: the official ones, downloaded once."""

    device: str | None = None
    """torch device such as "cuda:0"; None: the accelerator if there is one, else the CPU."""

    engine: str = "fast"
    """fast, or official: the official generator, the reference for the other."""

    precision: str = "float32"
    """float32, or bfloat16 or float16 in the fast engine's encoder: masks change a little."""

    images_at_once: int | None = None
    """Pictures and crops that the fast engine encodes together; None: 1 on the CPU, else 4."""

    compile: bool = False
    """Let torch compile the fast engine's encoder, which takes minutes at the start."""

    amg: AmgSettings = field(default_factory=AmgSettings)
    """Settings of "segment everything"."""

    def __post_init__(self) -> None:
        check_choice("engine", self.engine, ENGINES)
        check_choice("precision", self.precision, PRECISIONS)
        check_bool("compile", self.compile)
        if self.images_at_once is not None:
            check_int("images_at_once", self.images_at_once, 1)
        if self.engine == "official":
            self._check_official()
        if isinstance(self.model, str):
            check_choice("SAM model", self.model, CHECKPOINTS)
        elif self.checkpoint is not None or self.device is not None:
            raise UsageError(
                "checkpoint and device go with a model's name; a Sam module brings its own weights "
                "and is moved with .to(device)"
            )
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))

    def _check_official(self) -> None:
        for name in ("precision", "images_at_once", "compile"):
            if getattr(self, name) != getattr(SamSettings, name):
                raise UsageError(f"{name} is a setting of engine=fast; the official one has none")
        if self.amg.min_mask_region_area and importlib.util.find_spec("cv2") is None:
            raise UsageError(
                f"min_mask_region_area={self.amg.min_mask_region_area} with engine=official needs "
                "OpenCV; pip install opencv-python-headless, or use engine=fast, which doesn't"
            )

    def checkpoint_file(self) -> Path:
        """The checkpoint of a named model; the official one is downloaded if it isn't cached.

        Raises:
            CheckpointError: it can't be downloaded.
        """
        assert isinstance(self.model, str)
        return fetch_checkpoint(self.model) if self.checkpoint is None else self.checkpoint

    def describe(self) -> dict[str, object]:
        """What determines the masks, as JSON, with the SHA-256 of the weights.

        The device and the sizes of batches are left out: they change a score by rounding, and a
        run may go on elsewhere.

        Raises:
            CheckpointError: the checkpoint can't be read or downloaded.
        """
        if isinstance(self.model, str):
            weights = {
                "model": self.model,
                "checkpoint_sha256": checkpoint_digest(self.checkpoint_file()),
            }
        else:
            weights = {"model": "custom", "weights_sha256": weights_digest(self.model)}
        return {
            "segmenter": "sam",
            "algorithm": 1,
            "engine": self.engine,
            "precision": self.precision,
            **weights,
            "amg": self.amg.describe(),
        }

    def build(self) -> "Segmenter":
        """Load the model and make the segmenter.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or of another model.
            UsageError: there is no such device.
        """
        return ENGINES[self.engine](self._load(), self)

    def _load(self) -> "Sam":
        if not isinstance(self.model, str):
            return self.model
        from samprior.pipeline.sam import load_sam, pick_device

        device = pick_device(self.device)
        return load_sam(self.model, checkpoint=self.checkpoint_file(), device=device)


def weights_digest(sam: "Sam") -> str:
    """Hex SHA-256 over the names, shapes and values of a model's weights and its input size."""
    digest = hashlib.sha256(f"{sam.image_encoder.img_size}".encode())
    for key, value in sam.state_dict().items():
        digest.update(f"|{key} {value.dtype} {tuple(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
