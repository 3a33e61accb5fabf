"""Several ranks train what one does: the same crops, losses and scores; none outlives another."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from samprior.storage import MaskStore
from samprior.storage.errors import ConfigError
from samprior.training.checkpoint import load_checkpoint
from samprior.training.config import load_config
from samprior.training.parallel import ALONE, Team, joined
from samprior.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

MakeStore = Callable[..., MaskStore]
SETTINGS = (
    "seed=3",
    "device=cpu",
    "log_every=1",
    "validate_every=2",
    "save_every=2",
    "validation_pictures=1",
    "data.crop_px=16",
    "data.batch_size=4",
    "data.min_mask_px=4",
    "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
    "optimizer.ema_decay=0.9",
    "loss.reconstruction=charbonnier",
    "loss.analyzer=random-vgg",
    "stages.base=4",
    "stages.fusion=2",
    "stages.distill=2",
)
RCDNET = (
    "network.name=rcdnet",
    "network.settings={stages = 3, rain_maps = 4, dual_channels = 4, blocks = 1}",
    "loss.reconstruction=deep_supervision",
    "loss.lambda_sgr=0",
)

JOINT = ("mode=joint", "accumulate=2")

# One run on one rank: what it was trained on, and how it ended. It fails where it is told to.
_JOB = """
import os
from unittest.mock import patch

import torch

from samprior.training.config import load_config
from samprior.training.data import Crops
from samprior.training.run import train
from samprior.training.stage_run import StageRun


def run_job(overrides, failing):
    rank = os.environ.get("RANK", "0")
    seen, advance, place = [], StageRun.advance, Crops.place

    def noting(run, *parts):
        for part in parts:
            seen.append([run.stage.name, run.step, list(part.samples), part.keys])
        if failing == f"nan {rank} {run.step}":
            parts[0].clean[:] = torch.nan
        return advance(run, *parts)

    def progress(stage, step, total, losses):
        if failing == f"stop {stage} {step}":
            raise RuntimeError("stopped here")

    def reading(crops, sample):
        if failing == f"read {rank}" and sample >= 12:
            raise OSError("no such disk")
        return place(crops, sample)

    error = scores = None
    with (
        patch.object(StageRun, "advance", noting),
        patch.object(Crops, "place", reading),
    ):
        try:
            result = train(load_config(None, overrides), progress=progress)
            scores = {name: stage.psnr_db for name, stage in result.stages.items()}
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
    return {"seen": seen, "error": error, "scores": scores}
"""

# What each rank runs: all runs after one another, in one process group.
_RANKS = """
import json, sys, warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(minutes=3))
warnings.simplefilter("error")
jobs = json.loads(Path(sys.argv[1]).read_text())
ended = {name: run_job(*job) for name, job in jobs.items()}
Path(sys.argv[2]).write_text(json.dumps(ended))
dist.destroy_process_group()
"""

Step = tuple[str, int]


@dataclass
class Ended:
    """How a run ended on each of its ranks."""

    ranks: list[dict[str, Any]]

    @property
    def errors(self) -> list[str | None]:
        return [rank["error"] for rank in self.ranks]

    def crops(self) -> dict[Step, list[tuple[int, str]]]:
        """The crops of each step, by all ranks: number in the sequence, and image."""
        steps: dict[Step, list[tuple[int, str]]] = {}
        for rank in self.ranks:
            for stage, step, samples, keys in rank["seen"]:
                steps.setdefault((stage, step), []).extend(zip(samples, keys, strict=True))
        return {step: sorted(crops) for step, crops in steps.items()}


Settings = Callable[..., list[str]]


def alone(overrides: Sequence[str], failing: str = "") -> Ended:
    """A run in this process."""
    namespace: dict[str, Any] = {}
    exec(_JOB, namespace)
    return Ended([namespace["run_job"](overrides, failing)])


def on_two_ranks(notes: Path, jobs: dict[str, tuple[list[str], str]]) -> dict[str, Ended]:
    """Runs in two processes, after one another."""
    (notes / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        files = [str(notes / "jobs.json"), str(notes / f"ended-{rank}.json")]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", _JOB + _RANKS, *files],
                env={**os.environ, **own, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, error = process.communicate(timeout=280)
        assert process.returncode == 0, error
    ranks = [json.loads((notes / f"ended-{rank}.json").read_text()) for rank in range(2)]
    return {name: Ended([rank[name] for rank in ranks]) for name in jobs}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of these tests lie."""
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture
def settings(place: Path, make_store: MakeStore) -> Settings:
    """Settings of a run in the folder of that name, on small stores that the first test writes."""
    for name, shapes in (("train", ((40, 56), (48, 33), (64, 64))), ("valid", ((24, 31),) * 3)):
        if not (place / name).exists():
            make_store(place / name, shapes, seed=len(name))

    def chosen(out: str, *overrides: str) -> list[str]:
        places = [f"out={place / out}", f"data.train={place / 'train'}"]
        return [*places, f"data.validation={place / 'valid'}", *SETTINGS, *overrides]

    return chosen


