"""A job that is killed at random, and that loses and gains machines, ends with the same bytes.

`make chaos` does the same for longer.
"""

import subprocess
import sys
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
    # In a process of its own: Ray's folder for temporary files is chosen once in each.
    program = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from chaos import Chaos
rounds = Chaos(Path(sys.argv[2]), num_images=80, workers=1, wait_s=0.1, seed=0)
machines = rounds.run_on_machines(["join", "lose", "replace", "kill"])
assert machines.lost >= 3
assert machines.workers_seen >= 2, "a machine that joined was not used"
assert rounds.report.machines == {"lost": 2, "joined": 2}
print(rounds.report)
"""
    folder = Path(chaos.__file__).parent
    subprocess.run([sys.executable, "-c", program, str(folder), str(tmp_path)], check=True)
