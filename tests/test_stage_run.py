"""One step: however it is split and computed, it is the step of the whole batch."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samprior.storage import MaskStore
from samprior.training.checkpoint import load_checkpoint
from samprior.training.config import TrainConfig, load_config
from samprior.training.data import Batch, Crops
from samprior.training.loader import CropLoader
from samprior.training.networks import NETWORKS, build_network
from samprior.training.run import train
from samprior.training.stage_run import StageRun, compile_networks
from samprior.training.stages import (
    Losses,
    base_stage,
    build_networks,
    build_relation,
    distill_stage,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MakeStore = Callable[..., MaskStore]
Configure = Callable[..., TrainConfig]
CPU = torch.device("cpu")
SETTINGS = (
    "device=cpu",
    "mode=plain",
    "log_every=1",
    "save_every=2",
    "data.crop_px=32",
    "data.batch_size=4",
    "data.min_mask_px=4",
    "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
    "loss.analyzer=random-vgg",
    "stages.base=4",
)


@pytest.fixture
def store(tmp_path: Path, make_store: MakeStore) -> MaskStore:
    return make_store(tmp_path / "store", ((40, 56), (48, 33), (64, 64)))


@pytest.fixture
def configure(tmp_path: Path, store: MaskStore) -> Configure:
    def configured(*overrides: str, out: str = "run") -> TrainConfig:
        places = (f"out={tmp_path / out}", f"data.train={store.root}")
        return load_config(None, [*places, *SETTINGS, *overrides])

    return configured


def batches(store: MaskStore, *, batch_size: int, num: int) -> list[Batch]:
    crops = Crops(store=store, crop_px=32, seed=0, min_mask_px=1)
    loader = CropLoader(
        crops=crops, batch_size=batch_size, strides=(4, 8), num_batches=num, threads=0
    )
    return [raw.to(CPU) for raw in loader]


def stirred(module: nn.Module) -> None:
    """Give all parameters random values: fresh modules hide paths behind factors of zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def gradients(config: TrainConfig, parts: list[Batch]) -> tuple[Losses, list[Tensor]]:
    """Losses and gradient of a step of distillation, before anything is clipped."""
    network, teacher = build_networks(config)
    stirred(network), stirred(teacher)
    run = StageRun(
        distill_stage(config, network, teacher, build_relation(config.loss)), config, CPU
    )
    losses = run.advance(*parts)
    found = [value.grad for value in network.parameters()]
    assert all(value is not None for value in found)
    return losses, [value for value in found if value is not None]


@pytest.mark.parametrize("reconstruction", ["charbonnier", "l1", "mse", "psnr"])
def test_a_step_in_parts_has_the_gradient_of_the_whole_batch(
    configure: Configure, store: MaskStore, reconstruction: str
) -> None:
    config = configure(f"loss.reconstruction={reconstruction}", "optimizer.clip_norm=0")
    (whole,) = batches(store, batch_size=6, num=1)
    wanted_losses, wanted = gradients(config, [whole])
    for num in (2, 3):
        parts = batches(store, batch_size=6 // num, num=num)
        assert [key for part in parts for key in part.keys] == list(whole.keys)
        losses, found = gradients(config, parts)
        for name, value in wanted_losses.items():
            torch.testing.assert_close(losses[name], value.detach(), rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max())
            )


def test_a_run_in_parts_sees_the_crops_of_the_whole_batches(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[int, ...]]] = {}
    advance = StageRun.advance

    def noting(run: StageRun, *parts: Batch) -> Losses:
        step = tuple(sample for part in parts for sample in part.samples)
        seen.setdefault(str(run.config.accumulate), []).append(step)
        return advance(run, *parts)

    monkeypatch.setattr(StageRun, "advance", noting)
    for parts in (1, 2, 4):
        train(configure(f"accumulate={parts}", out=f"run{parts}"))
    assert seen["1"] == seen["2"] == seen["4"] == [tuple(range(i, i + 4)) for i in (0, 4, 8, 12)]