PLAIN = "mode=plain"


@pytest.fixture(scope="module")
def ended() -> dict[str, Ended]:
    return {}


@pytest.fixture
def two(place: Path, settings: Settings, ended: dict[str, Ended]) -> dict[str, Ended]:
    """All runs on two ranks, made by the first test that asks for them."""
    if not ended:
        ended["one"] = alone(settings("one"))
        ended["unbroken"] = alone(settings("unbroken", PLAIN))
        ended["joint, one"] = alone(settings("joint-one", "mode=joint"))
        ended["grows, broken"] = alone(settings("grows", PLAIN), "stop base 3")
        jobs = {
            "two": (settings("two"), ""),
            "shrinks, broken": (settings("shrinks", PLAIN), "stop base 3"),
            "grows": (settings("grows", PLAIN), ""),
            "parts": (settings("parts", PLAIN, "accumulate=2"), ""),
            "rcdnet": (settings("rcdnet", *RCDNET), ""),
            "joint": (settings("joint", *JOINT), ""),
            "read 0": (settings("read0", PLAIN), "read 0"),
            "read 1": (settings("read1", PLAIN), "read 1"),
            "nan": (settings("nan", PLAIN, "accumulate=2"), "nan 1 1"),
            "wrong": (settings("wrong", "accumulate=4"), ""),
        }
        ended |= on_two_ranks(place, jobs)
        ended["shrinks"] = alone(settings("shrinks", PLAIN))
    return ended


