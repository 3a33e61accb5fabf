"""The sections of a training configuration, each checked on its own.

`samprior.training.config` puts them together. Every field says its unit and range below it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from samprior.storage.errors import UsageError
from samprior.training.priors.analyzers import check_layers
from samprior.training.sampling import Augment

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
CropSide = Annotated[int, Field(ge=8, multiple_of=8)]
Setting = bool | int | float | str | list[int] | list[float]


class Section(BaseModel):
    """Settings that refuse unknown keys and can't be changed afterwards."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class PhaseConfig(Section):
    """A part of the base stage with crops of one size, as Restormer trains on growing ones."""

    steps: Positive
    """Optimizer steps; the last phase goes on to the end of the stage."""
    crop_px: CropSide
    """Side of the square crops, pixels."""
    batch_size: Positive
    """Crops per step."""


class DataConfig(Section):
    """What the network is trained on."""

    train: str
    """Mask store of the training split: a folder, or a URL of s3://, gs:// or az://."""
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
    augment: Augment = "flips_turns"
    """Random flips and quarter turns, or hflip: left to right alone; of images and masks alike."""
    mixup_alpha: Weight = 0.0
    """Each crop is mixed with another at a share from Beta(alpha, alpha), masks stay; 0 is off."""
    mixup_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the crops that are mixed, drawn for each by its number; the others stay as read."""
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

    @model_validator(mode="after")
    def _shares_what_is_mixed(self) -> Self:
        if self.mixup_share < 1 and not self.mixup_alpha:
            raise ValueError(
                f"data.mixup_share is {self.mixup_share}, but data.mixup_alpha of 0 mixes nothing; "
                "set data.mixup_alpha, such as 1.2, or leave out data.mixup_share"
            )
        return self

    @property
    def largest_crop_px(self) -> int:
        """Side of the largest crops of any stage, pixels."""
        return max(self.crop_px, *(phase.crop_px for phase in self.phases), 0)


class NetworkConfig(Section):
    """Network 1, the one that ships."""

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


class Network2Config(Section):
    """Network 2, the teacher's; with nothing set it is as network 1 and starts from its weights."""

    name: str | None = None
    """Architecture, or package.module:factory; none is network 1's."""
    preset: str | None = None
    """Published shape; none with a name takes the architecture's defaults, else network 1's."""
    settings: dict[str, Setting] = {}
    """Single settings over the preset; without name and preset they are laid over network 1's."""
    init: Path | None = None
    """Checkpoint to start it from; none is network 1's weights where they fit, else random ones."""

    def beside(self, network: NetworkConfig) -> Self:
        """The same with the shape filled in: what decides is the user's, the rest network 1's."""
        if self.name is not None or self.preset is not None:
            return self.model_copy(update={"name": self.name or network.name})
        shape = {
            "name": network.name,
            "preset": network.preset,
            "settings": {**network.settings, **self.settings},
        }
        return self.model_copy(update=shape)


class OptimizerConfig(Section):
    """How weights move; the defaults are NAFNet's."""

    name: Literal["adamw", "adam"] = "adamw"
    """adamw decays weights apart from the gradient, adam adds their decay to it."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of the base stage."""
    extra_lr_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Peak of the later stages, as a share of `lr`; a teacher from random weights has all."""
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
    """Largest gradient norm (NAFNet clips at 0.01), of each network in joint; 0 does not clip."""
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


class LossConfig(Section):
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
    """What the teacher refines in stage B: the network's images, or those of its first weights.
    start goes with fusion.image = restored, and not with joint."""
    lambda_sgr: Weight = 0.1
    """Weight of the relation term; 0 needs no analyzer."""
    analyzer: Literal["vgg19", "vgg16", "random-vgg", "random-vgg16"] = "vgg19"
    """Frozen feature network of SGR; vgg16 is lighter, random ones are seeded and untrained."""
    analyzer_layers: tuple[str, ...] | None = None
    """Its layers that SGR compares, such as relu3_4; None takes the last of blocks 3 and 4."""
    analyzer_weights: Path | None = None
    """File of the ImageNet weights; None downloads them."""
    eta: Weight = 0.1
    """Weight of SGR's node term against its relation term."""
    max_regions: Positive = 32
    """Largest regions of a crop that enter SGR."""

    @model_validator(mode="after")
    def _analyzer_has_its_layers(self) -> Self:
        if self.analyzer_layers is not None:
            try:
                check_layers(self.analyzer, self.analyzer_layers)
            except UsageError as error:
                raise ValueError(f"loss.analyzer_layers: {error}") from error
        return self


class FusionConfig(Section):
    """SPF, the module that merges an image and its masks."""

    mask_repr: Literal["map", "idmap", "topk"] = "map"
    """How masks become channels."""
    channels: Positive = 32
    """Width of the module."""
    use_masks: bool = True
    """False feeds no masks: the ablation that shows what the second network alone gives."""
    image: Literal["restored", "degraded"] = "restored"
    """What is merged with the masks: network 1's image, or (ours) the degraded one itself."""


class StagesConfig(Section):
    """Optimizer steps of each stage."""

    base: Count = 200_000
    """Network 1 alone; 0 needs network.init."""
    fusion: Positive = 40_000
    """Stage A: SPF and network 2, network 1 frozen."""
    distill: Positive = 60_000
    """Stage B: network 1, the teacher frozen; control and joint are exactly as long."""
