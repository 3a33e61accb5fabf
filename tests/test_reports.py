"""What a stage leaves behind: its best weights, pictures, curves, and the card of what ships."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError, ConfigError
from samprior.training import logs
from samprior.training.best import best_file, best_steps
from samprior.training.checkpoint import load_checkpoint, load_network, read_record
from samprior.training.config import TrainConfig, load_config
from samprior.training.logs import STRIP_PX, strip_of
from samprior.training.metrics import psnr
from samprior.training.restore import restore
from samprior.training.run import read_result, train

pytestmark = pytest.mark.usefixtures("one_thread")

MakeStore = Callable[..., MaskStore]
Configure = Callable[..., TrainConfig]
CPU = torch.device("cpu")
SETTINGS = (
    "seed=3",
    "device=cpu",
    "mode=plain",
    "log_every=2",
    "validate_every=1",
    "save_every=3",
    "keep_best=2",
    "validation_pictures=2",
    "data.crop_px=16",
    "data.batch_size=2",
    "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
    "loss.lambda_sgr=0",
    # Steps so large that the score goes up and down.
    "optimizer.lr=0.05",
    "stages.base=7",
    "stages.fusion=1",
    "stages.distill=1",
)


@pytest.fixture
def validation(tmp_path: Path, make_store: MakeStore) -> MaskStore:
    return make_store(tmp_path / "validation", ((24, 31), (16, 16), (17, 40)), seed=50)


@pytest.fixture
def configure(tmp_path: Path, make_store: MakeStore, validation: MaskStore) -> Configure:
    made_of = {"segmenter": {"name": "superpixel", "levels": [5]}, "source": "degraded"}
    store = make_store(tmp_path / "store", ((40, 56), (48, 33), (64, 64)), made_of=made_of)

    def configured(*overrides: str, out: str = "run") -> TrainConfig:
        places = (
            f"out={tmp_path / out}",
            f"data.train={store.root}",
            f"data.validation={validation.root}",
        )
        return load_config(None, [*places, *SETTINGS, *overrides])

    return configured


def files_of(out: Path) -> dict[str, bytes]:
    """All files of a run but resolved.toml, which says where the run lies."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "resolved.toml")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def scores_of(stage: Path) -> dict[int, float]:
    """PSNR by step, from the log."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: line["validation_psnr_db"] for line in lines if "validation_sha256" in line
    }


# ---- the best


def line(step: int, psnr_db: float, images: str = "a") -> dict[str, Any]:
    return {"step": step, "validation_psnr_db": psnr_db, "validation_sha256": images}


def test_the_best_are_the_highest_scores_after_the_start() -> None:
    lines = [line(0, 40), {"step": 1, "total": 0.5}, line(1, 20), line(2, 22), line(3, 21)]
    assert best_steps(lines, 2) == {2: 22, 3: 21}
    assert list(best_steps(lines, 3)) == [2, 3, 1]
    assert best_steps(lines, 0) == {}
    assert best_steps([], 2) == {}


def test_the_first_of_equal_scores_is_better() -> None:
    assert best_steps([line(1, 20), line(2, 20)], 1) == {1: 20}


def test_scores_on_other_images_are_ranked_apart() -> None:
    assert best_steps([line(1, 20), line(2, 30, "b"), line(3, 10)], 1) == {1: 20, 2: 30}


def test_the_best_weights_are_kept_and_no_others(
    configure: Configure, validation: MaskStore
) -> None:
    config = configure()
    result = train(config).stages["base"]
    scores = scores_of(config.out / "base")
    assert list(scores) == list(range(8))
    del scores[0]
    best = sorted(scores, key=lambda step: -scores[step])[:2]
    files = {file.name for file in (config.out / "base" / "best").iterdir()}
    assert files == {f"step-{step:06d}-{scores[step]:.3f}dB.safetensors" for step in best}
    assert (result.best_step, result.best_psnr_db) == (best[0], scores[best[0]])
    told = json.loads((config.out / "base" / "result.json").read_text())
    assert told["best_step"] == best[0]
    for step in best:
        network, record = load_network(best_file(config.out / "base", step, scores[step]))
        found = np.mean(
            [psnr(restore(network, r.degraded, device=CPU), r.clean) for r in validation]
        )
        assert found == pytest.approx(scores[step], abs=1e-9)
        assert record["scores"] == {"step": step, "psnr_db": scores[step]}


def test_none_are_kept_without_scores_or_when_not_asked_for(
    configure: Configure, tmp_path: Path
) -> None:
    train(configure("keep_best=0", out="none"))
    assert not (tmp_path / "none" / "base" / "best").exists()


def test_a_broken_run_has_the_same_best_weights_and_pictures(
    tmp_path: Path, configure: Configure
) -> None:
    """Wherever it breaks off, even after weights were kept that a resumed run has yet to make."""
    train(configure(out="whole"))
    wanted = files_of(tmp_path / "whole")
    assert sum(name.startswith("base/best/") for name in wanted) == 2
    for broken in range(7):
        out = f"broken{broken}"

        def copying(stage: str, step: int, total: int, losses: dict[str, float]) -> None:
            if step == broken:  # noqa: B023  # called in this round alone
                shutil.copytree(tmp_path / "first", tmp_path / out)  # noqa: B023

        shutil.rmtree(tmp_path / "first", ignore_errors=True)
        train(configure(out="first"), progress=copying)
        train(configure(out=out))
        assert files_of(tmp_path / out) == wanted


def test_the_best_ships_when_asked_for(configure: Configure, validation: MaskStore) -> None:
    config = configure("ship=best")
    result = train(config)
    stage = result.stages["base"]
    assert stage.best_step is not None
    assert stage.best_psnr_db is not None
    network, record = load_network(config.out)
    scores = [psnr(restore(network, r.degraded, device=CPU), r.clean) for r in validation]
    assert stage.best_psnr_db == pytest.approx(np.mean(scores), abs=1e-9)
    assert record["scores"]["step"] == stage.best_step
    file = best_file(config.out / "base", stage.best_step, stage.best_psnr_db)
    assert (
        json.loads((config.out / "summary.json").read_text())["ships"] == f"base/best/{file.name}"
    )
    assert f"step {stage.best_step}: the best" in (config.out / "model_card.md").read_text()
    assert result.shipped.read_bytes() == file.read_bytes()


def test_the_best_that_was_not_kept_cannot_ship(configure: Configure) -> None:
    train(configure("keep_best=0"))
    with pytest.raises(CheckpointError, match="was not kept, so ship = best has nothing to ship"):
        train(configure("ship=best"))


@pytest.mark.parametrize("wrong", ["keep_best=0", "data.validation="])
def test_shipping_the_best_needs_scores(tmp_path: Path, wrong: str) -> None:
    places = [f"out={tmp_path}", "data.train=x", "ship=best"]
    if wrong == "keep_best=0":
        places += ["data.validation=y", wrong]
    with pytest.raises(ConfigError, match=r"ship = best needs data\.validation"):
        load_config(None, places)


# ---- logs and pictures


def test_the_log_has_the_learning_rate_of_the_step_and_no_times(configure: Configure) -> None:
    config = configure("optimizer.warmup_steps=4")
    train(config)
    text = (config.out / "base" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    assert list(rates) == [2, 4, 6, 7]
    assert rates[2] == pytest.approx(0.05 * 2 / 4)
    assert rates[4] == pytest.approx(0.05)
    assert all(line.keys() <= {"step", "lr", "total", "validation_psnr_db", "validation_sha256"}
               for line in lines)  # fmt: skip


def test_pictures_show_degraded_restored_and_clean(
    configure: Configure, validation: MaskStore
) -> None:
    config = configure("stages.base=2")
    train(config)
    folder = config.out / "base" / "pictures"
    names = {f"{image:03d}-step-{step:06d}.png" for image in (0, 1) for step in (0, 1, 2)}
    assert {file.name for file in folder.iterdir()} == names
    network, _ = load_network(config.out)
    for index in (0, 1):
        record = validation[index]
        restored = restore(network, record.degraded, device=CPU)
        with Image.open(folder / f"{index:03d}-step-000002.png") as picture:
            strip = np.asarray(picture)
        assert np.array_equal(strip, np.hstack([record.degraded, restored, record.clean]))


def test_no_pictures_when_none_are_asked_for(configure: Configure) -> None:
    config = configure("stages.base=1", "validation_pictures=0")
    train(config)
    assert not (config.out / "base" / "pictures").exists()


def test_strips_of_large_pictures_show_their_middle(rng: np.random.Generator) -> None:
    pictures = rng.integers(0, 256, (3, STRIP_PX + 10, STRIP_PX + 21, 3), dtype=np.uint8)
    strip = strip_of(*pictures)
    assert strip.shape == (STRIP_PX, 3 * STRIP_PX, 3)
    middle = pictures[1, 5 : 5 + STRIP_PX, 10 : 10 + STRIP_PX]
    assert np.array_equal(strip[:, STRIP_PX : 2 * STRIP_PX], middle)


# The library's own warning.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_has_losses_rate_speed_and_scores(configure: Configure) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = configure("tensorboard=true")
    train(config)
    events = accumulator.EventAccumulator(str(config.out / "base" / "tensorboard")).Reload()
    points = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert points == {
        "total": [2, 4, 6, 7],
        "lr": [2, 4, 6, 7],
        "samples_per_s": [4, 6, 7],
        "validation_psnr_db": list(range(8)),
    }
    scores = [e.value for e in events.Scalars("validation_psnr_db")]
    assert scores == pytest.approx(list(scores_of(config.out / "base").values()), rel=1e-6)


def test_missing_tensorboard_is_named_before_anything_is_written(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    config = configure("tensorboard=true")
    with pytest.raises(ConfigError, match=r"pip install \"samprior\[tensorboard\]\""):
        train(config)
    assert not config.out.exists()


# ---- the card


def test_the_card_says_how_the_network_was_made(tmp_path: Path, configure: Configure) -> None:
    config = configure("mode=compare", "loss.analyzer=random-vgg", "loss.lambda_sgr=0.1")
    config = configure("mode=compare", "loss.analyzer=random-vgg", "loss.lambda_sgr=0.1",
                       "data.crop_px=32")  # fmt: skip
    result = train(config)
    card = (config.out / "model_card.md").read_text()
    record = read_record(config.out / "model.safetensors")
    for fact in (
        f"# nafnet, trained with samprior {record['samprior']}",
        "stage `distill`, seed 3",
        "analyzer was random-vgg",
        f"`{record['store_fingerprint']}`",
        f"`{record['store_sha256']}`",
        "| side that was segmented | the degraded pictures |",
        '"name": "superpixel"',
        "mean PSNR of 3 whole validation images, RGB, 8 bit",
        f"a control trained equally long: {result.gain_db:+.3f} dB",
        "lambda_sgr = 0.1",
        "Apache-2.0",
    ):
        assert fact in card, fact
    num_parameters = sum(value.numel() for value in load_checkpoint(result.shipped)[0].values())
    assert f"{num_parameters:,} parameters" in card
    for name, stage in result.stages.items():
        assert f"| {name} | {stage.start_psnr_db:.3f} | {stage.psnr_db:.3f} |" in card
    assert str(tmp_path) not in card
    assert record["scores"]["psnr_db"] == result.stages["distill"].psnr_db
    assert record["protocol"] == result.protocol
    assert read_result(config) == result


def test_a_card_without_scores_says_so(tmp_path: Path, configure: Configure) -> None:
    scored = configure("stages.base=1")
    data = scored.data.model_copy(update={"validation": None})
    config = scored.model_copy(update={"data": data})
    train(config)
    card = (config.out / "model_card.md").read_text()
    assert "the run had no validation images" in card
    assert read_record(config.out / "model.safetensors")["protocol"] is None
