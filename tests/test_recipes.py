"""The presets that ship: each loads, builds its network, and has the published schedule."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from samprior.storage.errors import ConfigError, UsageError
from samprior.training.config import TrainConfig, load_config
from samprior.training.networks import build_network
from samprior.training.recipes import FOLDER, preset_names, preset_text, read_recipe
from samprior.training.reconstruction import require_fitting_loss
from samprior.training.schedule import base_phases, learning_rate

Command = Callable[..., tuple[int, str, str]]

# Highest and last, as published.
RATES = {
    "nafnet": (1e-3, 1e-7),
    "restormer": (3e-4, 1e-6),
    "uformer": (2e-4, 1e-6),
    "rcdnet": (1e-3, 1e-3 * 0.2**3),
    "efficientderain": (2e-4, 0.0),
}
STEPS = {
    "gopro_nafnet_w32": 200_000,
    "gopro_nafnet_w64": 400_000,
    "gopro_restormer": 300_000,
    "gopro_uformer_b": 789_000,
    "rain100h_efficientderain_v3": 5000 * 113,
    "rain100h_efficientderain_v4": 5000 * 113,
    "rain100h_rcdnet": 90_000,
    "rain100l_efficientderain_v3": 20_000 * 13,
    "rain100l_efficientderain_v4": 20_000 * 13,
    "rain100l_rcdnet": 103_800,
    "rain13k_restormer": 300_000,
    "rain1400_efficientderain_v3": 250 * 788,
    "rain1400_efficientderain_v4": 250 * 788,
    "rain1400_rcdnet": 78_800,
    "sensenoise_uformer_b": 750_000,
    "sidd_nafnet_w32": 200_000,
    "sidd_nafnet_w64": 400_000,
    "sidd_restormer": 300_000,
    "sidd_uformer_b": 750_000,
    "sidd_uformer_s": 750_000,
    "sidd_uformer_t": 750_000,
    "spa_efficientderain_v3": 20 * 39_906,
    "spa_efficientderain_v4": 20 * 39_906,
    "spa_rcdnet": 150_000,
}
AUGMENTATION = {
    # Restormer's geometric_augs and NAFNet's use_flip and use_rot are all eight turns and mirrors.
    "gopro_nafnet": ("flips_turns", 0.0, 1.0, None),  # use_flip: true, use_rot: true
    "gopro_restormer": ("flips_turns", 0.0, 1.0, None),  # geometric_augs: true, mixup: false
    "gopro_uformer": ("flips_turns", 0.0, 1.0, None),  # dataset_motiondeblur.py: transform0 to 7
    "rain13k_restormer": ("flips_turns", 0.0, 1.0, None),  # geometric_augs: true, mixup: false
    "sidd_nafnet": ("none", 0.0, 1.0, None),  # use_flip: false, use_rot: false
    "sidd_restormer": ("flips_turns", 1.2, 0.5, None),  # mixup: true, use_identity: true
    "sidd_uformer": ("flips_turns", 1.2, 1.0, None),  # MixUp_AUG of all batches after epoch 5
    "sensenoise_uformer": ("flips_turns", 1.2, 1.0, None),  # as SIDD: ours
    # data/common.py: of hflip, vflip and rot90 only the first is no comment.
    "rain100h_rcdnet": ("hflip", 0.0, 1.0, None),
    "rain100l_rcdnet": ("hflip", 0.0, 1.0, None),
    "rain1400_rcdnet": ("hflip", 0.0, 1.0, None),
    "spa_rcdnet": ("none", 0.0, 1.0, None),  # for_spa/src/trainer.py cuts crops and no more
    # train.py: angle_aug and geometry_aug are false by default, and no script sets them.
    **{
        f"{data}_efficientderain_{version}": ("none", 0.0, 1.0, rain)
        for data in ("rain100h", "rain100l", "rain1400", "spa")
        for version, rain in (("v3", None), ("v4", "synthetic"))  # --rainaug
    },
}
"""What the authors' code and options say: turns, alpha and share of MixUp, rain layers."""


def config_of(name: str) -> TrainConfig:
    return load_config(Path(name))


def rate(config: TrainConfig, step: int) -> float:
    settings = config.optimizer
    return learning_rate(
        step, config.stages.base, settings.lr, settings, schedule=settings.schedule
    )


