"""SIGTERM and Ctrl-C: one line with the state, exit code 143 or 130, and no process left."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from samprior.cli.ending import clean_ending
from samprior.storage import MaskStore
from samprior.storage.verify import verify_store

Samprior = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("interrupts")


@pytest.fixture
def rain(make_rain: Callable[[int, int], Path]) -> Path:
    """Twelve rainy pairs."""
    return make_rain(12, 96)


def precompute(rain: Path, out: Path, workers: int) -> list[str]:
    of = ["precompute", "--dataset", "rain", "--root", rain, "--segmenter", "superpixel"]
    return [*map(str, [*of, "--images-per-shard", 1, "--workers", workers, "--out", out, "--json"])]


def is_starting_ray(event: dict[str, Any]) -> bool:
    return bool(event["event"] == "started")


def is_loading(event: dict[str, Any]) -> bool:
    return bool(event["event"] == "progress" and event["workers"] == 0)


def is_writing(event: dict[str, Any]) -> bool:
    return bool(event["event"] == "shard")


@pytest.mark.parametrize(
    ("number", "workers", "moment"),
    [
        (signal.SIGTERM, 1, is_starting_ray),
        (signal.SIGINT, 1, is_loading),
        (signal.SIGTERM, 2, is_writing),
        (signal.SIGINT, 0, is_writing),
        (signal.SIGTERM, 0, is_writing),
    ],
)
def test_a_signal_ends_the_job_cleanly(
    chaos: ModuleType,
    rain: Path,
    tmp_path: Path,
    number: signal.Signals,
    workers: int,
    moment: Callable[[dict[str, Any]], bool],
) -> None:
    out, mark = tmp_path / "store", uuid.uuid4().hex
    # A group of its own: Ctrl-C reaches all processes of the group.
    job = subprocess.Popen(
        [sys.executable, "-m", "samprior.cli", *precompute(rain, out, workers)],
        env={**os.environ, chaos.MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert job.stdout is not None
    try:
        for line in job.stdout:
            if moment(json.loads(line)):
                break
        if moment is is_starting_ray:
            wait_until(lambda: any("gcs_server" in of for _, of in chaos.marked(mark)))
        os.killpg(job.pid, number) if number == signal.SIGINT else job.send_signal(number)
        told, errors = job.communicate()
    finally:
        job.kill()
    assert job.returncode == 128 + number, errors
    lines = [line for line in errors.splitlines() if not line.startswith("rain: 12 pairs")]
    assert len(lines) == 1, errors
    done = json.loads(told.splitlines()[-1])
    assert done["event"] == "interrupted"
    assert lines[0] == (
        f"samprior: ended by {number.name}: at least {done['shards_done']} of 12 shards are done, "
        f"{done['images_done']} of 12 images; run the same command again to go on"
    )
    assert_all_end(lambda: list(chaos.marked(mark)))
    if done["shards_done"]:
        found = verify_store(out)
        assert found.broken == {}
        assert found.num_shards >= done["shards_done"]
        assert len(MaskStore.open(out)) >= done["images_done"]


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing happened for 30 s")


def assert_all_end(processes: Callable[[], list[tuple[int, str]]]) -> None:
    """Ray's helpers follow within seconds; the waiting is for slow machines."""
    for _ in range(300):
        left = processes()
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(f"still there: {left}")


def test_the_same_command_goes_on(samprior: Samprior, rain: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    job = subprocess.Popen(
        [sys.executable, "-m", "samprior.cli", *precompute(rain, out, 0)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert job.stdout is not None
    for line in job.stdout:
        if is_writing(json.loads(line)):
            break
    job.terminate()
    told, _ = job.communicate()
    done = json.loads(told.splitlines()[-1])["shards_done"]
    assert 1 <= done < 12
    code, events, _ = samprior(*precompute(rain, out, 0))
    assert code == 0
    assert json.loads(events.splitlines()[0])["shards_done"] == done
    finished = json.loads(events.splitlines()[-1])
    assert (finished["event"], finished["shards_written"]) == ("finished", 12 - done)


def test_a_signal_that_was_lost_in_a_finalizer_is_found() -> None:
    said: list[str] = []

    def work() -> None:
        with clean_ending(lambda number: said.append(number.name)) as ending:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            except KeyboardInterrupt:
                pass  # as if it had met code that can't pass it on
            os.kill(os.getpid(), signal.SIGINT)  # a second signal disturbs nothing
            ending.check()

    with pytest.raises(click.exceptions.Exit) as ended:
        work()
    assert ended.value.exit_code == 143
    assert said == ["SIGTERM"]


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with clean_ending(lambda number: None):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