def logged(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of metrics.jsonl of all stages, less the digest of the images."""
    logs: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(out.glob("*/metrics.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line.pop("validation_sha256", None)
        logs[file.parent.name] = lines
    return logs


def assert_same_log(one: Path, other: Path) -> None:
    ours, theirs = logged(one), logged(other)
    assert ours.keys() == theirs.keys()
    for stage, lines in ours.items():
        assert len(lines) == len(theirs[stage])
        for line, wanted in zip(lines, theirs[stage], strict=True):
            assert line == pytest.approx(wanted, rel=2e-3, abs=1e-4)


def test_two_ranks_train_what_one_does(place: Path, two: dict[str, Ended]) -> None:
    """All four stages: crops, losses, scores and weights; and what one rank was told, all were."""
    assert two["one"].errors == [None]
    assert two["two"].errors == [None, None]
    crops = two["one"].crops()
    assert two["two"].crops() == crops
    assert len(crops) == 4 + 3 * 2
    assert all(len(of_step) == 4 for of_step in crops.values())
    assert [[len(step[2]) for step in rank["seen"]] for rank in two["two"].ranks] == [[2] * 10] * 2
    assert_same_log(place / "one", place / "two")
    scores = [rank["scores"] for rank in two["two"].ranks]
    assert scores[0] == scores[1] == pytest.approx(two["one"].ranks[0]["scores"], abs=1e-2)
    shipped = [load_checkpoint(place / out / "model.safetensors")[0] for out in ("one", "two")]
    for name, value in shipped[0].items():
        torch.testing.assert_close(shipped[1][name], value, rtol=1e-2, atol=1e-3)


def test_two_ranks_leave_the_files_that_one_leaves(place: Path, two: dict[str, Ended]) -> None:
    files = [
        {str(p.relative_to(place / out)) for p in (place / out).rglob("*") if "dB" not in p.name}
        for out in ("one", "two")
    ]
    assert files[0] == files[1]
    assert two["two"].errors == [None, None]


@pytest.mark.parametrize("out", ["shrinks", "grows"])
def test_the_number_of_ranks_may_change_on_resume(
    place: Path, two: dict[str, Ended], out: str
) -> None:
    crops, broken, resumed = two["unbroken"].crops(), two[f"{out}, broken"], two[out]
    assert all("stopped here" in str(error) for error in broken.errors)
    assert set(resumed.errors) == {None}
    assert broken.crops() == {step: crops[step] for step in [("base", i) for i in range(3)]}
    # The last state is that of step 2.
    assert resumed.crops() == {step: crops[step] for step in [("base", 2), ("base", 3)]}
    assert_same_log(place / "unbroken", place / out)


def test_parts_and_ranks_share_a_batch(place: Path, two: dict[str, Ended]) -> None:
    assert two["parts"].errors == [None, None]
    assert two["parts"].crops() == two["unbroken"].crops()
    assert_same_log(place / "unbroken", place / "parts")


def test_networks_with_unused_parameters_train_on_two_ranks(two: dict[str, Ended]) -> None:
    """Warnings are errors there, too."""
    assert two["rcdnet"].errors == [None, None]


def test_two_ranks_train_network_1_and_its_teacher_at_once(
    place: Path, two: dict[str, Ended]
) -> None:
    assert two["joint"].errors == [None, None]
    assert two["joint"].crops() == two["joint, one"].crops()
    assert_same_log(place / "joint-one", place / "joint")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_ends_all(place: Path, two: dict[str, Ended], rank: int) -> None:
    """And leaves the ranks in step: the runs after it in these processes went well."""
    errors = two[f"read {rank}"].errors
    assert errors[rank] == "OSError: no such disk"
    assert errors[1 - rank] == (
        f"TrainingError: rank {rank} of 2 stopped with OSError: no such disk"
    )
    assert not (place / f"read{rank}" / "model.safetensors").exists()


def test_a_loss_that_is_no_number_is_told_by_all_with_all_images(two: dict[str, Ended]) -> None:
    first, second = two["nan"].errors
    assert first == second
    assert first is not None
    assert first.startswith("TrainingError: stage base, step 1: the loss is nan")
    assert "(samples 4 to 7)" in first
    assert first.count("images/") == 4


def test_a_wrong_setting_is_refused_by_all(place: Path, two: dict[str, Ended]) -> None:
    for error in two["wrong"].errors:
        assert error is not None
        assert "ConfigError: a batch of 4 crops can't be split evenly over 2 ranks" in error
    assert not (place / "wrong").exists()


def test_torchrun_starts_the_command(place: Path, settings: Settings) -> None:
    chosen = settings("torchrun", PLAIN, "stages.base=1")
    words = [word for override in chosen for word in ("--set", override)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ended = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "samprior.cli", "train", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("ships: ") == 1
    assert (place / "torchrun" / "model.safetensors").exists()


# ---- without other processes


def test_alone_nothing_is_shared() -> None:
    with joined(torch.device("cpu")) as (team, device):
        assert (team, device) == (ALONE, torch.device("cpu"))
    assert team.leads
    assert team.share(lambda: 5) == 5
    assert team.gather("a") == ["a"]
    with pytest.raises(KeyError), team.together():
        raise KeyError
    network = torch.nn.Linear(1, 1)
    assert team.averaging(network, unused_parameters=False) is network


@pytest.mark.parametrize(
    ("batch_size", "ranks", "parts", "wanted"), [(8, 1, 1, 8), (8, 2, 2, 2), (6, 3, 1, 2)]
)
def test_a_batch_is_split_evenly(batch_size: int, ranks: int, parts: int, wanted: int) -> None:
    assert Team(size=ranks).share_of_batch(batch_size, parts) == wanted


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 6"):
        Team(size=2).share_of_batch(8, 3)


@pytest.mark.parametrize("rank", [None, "one", "-1", ""])
def test_incomplete_variables_are_named(monkeypatch: pytest.MonkeyPatch, rank: str | None) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(ConfigError, match=r"RANK is .*torchrun"), joined(torch.device("cpu")):
        pass


def test_synchronised_batch_norm_needs_gpus(place: Path, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="sync_batchnorm needs GPUs"):
        train(load_config(None, settings("synchronised", "sync_batchnorm=true")))
    assert not (place / "synchronised").exists()
