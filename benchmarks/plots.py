"""Plots of the results as SVG, without a library: equal results give equal bytes.

Lengths are units of the view box.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from quantities import Record, number
from scoreboard import Line, State

COLOURS: dict[State, str] = {
    "met": "#2f7d4f",
    "missed": "#c77b1c",
    "behind": "#b3362b",
    "not run": "#8a94a0",
}
"""Told in words beside each point too."""

LINE_COLOURS = ("#2b6cb0", "#c77b1c")

_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222b36}.small{font-size:11px;fill:#4a5766}"
    ".grid{stroke:#dce1e8}.goal{stroke:#222b36;stroke-dasharray:4 3}"
)
_ROW, _HEAD, _FOOT = 18, 62, 34
_MARGIN, _LEFT, _RIGHT, _WIDTH = 20, 500, 820, 1020
_LONGEST = 84
"""Characters of a label that fit left of the points."""
_LEAST, _MOST = 0.02, 50.0


def goals_plot(lines: Sequence[Line]) -> str:
    """How many times each goal is reached, by line: right of 1 it is met. Logarithmic."""
    height = _HEAD + _ROW * len(lines) + _FOOT
    parts = [
        f'<text x="{_MARGIN}" y="20">Each line of the scoreboard (what | peer) against its goal'
        "</text>",
        f'<text class="small" x="{_MARGIN}" y="37">How many times it is reached, in the middle run '
        "and from the least to the most; met from the dashed line on. "
        "What is off the scale lies at its edge.</text>",
        f'<text class="small" x="{_x(1)}" y="{_HEAD - 8}" text-anchor="middle">goal</text>',
    ]
    for value in (0.1, 0.5, 1, 2, 10):
        style = "goal" if value == 1 else "grid"
        parts.append(
            f'<line class="{style}" x1="{_x(value)}" x2="{_x(value)}" y1="{_HEAD}" '
            f'y2="{height - _FOOT}"/>'
        )
        parts.append(
            f'<text class="small" x="{_x(value)}" y="{height - 18}" text-anchor="middle">'
            f"{value:g} x</text>"
        )
    for place, line in enumerate(lines):
        parts += _goal_line(line, _HEAD + _ROW * place + _ROW // 2)
    return _svg(_WIDTH, height, parts, "Lines of the scoreboard against their goals")


def memory_plot(record: Record) -> str:
    """Memory above the start after each epoch, of each loader, median of the runs, MB."""
    width, height, left, bottom = 640, 300, 70, 250
    series = {
        loader["loader"]: [
            sorted(values)[len(values) // 2]
            for values in zip(
                *(
                    [(held - run["start_bytes"]) / 1e6 for held in run["epoch_bytes"]]
                    for run in loader["runs"]
                ),
                strict=True,
            )
        ]
        for loader in record["loaders"]
    }
    most = max(max(values) for values in series.values()) * 1.1
    parts = [
        f'<text x="{_MARGIN}" y="20">Memory of what reads ahead, after each epoch, MB above '
        "the start</text>"
    ]
    for step in range(5):
        y = bottom - step / 4 * (bottom - 50)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="small" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{most * step / 4:,.0f}</text>"
        )
    for place, (name, values) in enumerate(series.items()):
        colour = LINE_COLOURS[place % len(LINE_COLOURS)]
        step_px = (width - 20 - left) / max(len(values) - 1, 1)
        points = " ".join(
            f"{left + step_px * epoch:.1f},{bottom - held / most * (bottom - 50):.1f}"
            for epoch, held in enumerate(values)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(
            f'<text x="{left + 250 * place}" y="{height - 10}" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    epochs = max(map(len, series.values()))
    for epoch in range(epochs):
        x = left + (width - 20 - left) / max(epochs - 1, 1) * epoch
        parts.append(
            f'<text class="small" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{epoch + 1}</text>"
        )
    return _svg(width, height, parts, "Memory of loaders by epoch")


def _goal_line(line: Line, y: int) -> list[str]:
    entry, colour = line.entry, COLOURS[line.state]
    label = f"{entry.row}  {entry.what} | {entry.peer}"
    label = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
    words = line.verdict if line.found is None else f"{number(line.found.value)}, {line.verdict}"
    told = [
        f'<text class="small" x="{_MARGIN}" y="{y + 4}">{escape(label)}</text>',
        f'<text class="small" x="{_RIGHT + 16}" y="{y + 4}" style="fill:{colour}">{words}</text>',
    ]
    share = line.found and entry.goal.share(line.found)
    if line.found is None or share is None:
        return told
    ends = [
        entry.goal.share(replace(line.found, value=value)) or share for value in line.found.spread
    ]
    told.append(
        f'<line x1="{_x(ends[0])}" x2="{_x(ends[1])}" y1="{y}" y2="{y}" '
        f'stroke="{colour}" stroke-width="2"/>'
    )
    told.append(f'<circle cx="{_x(share)}" cy="{y}" r="4" fill="{colour}"/>')
    return told


def _x(value: float) -> float:
    share = math.log(min(max(value, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return round(_LEFT + share * (_RIGHT - _LEFT), 1)


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
