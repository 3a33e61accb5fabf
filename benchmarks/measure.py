"""Time two pieces of work against each other: alternating runs, medians, spread, machine, load."""

import ctypes
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage.data

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))
"""Folder of the results; benchmarks/run_all.py names another for quick runs and for GPUs."""


@dataclass(frozen=True)
class Row:
    """Two pieces of work, `a` and `b`, timed in turn."""

    a: str
    b: str
    a_s: float
    """Median seconds of a."""
    b_s: float
    """Median seconds of b."""
    b_over_a: float
    """Median of (seconds of b) / (seconds of a) over the pairs of runs; above 1, b takes longer."""
    spread: tuple[float, float]
    """Smallest and largest of these ratios."""
    a_cpu_s: float
    """Median seconds of all of this process's threads together, of a."""
    b_cpu_s: float
    """The same of b."""
    cpu_b_over_a: float
    """As b_over_a, of these seconds."""
    cpu_spread: tuple[float, float]
    """As spread, of these seconds."""
    runs: int

    @property
    def sentence(self) -> str:
        """The result in words."""
        low, high = self.spread
        return (
            f"{self.b} takes {self.b_over_a:.2f} times as long as {self.a} "
            f"({low:.2f} to {high:.2f}, runs: {self.runs}; "
            f"{self.b_s * 1e3:.2f} ms and {self.a_s * 1e3:.2f} ms); "
            f"in CPU seconds {self.cpu_b_over_a:.2f} times"
        )


class Spent(NamedTuple):
    """What one run took."""

    wall_s: float
    cpu_s: float


def compare(
    a: str,
    work_a: Callable[[], object],
    b: str,
    work_b: Callable[[], object],
    *,
    runs: int,
    warm_up: bool = True,
) -> Row:
    """Run both in turn `runs` times, after one uncounted run of each unless they are warm."""
    if warm_up:
        work_a(), work_b()
    pairs = [(_spent(work_a), _spent(work_b)) for _ in range(runs)]
    ratios = [of_b.wall_s / of_a.wall_s for of_a, of_b in pairs]
    cpu_ratios = [of_b.cpu_s / of_a.cpu_s for of_a, of_b in pairs]
    return Row(
        a,
        b,
        statistics.median(of_a.wall_s for of_a, _ in pairs),
        statistics.median(of_b.wall_s for _, of_b in pairs),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        statistics.median(of_a.cpu_s for of_a, _ in pairs),
        statistics.median(of_b.cpu_s for _, of_b in pairs),
        statistics.median(cpu_ratios),
        (min(cpu_ratios), max(cpu_ratios)),
        runs,
    )


class Memory(NamedTuple):
    """Resident memory of a process, bytes."""

    start: int
    peak: int


def peak_memory(work: Callable[[], object]) -> Memory:
    """Resident memory before `work` and its peak during it; Linux with glibc only.

    The kernel's own high-water mark is read because getrusage also counts the parent that forked.
    """
    # What earlier work freed is given back first, or `work` would take it and seem to need less.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    # "5" sets the mark back to what is resident now (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    start = _status_bytes("VmRSS")
    work()
    return Memory(start, _status_bytes("VmHWM"))


def machine(*libraries: str, device: str | None = None) -> dict[str, Any]:
    """Where the runs take place; call it first, so that the load is that of others.

    Args:
        libraries: distributions whose versions matter.
        device: name of what computes; None means the processor.
    """
    return {
        "device": device or _processor(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "commit": commit(),
        "python": platform.python_version(),
        **{library: version(library) for library in libraries},
    }


def commit() -> str:
    """The commit that is measured, with a plus if files but results differ from it; empty outside
    a clone."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip()

    others = (":(top)", ":(top,exclude)benchmarks/results", ":(top,exclude)docs/benchmarks*")
    if shutil.which("git") is None:
        return ""
    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", *others) else "")


def report(name: str, about: dict[str, Any], rows: Sequence[Row], **more: object) -> None:
    """Print the rows, in words and as markdown, and write benchmarks/results/<name>.json."""
    print(
        f"{about['device']}, {about['cores']} cores, "
        f"load average at start {about['load_average'][0]:.2f}"
    )
    for row in rows:
        print(row.sentence)
    RESULTS.mkdir(parents=True, exist_ok=True)
    told = [{"result": row.sentence, **asdict(row)} for row in rows]
    record = {"machine": about, **more, "rows": told}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def photographs() -> list[np.ndarray]:
    """Pictures that ship with scikit-image."""
    return [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea")]


def write_store(
    root: Path, pictures: Sequence[tuple[np.ndarray, np.ndarray]], sets: Sequence[MaskSet]
) -> MaskStore:
    """A store of one shard from pairs of (degraded, clean) and their masks."""
    return write_records(
        root,
        [
            Record(str(number), degraded, clean, masks)
            for number, ((degraded, clean), masks) in enumerate(zip(pictures, sets, strict=True))
        ],
    )


def write_records(root: Path, records: Sequence[Record]) -> MaskStore:
    """A store of one shard."""
    count = len(records)
    header = Header(num_images=count, num_shards=1, images_per_shard=count, paired=True, made_of={})
    write_header(root, header)
    write_shard(root, 0, records, paired=True)
    return MaskStore.open(root)


def _processor() -> str:
    """The processor's name, or its architecture where the system doesn't tell."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kib) * 1024


def _spent(work: Callable[[], object]) -> Spent:
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - started, time.process_time() - cpu_started)
