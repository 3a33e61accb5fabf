"""A job that is killed at random, and that loses and gains machines, ends with the same bytes.

`make chaos` does the same for longer.
"""

from pathlib import Path
from types import ModuleType


def test_kills_at_random_moments(chaos: ModuleType, tmp_path: Path) -> None:
    """Of drivers, workers and raylets; the store is the same, and no whole shard is done again."""
    rounds = chaos.Chaos(tmp_path, num_images=40, workers=2, wait_s=0.1, seed=0)
    report = rounds.run_rounds(len(chaos.TARGETS))
    print(report)
    assert report.kills.total() >= len(chaos.TARGETS)
    assert set(report.kills) == set(chaos.TARGETS)
    assert report.runs == report.kills["driver"] + report.rounds, "Ray's end is survived in a run"


def test_machines_come_and_go(chaos: ModuleType, tmp_path: Path) -> None:
    rounds = chaos.Chaos(tmp_path, num_images=80, workers=1, wait_s=0.1, seed=0)
    machines = rounds.run_on_machines(["join", "lose", "replace", "kill"])
    print(rounds.report)
    assert machines.lost >= 3
    assert machines.workers_seen >= 2, "a machine that joined was not used"
    assert rounds.report.machines == {"lost": 2, "joined": 2}
