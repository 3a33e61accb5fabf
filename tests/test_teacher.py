"""The teacher: its shape, where it starts from, and which image it sees."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError, ConfigError, UsageError
from samprior.training.checkpoint import load_checkpoint, read_record, save_checkpoint
from samprior.training.config import TrainConfig, load_config
from samprior.training.data import Batch, Crops
from samprior.training.loader import CropLoader
from samprior.training.networks import build_network
from samprior.training.run import train
from samprior.training.stages import Stage, build_networks, distill_stage, fusion_stage

pytestmark = pytest.mark.usefixtures("one_thread")

MakeStore = Callable[..., MaskStore]
Configure = Callable[..., TrainConfig]
SHAPE = {"width": 4, "enc_blocks": [1], "middle_blocks": 1, "dec_blocks": [1]}
SETTINGS = (
    "seed=3",
    "mode=distill",
    "device=cpu",
    "data.crop_px=16",
    "data.batch_size=2",
    "data.min_mask_px=4",
    "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
    "loss.reconstruction=charbonnier",
    "loss.lambda_sgr=0",
    "stages.base=2",
    "stages.fusion=2",
    "stages.distill=2",
)
RCDNET = (
    "network.name=rcdnet",
    "network.settings={stages = 3, rain_maps = 3, dual_channels = 2, blocks = 1}",
    "loss.reconstruction=deep_supervision",
)
WIDER = "network2.settings.width=8"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def store(stores: Path, make_store: MakeStore) -> MaskStore:
    root = stores / "train"
    return MaskStore.open(root) if root.exists() else make_store(root, ((40, 56), (33, 48)))


@pytest.fixture
def configure(tmp_path: Path, store: MaskStore) -> Configure:
    def configured(*overrides: str, out: str = "run") -> TrainConfig:
        places = (f"out={tmp_path / out}", f"data.train={store.root}")
        return load_config(None, [*places, *SETTINGS, *overrides])

    return configured


@pytest.fixture
def batch(store: MaskStore) -> Batch:
    crops = Crops(store=store, crop_px=16, seed=0, min_mask_px=1)
    loader = CropLoader(crops=crops, batch_size=3, strides=(), threads=0)
    return next(iter(loader)).to(torch.device("cpu"))


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give all parameters random values: fresh modules hide paths behind factors of zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def given(file: Path, *, seed: int = 0, **settings: object) -> nn.Module:
    """A network with weights of its own, saved as one of our checkpoints or an official file."""
    network = stirred(build_network("nafnet", **{**SHAPE, **settings}), seed)
    if file.suffix == ".pth":
        torch.save({"params": network.state_dict()}, file)
    else:
        save_checkpoint(file, network.state_dict(), {})
    return network.eval()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """The weights of network 1 and of network 2 as the last fusion stage began, and its rate."""
    seen: dict[str, dict[str, Tensor]] = {}

    def noting(config: TrainConfig, network: nn.Module, teacher: nn.Module) -> Stage:
        stage = fusion_stage(config, network, teacher)  # type: ignore[arg-type]
        for name, module in (("network 1", network), ("network 2", teacher.network2)):
            assert isinstance(module, nn.Module)
            seen[name] = {key: value.clone() for key, value in module.state_dict().items()}
        seen["rate"] = {"peak": torch.tensor(stage.peak_lr)}
        return stage

    monkeypatch.setattr("samprior.training.run.fusion_stage", noting)
    return seen


# ---- its shape


def test_a_wider_teacher_trains_and_ships_nothing_of_itself(configure: Configure) -> None:
    config = configure(WIDER)
    result = train(config)
    teacher, record = load_checkpoint(config.out / "fusion" / "model.safetensors")
    assert record["config"]["network2"]["settings"] == {**SHAPE, "width": 8}
    assert "network" not in record
    wide = build_network("nafnet", **{**SHAPE, "width": 8}).state_dict()
    found = {k.removeprefix("network2."): v for k, v in teacher.items() if k.startswith("network2")}
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wide.items()}

    plain = build_network("nafnet", **SHAPE).state_dict()
    shipped, record = load_checkpoint(result.shipped)
    assert {k: v.shape for k, v in shipped.items()} == {k: v.shape for k, v in plain.items()}
    assert record["network"]["settings"] == SHAPE


@pytest.mark.parametrize(
    ("overrides", "shape"),
    [
        ((), ("nafnet", "tiny", {"width": 4})),
        ((WIDER,), ("nafnet", "tiny", {"width": 8})),
        (
            ("network2.settings.middle_blocks=2",),
            ("nafnet", "tiny", {"width": 4, "middle_blocks": 2}),
        ),
        (("network2.preset=gopro_w32",), ("nafnet", "gopro_w32", {})),
        (("network2.name=restormer",), ("restormer", None, {})),
        (("network2.name=restormer", "network2.settings.dim=8"), ("restormer", None, {"dim": 8})),
        (("network2.init=weights.pth",), ("nafnet", "tiny", {"width": 4})),
    ],
)
def test_what_is_not_set_is_network_1s(
    overrides: tuple[str, ...], shape: tuple[str, str | None, dict[str, object]]
) -> None:
    needed = ("out=run", "data.train=store", "network.preset=tiny", "network.settings.width=4")
    config = load_config(None, [*needed, *overrides])
    found = config.network2.beside(config.network)
    assert (found.name, found.preset, found.settings) == shape


def test_an_unknown_shape_is_refused_before_anything_is_written(configure: Configure) -> None:
    for wrong in ("network2.name=nafnett", "network2.preset=w99", "network2.settings.with=8"):
        config = configure(wrong)
        with pytest.raises(UsageError, match=r"nafnett|w99|with"):
            train(config)
        assert not config.out.exists()


def test_a_teacher_of_the_users_own(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_teacher.py").write_text(
        "from torch import nn\n"
        "def make(*, width: int) -> nn.Module:\n"
        "    return nn.Conv2d(3, 3, width, padding=width // 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = configure("network2.name=own_teacher:make", "network2.settings.width=3")
    train(config)
    teacher, _ = load_checkpoint(config.out / "fusion" / "model.safetensors")
    assert teacher["network2.weight"].shape == (3, 3, 3, 3)


# ---- its loss


@pytest.mark.parametrize("unrolls", [True, False])
def test_a_teacher_that_does_not_unroll_learns_by_mse(
    configure: Configure, batch: Batch, *, unrolls: bool
) -> None:
    other = () if unrolls else ("network2.name=nafnet", "network2.settings={width = 4}")
    config = configure(*RCDNET, *other)
    network, teacher = build_networks(config)
    stage = fusion_stage(config, network.eval(), teacher.eval())
    assert batch.regions is not None
    loss = stage.losses(batch)["total"]
    refined = stage.restore(batch.degraded, batch.regions)
    is_mse = torch.equal(loss, nn.functional.mse_loss(refined, batch.clean))
    assert is_mse != unrolls


def test_an_unrolling_teacher_of_another_network(configure: Configure) -> None:
    shape = "network2.settings={stages = 3, rain_maps = 3, dual_channels = 2, blocks = 1}"
    train(configure("network2.name=rcdnet", shape))


# ---- where it starts from


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        # The same shape, written out.
        (
            "network2.name=nafnet",
            "network2.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
        ),
    ],
    ids=["not set", "set to the same"],
)
def test_a_teacher_of_network_1s_shape_starts_from_its_weights(
    configure: Configure, started: dict[str, dict[str, Tensor]], overrides: tuple[str, ...]
) -> None:
    config = configure(*overrides)
    train(config)
    base, _ = load_checkpoint(config.out / "base" / "model.safetensors")
    assert equal(started["network 1"], base)
    assert equal(started["network 2"], base)
    peak = config.optimizer.lr * config.optimizer.extra_lr_share
    assert started["rate"]["peak"] == torch.tensor(peak)


def test_a_teacher_of_another_shape_starts_anew_at_the_full_rate(
    configure: Configure, started: dict[str, dict[str, Tensor]]
) -> None:
    config = configure(WIDER)
    _, fresh = build_networks(config)
    train(config)
    assert equal(started["network 2"], fresh.network2.state_dict())
    assert started["rate"]["peak"] == torch.tensor(config.optimizer.lr)


@pytest.mark.parametrize("name", ["given.pth", "given.safetensors"])
@pytest.mark.parametrize("width", [4, 8])
def test_a_teacher_starts_from_given_weights(
    tmp_path: Path,
    configure: Configure,
    started: dict[str, dict[str, Tensor]],
    name: str,
    width: int,
) -> None:
    network = given(tmp_path / name, width=width)
    config = configure(f"network2.init={tmp_path / name}", f"network2.settings.width={width}")
    train(config)
    assert equal(started["network 2"], dict(network.state_dict()))
    peak = config.optimizer.lr * config.optimizer.extra_lr_share
    assert started["rate"]["peak"] == torch.tensor(peak)


def test_given_weights_are_known_by_content(tmp_path: Path, configure: Configure) -> None:
    file = tmp_path / "given.safetensors"
    given(file)
    config = configure(f"network2.init={file}")
    train(config)
    shipped = (config.out / "model.safetensors").read_bytes()
    assert str(file) not in str(read_record(config.out / "fusion" / "model.safetensors"))
    moved = file.rename(tmp_path / "moved.safetensors")
    train(configure(f"network2.init={moved}"))
    assert (config.out / "model.safetensors").read_bytes() == shipped
    given(file, seed=1)
    with pytest.raises(CheckpointError, match=r"fusion.*config\.network2\.init: [0-9a-f]+ there"):
        train(config)


def test_given_weights_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, configure: Configure
) -> None:
    file = tmp_path / "given.safetensors"
    given(file, width=8)
    with pytest.raises(CheckpointError, match=r"given\.safetensors does not fit the network"):
        train(configure(f"network2.init={file}"))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"given\.safetensors does not exist"):
        train(configure(f"network2.init={file}"))
    assert not configure().out.exists()
    # Without a teacher nothing needs them.
    train(configure(f"network2.init={file}", "mode=control"))


# ---- which image it sees


def test_a_teacher_of_degraded_images_begins_as_the_network_that_was_given(
    tmp_path: Path, configure: Configure, batch: Batch
) -> None:
    """SPF starts as the identity, and network 1 isn't even run."""
    file = tmp_path / "given.safetensors"
    wanted = given(file, width=8)
    config = configure("fusion.image=degraded", f"network2.init={file}", WIDER)
    network, teacher = build_networks(config)
    teacher.network2.load_state_dict(load_checkpoint(file)[0])
    network.register_forward_hook(lambda *_: pytest.fail("network 1 was run"))
    stage = fusion_stage(config, network, teacher)
    with torch.no_grad():
        assert torch.equal(stage.restore(batch.degraded, batch.regions), wanted(batch.degraded))
        stage.losses(batch)
    assert stage.frozen == ()


