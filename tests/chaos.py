"""Kill a small real job at random moments until it is done, and compare the store.

    python tests/chaos.py [--kills 30] [--seed 0]

`make chaos` runs it. The job is a process of its own, `python tests/chaos.py job ...`; what is
killed by SIGKILL is that driver, one of its Ray workers, or Ray's own raylet.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from ray import cloudpickle

from samprior.pipeline.crew import Crew
from samprior.pipeline.datasets import Pair
from samprior.pipeline.events import to_record
from samprior.pipeline.job import run_job
from samprior.pipeline.plan import plan_header, plan_shards
from samprior.pipeline.worker import MasksOf
from samprior.storage import MaskSet
from samprior.storage.images import Rgb, write_png
from samprior.storage.manifest import digests_of
from samprior.storage.verify import verify_store

# The workers can't import this file, so its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MARK = "SAMPRIOR_CHAOS"
"""Variable of the environment by which the processes of a job are found."""

PER_SHARD = 4

TARGETS = ("driver", "worker", "worker", "worker", "raylet")
"""What is killed, as often as it is named."""


@dataclass(frozen=True)
class Waits:
    """Two masks, after some waiting, as a GPU would make the worker wait; notes each attempt."""

    attempts: Path
    wait_s: float

    def describe(self) -> dict[str, Any]:
        return {"segmenter": "waits"}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self._masks_of

    def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        with self.attempts.open("a") as stream:
            stream.write(f"{pair.key}\n")
        time.sleep(self.wait_s)
        bright = image.mean(axis=2) > image.mean()
        return MaskSet.from_masks(np.stack([bright, ~bright]), mean=[image.mean(), 0.0])


def make_pictures(folder: Path, num_images: int) -> list[Pair]:
    """Small pictures that differ."""
    rng = np.random.default_rng(0)
    for number in range(num_images):
        write_png(folder / f"{number:03d}.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    return pairs_of(folder)


def pairs_of(folder: Path) -> list[Pair]:
    return [Pair(file.stem, file, file) for file in sorted(folder.glob("*.png"))]


def run(out: Path, pairs: list[Pair], maker: Waits, **settings: Any) -> None:  # noqa: ANN401
    """The job, in this process."""
    plan = plan_shards(pairs, images_per_shard=PER_SHARD)
    header = plan_header(
        plan,
        dataset="chaos",
        layout="chaos",
        split=None,
        segmenter=maker.describe(),
        source="clean",
        images_per_shard=PER_SHARD,
    )
    run_job(out, plan, header, maker, **settings)


@dataclass
class Report:
    """What the job survived."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    rounds: int = 0
    """Stores that were made, each byte for byte the reference."""
    images: int = 0
    attempts: int = 0
    """Images that were segmented; more than `images` by what was done twice."""

    def __str__(self) -> str:
        redone = (self.attempts - self.images) / PER_SHARD
        kills = ", ".join(f"{count} of the {name}" for name, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills survived ({kills}) in {self.runs} runs; {self.rounds} "
            f"stores of {self.images // max(1, self.rounds) // PER_SHARD} shards, each byte for "
            f"byte the same; work of {redone:.1f} shards done again"
        )


