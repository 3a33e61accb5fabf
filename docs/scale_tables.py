"""Write the tables of docs/scale.md from benchmarks/results/job_workers.json and job_driver.json.

    python docs/scale_tables.py

A test checks that the page has them as they are.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scale.md"
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(
    r"<!-- (\w+): python docs/scale_tables.py -->\n.*?<!-- end of \1 -->\n", re.DOTALL
)

PHASES = {
    "find the dataset": "find the dataset",
    "plan": "pairs and plan",
    "job": "the job, with pairs and plan",
    "the job again": "the same again, nothing to do",
    "status": "`samprior status`",
    "open": "opening the store",
    "receipts on disk": "receipts on disk",
}
"""What the driver's phases are called on the page."""

FEW, MANY, FAR = 10_000, 1_000_000, 100_000_000
"""Numbers of images: two that were measured, and one that the laws tell."""

Row = dict[str, Any]


def workers(rows: Iterable[Row]) -> str:
    """Workers side by side."""
    lines = [["workers", "images", "seconds", "images/s", "efficiency"]]
    for row in rows:
        least, most = row["least and most"].split(" to ")
        seconds = f"{row['seconds']:.1f} ({least} to {most})"
        speed, efficiency = f"{row['images/s']:.3g}", f"{row['efficiency']:.3f}"
        lines.append([f"{row['workers']}", f"{row['images']:,}", seconds, speed, efficiency])
    return table(lines)


def driver(rows: Iterable[Row], told: Iterable[Row]) -> str:
    """CPU seconds and memory of each phase."""
    found = {(row["images"], row["phase"]): row for row in rows}
    law = {(row["phase"], row["of"]): row["value"] for row in told if row["images"] == FAR}
    lines = [["", f"{FEW:,} images", f"{MANY:,} images", f"{FAR:,} images, by the laws"]]
    for phase, name in PHASES.items():
        measured = [found[count, phase] for count in (FEW, MANY)]
        cells = [cost(row.get("CPU s"), row["bytes"]) for row in measured]
        lines.append([name, *cells, cost(law.get((phase, "CPU s")), law[phase, "bytes"])])
    return table(lines)


def laws(rows: Iterable[Row]) -> str:
    """Fixed part + part per image + part per shard, and how far off that is at worst."""
    found = {(row["phase"], row["of"]): row for row in rows}
    lines = [["", "CPU seconds", "worst error", "bytes", "worst error"]]
    for phase, name in PHASES.items():
        cells = []
        for of, amount in (("CPU s", of_seconds), ("bytes", of_bytes)):
            row = found.get((phase, of))
            cells += [terms(row, amount), f"{row['worst error']:.0%}"] if row else ["", ""]
        lines.append([name, *cells])
    return table(lines)


def terms(row: Row, amount: Callable[[float], str]) -> str:
    """The parts of a law that are not 0."""
    parts = {"": row["fixed"], " per image": row["per image"], " per shard": row["per shard"]}
    return " + ".join(f"{amount(value)}{of}" for of, value in parts.items() if value > 0)


def cost(seconds: float | None, size: float) -> str:
    """CPU seconds, where there are any, and bytes."""
    return of_bytes(size) if seconds is None else f"{of_seconds(seconds)}, {of_bytes(size)}"


def of_seconds(value: float) -> str:
    """In the unit in which the number is easy to read."""
    return scaled(value, (1, 1, "s"), (1e-3, 1e-3, "ms"), (0, 1e-6, "µs"))


def of_bytes(value: float) -> str:
    """In the unit in which the number is easy to read."""
    return scaled(value, (1e9, 1e9, "GB"), (1e6, 1e6, "MB"), (1e4, 1e3, "kB"), (0, 1, "B"))


def scaled(value: float, *units: tuple[float, float, str]) -> str:
    """In the first unit that `value` is large enough for, to three digits or more.

    Args:
        value: in the unit of size 1.
        units: each with the least value it is for, its size and its name.
    """
    size, unit = next((size, name) for least, size, name in units if value >= least)
    number = value / size
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"


def table(lines: list[list[str]]) -> str:
    """Rows in markdown, the first of them the heading."""
    head, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rest))


def filled(page: str) -> str:
    """The page with the tables in their places."""
    side, alone = (
        json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        for name in ("job_workers", "job_driver")
    )
    tables = {
        "workers": workers(side["rows"]),
        "driver": driver(alone["rows"], alone["by_laws"]),
        "laws": laws(alone["laws"]),
    }

    def place(match: re.Match[str]) -> str:
        name = match[1]
        begin, end = f"<!-- {name}: python docs/scale_tables.py -->", f"<!-- end of {name} -->"
        return f"{begin}\n\n{tables[name]}\n{end}\n"

    return PLACE.sub(place, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
