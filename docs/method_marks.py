"""What docs/method.svg is drawn with: pictures, networks, losses and arrows, and their colours.

In texts `L_{SPD}` sets SPD as an index.
"""

import re
from collections.abc import Sequence
from html import escape
from itertools import combinations

from drawing import Place, rect

COLOURS = {
    "once": ("#6b4fa0", "#efeaf8"),
    "training": ("#2b6cb0", "#e6f0fa"),
    "ships": ("#2f7d4f", "#dcf1e4"),
    "loss": ("#b35c00", "#fff1de"),
    "data": ("#5b6876", "#ffffff"),
}
"""Line and fill of each kind of mark."""

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222b36}.small{font-size:11.5px;fill:#4a5766}"
    ".title{font-size:15px;font-weight:600}.stage{font-weight:600}.middle{text-anchor:middle}"
    ".command{font:11.5px ui-monospace,monospace;fill:#4a5766}.index{font-size:.72em}"
    ".number{font-weight:600;fill:#fff;text-anchor:middle}"
    "polyline,line{fill:none;stroke-width:1.6}"
)

# Of the picture of 92 x 68: shape, colour in the picture, colour as a mask, and centre.
_REGIONS = (
    ('<path d="M0 50Q26 24 50 44T92 38V68H0Z"', "#8db56c", "#56a3a6", (60, 58)),
    ('<circle cx="72" cy="17" r="9"', "#f7c948", "#e8b23a", (72, 17)),
    ('<path d="M17 38 32 26 47 38V59H17Z"', "#c96f4a", "#d1605e", (32, 44)),
    ('<path d="M68 29 82 53H74V60H62V53H54Z"', "#3f7d4e", "#7d6bb8", (68, 45)),
)
_SKY = "#cfe4f7"
_STREAKS = {"x": (30, 0.85), "I1": (9, 0.5), "I2": (2, 0.4), "y": (0, 0.0)}
"""Of each picture: the rain on it, in streaks, and how opaque they are."""


def definitions() -> list[str]:
    """Heads of arrows, and the pictures: x, I1, I2, y and the masks M."""
    parts = ["<defs>"]
    for kind, (line, _) in COLOURS.items():
        parts.append(
            f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path d="M0 .5 8 4 0 7.5Z" fill="{line}"/></marker>'
        )
    for name, (count, opacity) in _STREAKS.items():
        drawn = [f'{shape} fill="{colour}"/>' for shape, colour, _, _ in _REGIONS]
        rain = "".join(f"M{k * 37 % 101} {k * 29 % 67 - 6}l-4 13" for k in range(count))
        if rain:
            drawn.append(f'<path d="{rain}" stroke="#fff" stroke-width="2" opacity="{opacity}"/>')
        parts.append(_picture(name, _SKY, drawn))
    masks = [f'{shape} fill="{mask}" stroke="#fff"/>' for shape, _, mask, _ in _REGIONS]
    return [*parts, _picture("M", "#d9dee5", masks), "</defs>"]


def _picture(name: str, ground: str, drawn: Sequence[str]) -> str:
    shapes = "".join(drawn)
    return (
        f'<symbol id="p{name}" viewBox="0 0 92 68"><rect width="92" height="68" fill="{ground}"/>'
        f"{shapes}</symbol>"
    )


def box(place: Place, kind: str, name: str, state: str) -> list[str]:
    """A network and what it does here; dashed if frozen."""
    x, y, width, height = place
    line, fill = COLOURS[kind]
    dashes = ' stroke-dasharray="4 3"' if state == "frozen" else ""
    middle, centre = x + width / 2, y + height / 2
    return [
        rect(place, f'rx="5" fill="{fill}" stroke="{line}" stroke-width="1.5"{dashes}'),
        text(middle, centre - 2, name, "middle"),
        text(middle, centre + 12, state, "small middle"),
    ]


def loss(place: Place, name: str) -> list[str]:
    """A loss, as a pill."""
    x, y, width, height = place
    line, fill = COLOURS["loss"]
    return [
        rect(place, f'rx="{height / 2:g}" fill="{fill}" stroke="{line}"'),
        text(x + width / 2, y + height / 2 + 4, name, "middle"),
    ]


def cylinder(place: Place, name: str) -> list[str]:
    """What is kept on a disk."""
    x, y, width, height = place
    line, fill = COLOURS["once"]
    around, tall = f"{width / 2:g} 9 0 0", height - 18
    return [
        f'<path d="M{x} {y + 9}v{tall}a{around} 0 {width} 0v{-tall}" fill="{fill}" '
        f'stroke="{line}" stroke-width="1.5"/>',
        f'<ellipse cx="{x + width / 2:g}" cy="{y + 9}" rx="{width / 2:g}" ry="9" fill="#fff" '
        f'stroke="{line}" stroke-width="1.5"/>',
        text(x + width / 2, y + height / 2 + 8, name, "middle"),
    ]


def graph(place: Place, widths: Sequence[float]) -> list[str]:
    """The regions, and lines between them as wide as they are alike."""
    x, y, width, _ = place
    scale = width / 92
    centres = [(x + scale * across, y + scale * down) for _, _, _, (across, down) in _REGIONS]
    parts = [shown("M", place)]
    for ((x0, y0), (x1, y1)), wide in zip(combinations(centres, 2), widths, strict=True):
        parts.append(
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" '
            f'style="stroke:#222b36;stroke-width:{wide}"/>'
        )
    return parts + [
        f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.5" fill="#fff" stroke="#222b36"/>'
        for across, down in centres
    ]


def shown(picture: str, place: Place) -> str:
    """One of the pictures of `definitions`."""
    x, y, width, height = (f"{side:g}" for side in place)
    return f'<use href="#p{picture}" x="{x}" y="{y}" width="{width}" height="{height}"/>'


def wire(kind: str, *points: tuple[float, float], look: str = "") -> str:
    """A line of straight parts; `look` holds its other attributes."""
    course = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{course}" stroke="{COLOURS[kind][0]}"{look}/>'


def arrow(kind: str, *points: tuple[float, float]) -> str:
    """A wire with a head at its end."""
    return wire(kind, *points, look=f' marker-end="url(#{kind})"')


def text(x: float, y: float, words: str, look: str = "") -> str:
    """A line of text, where `_{...}` is an index."""
    parts = re.split(r"_{(\w+)}", words)
    line = escape(parts[0])
    for place, part in enumerate(parts[1:]):
        if place % 2 == 0:
            line += f'<tspan class="index" dy="3">{part}</tspan>'
        elif part:
            line += f'<tspan dy="-3">{escape(part)}</tspan>'
    look = f' class="{look}"' if look else ""
    return f'<text x="{x:g}" y="{y:g}"{look}>{line}</text>'