@pytest.mark.parametrize("image", ["restored", "degraded"])
def test_distillation_shows_the_teacher_what_it_learnt_on(
    configure: Configure, batch: Batch, image: str
) -> None:
    config = configure(f"fusion.image={image}")
    network, teacher = build_networks(config)
    stirred(network), stirred(teacher)
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    losses = distill_stage(config, network, teacher, None).losses(batch)
    wanted = batch.degraded if image == "degraded" else network(batch.degraded)
    assert torch.equal(seen[0], wanted)
    losses["spd"].backward()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_run_with_degraded_images_and_a_wider_teacher(configure: Configure) -> None:
    config = configure("fusion.image=degraded", WIDER, f"data.validation={configure().data.train}")
    result = train(config)
    assert result.stages["fusion"].psnr_db is not None
    assert read_record(result.shipped)["config"]["fusion"]["image"] == "degraded"
    card = (config.out / "model_card.md").read_text()
    assert '"width": 8' in card
    assert "which saw the degraded pictures and their masks." in card


def test_images_of_the_start_that_nothing_would_look_at_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fusion\.image is degraded.*loss\.spd_input = start"):
        load_config(
            None,
            ["out=run", "data.train=store", "fusion.image=degraded", "loss.spd_input=start"],
        )


def test_a_factory_that_makes_its_class_anew_still_starts_as_network_1(
    configure: Configure, started: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("local_classes")

    def make() -> nn.Module:
        class Local(nn.Conv2d):
            """Another class at each call."""

        return Local(3, 3, 3, padding=1)

    module.make = make  # type: ignore[attr-defined]  # a module of the test's own
    monkeypatch.setitem(sys.modules, "local_classes", module)
    train(configure("network.settings={}", "network.name=local_classes:make"))
    assert equal(started["network 1"], started["network 2"])
    assert started["rate"]["peak"] == pytest.approx(0.25e-3)
