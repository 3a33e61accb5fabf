"""Settings: every mistake is named with the nearest right key, and nothing is lost on the way."""

from pathlib import Path
from typing import Any, get_args

import pytest

from samprior.storage.errors import ConfigError
from samprior.training.config import LossConfig, TrainConfig, load_config
from samprior.training.priors import ANALYZERS
from samprior.training.toml_text import to_toml

NEEDED = ("out=run", "data.train=store")


def refusal(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("sed=1", "seed"),
        ("los.eta=1", "loss"),
        ("loss.lamda_spd=1", "loss.lambda_spd"),
        ("data.trian=x", "data.train"),
        ("data.batchsize=2", "data.batch_size"),
        ("network.setings.width=8", "network.settings"),
        # A right key in the wrong section.
        ("lambda_spd=1", "loss.lambda_spd"),
        ("loss.weight_decay=0", "optimizer.weight_decay"),
        ("batch=3", "data.batch_size"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(wrong: str, right: str) -> None:
    message = refusal(*NEEDED, wrong)
    assert "unknown key" in message
    assert f"did you mean {right!r}?" in message


def test_a_key_that_is_near_none_lists_what_there_is() -> None:
    message = refusal(*NEEDED, "fusion.zzz=1")
    assert "known here: fusion.mask_repr, fusion.channels, fusion.use_masks" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "everything"),
        ("seed", -1),
        ("seed", 2**63),
        ("precision", "fp8"),
        ("save_every", 0),
        ("data.crop_px", 0),
        ("data.crop_px", 100),
        ("data.batch_size", 0),
        ("data.mask_dropout", 1.5),
        ("data.max_mask_iou", -0.1),
        ("optimizer.lr", 0.0),
        ("optimizer.lr", "nan"),
        ("optimizer.min_lr", "inf"),
        ("optimizer.ema_decay", 1.0),
        ("optimizer.betas", [0.9, 1.0]),
        ("optimizer.extra_lr_share", 1.1),
        ("loss.lambda_spd", -1),
        ("loss.lambda_sgr", "inf"),
        ("loss.reconstruction", "l2"),
        ("loss.max_regions", 0),
        ("fusion.mask_repr", "labels"),
        ("stages.fusion", 0),
        ("stages.base", -5),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_got(key: str, value: object) -> None:
    message = refusal(*NEEDED, f"{key}={value}")
    assert key in message
    got = value[-1] if isinstance(value, list) else value
    assert f"got {got}" in message or f"got {got!r}" in message


def test_what_is_missing_is_named() -> None:
    assert "out is missing" in refusal("data.train=store")
    assert "data.train is missing" in refusal("out=run", "data.crop_px=64")
    assert "data is missing" in refusal("out=run")


def test_all_mistakes_are_told_at_once() -> None:
    message = refusal("data.train=store", "sed=1", "data.crop_px=7")
    assert "out is missing" in message
    assert "'sed'" in message
    assert "data.crop_px" in message


def test_no_base_stage_needs_weights_to_start_from() -> None:
    assert "network.init" in refusal(*NEEDED, "stages.base=0")
    assert load_config(None, [*NEEDED, "stages.base=0", "network.init=w.pth"]).stages.base == 0


def test_the_share_of_mixed_crops_is_one_and_asks_for_mixing() -> None:
    message = refusal(*NEEDED, "data.mixup_share=0.5")
    assert "data.mixup_share is 0.5" in message
    assert "set data.mixup_alpha, such as 1.2" in message
    mixing = (*NEEDED, "data.mixup_alpha=1.2")
    for wrong in (0.0, 1.5):
        assert "data.mixup_share" in refusal(*mixing, f"data.mixup_share={wrong}")
    all_mixed, half = (load_config(None, [*mixing, f"data.mixup_share={s}"]) for s in (1, 0.5))
    assert all(all_mixed.identity(stage) != half.identity(stage) for stage in STAGES)


def test_any_analyzer_can_be_set_at_any_of_its_layers() -> None:
    assert get_args(LossConfig.model_fields["analyzer"].annotation) == ANALYZERS
    layers = 'loss.analyzer_layers=["relu1_1", "relu4_3"]'
    for name in ANALYZERS:
        loss = load_config(None, [*NEEDED, f"loss.analyzer={name}", layers]).loss
        assert (loss.analyzer, loss.analyzer_layers) == (name, ("relu1_1", "relu4_3"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (['loss.analyzer_layers=["relu3_5"]'], "unknown layer of vgg19 'relu3_5'; did you mean"),
        (['loss.analyzer_layers=["relu4_4"]', "loss.analyzer=vgg16"], "layer of vgg16 'relu4_4'"),
        (["loss.analyzer_layers=[]"], "needs at least one layer"),
        (['loss.analyzer_layers=["relu2_1", "relu2_1"]'], "count once each"),
        (["loss.analyzer_layers=relu3_4"], "loss.analyzer_layers: input should be a valid tuple"),
        (["loss.analyzer=vgg"], "'vgg19', 'vgg16', 'random-vgg' or 'random-vgg16', got 'vgg'"),
        (
            ['loss.analyzer_layers=["relu3_1", "relu5_1"]', "data.crop_px=72"],
            "data.crop_px is 72, no multiple of 16, the stride of relu5_1",
        ),
    ],
)
def test_mistakes_about_the_analyzer_are_named(overrides: list[str], words: str) -> None:
    message = refusal(*NEEDED, *overrides)
    assert "loss.analyzer" in message
    assert words in message


def test_crops_need_fit_no_analyzer_that_takes_no_part() -> None:
    deep = ['loss.analyzer_layers=["relu5_1"]', "data.crop_px=72"]
    for override in ("mode=plain", "loss.lambda_sgr=0"):
        assert load_config(None, [*NEEDED, *deep, override]).data.crop_px == 72


def test_overrides_are_toml_and_anything_else_is_a_string(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("out = 'a'\nseed = 1\n[data]\ntrain = 'store'\ncrop_px = 64\n")
    config = load_config(
        file,
        [
            "seed=7",
            "out=runs/b c",
            "data.augment=none",
            "optimizer.lr=2e-4",
            "optimizer.betas=[0.5, 0.999]",
            "network.settings.enc_blocks=[1, 2]",
            "network.settings.width=8",
            "loss.analyzer=random-vgg",
        ],
    )
    assert config.seed == 7
    assert config.out == Path("runs/b c")
    assert config.data.augment == "none"
    assert config.data.crop_px == 64
    assert config.optimizer.lr == 2e-4
    assert config.optimizer.betas == (0.5, 0.999)
    assert config.network.settings == {"enc_blocks": [1, 2], "width": 8}
    assert config.loss.analyzer == "random-vgg"


@pytest.mark.parametrize("override", ["seed", "=3", "data.=3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    message = refusal(*NEEDED, override)
    assert "key=value" in message
    assert repr(override) in message


def test_an_override_below_a_value_is_refused() -> None:
    assert "seed is a value, not a section" in refusal(*NEEDED, "seed=1", "seed.low=1")
    assert "loss" in refusal(*NEEDED, "loss=3")


def test_a_missing_file_and_a_file_that_is_no_toml_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert f"{missing} does not exist" in refusal(file=missing)
    broken = tmp_path / "broken.toml"
    broken.write_text("out = \n")
    message = refusal(file=broken)
    assert str(broken) in message
    assert "line 1" in message
    broken.write_bytes(b"out = '\xff'\n")
    assert f"{broken} is no valid TOML" in refusal(file=broken)
    assert f"{tmp_path} is no valid TOML" in refusal(file=tmp_path)


def test_mistakes_in_a_file_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("out = 'run'\n[data]\ntrain = 'store'\ncrop = 64\n")
    message = refusal(file=file)
    assert message.startswith(f"{file}: ")
    assert "did you mean 'data.crop_px'?" in message


def test_settings_come_back_from_toml(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            'out="räume/😀 \\"x\\" \\\\ y"',
            "data.train=store",
            "optimizer.min_lr=1e-7",
            "optimizer.betas=[0.9, 0.99]",
            "network.settings={width = 4, enc_blocks = [1, 1], dec_blocks = [1, 1]}",
            "network.init=weights.pth",
            "mode=control",
        ],
    )
    file = tmp_path / "config.toml"
    file.write_bytes(to_toml(config.model_dump(mode="json")).encode())
    assert load_config(file) == config


def test_settings_can_not_be_changed_afterwards() -> None:
    config = load_config(None, NEEDED)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def changed(stage: str, *overrides: str) -> bool:
    """Whether the overrides change the identity of a stage."""
    before = load_config(None, NEEDED)
    return load_config(None, [*NEEDED, *overrides]).identity(stage) != before.identity(stage)


STAGES = ("base", "control", "fusion", "distill", "joint")


@pytest.mark.parametrize("stage", STAGES)
def test_identity_leaves_out_where_a_run_lies_and_how_it_talks(stage: str) -> None:
    assert not changed(
        stage,
        "out=elsewhere",
        "data.train=moved",
        "data.validation=other",
        "data.loader_threads=5",
        "device=cpu",
        "mode=distill",
        "log_every=1",
        "save_every=7",
        "validate_every=3",
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "precision=bf16",
        "data.crop_px=64",
        "data.batch_size=3",
        "data.augment=none",
        "data.augment=hflip",
        "data.mixup_alpha=1.2",
        "data.rain_layers=synthetic",
        "optimizer.name=adam",
        "optimizer.schedule=steps",
        "optimizer.decay_every=7",
        "optimizer.decay_factor=0.1",
        "network.settings.fast=true",
        "network.rain_kernels=init_kernel.mat",
        "optimizer.lr=0.5",
        "optimizer.ema_decay=0.5",
        "network.name=other",
        "network.settings.width=4",
        "network.init=weights.pth",
        "loss.reconstruction=l1",
        "stages.base=3",
    ],
)
def test_identity_holds_what_all_stages_depend_on(stage: str, override: str) -> None:
    assert changed(stage, override)


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("loss.lambda_spd=2", {"distill", "joint"}),
        ("loss.lambda_sgr=2", {"distill", "joint"}),
        ("loss.spd_target=teacher_where_better", {"distill", "joint"}),
        ("loss.analyzer=vgg16", {"distill", "joint"}),
        ('loss.analyzer_layers=["relu2_2"]', {"distill", "joint"}),
        ("stages.distill=9", {"control", "distill", "joint"}),
        ("stages.fusion=9", {"fusion", "distill"}),
        ("fusion.mask_repr=topk", {"fusion", "distill", "joint"}),
        ("fusion.image=degraded", {"fusion", "distill", "joint"}),
        ("network2.name=other", {"fusion", "distill", "joint"}),
        ("network2.preset=tiny", {"fusion", "distill", "joint"}),
        ("network2.settings.width=4", {"fusion", "distill", "joint"}),
        ("network2.init=weights.pth", {"fusion", "distill", "joint"}),
        ("data.mask_dropout=0.1", {"fusion", "distill", "joint"}),
        ("data.min_mask_px=1", {"fusion", "distill", "joint"}),
        ("data.max_mask_iou=0.5", {"fusion", "distill", "joint"}),
        ("optimizer.extra_lr_share=0.5", {"control", "fusion", "distill", "joint"}),
    ],
)
def test_identity_holds_what_single_stages_depend_on(override: str, stages: set[str]) -> None:
    assert {stage for stage in STAGES if changed(stage, override)} == stages


def test_a_shape_of_network_2_that_is_network_1s_changes_nothing() -> None:
    assert not changed("distill", "network2.name=nafnet")


def test_every_setting_is_in_some_identity_or_known_to_be_in_none() -> None:
    """A new setting must be given a place: here, or in the weights' identity."""
    in_none = {
        "out", "mode", "device", "log_every", "validate_every", "save_every",
        "keep_best", "ship", "validation_pictures", "tensorboard",
        "accumulate", "channels_last", "compile", "sync_batchnorm",
        "data.train", "data.masks", "data.validation", "data.loader_threads",
    }  # fmt: skip
    config: TrainConfig = load_config(None, [*NEEDED, "data.mixup_alpha=1.2"])
    everything = _leaves(config.model_dump(mode="json"))
    assert everything - _leaves(config.identity("distill")) == in_none


def _leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name, value in values.items():
        nested = isinstance(value, dict) and value
        names |= _leaves(value, f"{prefix}{name}.") if nested else {prefix + name}
    return names
