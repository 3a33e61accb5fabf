"""Curves of a run as inline SVG that takes its colours from the page's CSS."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# Geometry, in units of the view box.
_WIDTH, _HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 34
_MAX_POINTS = 400
"""Points of a curve that are drawn; more would only thicken the line."""


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y), sorted by x."""

    name: str
    points: Sequence[tuple[float, float]]

    @property
    def drawn(self) -> Sequence[tuple[float, float]]:
        """The points that have a place on a chart; an infinite PSNR of equal pictures has none.

        Fewer than two make no line.
        """
        places = [point for point in self.points if math.isfinite(point[1])]
        return places if len(places) > 1 else ()


def curves_svg(curves: Sequence[Curve], *, description: str, unit: str = "") -> str:
    """Curves over steps; empty text where there is no curve of two points.

    Args:
        curves: each is drawn in the style `.curve-N`, N counted from 0.
        description: the chart in a sentence, for screen readers.
        unit: written behind the numbers of the y axis.
    """
    points_of = [curve.drawn for curve in curves]
    if not any(points_of):
        return ""
    xs = [x for points in points_of for x, _ in points]
    ys = [y for points in points_of for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs), 6), _ticks(min(ys), max(ys), 5)
    to_x = _scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    to_y = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
    ]
    for tick in y_ticks:
        y = to_y(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(f"{tick:.6g}{unit}", _LEFT - 6, y + 4, "end"))
    for tick in x_ticks:
        if min(xs) <= tick <= max(xs):
            parts.append(_text(f"{tick:,.6g}", to_x(tick), _HEIGHT - 10, "middle"))
    for number, (curve, points) in enumerate(zip(curves, points_of, strict=True)):
        if not points:
            continue
        places = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in _thinned(points))
        parts.append(
            f'<polyline class="curve curve-{number}" points="{places}">'
            f"<title>{escape(curve.name)}</title></polyline>"
        )
    return "".join([*parts, "</svg>"])


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _MAX_POINTS means of neighbours; the first and the last point stay."""
    size = -(-len(points) // _MAX_POINTS)
    if size == 1:
        return list(points)
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    return [points[0], *means[1:-1], points[-1]]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * about >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _scale(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    return lambda value: begin + (end - begin) * (value - low) / ((high - low) or 1.0)


def _text(text: str, x: float, y: float, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
