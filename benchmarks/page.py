"""Write docs/benchmarks.md and its plots from benchmarks/results: nothing is measured.

    python benchmarks/page.py

Only what lies between the page's markers is written. A test checks that the page and the plots
are what the committed results give.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plots
from parts import PARTS
from quantities import Record, load, number
from scoreboard import Line, lines, runs_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
GPU = "cuda"
"""Folder below the results: those of a machine with a GPU."""

BEGIN, END = "<!-- results: python benchmarks/page.py -->\n", "<!-- end of results -->\n"

ABOUT = ("device", "processor", "cores", "load_average", "commit")
"""Of a machine, what is no version."""


def files(results: Path = RESULTS, *, page: str, name: str = "benchmarks") -> dict[str, str]:
    """The page with its results, and the plots beside it, by the names of the files.

    Args:
        results: folder of the results.
        page: the page as it is; what is outside of its markers stays.
        name: of the page, which those of the plots begin with.
    """
    text, drawn = section(results, name)
    sections = [f"## Results\n\n{text}"]
    if (results / GPU).is_dir():
        text, more = section(results / GPU, f"{name}-{GPU}")
        sections.append(f"## Results with a GPU\n\n{text}")
        drawn |= more
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return {f"{name}.md": f"{before}{BEGIN}\n{chr(10).join(sections)}\n{END}{after}", **drawn}


def section(results: Path, name: str) -> tuple[str, dict[str, str]]:
    """The text of one folder of results, and its plots by file."""
    board, records = lines(results), load(results)
    drawn = {f"{name}.svg": plots.goals_plot(board)}
    pictures = [f"[![Each line of the scoreboard against its goal]({name}.svg)]({name}.svg)"]
    if "worker_memory" in records:
        drawn[f"{name}-memory.svg"] = plots.memory_plot(records["worker_memory"])
        pictures.append(f"![Memory of loaders, epoch by epoch]({name}-memory.svg)")
    told = {part.name: records[part.name] for part in PARTS if part.name in records}
    blocks = [
        summary(board),
        *pictures,
        table(("#", "what", "peer", "ratio (spread)", "goal", ""), map(cells, board)),
        "Where, when loaded how much, and with which versions:",
        table(("part", "machine", "load", "commit", "versions", "ran"),
              where(told, runs_of(results))),
        "All rows that were timed:",
        table(
            ("part", "a", "b", "a takes", "b takes", "b / a (spread, runs)", "in CPU seconds"),
            timed(told),
        ),
    ]  # fmt: skip
    return "\n\n".join(blocks) + "\n", drawn


def summary(board: Sequence[Line]) -> str:
    """How many lines are in which state, in words."""
    counts = {state: sum(line.state == state for line in board) for state in plots.COLOURS}
    return (
        f"Of {len(board)} lines {counts['met']} meet their goal, {counts['missed']} miss it though "
        f"not behind their peer, {counts['behind']} are **behind their peer**, and "
        f"{counts['not run']} were not run."
    )


def cells(line: Line) -> tuple[str, ...]:
    """A line of the scoreboard, as the page and the terminal show it."""
    entry = line.entry
    if line.found is None:
        return entry.row, entry.what, entry.peer, "", str(entry.goal), f"not run: {line.reason}"
    verdict = f"**{line.verdict}**" if line.state == "behind" else line.verdict
    return entry.row, entry.what, entry.peer, line.found.text, str(entry.goal), verdict


def where(records: Mapping[str, Record], noted: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Machine, load, commit, versions and command of each part."""
    for name, record in records.items():
        about = record["machine"]
        device = about["device"]
        if device != about["processor"]:
            device += f", {about['processor']}"
        found = {key: value for key, value in about.items() if key not in ABOUT}
        versions = ", ".join(
            f"{key} {value}" for key, value in (found | record.get("versions", {})).items()
        )
        run = noted.get(name, {})
        ran = f"`{run['command']}`, {run['seconds']:.0f} s" if "command" in run else ""
        yield (
            name,
            f"{device}, {about['cores']} cores",
            f"{about['load_average'][0]:.2f}",
            about.get("commit", "")[:12] + ("+" if about.get("commit", "").endswith("+") else ""),
            versions,
            ran,
        )


def timed(records: Mapping[str, Record]) -> Iterator[tuple[str, ...]]:
    """Every pair of pieces of work that were timed in turn."""
    for name, record in records.items():
        for row in record.get("rows", ()):
            if "b_over_a" in row:
                low, high = row["spread"]
                yield (
                    name,
                    row["a"],
                    row["b"],
                    seconds(row["a_s"]),
                    seconds(row["b_s"]),
                    f"{number(row['b_over_a'])} ({number(low)} to {number(high)}, {row['runs']})",
                    number(row["cpu_b_over_a"]) if "cpu_b_over_a" in row else "not taken",
                )


def seconds(taken_s: float) -> str:
    """Seconds, or milliseconds below ten of them."""
    return f"{taken_s:.1f} s" if taken_s >= 10 else f"{taken_s * 1e3:,.2f} ms"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown."""
    lines_of_cells = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
        for cells in lines_of_cells
    )


def main() -> None:
    """Write the page and its plots."""
    for name, text in files(page=PAGE.read_text("utf-8")).items():
        PAGE.with_name(name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
