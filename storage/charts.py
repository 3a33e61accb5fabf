"""The histograms of the report, as inline SVG that takes its colours from the page's CSS."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from samprior.storage.survey import Floats, Ints, Survey, counted, percent

_MAX_BARS = 24
_BARS_PER_DECADE = 4

# Geometry of a histogram, in units of its view box.
_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 26, 30


@dataclass(frozen=True)
class Chart:
    """A histogram with its words."""

    title: str
    svg: str
    """Trusted markup; empty when there is nothing to draw."""
    note: str
    """What is counted."""


def draw_charts(found: Survey) -> list[Chart]:
    """The charts of a store that has images: masks, areas, coverage and depth."""
    return [
        _masks_chart(found.num_masks),
        _area_chart(found.area_shares),
        _coverage_chart(found.coverage),
        _depth_chart(found.depth_pixels),
    ]


def _masks_chart(num_masks: Ints) -> Chart:
    highest = int(num_masks.max())
    width = int(_nice_step(highest / _MAX_BARS))
    counts = np.bincount(num_masks // width)
    lows = range(0, len(counts) * width, width)
    spans = [f"{low}" if width == 1 else f"{low} to {low + width - 1}" for low in lows]
    # A number stands in the middle of a bar that counts it alone.
    shift = 0.5 if width == 1 else 0.0
    median = float(np.median(num_masks))
    svg = histogram_svg(
        counts,
        names=[f"{s} masks: {counted(n, 'image')}" for s, n in zip(spans, counts, strict=True)],
        ticks=[
            (number / width + shift, f"{number:,}")
            for number in range(0, lows.stop, int(_nice_step(highest / 5)))
        ],
        description=f"Images by number of masks; the median is {median:,.6g}",
        marker=(median / width + shift, f"median {median:,.6g}"),
    )
    return Chart("Masks per image", svg, "images by number of masks")


def _area_chart(shares: Floats) -> Chart:
    title = "Mask area"
    note = "masks by share of picture (log)"
    held = shares[shares > 0]
    if not len(held):
        return Chart(title, "", "no mask has an area")
    decades = int(np.ceil(-np.log10(held.min()))) or 1
    edges = np.logspace(-decades, 0, decades * _BARS_PER_DECADE + 1)
    every = 1 if decades <= 4 else 2
    # Rounding must not push the ends out.
    counts, _ = np.histogram(np.clip(held, edges[0], edges[-1]), edges)
    median = float(np.median(held))
    spans = [f"{percent(low)} to {percent(high)}" for low, high in pairwise(edges)]
    svg = histogram_svg(
        counts,
        names=[f"{s}: {counted(n, 'mask')}" for s, n in zip(spans, counts, strict=True)],
        ticks=[
            (i * _BARS_PER_DECADE, f"{100 * 10.0 ** (i - decades):g} %")
            for i in range(decades % every, decades + 1, every)
        ],
        description=f"Masks by share of the picture; the median is {percent(median)}",
        marker=(
            (np.log10(median) + decades) * _BARS_PER_DECADE,
            f"median {percent(median)}",
        ),
    )
    num_empty = len(shares) - len(held)
    return Chart(title, svg, note + (f"; {num_empty:,} empty masks left out" * (num_empty > 0)))


def _coverage_chart(coverage: Floats) -> Chart:
    edges = np.linspace(0, 1, 21)
    counts, _ = np.histogram(coverage, edges)
    median = float(np.median(coverage))
    names = [
        f"{percent(low)} to {percent(high)}: {counted(n, 'image')}"
        for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    svg = histogram_svg(
        counts,
        names=names,
        ticks=[(i, percent(i / 20)) for i in range(0, 21, 5)],
        description=f"Images by coverage; the median is {percent(median)}",
        marker=(median * 20, f"median {percent(median)}"),
    )
    return Chart("Coverage", svg, "images by share of pixels in any mask")


def _depth_chart(pixels: Ints) -> Chart:
    shares = 100 * pixels / pixels.sum()
    depths = [str(depth) for depth in range(len(shares))]
    if len(shares) > _MAX_BARS:
        shares = np.append(shares[: _MAX_BARS - 1], shares[_MAX_BARS - 1 :].sum())
        depths = [*depths[: _MAX_BARS - 1], f"{_MAX_BARS - 1}+"]
    every = -(-len(depths) // 12)
    svg = histogram_svg(
        shares,
        names=[f"{d} masks: {percent(s / 100)}" for d, s in zip(depths, shares, strict=True)],
        ticks=[(i + 0.5, depths[i]) for i in range(0, len(depths), every)],
        description="Pixels by the number of masks over them",
        unit=" %",
    )
    return Chart("Overlap depth", svg, "pixels by number of masks over them")


def histogram_svg(
    heights: npt.ArrayLike,
    *,
    names: Sequence[str],
    ticks: Sequence[tuple[float, str]],
    description: str,
    unit: str = "",
    marker: tuple[float, str] | None = None,
) -> str:
    """Bars as inline SVG that takes its colours from the page's CSS.

    Args:
        heights: one number per bar.
        names: what each bar counts, for its tooltip.
        ticks: places on the x axis, in bars from the left edge, with their labels.
        description: the chart in a sentence, for screen readers.
        unit: written behind the numbers of the y axis.
        marker: place of a vertical line, in bars, with its label.
    """
    values = np.asarray(heights, np.float64)
    step = _nice_step(float(values.max()) / 4)
    top = step * max(1, math.ceil(values.max() / step))
    bar_width = (_WIDTH - _LEFT - _RIGHT) / len(values)
    base, scale = _HEIGHT - _BOTTOM, (_HEIGHT - _BOTTOM - _TOP) / top
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
    ]
    for level in np.arange(0, top + step / 2, step):
        y = base - level * scale
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" {_at(y)}/>')
        parts.append(_text(f"{level:,.6g}{unit}", _LEFT - 6, y + 4, "end"))
    for place, (value, name) in enumerate(zip(values, names, strict=True)):
        # What is there must be seen, however small.
        height = max(1.5, value * scale) if value else 0.0
        parts.append(
            f'<rect class="bar" x="{_LEFT + place * bar_width + 0.5:.1f}" '
            f'y="{base - height:.1f}" width="{bar_width - 1:.1f}" height="{height:.1f}">'
            f"<title>{escape(name)}</title></rect>"
        )
    for position, label in ticks:
        parts.append(_text(label, _LEFT + position * bar_width, _HEIGHT - 10, "middle"))
    if marker:
        x = _LEFT + marker[0] * bar_width
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{base}"/>')
        parts.append(_text(marker[1], min(max(x, 110), 280), _TOP - 10, "middle", "mark-text"))
    return "".join([*parts, "</svg>"])


def _nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... that is not below `least`."""
    power = 10 ** math.floor(math.log10(max(1.0, least)))
    return float(next(factor for factor in (1, 2, 5, 10) if factor * power >= least) * power)


def _at(y: float) -> str:
    return f'y1="{y:.1f}" y2="{y:.1f}"'


def _text(text: str, x: float, y: float, anchor: str, style: str = "tick") -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
