"""A job that is killed at random, and that loses and gains machines, ends with the same bytes.

`make chaos` does the first for longer.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from samprior.pipeline.crew import Crew
from samprior.pipeline.events import Event, Progressed, ShardWritten, WorkerLost
from samprior.storage.manifest import digests_of


def test_kills_at_random_moments(chaos: ModuleType, tmp_path: Path) -> None:
    """Of drivers, workers and raylets; the store is the same, and no whole shard is done again."""
    rounds = chaos.Chaos(tmp_path, num_images=40, workers=2, wait_s=0.1, seed=0)
    report = rounds.run_rounds(8)
    print(report)
    assert report.kills.total() >= 8
    assert report.rounds >= 1


def test_ray_itself_is_killed(
    chaos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos, "TARGETS", ("raylet",))
    report = chaos.Chaos(tmp_path, num_images=24, workers=1, wait_s=0.1, seed=1).run_rounds(1)
    assert (report.kills.total(), report.runs) == (1, 1)


class Machines:
    """A cluster of one machine more or less, as the job goes on; a listener of the job."""

    def __init__(self, cluster: Any) -> None:  # noqa: ANN401  # Ray has no types
        self.cluster = cluster
        self.workers_seen = 0
        self.written: list[int] = []
        self.lost = 0
        self.steps = [self.remove, self.add, self.add, self.remove]

    def add(self) -> None:
        self.cluster.add_node(num_cpus=1)

    def remove(self) -> None:
        self.cluster.remove_node(next(iter(self.cluster.worker_nodes)), allow_graceful=False)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progressed):
            self.workers_seen = max(self.workers_seen, event.workers)
        elif isinstance(event, WorkerLost):
            self.lost += 1
        elif isinstance(event, ShardWritten):
            self.written.append(event.shard)
            if self.steps and len(self.written) % 3 == 0:
                self.steps.pop(0)()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster whose first machine has no room for workers, and a second one that has."""
    from ray.cluster_utils import Cluster

    # Ray would write a token to the home folder, and remembers the one that it has found.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def test_machines_come_and_go(chaos: ModuleType, cluster: Any, tmp_path: Path) -> None:  # noqa: ANN401
    pairs = chaos.make_pictures(tmp_path / "pictures", 80)
    (tmp_path / "attempts").touch()
    chaos.run(tmp_path / "reference", pairs, chaos.Waits(tmp_path / "none", 0.0), workers=0)
    machines = Machines(cluster)
    chaos.run(
        tmp_path / "store",
        pairs,
        chaos.Waits(tmp_path / "attempts", 0.1),
        workers=Crew(workers=3, address=cluster.address),
        listen=machines,
    )
    assert machines.steps == [], "the job ended before all machines had come and gone"
    assert machines.lost >= 1
    assert machines.workers_seen >= 2, "machines that joined were not used"
    assert sorted(machines.written) == list(range(20)), "a shard was lost, or written twice"
    assert digests_of(tmp_path / "store") == digests_of(tmp_path / "reference")
