"""Time many pieces of work in turn, round by round, and print tables of what they cost."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of the rounds of one piece of work."""

    median_s: float
    least_s: float
    most_s: float


def time_in_turn(works: Mapping[str, Callable[[], object]], *, runs: int) -> dict[str, Timing]:
    """One uncounted round, then `runs` rounds of all; what the machine does meanwhile hits all."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if run:
                taken[name].append(time.perf_counter() - started)
    return {
        name: Timing(statistics.median(seconds), min(seconds), max(seconds))
        for name, seconds in taken.items()
    }


def print_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows of equal keys as a table in markdown; numbers with three significant digits."""
    print(f"\n{title}\n")
    names = list(rows[0])
    for cells in (
        names,
        ["---"] * len(names),
        *([told(row[name]) for name in names] for row in rows),
    ):
        print("| " + " | ".join(cells) + " |")


def told(value: object) -> str:
    """A cell: whole numbers from 100 on, three digits below."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