def test_all_presets_are_known_here() -> None:
    assert preset_names() == sorted(STEPS)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_preset_builds_its_network_and_has_a_fitting_loss(name: str) -> None:
    config = config_of(name)
    with torch.device("meta"):
        made = config.network
        network = build_network(made.name, preset=made.preset, **made.settings)
    require_fitting_loss(network, config.loss.reconstruction)
    assert config.stages.base == STEPS[name]
    assert str(config.out) == f"runs/{name}"


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_preset_has_the_published_learning_rates(name: str) -> None:
    config = config_of(name)
    steps, warmup = config.stages.base, config.optimizer.warmup_steps
    first, last = RATES[config.network.name]
    assert rate(config, warmup) == first
    if warmup:
        assert rate(config, 0) == pytest.approx(first / warmup)
        assert warmup == pytest.approx(3 * steps / (3000 if "gopro" in name else 250))
    begin = max(warmup, config.optimizer.hold_steps)
    assert rate(config, begin) == first
    assert rate(config, begin + (steps - begin) // 2) < first
    assert rate(config, steps - 1) == pytest.approx(last, rel=1e-3, abs=1e-8)


def test_rates_drop_and_fall_where_they_should() -> None:
    rcdnet = config_of("rain100h_rcdnet")  # 100 epochs, a fifth every 25
    quarters = [rate(rcdnet, step) for step in (0, 22_499, 22_500, 45_000, 67_500, 89_999)]
    assert quarters == pytest.approx([1e-3, 1e-3, 2e-4, 4e-5, 8e-6, 8e-6])
    derain = config_of("rain100h_efficientderain_v3")  # linear from epoch 2000 of 5000
    assert rate(derain, 2000 * 113) == 2e-4
    assert rate(derain, 3500 * 113) == pytest.approx(1e-4)
    restormer = config_of("gopro_restormer")
    assert rate(restormer, 91_999) == 3e-4 > rate(restormer, 93_000)


def test_restormer_s_crops_grow_as_published() -> None:
    sizes = [(p.steps, p.crop_px, p.batch_size) for p in base_phases(config_of("gopro_restormer"))]
    assert sizes == [
        (92_000, 128, 64), (64_000, 160, 40), (48_000, 192, 32),
        (36_000, 256, 16), (36_000, 320, 8), (24_000, 384, 8),
    ]  # fmt: skip
    for name in ("gopro_restormer", "rain13k_restormer", "sidd_restormer"):
        assert sum(phase.steps for phase in config_of(name).data.phases) == 300_000


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_preset_augments_as_its_authors_do(name: str) -> None:
    (wanted,) = [value for start, value in AUGMENTATION.items() if name.startswith(start)]
    data = config_of(name).data
    assert (data.augment, data.mixup_alpha, data.mixup_share, data.rain_layers) == wanted
    # Such values are not ours, and must not be said to be; SenseNoise has no authors' recipe.
    lines = preset_text(name).splitlines()
    said = [line for line in lines if line.startswith(("augment", "mixup_"))]
    assert said
    assert name.startswith("sensenoise") or not any("ours" in line for line in said)


def test_versions_of_efficientderain_differ_in_rain_alone() -> None:
    three, four = (config_of(f"spa_efficientderain_v{version}") for version in (3, 4))
    assert three.data.rain_layers is None
    assert four.data.rain_layers == "synthetic"
    data = four.data.model_copy(update={"rain_layers": None})
    assert four.model_copy(update={"data": data, "out": three.out}) == three


@pytest.mark.parametrize("name", sorted(STEPS))
def test_the_headline_says_the_task(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.task in ("deblurring", "denoising", "deraining")
    assert recipe.about
    assert recipe.network.startswith(config_of(name).network.name)


@pytest.mark.parametrize("name", [n for n in sorted(STEPS) if n.startswith(("sidd", "spa"))])
def test_the_head_says_how_the_store_is_made_as_the_page_does(name: str) -> None:
    head = preset_text(name).partition("\nout =")[0]
    command = head[head.index("samprior precompute") :].replace("\\\n#", " ").splitlines()[0]
    page = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text("utf-8")
    assert command.split() in [line.split() for line in page.replace("\\\n", " ").splitlines()]
    assert f"--out {config_of(name).data.train} " in command


# ---- by name


@pytest.mark.parametrize(
    "given", ["sidd_uformer_t", "sidd_uformer_t.toml", "presets/sidd_uformer_t.toml"]
)
def test_a_preset_is_found_by_name_anywhere(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path(given)) == load_config(FOLDER / "sidd_uformer_t.toml")


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sidd_uformer_t").write_text("out = 'mine'\n[data]\ntrain = 'x'\n")
    assert str(load_config(Path("sidd_uformer_t")).out) == "mine"


@pytest.mark.parametrize("given", ["runs/sidd_uformer_t.toml", "sidd_uformer_x", "none.toml"])
def test_other_places_are_not_looked_at(given: str) -> None:
    with pytest.raises(ConfigError, match=f"{given} does not exist; .* `samprior presets`"):
        load_config(Path(given))
    if "sidd" in given:
        with pytest.raises(ConfigError, match="did you mean sidd_uformer_"):
            load_config(Path(given))


def test_the_command_lists_and_prints(samprior: Command) -> None:
    code, out, _ = samprior("presets")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == preset_names()
    assert "uformer b" in out
    assert "789,000" in out
    code, out, _ = samprior("presets", "gopro_uformer_b")
    assert code == 0
    assert out == preset_text("gopro_uformer_b")
    code, _, err = samprior("presets", "gopro_uformer")
    assert code == 2
    assert "did you mean" in err


def test_a_preset_that_is_not_there_is_a_user_s_mistake() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        preset_text("gopro_nafnet_w3")
