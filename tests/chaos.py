"""Kill a small real job at random moments until it is done, and compare the store.

    python tests/chaos.py [--kills 30] [--changes 12] [--seed 0]

`make chaos` runs it. The job is a process of its own, `python tests/chaos.py job ...`; what is
killed by SIGKILL is that driver, one of its Ray workers, or Ray's own raylet. Then the same on a
small Ray cluster that loses and gains machines, and whose workers are killed.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from ray import cloudpickle

from samprior.pipeline.crew import Crew
from samprior.pipeline.datasets import Pair
from samprior.pipeline.events import Event, Progressed, ShardWritten, WorkerLost, to_record
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

JOINING_S = 20.0
"""At most so long it is waited for the worker of a machine that joins; Ray may have placed it on
another one whose loss it hasn't noticed yet."""

TARGETS = ("driver", "worker", "worker", "worker", "raylet")
"""What is killed, as often as it is named, in any order."""

COMMANDS = {"worker": "ray::RayWorker", "raylet": "raylet/raylet"}
"""What is in the command lines of processes."""

MAX_MACHINES = 3
"""Of a cluster, with room for one worker each."""


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
    machines: Counter[str] = field(default_factory=Counter)
    """Lost and joined."""
    runs: int = 0
    rounds: int = 0
    """Stores that were made, each byte for byte the reference."""
    images: int = 0
    attempts: int = 0
    """Images that were segmented; more than `images` by what was done twice."""

    def __str__(self) -> str:
        redone = (self.attempts - self.images) / PER_SHARD
        kills = ", ".join(f"{count} of a {name}" for name, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills survived ({kills}), {self.machines['lost']} machines lost "
            f"and {self.machines['joined']} joined, in {self.runs} runs; {self.rounds} stores of "
            f"{self.images // max(1, self.rounds) // PER_SHARD} shards, each byte for byte the "
            f"same; work of {redone:.1f} shards done again"
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
        self._deck: list[str] = []

    def run_rounds(self, num_kills: int, say: Callable[[str], None] = lambda _: None) -> Report:
        """Make stores until so many kills are survived."""
        while self.report.kills.total() < num_kills:
            self.run_round(num_kills)
            say(str(self.report))
        return self.report

    def run_round(self, num_kills: int) -> None:
        """Make one store; kill until there were so many kills in all, then let it end."""
        out, attempts = self._next_round()
        killed_before = self.report.kills.copy()
        seen: dict[str, tuple[int, int]] = {}
        while self._run_once(out, attempts, num_kills):
            _refuse_redone(out, seen)
        _refuse_redone(out, seen)
        kills = self.report.kills - killed_before
        lost = kills["worker"] + (kills["driver"] + kills["raylet"]) * self.workers
        self._end_round(out, attempts, lost=lost, searched=kills["worker"] // 2)

    def run_on_machines(self, changes: Sequence[str]) -> "Machines":
        """Make one store on a cluster of one machine, which changes; the driver is this process.

        Args:
            changes: one by one, after every third shard: see `Machines`.
        """
        out, attempts = self._next_round()
        self.report.runs += 1
        with small_cluster() as (cluster, mark):
            machines = Machines(cluster, mark, changes, self.report)
            crew = Crew(workers=MAX_MACHINES, address=cluster.address)
            run(out, self.pairs, Waits(attempts, self.wait_s), workers=crew, listen=machines)
        assert not machines.changes, "the job ended before all changes"
        num_shards = len(self.pairs) // PER_SHARD
        assert sorted(machines.written) == list(range(num_shards)), "lost, or written twice"
        self._end_round(out, attempts, lost=machines.lost, searched=changes.count("kill") // 2)
        return machines

    def _next_round(self) -> tuple[Path, Path]:
        """Where the store goes, and a file in which attempts are noted."""
        attempts = self.folder / f"attempts-{self.report.rounds}"
        attempts.touch()
        return self.folder / f"round-{self.report.rounds}", attempts

    def _end_round(self, out: Path, attempts: Path, *, lost: int, searched: int) -> None:
        """Check the store, and that no more was done twice than `lost` workers may have lost.

        A shard that has lost two workers is searched by halves, for which all its images are
        segmented once more for each half.
        """
        assert _content(out) == _content(self.folder / "reference"), "the store differs"
        assert verify_store(out).ok
        num_attempts = len(attempts.read_text().split())
        bound = len(self.pairs) + PER_SHARD * (lost + 3 * searched)
        assert num_attempts <= bound, f"{num_attempts} images were segmented, at most {bound} ought"
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
            self._deck = self._deck or [str(target) for target in self.rng.permutation(TARGETS)]
            target = self._deck.pop()
            found = [driver.pid] if target == "driver" else processes(mark, target)
            if found:
                os.kill(int(self.rng.choice(found)), signal.SIGKILL)
                self.report.kills[target] += 1
            else:
                self._deck.insert(0, target)
            if target == "driver":
                return True
        driver.wait()
        return False

    def _pause(self) -> int:
        """Events until the next kill."""
        return int(self.rng.integers(1, 9))


class Machines:
    """Changes a cluster as a job goes on, whose listener it is.

    Changes are `join` and `lose`, a machine; `replace`, both; `kill`, a worker.
    """

    def __init__(self, cluster: Any, mark: str, changes: Sequence[str], report: Report) -> None:  # noqa: ANN401
        self.cluster, self.mark, self.report = cluster, mark, report
        self.changes = list(changes)
        self.workers_seen = 0
        self.written: list[int] = []
        self.lost = 0
        """Workers."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progressed):
            self.workers_seen = max(self.workers_seen, event.workers)
        elif isinstance(event, WorkerLost):
            self.lost += 1
        elif isinstance(event, ShardWritten):
            self.written.append(event.shard)
            if self.changes and len(self.written) % 3 == 0:
                self._change(self.changes.pop(0))

    def _change(self, change: str) -> None:
        if change == "kill":
            os.kill(processes(self.mark, "worker")[-1], signal.SIGKILL)
            self.report.kills["worker"] += 1
        if change in ("lose", "replace"):
            machine = next(iter(self.cluster.worker_nodes))
            self.cluster.remove_node(machine, allow_graceful=False)
            self.report.machines["lost"] += 1
        if change in ("join", "replace"):
            workers = processes(self.mark, "worker")
            self.cluster.add_node(num_cpus=1)
            self.report.machines["joined"] += 1
            if change == "join":
                self._wait_for_more_than(len(workers))

    def _wait_for_more_than(self, workers: int) -> None:
        """Else the job may be done before the machine is used, where processes start slowly."""
        until = time.monotonic() + JOINING_S
        while len(processes(self.mark, "worker")) <= workers and time.monotonic() < until:
            time.sleep(0.1)


def some_changes(rng: np.random.Generator, number: int) -> list[str]:
    """Changes of a cluster of one machine that leave it at least one."""
    changes: list[str] = []
    machines = 1
    for _ in range(number):
        possible = ["kill", "replace"]
        possible += ["join"] * 2 * (machines < MAX_MACHINES) + ["lose"] * 2 * (machines > 1)
        changes.append(str(rng.choice(possible)))
        machines += {"join": 1, "lose": -1}.get(changes[-1], 0)
    return changes


@contextmanager
def small_cluster() -> Iterator[tuple[Any, str]]:
    """A Ray cluster whose first machine has no room for workers, and one that has; its mark."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    # In /tmp, because names of sockets have at most 107 bytes. The usual folder isn't taken, since
    # there Ray notes the cluster for others, and forgets theirs.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        mark = uuid.uuid4().hex
        settings = {MARK: mark, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ.update(settings)
        # Ray would write a token to the home folder, and remembers the one that it has found.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Else it takes half a minute until a machine that doesn't answer counts as lost.
        quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick}
        )
        try:
            cluster.add_node(num_cpus=1)
            yield cluster, mark
        finally:
            cluster.shutdown()
            for name in settings:
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]


def processes(mark: str, target: str) -> list[int]:
    """Processes of a job that may be killed as this target."""
    name = COMMANDS[target]
    return sorted(pid for pid, command in marked(mark) if name in command.split("\0")[0])


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
@click.option("--changes", default=12, show_default=True, help="Of the machines of a cluster.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, changes: int, seed: int) -> None:
    """Kill a small job at random until it has survived enough."""
    with tempfile.TemporaryDirectory(prefix="samprior-chaos-") as folder:
        chaos = Chaos(Path(folder), num_images=96, workers=2, wait_s=0.15, seed=seed)
        report = chaos.run_rounds(kills, say=click.echo)
        for start in range(0, changes, 6):  # a store has as many shards as six changes need
            chaos.run_on_machines(some_changes(chaos.rng, min(6, changes - start)))
            click.echo(report)
    click.echo(f"passed: {report}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        job(*sys.argv[2:])
    else:
        main()