def weights(config: TrainConfig) -> dict[str, Tensor]:
    return load_checkpoint(config.out / "model.safetensors")[0]


def test_another_number_of_parts_goes_on_with_the_run(configure: Configure) -> None:
    class _StoppedError(Exception):
        pass

    def stopping(stage: str, step: int, total: int, losses: dict[str, float]) -> None:
        if step == 2:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        train(configure(), progress=stopping)
    train(configure("accumulate=4"))
    train(configure(out="unbroken"))
    wanted = weights(configure(out="unbroken"))
    for name, value in weights(configure()).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-2, atol=1e-4)


def test_channels_last_changes_nothing_but_the_layout(configure: Configure) -> None:
    train(configure(out="plain"))
    train(configure("channels_last=true", out="last"))
    plain, last = weights(configure(out="plain")), weights(configure(out="last"))
    assert list(plain) == list(last)
    for name, value in plain.items():
        torch.testing.assert_close(last[name], value, rtol=1e-2, atol=1e-4)
    network, _ = build_networks(configure())
    StageRun(base_stage(configure(), network), configure("channels_last=true"), CPU)
    layouts = [p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters()
               if p.dim() == 4]  # fmt: skip
    assert layouts
    assert all(layouts)


def test_channels_last_is_resumed_to_the_same_bytes(tmp_path: Path, configure: Configure) -> None:
    whole = configure("channels_last=true", "optimizer.ema_decay=0.9", out="whole")
    copies: list[Path] = []

    def copying(stage: str, step: int, total: int, losses: dict[str, float]) -> None:
        if step == 3:
            copies.append(shutil.copytree(whole.out, tmp_path / "broken"))

    train(whole, progress=copying)
    broken = configure("channels_last=true", "optimizer.ema_decay=0.9", out="broken")
    train(broken)
    name = "base/state.safetensors"
    assert (broken.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_compiled_networks_keep_their_keys_and_values(
    configure: Configure, store: MaskStore
) -> None:
    config = configure()
    network, _ = build_networks(config)
    stirred(network)
    stage = base_stage(config, network)
    keys = list(network.state_dict())
    (batch,) = batches(store, batch_size=2, num=1)
    wanted = stage.losses(batch)["total"]
    compile_networks(stage, backend="eager")
    torch.testing.assert_close(stage.losses(batch)["total"], wanted)
    assert list(network.state_dict()) == keys


def test_whole_images_are_scored_without_compiling(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size would be compiled anew."""
    compiled: list[tuple[int, ...]] = []

    def backend(graph: Any, examples: list[Any]) -> Any:  # noqa: ANN401
        compiled.extend(tuple(x.shape) for x in examples if getattr(x, "ndim", 0) == 4)
        return graph.forward

    def compiling(stage: Any) -> None:  # noqa: ANN401
        compile_networks(stage, backend=backend)  # type: ignore[arg-type]  # torch takes both

    monkeypatch.setattr("samprior.training.stage_run.compile_networks", compiling)
    config = configure("compile=true", "stages.base=2", "validate_every=1")
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"validation": config.data.train})}
    )
    train(config)
    images = {shape for shape in compiled if shape[1] == 3 and shape[0] <= 4 and shape[2] > 3}
    assert images == {(4, 3, 32, 32)}


TINY: dict[str, dict[str, Any]] = {
    "nafnet": {"preset": "tiny"},
    "restormer": {"preset": "tiny"},
    "uformer": {"preset": "tiny"},
    "rcdnet": {"preset": "tiny"},
    "efficientderain": {"preset": "tiny"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_say_whether_they_leave_parameters_unused(name: str) -> None:
    """Several ranks wait for the gradients of all parameters of those that don't say so."""
    network = build_network(name, **TINY[name])
    network(torch.rand(1, 3, 64, 64)).sum().backward()
    unused = [key for key, value in network.named_parameters() if value.grad is None]
    assert bool(unused) == getattr(network, "leaves_parameters_unused", False), unused[:5]
