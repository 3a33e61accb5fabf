"""What the files of benchmarks/results say, as comparable numbers: ratios with their spread.

    quantities(load(Path("benchmarks/results"))["storage_rows"]) -> {name: Quantity}

Every number that a goal (scoreboard.py) or a comparison of two commits (compare.py) is about is
named here once. Nothing is measured, and only the standard library is needed.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Record = Mapping[str, Any]
"""A file of results."""

Better = Literal["higher", "lower"]

RUNS_FILE = "runs.json"
"""What run_all.py notes of its last run; no results."""

CPU = ", CPU seconds"
"""Ends the name of a ratio of CPU seconds; the others are by the clock."""

PLANES, ATOMS = "samprior, planes", "samprior, atoms and members"

PLAIN = re.compile("a plain step( of .*)?|.*, plain")
"""What a is in rows whose b is ours, and should take no longer; in all others a is ours."""


@dataclass(frozen=True)
class Quantity:
    """A number, most often how many times as much the peer needs as we do."""

    name: str
    value: float
    """Median."""
    better: Better
    low: float | None = None
    """Smallest of the runs; None: not noted."""
    high: float | None = None
    runs: int = 0
    """0: counted, the same in every run."""

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest; the value where they were not noted."""
        low, high = self.low, self.high
        return (self.value if low is None else low), (self.value if high is None else high)

    @property
    def text(self) -> str:
        """Value and spread."""
        if self.low is None or self.high is None or self.runs < 2:
            return number(self.value)
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"


def number(value: float) -> str:
    """With as many digits as a ratio deserves."""
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def load(folder: Path) -> dict[str, Record]:
    """The files of a folder of results, by their names without .json."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files_of(folder)}


def files_of(folder: Path) -> list[Path]:
    """The files of a folder of results."""
    return sorted(file for file in folder.glob("*.json") if file.name != RUNS_FILE)


def quantities(record: Record) -> dict[str, Quantity]:
    """All that a file says, by name."""
    found = [each for source in SOURCES for each in source(record)]
    return {each.name: each for each in found}


def of_rows(record: Record) -> Iterator[Quantity]:
    """The ratio of each row, by the clock and in CPU seconds."""
    for row in record.get("rows", ()):
        if "b_over_a" not in row:
            continue
        name, runs = f"{row['b']} / {row['a']}", row["runs"]
        ours_is_b = PLAIN.fullmatch(row["a"]) or ATOMS in row["b"]
        better: Better = "lower" if ours_is_b else "higher"
        yield Quantity(name, row["b_over_a"], better, *row["spread"], runs)
        if "cpu_b_over_a" in row:
            low, high = row.get("cpu_spread", (None, None))
            yield Quantity(name + CPU, row["cpu_b_over_a"], better, low, high, runs)


def of_readers(record: Record) -> Iterator[Quantity]:
    """Peers against atoms and members: two rows have planes in common, which cancel out.

    The spread is the widest that the spreads of both rows allow.
    """
    if "memcpy_s_a_crop" not in record:
        return
    rows = {_plain(row["b"]): row for row in record["rows"]}
    for name, row in rows.items():
        how = _plain(row["a"]).removeprefix(PLANES)
        ours = rows.get(ATOMS + how)
        if ours is None or ours is row:
            continue
        (low, high), (our_low, our_high) = row["spread"], ours["spread"]
        yield Quantity(
            f"{name} / {ATOMS}{how}",
            row["b_over_a"] / ours["b_over_a"],
            "higher",
            low / our_high,
            high / our_low,
            min(row["runs"], ours["runs"]),
        )


def of_bytes(record: Record) -> Iterator[Quantity]:
    """Bytes of masks in other forms, against ours, the first."""
    if "bytes" not in record:
        return
    (mine, ours), *others = record["bytes"]["by_form"].items()
    for form, held in others:
        yield Quantity(f"bytes of {form} / {mine}", held / ours, "higher")


def of_engine(record: Record) -> Iterator[Quantity]:
    """Masks that both engines keep, and the memory that they take."""
    masks = record.get("masks", {})
    if "kept_by_official" in masks:
        kept = masks["kept_by_samprior"] / masks["kept_by_official"]
        same = kept if masks["same_masks_in_order"] else 0.0
        yield Quantity("masks kept, the same and in order", same, "higher")
        share = masks["pixels_different"] / max(masks["pixels_compared"], 1)
        yield Quantity("share of pixels that differ", share, "lower")
    official, *engines = record.get("memory", None) or [{}]
    for engine in engines:
        held = "gpu_peak_bytes" if "gpu_peak_bytes" in official else "peak_bytes"
        ratio = engine[held] / official[held]
        yield Quantity(f"peak memory of {engine['engine']} / official", ratio, "lower", runs=1)


def of_student(record: Record) -> Iterator[Quantity]:
    """Parameters, which the script checks to be equal, and multiply-accumulates."""
    for network in record.get("parameters", {}):
        yield Quantity(f"parameters of {network}, distilled / plain", 1.0, "lower")
    for network, macs in record.get("macs", {}).items():
        ratio = macs["distilled"] / macs["plain"]
        yield Quantity(f"MACs of {network}, distilled / plain", ratio, "lower")


def of_job_workers(record: Record) -> Iterator[Quantity]:
    """Efficiency of many workers against one."""
    alone, *others = [row for row in record.get("rows", ()) if "efficiency" in row] or [{}]
    for row in others:
        least, most = map(float, row["least and most"].split(" to "))
        name = f"efficiency of {row['workers']} workers"
        spread = alone["seconds"] / most, alone["seconds"] / least
        yield Quantity(name, row["efficiency"], "higher", *spread, record["runs"])


def of_loaders_memory(record: Record) -> Iterator[Quantity]:
    """Growth over the epochs of each loader, and what the peer takes against ours in the end."""
    if "loaders" not in record:
        return
    taken: list[list[int]] = []
    for loader in record["loaders"]:
        runs = loader["runs"]
        growth = [run["epoch_bytes"][-1] / run["epoch_bytes"][0] for run in runs]
        yield _spread_of(f"last epoch / first: {loader['loader']}", growth, "lower")
        taken.append([run["epoch_bytes"][-1] - run["start_bytes"] for run in runs])
    # The floor keeps a loader that takes nothing from dividing by it.
    ratios = [theirs / max(mine, 2**20) for mine, theirs in zip(*taken, strict=True)]
    yield _spread_of("memory above the start: DataLoader / samprior", ratios, "higher")


SOURCES: Sequence[Callable[[Record], Iterator[Quantity]]] = (
    of_rows,
    of_readers,
    of_bytes,
    of_engine,
    of_student,
    of_job_workers,
    of_loaders_memory,
)


def _spread_of(name: str, values: Sequence[float], better: Better) -> Quantity:
    return Quantity(name, statistics.median(values), better, min(values), max(values), len(values))


def _plain(what: str) -> str:
    """The name of a loader's row without the number of crops."""
    return re.sub(r"^\d+ crops, ", "", what)
