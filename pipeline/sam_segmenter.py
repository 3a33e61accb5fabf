"""The `sam` segmenter: which model, which weights, which engine, which settings.

Light to import: torch and segment-anything are imported when a model is built.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.checkpoints import CHECKPOINTS, checkpoint_digest, fetch_checkpoint
from samprior.storage.choices import check_choice
from samprior.storage.errors import UsageError

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from samprior.pipeline.segmenters import Segmenter


def _official(sam: "Sam", amg: AmgSettings) -> "Segmenter":
    from samprior.pipeline.official_engine import OfficialEngine

    return OfficialEngine(sam, amg)


ENGINES: dict[str, Callable[["Sam", AmgSettings], "Segmenter"]] = {"official": _official}
"""What turns a SAM and settings into a segmenter, by the name that `--engine` takes."""


@dataclass(frozen=True, kw_only=True)
class SamSettings:
    """Settings of the `sam` segmenter; picklable, so workers can build it themselves.

    Raises:
        UsageError: an unknown model or engine, or a checkpoint beside a model object.
    """

    model: "str | Sam" = "vit_h"
    """vit_h, vit_l, vit_b, or a Sam module, which is used as it is."""

    checkpoint: Path | None = None
    """Weights of the named model; None: the official ones, downloaded once."""

    device: str | None = None
    """torch device such as "cuda:0"; None: the accelerator if there is one, else the CPU."""

    engine: str = "official"
    """A key of ENGINES."""

    amg: AmgSettings = field(default_factory=AmgSettings)
    """Settings of "segment everything"."""

    def __post_init__(self) -> None:
        check_choice("engine", self.engine, ENGINES)
        if isinstance(self.model, str):
            check_choice("SAM model", self.model, CHECKPOINTS)
        elif self.checkpoint is not None or self.device is not None:
            raise UsageError(
                "checkpoint and device go with a model's name; a Sam module brings its own weights "
                "and is moved with .to(device)"
            )
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))

    def checkpoint_file(self) -> Path:
        """The checkpoint of a named model; the official one is downloaded if it isn't cached.

        Raises:
            CheckpointError: it can't be downloaded.
        """
        assert isinstance(self.model, str)
        return fetch_checkpoint(self.model) if self.checkpoint is None else self.checkpoint

    def describe(self) -> dict[str, object]:
        """What determines the masks, as JSON, with the SHA-256 of the weights.

        The device is left out: it changes a score by rounding, and a run may go on elsewhere.

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
            **weights,
            "amg": self.amg.describe(),
        }

    def build(self) -> "Segmenter":
        """Load the model and make the segmenter.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or of another model.
            UsageError: there is no such device.
        """
        return ENGINES[self.engine](self._load(), self.amg)

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
