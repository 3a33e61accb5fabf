"""Every network trains with the parts of its own recipe, and resumes to the same bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError, ConfigError
from samprior.training.checkpoint import load_checkpoint, load_network
from samprior.training.config import TrainConfig, load_config
from samprior.training.networks import build_network
from samprior.training.networks.rain_kernels import rain_kernels
from samprior.training.networks.rcdnet import RCDNet, deep_supervision
from samprior.training.reconstruction import image_loss, restored_with_loss
from samprior.training.run import train
from samprior.training.stage_run import step_generator
from samprior.training.stages import base_stage, build_networks, control_stage, distill_stage

pytestmark = pytest.mark.usefixtures("one_thread")

MakeStore = Callable[..., MaskStore]
CPU = torch.device("cpu")

SETTINGS = (
    "seed=3",
    "mode=plain",
    "device=cpu",
    "log_every=1",
    "validate_every=2",
    "save_every=2",
    "validation_pictures=0",
    "data.crop_px=16",
    "data.batch_size=2",
    "data.min_mask_px=4",
    "loss.analyzer=random-vgg",
    "loss.lambda_sgr=0",
    "stages.base=4",
    "stages.fusion=2",
    "stages.distill=3",
)
PHASES = (
    "data.phases=[{steps = 1, crop_px = 16, batch_size = 3}, "
    "{steps = 2, crop_px = 24, batch_size = 2}, {steps = 9, crop_px = 32, batch_size = 1}]"
)
# Small, and with the parts of each network's own recipe.
NETWORKS = {
    "nafnet": (
        "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
        "optimizer.ema_decay=0.9",
    ),
    "restormer": (
        "network.settings={dim = 4, num_blocks = [1, 1, 1, 1], num_refinement_blocks = 1, "
        "heads = [1, 1, 1, 1], ffn_expansion = 1.0}",
        "loss.reconstruction=l1",
        "optimizer.schedule=constant_cosine",
        "optimizer.hold_steps=2",
        PHASES,
    ),
    "uformer": (
        "network.settings={width = 4, depths = [2, 1, 2], heads = [1, 2, 1], window = 4, "
        "drop_path = 0.5}",
        "loss.reconstruction=charbonnier",
        "optimizer.warmup_steps=2",
        "data.mixup_alpha=1.2",
    ),
    "rcdnet": (
        "network.settings={stages = 3, rain_maps = 3, dual_channels = 2, blocks = 1}",
        "loss.reconstruction=deep_supervision",
        "optimizer.name=adam",
        "optimizer.schedule=steps",
        "optimizer.decay_every=3",
        "optimizer.ema_decay=0.5",
        "optimizer.weight_decay=0.01",
    ),
    "efficientderain": (
        "network.settings={width = 2}",
        "loss.reconstruction=l1_ssim",
        "optimizer.name=adam",
        "optimizer.schedule=linear_decay",
        "optimizer.hold_steps=1",
        "data.rain_layers=synthetic",
        "data.augment=none",
    ),
}
Configure = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def configure(tmp_path: Path, stores: Path, make_store: MakeStore) -> Configure:
    for name, seed in (("train", 0), ("validation", 50)):
        if not (stores / name).exists():
            make_store(stores / name, ((40, 56), (33, 48)), seed=seed)

    def configured(name: str, *overrides: str, out: str = "run") -> TrainConfig:
        places = (
            f"out={tmp_path / out}",
            f"data.train={stores / 'train'}",
            f"data.validation={stores / 'validation'}",
            f"network.name={name}",
        )
        return load_config(None, [*places, *SETTINGS, *NETWORKS[name], *overrides])

    return configured


class _BrokenOffError(Exception):
    """Stands for whatever ends a process."""


def files_of(out: Path) -> dict[str, bytes]:
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "resolved.toml")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def break_off_and_finish(config: TrainConfig, stops: list[tuple[str, int]]) -> None:
    for stop in stops:

        def progress(
            name: str, done: int, *_: object, stop: tuple[str, int] = stop, **__: object
        ) -> None:
            if (name, done) == stop:
                raise _BrokenOffError

        with pytest.raises(_BrokenOffError):
            train(config, progress=progress)
    train(config)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_broken_off_run_ends_with_the_same_bytes(configure: Configure, name: str) -> None:
    unbroken = configure(name)
    train(unbroken)
    broken = configure(name, out="broken")
    # With saves after steps 2 and 4: before the first, after it, and within every phase.
    break_off_and_finish(broken, [("base", 1), ("base", 2), ("base", 3)])
    assert files_of(broken.out) == files_of(unbroken.out)
    tensors, _ = load_checkpoint(unbroken.out / "model.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    network, _ = load_network(unbroken.out)
    fresh, _ = build_networks(unbroken)
    assert network.state_dict().keys() == fresh.state_dict().keys()
    assert not all(
        torch.equal(value, fresh.state_dict()[key]) for key, value in network.state_dict().items()
    )


@pytest.mark.parametrize("name", ["rcdnet", "uformer"])
def test_all_stages_run_and_resume(configure: Configure, name: str) -> None:
    unbroken = configure(name, "mode=compare", "stages.base=1")
    result = train(unbroken)
    assert result.gain_db is not None
    broken = configure(name, "mode=compare", "stages.base=1", out="broken")
    break_off_and_finish(broken, [("control", 2), ("fusion", 1), ("distill", 2)])
    assert files_of(broken.out) == files_of(unbroken.out)


def test_control_and_distillation_draw_alike(configure: Configure) -> None:
    """Without weight the distilled network is the control, whatever the network draws."""
    config = configure("uformer", "mode=compare", "loss.lambda_spd=0", "stages.base=1")
    assert train(config).gain_db == 0


def test_a_step_s_draws_follow_its_place_and_leave_others_alone(configure: Configure) -> None:
    config = configure("uformer")
    network, teacher = build_networks(config)
    base, control = base_stage(config, network), control_stage(config, network)
    distill = distill_stage(config, network, teacher, None)

    def drawn(seed: int, stage: object, step: int, rank: int = 0) -> tuple[float, ...]:
        with step_generator(seed, stage, step, CPU, rank=rank):  # type: ignore[arg-type]
            return tuple(torch.rand(3).tolist())

    before = torch.random.get_rng_state()
    first = drawn(0, base, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == drawn(0, base, 1)
    others = [drawn(1, base, 1), drawn(0, base, 2), drawn(0, control, 1), drawn(0, base, 1, 1)]
    assert len({first, *others}) == 5
    assert drawn(0, control, 1) == drawn(0, distill, 1)


# ---- RCDNet


def test_averages_of_batch_statistics_are_kept(configure: Configure) -> None:
    config = configure("rcdnet")
    train(config)
    state, _ = load_checkpoint(config.out / "base" / "state.safetensors")
    counts = {k: v for k, v in state.items() if k.endswith("num_batches_tracked")}
    assert counts
    # Of what is used, each has seen every step; mnet is never used.
    assert {int(v) for k, v in counts.items() if ".mnet." not in k} == {4}
    means = [k for k in state if k.startswith("average.") and k.endswith("running_mean")]
    assert any(not torch.equal(state[k], state[k.replace("average", "weights", 1)]) for k in means)


def test_deep_supervision_is_the_authors_loss_and_spd_takes_mse() -> None:
    torch.manual_seed(0)
    network = build_network("rcdnet", stages=3, rain_maps=3, dual_channels=2, blocks=1)
    assert isinstance(network, RCDNet)
    degraded, clean = torch.rand(2, 2, 3, 16, 16)
    restored, loss = restored_with_loss(network.eval(), degraded, clean, loss="deep_supervision")
    unrolled = network.unroll(degraded)
    assert torch.equal(restored, unrolled.backgrounds[-1])
    assert torch.equal(loss, deep_supervision(unrolled, degraded, clean))
    assert image_loss("deep_supervision") is image_loss("mse")


def test_deep_supervision_of_other_networks_is_refused(configure: Configure) -> None:
    config = configure("nafnet", "loss.reconstruction=deep_supervision")
    with pytest.raises(ConfigError, match=r"for networks that unroll, .* NAFNet does not"):
        train(config)
    assert not config.out.exists()


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    scipy_io = pytest.importorskip("scipy.io")
    file = tmp_path / "init_kernel.mat"
    scipy_io.savemat(file, {"C9": 2 * rain_kernels(3).astype(np.float64)})
    return file


def test_rain_kernels_are_taken_from_a_file_and_known_by_content(
    configure: Configure, kernels: Path, tmp_path: Path
) -> None:
    config = configure("rcdnet", f"network.rain_kernels={kernels}")
    network, _ = build_networks(config)
    assert torch.equal(network.weight0, torch.tensor(2 * rain_kernels(3)))
    train(config)
    moved = kernels.rename(tmp_path / "moved.mat")
    train(configure("rcdnet", f"network.rain_kernels={moved}"))
    with pytest.raises(CheckpointError, match=r"config\.network\.rain_kernels: [0-9a-f]+ there"):
        train(configure("rcdnet"))
    with pytest.raises(CheckpointError, match="can't be read"):
        train(configure("rcdnet", f"network.rain_kernels={kernels}"))


def test_rain_kernels_that_nothing_takes_are_refused(configure: Configure, kernels: Path) -> None:
    with pytest.raises(ConfigError, match=r"network\.rain_kernels is for rcdnet"):
        train(configure("nafnet", f"network.rain_kernels={kernels}"))
    with pytest.raises(ConfigError, match=r"leave out network\.rain_kernels"):
        configure("rcdnet", f"network.rain_kernels={kernels}", "network.init=weights.pth")


# ---- settings


def test_other_rain_is_another_run(configure: Configure) -> None:
    train(configure("efficientderain"))
    with pytest.raises(CheckpointError, match=r"config\.data\.rain_layers: synthetic there"):
        train(
            load_config(
                None,
                [
                    *(f"{k}={v}" for k, v in _places(configure("efficientderain"))),
                    *SETTINGS,
                    "network.name=efficientderain",
                    *(s for s in NETWORKS["efficientderain"] if "rain_layers" not in s),
                ],
            )
        )


def _places(config: TrainConfig) -> list[tuple[str, object]]:
    data = config.data
    return [("out", config.out), ("data.train", data.train), ("data.validation", data.validation)]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.augment=true", "'flips_turns', 'hflip' or 'none', got True"),
        ("optimizer.schedule=step", "got 'step'"),
        ("optimizer.hold_steps=5", "no use for; set optimizer.schedule"),
        ("data.phases=[{steps = 1, crop_px = 12, batch_size = 1}]", "data.phases.0.crop_px"),
        (
            "data.phases=[{steps = 1, crop = 16, batch_size = 1}]",
            "unknown key 'data.phases.0.crop'",
        ),
        ("data.phases=3", "data.phases"),
    ],
)
def test_mistakes_in_a_recipe_are_named(configure: Configure, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure("nafnet", override)
    assert words in str(caught.value)


def test_a_phase_larger_than_an_image_is_refused_before_anything_is_computed(
    configure: Configure,
) -> None:
    config = configure("restormer", PHASES.replace("crop_px = 32", "crop_px = 40"))
    with pytest.raises(ConfigError, match=r"data\.crop_px is 40, but image images/001 is 48x33"):
        train(config)
    assert not config.out.exists()
