"""The configuration of a training run: a TOML file checked field by field, and `--set` overrides.

Every field says its unit and range below it. Unknown keys are errors that name the nearest right
key. The resolved configuration is saved with the run (resolved.toml), and what of it determined the
weights inside every checkpoint.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from samprior.storage.errors import ConfigError
from samprior.training.recipes import find_config
from samprior.training.toml_text import explain, override

Mode = Literal["plain", "control", "distill", "compare"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
CropSide = Annotated[int, Field(ge=8, multiple_of=8)]
Setting = bool | int | float | str | list[int] | list[float]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class PhaseConfig(_Section):
    """A part of the base stage with crops of one size, as Restormer trains on growing ones."""

    steps: Positive
    """Optimizer steps; the last phase goes on to the end of the stage."""
    crop_px: CropSide
    """Side of the square crops, pixels."""
    batch_size: Positive
    """Crops per step."""


class DataConfig(_Section):
    """What the network is trained on."""

    train: str
    """Mask store of the training split: a folder, or a URL of s3:// or gs://."""
    masks: str = "main"
    """Mask set of the training store; main is its own. Validation takes its store's own."""
    validation: str | None = None
    """Mask store that is scored during training; None scores nothing."""
    crop_px: CropSide = 256
    """Side of the square training crops, pixels; a multiple of 8, VGG's stride at relu4_4."""
    batch_size: Positive = 8
    """Crops per step."""
    phases: tuple[PhaseConfig, ...] = ()
    """Sizes of base in turn; later stages take crop_px and batch_size, or else the last phase's."""
    augment: Literal["flips_turns", "none"] = "flips_turns"
    """Random flips and quarter turns, of images and masks alike."""
    mixup_alpha: Weight = 0.0
    """Each crop is mixed with another at a share from Beta(alpha, alpha), masks stay; 0 is off."""
    rain_layers: str | None = None
    """Folder of rain streak pictures, or synthetic: RainMix lays them over crops; None is off."""
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

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_last_phase(cls, values: Any) -> Any:  # noqa: ANN401  # not checked yet
        phases = values.get("phases") if isinstance(values, dict) else None
        if not isinstance(phases, list | tuple) or not phases or not isinstance(phases[-1], dict):
            return values
        sizes = {key: phases[-1][key] for key in ("crop_px", "batch_size") if key in phases[-1]}
        return {**sizes, **values}

    @property
    def largest_crop_px(self) -> int:
        """Side of the largest crops of any stage, pixels."""
        return max(self.crop_px, *(phase.crop_px for phase in self.phases), 0)


class NetworkConfig(_Section):
    """Network 1, the one that ships; network 2 is a second one of its kind."""

    name: str = "nafnet"
    """Architecture, or package.module:factory, which makes a network of your own."""
    preset: str | None = None
    """Published shape, such as gopro_w32; None takes the architecture's defaults."""
    settings: dict[str, Setting] = {}
    """Single settings over the preset, such as width."""
    init: Path | None = None
    """Checkpoint to start network 1 from: ours, or an official .pth."""
    rain_kernels: Path | None = None
    """RCDNet's init_kernel.mat to start from; None computes the kernels."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.init is not None and self.rain_kernels is not None:
            raise ValueError(
                "network.init has rain kernels of its own; leave out network.rain_kernels"
            )
        return self


class OptimizerConfig(_Section):
    """How weights move; the defaults are NAFNet's."""

    name: Literal["adamw", "adam"] = "adamw"
    """adamw decays weights apart from the gradient, adam adds their decay to it."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of the base stage."""
    extra_lr_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Peak of the later stages, as a share of `lr`; equal for control and distillation."""
    schedule: Literal["cosine", "constant_cosine", "linear_decay", "steps"] = "cosine"
    """How the rate falls in the base stage; later stages fall as a cosine from their own peak."""
    hold_steps: Count = 0
    """Steps at the peak before constant_cosine or linear_decay falls, warm-up among them."""
    decay_every: Positive = 50_000
    """Steps between the drops of the schedule steps."""
    decay_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """What each of these drops multiplies the rate by."""
    min_lr: Weight = 1e-7
    """Where every schedule ends; steps goes no lower."""
    betas: tuple[Decay, Decay] = (0.9, 0.9)
    """Decay of the running moments."""
    weight_decay: Weight = 1e-3
    """Strength of the pull to zero."""
    warmup_steps: Count = 0
    """Steps of linear warm-up at the start of each stage."""
    clip_norm: Weight = 0.01
    """Largest gradient norm (NAFNet clips at 0.01); 0 does not clip."""
    ema_decay: Decay = 0.0
    """Decay per step of the averaged weights that are validated and shipped; 0 turns it off."""

    @model_validator(mode="after")
    def _holds_what_can_be_held(self) -> Self:
        if self.hold_steps and self.schedule not in ("constant_cosine", "linear_decay"):
            raise ValueError(
                f"optimizer.hold_steps is {self.hold_steps}, which schedule {self.schedule!r} has "
                "no use for; set optimizer.schedule to constant_cosine or linear_decay"
            )
        return self


class LossConfig(_Section):
    """L = L_recon + lambda_spd * L_SPD + lambda_sgr * L_SGR."""

    reconstruction: Literal["charbonnier", "deep_supervision", "l1", "l1_ssim", "mse", "psnr"] = (
        "psnr"
    )
    """The base network's own loss, also for SPD; deep_supervision is RCDNet's, with mse for SPD."""
    lambda_spd: Weight = 0.5
    """Weight of the self-distillation term."""
    spd_target: Literal["teacher", "teacher_where_better"] = "teacher"
    """What SPD pulls to; the second follows the teacher only where it is closer to the truth."""
    spd_distance: Literal["bounded", "reconstruction"] = "bounded"
    """What SPD measures by: the reconstruction loss; bounded gives psnr's pull an end (ours)."""
    spd_input: Literal["present", "start"] = "present"
    """What the teacher refines in stage B: the network's images, or those of its first weights."""
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
            if self.data.phases:
                del record["data"]["crop_px"], record["data"]["batch_size"]
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
        raise ConfigError(f"{origin}: {'; '.join(explain(error, TrainConfig))}") from error
