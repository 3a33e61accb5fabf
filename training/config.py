"""The configuration of a training run: a TOML file checked field by field, and `--set` overrides.

Every field says its unit and range below it. Unknown keys are errors that name the nearest right
key. The resolved configuration is saved with the run (resolved.toml), and what of it determined the
weights inside every checkpoint.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from samprior.storage.errors import ConfigError

Mode = Literal["plain", "control", "distill", "compare"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class DataConfig(_Section):
    """What the network is trained on."""

    train: str
    """Mask store of the training split: a folder, or a URL of s3:// or gs://."""
    masks: str = "main"
    """Mask set of the training store; main is its own. Validation takes its store's own."""
    validation: str | None = None
    """Mask store that is scored during training; None scores nothing."""
    crop_px: Annotated[int, Field(ge=8, multiple_of=8)] = 256
    """Side of the square training crops, pixels; a multiple of 8, VGG's stride at relu4_4."""
    batch_size: Positive = 8
    """Crops per step."""
    augment: bool = True
    """Random flips and quarter turns, of images and masks alike."""
    min_mask_px: Count = 64
    """Smaller masks of an image are left out, pixels."""
    max_mask_iou: Share = 0.9
    """A mask whose IoU with a larger kept one is above this is left out."""
    mask_dropout: Share = 0.5
    """Share of the masks hidden at random while the fusion is trained (SAM-Deblur's value)."""
    outline_tries: Positive = 1
    """Places drawn per crop, of which the one with most mask outlines is taken; 1 draws evenly."""
    loader_threads: Positive = 2
    """Threads that read crops ahead."""


class NetworkConfig(_Section):
    """Network 1, the one that ships; network 2 is a second one of its kind."""

    name: str = "nafnet"
    """Architecture."""
    preset: str | None = None
    """Published shape, such as gopro_w32; None takes the architecture's defaults."""
    settings: dict[str, int | float | list[int]] = {}
    """Single settings over the preset, such as width."""
    init: Path | None = None
    """Checkpoint to start network 1 from: ours, or an official .pth."""


class OptimizerConfig(_Section):
    """AdamW with a cosine schedule, as NAFNet trains."""

    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of the base stage."""
    extra_lr_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Peak of the later stages, as a share of `lr`; equal for control and distillation."""
    min_lr: Weight = 1e-7
    """Where the cosine ends."""
    betas: tuple[Decay, Decay] = (0.9, 0.9)
    """Decay of the running moments."""
    weight_decay: Weight = 1e-3
    """Decoupled weight decay."""
    warmup_steps: Count = 0
    """Steps of linear warm-up at the start of each stage."""
    clip_norm: Weight = 0.01
    """Largest gradient norm (NAFNet clips at 0.01); 0 does not clip."""
    ema_decay: Decay = 0.0
    """Decay per step of the averaged weights that are validated and shipped; 0 turns it off."""


class LossConfig(_Section):
    """L = L_recon + lambda_spd * L_SPD + lambda_sgr * L_SGR."""

    reconstruction: Literal["charbonnier", "l1", "mse", "psnr"] = "psnr"
    """The base network's own loss; SPD uses the same functional."""
    lambda_spd: Weight = 0.5
    """Weight of the self-distillation term."""
    spd_target: Literal["teacher", "teacher_where_better"] = "teacher"
    """What SPD pulls to; the second follows the teacher only where it is closer to the truth."""
    lambda_sgr: Weight = 0.1
    """Weight of the relation term; 0 needs no analyzer."""
    analyzer: Literal["vgg19", "random-vgg"] = "vgg19"
    """Frozen feature network of SGR; random-vgg is seeded and untrained, for offline work."""
    analyzer_weights: Path | None = None
    """File of the ImageNet weights; None downloads them."""
    eta: Weight = 0.1
    """Weight of SGR's node term against its relation term."""
    max_regions: Positive = 32
    """Largest regions of a crop that enter SGR."""


class FusionConfig(_Section):
    """SPF, the module that merges the restored image and its masks."""

    mask_repr: Literal["map", "idmap", "topk"] = "map"
    """How masks become channels."""
    channels: Positive = 32
    """Width of the module."""
    use_masks: bool = True
    """False feeds no masks: the ablation that shows what the second network alone gives."""


