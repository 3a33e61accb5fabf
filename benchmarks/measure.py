"""Time pieces of work against each other: alternating runs, medians, spread, as JSON and text."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison on the same work in one run."""

    what: str
    ours_s: float
    """Median seconds."""
    peer: str
    peer_s: float
    """Median seconds."""
    ratio: float
    """Median of peer / ours over the pairs of runs; above 1 we are faster."""
    spread: tuple[float, float]
    """Smallest and largest of these ratios."""
    runs: int


def against(
    what: str,
    ours: Callable[[], object],
    peer: str,
    theirs: Callable[[], object],
    *,
    runs: int = 7,
) -> Row:
    """Run both in turn, after one uncounted run of each."""
    ours(), theirs()
    pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(runs)]
    ratios = [peer_s / ours_s for ours_s, peer_s in pairs]
    return Row(
        what,
        statistics.median(ours_s for ours_s, _ in pairs),
        peer,
        statistics.median(peer_s for _, peer_s in pairs),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        runs,
    )


def machine(*libraries: str) -> dict[str, str]:
    """Processor, Python and the versions of the libraries at work."""
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{library: version(library) for library in libraries},
    }


def show(row: Row) -> None:
    """Print a comparison as one line."""
    print(
        f"{row.what}: {row.ours_s * 1e3:.2f} ms, {row.peer} {row.peer_s * 1e3:.2f} ms, "
        f"ratio {row.ratio:.2f} ({row.spread[0]:.2f} to {row.spread[1]:.2f}, {row.runs} runs)"
    )


def write(name: str, rows: list[Row], **more: object) -> None:
    """Write the rows to benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    record = {**more, "rows": [asdict(row) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