class Chaos:
    """Rounds of a job that is killed until its store is there."""

    def __init__(
        self, folder: Path, *, num_images: int, workers: int, wait_s: float, seed: int
    ) -> None:
        self.folder = folder
        self.workers = workers
        self.wait_s = wait_s
        self.rng = np.random.default_rng(seed)
        self.pairs = make_pictures(folder / "pictures", num_images)
        quick = Waits(folder / "attempts-of-reference", 0.0)
        run(folder / "reference", self.pairs, quick, workers=0)
        self.report = Report()

    def run_rounds(self, num_kills: int, say: Callable[[str], None] = lambda _: None) -> Report:
        """Make stores until so many kills are survived."""
        while self.report.kills.total() < num_kills:
            self.run_round(num_kills)
            say(str(self.report))
        return self.report

    def run_round(self, num_kills: int) -> None:
        """Make one store; kill until there were so many kills in all, then let it end."""
        out = self.folder / f"round-{self.report.rounds}"
        attempts = self.folder / f"attempts-{self.report.rounds}"
        attempts.touch()
        killed_before = self.report.kills.copy()
        seen: dict[str, tuple[int, int]] = {}
        while self._run_once(out, attempts, num_kills):
            _refuse_redone(out, seen)
        _refuse_redone(out, seen)
        assert _content(out) == _content(self.folder / "reference"), "the store differs"
        assert verify_store(out).ok
        num_attempts = len(attempts.read_text().split())
        kills = self.report.kills - killed_before
        # Each kill loses the shards at work and no others; a shard that has lost two workers is
        # searched by halves, for which all its images are segmented once more for each half.
        lost = kills["worker"] + (kills["driver"] + kills["raylet"]) * self.workers
        searched = kills["worker"] // 2 * 3
        assert num_attempts <= len(self.pairs) + PER_SHARD * (lost + searched), "too much again"
        self.report.images += len(self.pairs)
        self.report.attempts += num_attempts
        self.report.rounds += 1

    def _run_once(self, out: Path, attempts: Path, num_kills: int) -> bool:
        """Start the driver and kill meanwhile; whether it was killed itself."""
        mark = uuid.uuid4().hex
        arguments = ["job", self.folder / "pictures", out, attempts, self.workers, self.wait_s]
        self.report.runs += 1
        errors = self.folder / "stderr"
        with errors.open("wb") as stream:
            driver = subprocess.Popen(
                [sys.executable, __file__, *map(str, arguments)],
                env={**os.environ, MARK: mark},
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
            try:
                is_killed = self._kill_at_random(driver, mark, num_kills)
            finally:
                driver.kill()
                driver.communicate()
        if driver.returncode and not is_killed:
            raise AssertionError(f"the job failed: {errors.read_text('utf-8', 'replace')}")
        return is_killed

    def _kill_at_random(self, driver: subprocess.Popen[str], mark: str, num_kills: int) -> bool:
        """Kill at each of some events of the driver; whether that was killed."""
        assert driver.stdout is not None
        next_event = self._pause()
        for number, line in enumerate(driver.stdout):
            if self.report.kills.total() >= num_kills or number < next_event:
                continue
            if json.loads(line)["event"] == "worker_lost":
                continue
            next_event = number + self._pause()
            target = str(self.rng.choice(TARGETS))
            found = processes(mark, {"worker": "ray::RayWorker", "raylet": "raylet/raylet"}, target)
            if target == "driver":
                found = [driver.pid]
            if found:
                os.kill(found[int(self.rng.integers(len(found)))], signal.SIGKILL)
                self.report.kills[target] += 1
            if target == "driver":
                return True
        driver.wait()
        return False

    def _pause(self) -> int:
        """Events until the next kill."""
        return int(self.rng.integers(1, 9))


def processes(mark: str, names: dict[str, str], target: str) -> list[int]:
    """Processes of a job whose command line has the target's name."""
    return sorted(
        pid
        for pid, command in marked(mark)
        if target in names and names[target] in command.split("\0")[0]
    )


def marked(mark: str) -> Iterator[tuple[int, str]]:
    """All living processes of a job, with their command lines."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                yield int(folder.name), (folder / "cmdline").read_text("utf-8", "replace")
        except OSError:
            continue  # it has ended meanwhile, or is another user's


def _refuse_redone(out: Path, seen: dict[str, tuple[int, int]]) -> None:
    """A receipt that was there before is the same file: its shard was not written again."""
    for receipt in sorted((out / "receipts").glob("[0-9]*.json")):
        stat = receipt.stat()
        now = (stat.st_ino, stat.st_mtime_ns)
        assert seen.setdefault(receipt.name, now) == now, f"{receipt} was written again"


def _content(store: Path) -> dict[str, str]:
    return {name: of for name, of in digests_of(store)[0].items() if name != ".lock"}


def job(pictures: str, out: str, attempts: str, workers: str, wait_s: str) -> None:
    """The driver that is killed: events as JSON lines."""
    run(
        Path(out),
        pairs_of(Path(pictures)),
        Waits(Path(attempts), float(wait_s)),
        workers=Crew(workers=int(workers)),
        listen=lambda event: print(json.dumps(to_record(event)), flush=True),
    )


@click.command()
@click.option("--kills", default=30, show_default=True, help="At least so many.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill a small job at random until it has survived enough."""
    with tempfile.TemporaryDirectory(prefix="samprior-chaos-") as folder:
        chaos = Chaos(Path(folder), num_images=96, workers=2, wait_s=0.15, seed=seed)
        report = chaos.run_rounds(kills, say=click.echo)
    click.echo(f"passed: {report}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        job(*sys.argv[2:])
    else:
        main()
