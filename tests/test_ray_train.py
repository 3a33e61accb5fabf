"""Ray Train runs the same loop: what its workers end with, and whose errors they report."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from samprior.pipeline.ray_session import ray_session
from samprior.storage import MaskStore
from samprior.storage.errors import ConfigError, TrainingError, UsageError
from samprior.training import ray_train
from samprior.training.checkpoint import load_checkpoint
from samprior.training.config import TrainConfig, load_config
from samprior.training.outlook import Outlook
from samprior.training.ray_train import train_with_ray
from samprior.training.run import train

MakeStore = Callable[..., MaskStore]
Configure = Callable[..., TrainConfig]
SETTINGS = (
    "mode=plain",
    "device=cpu",
    "log_every=1",
    "data.crop_px=16",
    "data.batch_size=4",
    "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
    "loss.reconstruction=charbonnier",
    "stages.base=3",
)

# Ray's and its libraries' own.
pytestmark = pytest.mark.filterwarnings("ignore::Warning:ray", "ignore::ResourceWarning")


@pytest.fixture
def configure(tmp_path: Path, make_store: MakeStore) -> Configure:
    store = make_store(tmp_path / "store", ((40, 56), (48, 33), (64, 64)))

    def configured(*overrides: str, out: str = "run") -> TrainConfig:
        places = (
            f"out={tmp_path / out}",
            f"data.train={store.root}",
            f"data.validation={store.root}",
        )
        return load_config(None, [*places, *SETTINGS, *overrides])

    return configured


@pytest.fixture
def private_ray() -> Iterator[None]:
    pytest.importorskip("pyarrow", reason="Ray Train is not installed")
    with ray_session():
        yield


def losses_of(out: Path) -> list[float]:
    text = (out / "base" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line["total"] for line in lines if "total" in line]


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_two_workers_train_what_one_process_does(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = configure(out="alone")
    ray = configure("out=ray", "data.train=store", "data.validation=store")  # relative to here
    wanted = train(alone)
    announced: list[Outlook] = []
    steps: list[tuple[str, int, int]] = []
    result = train_with_ray(
        ray,
        workers=2,
        announce=announced.append,
        progress=lambda stage, step, total, values: steps.append((stage, step, total)),
    )
    assert [outlook.stages for outlook in announced] == [{"base": 3}]
    assert steps[-1] == ("base", 3, 3)
    assert losses_of(ray.out) == pytest.approx(losses_of(alone.out), rel=1e-3)
    assert result.stages["base"].psnr_db == pytest.approx(wanted.stages["base"].psnr_db, abs=0.01)
    assert result.protocol == wanted.protocol
    assert result.shipped == ray.out / "model.safetensors"
    ours, theirs = load_checkpoint(result.shipped)[0], load_checkpoint(wanted.shipped)[0]
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_errors_of_the_workers_are_ours(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="can't be split evenly over 2 ranks"):
        train_with_ray(configure("accumulate=4"), workers=2)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf)"):
        train_with_ray(configure("optimizer.lr=1e30", "optimizer.clip_norm=0"), workers=2)


def test_missing_libraries_are_named(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train, "find_spec", lambda name: None if name == "pyarrow" else name)
    with pytest.raises(ConfigError, match=r"needs pyarrow; run: pip install .samprior\[ray-train"):
        train_with_ray(configure(), workers=2)


@pytest.mark.parametrize(("workers", "gpus"), [(0, 0.0), (1, -1.0)])
def test_workers_are_counted_from_one(configure: Configure, workers: int, gpus: float) -> None:
    with pytest.raises(UsageError, match="at least 1 worker"):
        train_with_ray(configure(), workers=workers, gpus_per_worker=gpus)


@pytest.mark.parametrize("arguments", [["--launcher", "ray"], ["--workers", "2"]])
def test_the_command_wants_workers_with_ray(
    samprior: Callable[..., tuple[int, str, str]], arguments: list[str]
) -> None:
    code, _, error = samprior("train", "--config", "none.toml", *arguments)
    assert code == 2
    assert "--launcher ray and --workers N go together" in error