class StagesConfig(_Section):
    """Optimizer steps of each stage."""

    base: Count = 200_000
    """Network 1 alone; 0 needs network.init."""
    fusion: Positive = 40_000
    """Stage A: SPF and network 2, network 1 frozen."""
    distill: Positive = 60_000
    """Stage B: network 1, the teacher frozen; the control run is exactly as long."""


class TrainConfig(_Section):
    """A whole run."""

    out: Path
    """Folder of the run, made if missing; the same command again resumes it."""
    mode: Mode = "compare"
    """plain: base only. control and distill: base, then that stage. compare: all, and a table."""
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
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    fusion: FusionConfig = FusionConfig()
    stages: StagesConfig = StagesConfig()

    @model_validator(mode="after")
    def _base_or_init(self) -> Self:
        if self.stages.base == 0 and self.network.init is None:
            raise ValueError("stages.base is 0 and network.init is not set: nothing to start from")
        return self

    def identity(self, stage: str) -> dict[str, Any]:
        """The settings that determine the weights a stage ends with, and no others.

        Where the run and its stores lie and how it talks don't count, and neither do settings of
        stages that come later: after a change of lambda_spd the base network and the teacher are
        still good. `samprior.training.run` adds the content of the training store, and puts the
        digests of files of weights in the place of their paths.
        """
        record = self.model_dump(
            mode="json", include={"seed", "precision", "data", "network", "optimizer"}
        )
        for unused in ("train", "masks", "validation", "loader_threads"):
            del record["data"][unused]
        if stage == "base":
            del record["optimizer"]["extra_lr_share"]
        earlier = {"base": {"base"}, "control": {"base", "distill"}, "fusion": {"base", "fusion"}}
        uses_masks = stage in ("fusion", "distill")
        record["stages"] = self.stages.model_dump(include=earlier.get(stage))
        record["loss"] = self.loss.model_dump(
            mode="json", include=None if stage == "distill" else {"reconstruction"}
        )
        if uses_masks:
            record["fusion"] = self.fusion.model_dump()
        else:
            for unused in ("min_mask_px", "max_mask_iou", "mask_dropout"):
                del record["data"][unused]
        return record


def load_config(file: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file, lay `key.sub=value` overrides over it, and check everything.

    Values of overrides are TOML (`true`, `3`, `[1, 2]`); anything else is taken as a string.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, or a value out of range.
    """
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"{file} does not exist; name a TOML file with --config") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file} is no valid TOML: {error}") from error
    for override in overrides:
        _override(settings, override)
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        origin = file or "the settings"
        raise ConfigError(f"{origin}: {'; '.join(_explain(error))}") from error


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Nested settings as TOML text; None is left out."""
    lines = [
        # Not ASCII: JSON writes rare characters as two escapes, which TOML doesn't know.
        f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    text = "".join(line + "\n" for line in lines)
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            text += f"\n[{prefix}{name}]\n" + to_toml(value, f"{prefix}{name}.")
    return text


def _override(settings: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key:
        raise ConfigError(f"--set takes key=value, got {override!r}; for example loss.lambda_spd=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    settings[key] = value


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {name!r}{_nearest(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{name} is missing")
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]))
        else:
            lines.append(f"{name}: {problem['msg'].lower()}, got {problem['input']!r}")
    return lines


def _nearest(location: tuple[int | str, ...]) -> str:
    """A hint at the key that was meant: the nearest of its section, else of all sections."""
    *sections, key = map(str, location)
    keys = _dotted_keys(TrainConfig)
    here = [name for name in keys if name.split(".")[:-1] == sections]
    for names in (here, keys):
        by_leaf = {name.rpartition(".")[2]: name for name in names}
        if near := difflib.get_close_matches(key, by_leaf, n=1):
            return f"; did you mean {by_leaf[near[0]]!r}?"
    return f"; known here: {', '.join(here)}"


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _dotted_keys(field.annotation, f"{prefix}{name}.")
    return names
