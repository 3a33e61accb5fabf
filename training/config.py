"""The configuration of a training run: a TOML file checked field by field, and `--set` overrides.

Every field says its unit and range below it. Unknown keys are errors that name the nearest right
key. The resolved configuration is saved with the run (resolved.toml), and what of it determined the
weights inside every checkpoint.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from samprior.storage.errors import ConfigError
from samprior.training.priors.analyzers import layer_stride
from samprior.training.recipes import find_config
from samprior.training.sections import (
    Count,
    DataConfig,
    FusionConfig,
    LossConfig,
    Network2Config,
    NetworkConfig,
    OptimizerConfig,
    PhaseConfig,
    Positive,
    Section,
    StagesConfig,
)
from samprior.training.toml_text import explain, override

__all__ = [
    "DataConfig",
    "FusionConfig",
    "LossConfig",
    "Mode",
    "Network2Config",
    "NetworkConfig",
    "OptimizerConfig",
    "PhaseConfig",
    "StagesConfig",
    "TrainConfig",
    "load_config",
]

Mode = Literal["plain", "control", "distill", "joint", "compare"]


class TrainConfig(Section):
    """A whole run."""

    out: Path
    """Folder of the run, made if missing; the same command again resumes it."""
    mode: Mode = "compare"
    """plain: base. control, distill, joint: base, then that. compare: those but joint."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Fixes weights, order, crops and augmentation."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of the forward passes; fp16 needs a GPU."""
    log_every: Positive = 50
    """Steps between lines of metrics.jsonl."""
    validate_every: Positive = 1000
    """Steps between scores on data.validation; each stage also starts and ends with one."""
    save_every: Positive = 1000
    """Steps between resumable checkpoints."""
    keep_best: Count = 1
    """Averaged weights of a stage's best validation scores that are kept below best/."""
    ship: Literal["last", "best"] = "last"
    """best ships the best weights of the last stage, chosen on data.validation."""
    validation_pictures: Count = 4
    """First validation images drawn at each score as degraded, restored, clean (at most 256 px)."""
    tensorboard: bool = False
    """Also write TensorBoard's files; needs samprior[tensorboard]."""
    accumulate: Positive = 1
    """Parts that a step's batch is computed in, one after another, to save memory."""
    channels_last: bool = False
    """Keep images with channels innermost, which half precision on a GPU prefers."""
    compile: bool = False
    """torch.compile of the networks while they train; needs a C++ compiler."""
    sync_batchnorm: bool = False
    """Batch norm over the crops of all ranks instead of each rank's own; GPUs only."""
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    network2: Network2Config = Network2Config()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    fusion: FusionConfig = FusionConfig()
    stages: StagesConfig = StagesConfig()

    @model_validator(mode="after")
    def _base_or_init(self) -> Self:
        if self.stages.base == 0 and self.network.init is None:
            raise ValueError("stages.base is 0 and network.init is not set: nothing to start from")
        return self

    @model_validator(mode="after")
    def _best_is_known(self) -> Self:
        if self.ship == "best" and (self.data.validation is None or not self.keep_best):
            raise ValueError("ship = best needs data.validation, and keep_best of at least 1")
        return self

    @model_validator(mode="after")
    def _start_is_refined(self) -> Self:
        if self.loss.spd_input == "start" and self.fusion.image == "degraded":
            raise ValueError(
                "fusion.image is degraded, so the teacher refines no image of network 1, and "
                "loss.spd_input = start has none to choose; leave it out"
            )
        if self.loss.spd_input == "start" and self.mode == "joint":
            raise ValueError(
                "in mode joint the teacher learns on network 1's present images; leave out "
                "loss.spd_input = start, or take mode distill"
            )
        return self

    @model_validator(mode="after")
    def _analyzer_fits_the_crops(self) -> Self:
        if self.mode in ("plain", "control") or self.loss.lambda_sgr == 0:
            return self
        for layer in self.loss.analyzer_layers or ():
            if self.data.crop_px % layer_stride(layer):
                raise ValueError(
                    f"data.crop_px is {self.data.crop_px}, no multiple of {layer_stride(layer)}, "
                    f"the stride of {layer} in loss.analyzer_layers; change either"
                )
        return self

    def identity(self, stage: str) -> dict[str, Any]:
        """The settings that determine the weights a stage ends with, and no others.

        Where the run and its stores lie and how it talks don't count, and neither do settings of
        stages that come later: after a change of lambda_spd the base network and the teacher are
        still good. `samprior.training.records` adds the content of the training store, and puts
        the digests of files of weights in the place of their paths.
        """
        record = self.model_dump(
            mode="json", include={"seed", "precision", "data", "network", "optimizer"}
        )
        for unused in ("train", "masks", "validation", "loader_threads"):
            del record["data"][unused]
        if not self.data.mixup_alpha:
            del record["data"]["mixup_share"]
        if stage == "base":
            del record["optimizer"]["extra_lr_share"]
            if self.data.phases:
                del record["data"]["crop_px"], record["data"]["batch_size"]
        lengths = {
            "base": {"base"},
            "control": {"base", "distill"},
            "fusion": {"base", "fusion"},
            "joint": {"base", "distill"},
        }
        record["stages"] = self.stages.model_dump(include=lengths.get(stage))
        distils = stage in ("distill", "joint")
        record["loss"] = self.loss.model_dump(
            mode="json", include=None if distils else {"reconstruction"}
        )
        if distils or stage == "fusion":
            record["fusion"] = self.fusion.model_dump()
            record["network2"] = self.network2.beside(self.network).model_dump(mode="json")
        else:
            for unused in ("min_mask_px", "max_mask_iou", "mask_dropout"):
                del record["data"][unused]
        return record


def load_config(file: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file, lay `key.sub=value` overrides over it, and check everything.

    Where there is no such file, the shipped preset of that name is read (`samprior presets`).
    Values of overrides are TOML (`true`, `3`, `[1, 2]`); anything else is taken as a string.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, or a value out of range.
    """
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            settings = tomllib.loads(find_config(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file} is no valid TOML: {error}") from error
    for text in overrides:
        override(settings, text)
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        origin = file or "the settings"
        mistakes = explain(error, TrainConfig)
        if any(one.endswith(" is missing") for one in mistakes):
            mistakes.append("`samprior init` writes a file with all keys")
        raise ConfigError(f"{origin}: {'; '.join(mistakes)}") from error
