"""Time two pieces of work against each other: alternating runs, medians, spread, machine, load."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard

RESULTS = Path(__file__).parent / "results"


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
    runs: int

    @property
    def sentence(self) -> str:
        """The result in words."""
        low, high = self.spread
        return (
            f"{self.b} takes {self.b_over_a:.2f} times as long as {self.a} "
            f"({low:.2f} to {high:.2f}, runs: {self.runs}; "
            f"{self.b_s * 1e3:.2f} ms and {self.a_s * 1e3:.2f} ms)"
        )

    def markdown(self, about: dict[str, Any]) -> str:
        """A line of the table in docs/benchmarks.md; `about` is what `machine` gave."""
        low, high = self.spread
        return (
            f"| {self.a} | {self.b} | {self.a_s * 1e3:.2f} ms | {self.b_s * 1e3:.2f} ms "
            f"| {self.b_over_a:.2f} ({low:.2f} to {high:.2f}) "
            f"| {about['device']}, {about['cores']} cores, load {about['load_average'][0]:.2f} |"
        )


def compare(
    a: str, work_a: Callable[[], object], b: str, work_b: Callable[[], object], *, runs: int
) -> Row:
    """Run both in turn `runs` times, after one uncounted run of each."""
    work_a(), work_b()
    pairs = [(_seconds(work_a), _seconds(work_b)) for _ in range(runs)]
    ratios = [b_s / a_s for a_s, b_s in pairs]
    return Row(
        a,
        b,
        statistics.median(a_s for a_s, _ in pairs),
        statistics.median(b_s for _, b_s in pairs),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        runs,
    )


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
        "python": platform.python_version(),
        **{library: version(library) for library in libraries},
    }


def report(name: str, about: dict[str, Any], rows: Sequence[Row], **more: object) -> None:
    """Print the rows, in words and as markdown, and write benchmarks/results/<name>.json."""
    print(
        f"{about['device']}, {about['cores']} cores, "
        f"load average at start {about['load_average'][0]:.2f}"
    )
    for row in rows:
        print(row.sentence)
    print("for docs/benchmarks.md:")
    for row in rows:
        print(row.markdown(about))
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
    count = len(sets)
    header = Header(num_images=count, num_shards=1, images_per_shard=count, paired=True, made_of={})
    write_header(root, header)
    records = [
        Record(str(number), degraded, clean, masks)
        for number, ((degraded, clean), masks) in enumerate(zip(pictures, sets, strict=True))
    ]
    write_shard(root, 0, records, paired=True)
    return MaskStore.open(root)


def _processor() -> str:
    """The processor's name, or its architecture where the system doesn't tell."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
