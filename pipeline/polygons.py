"""Polygons of COCO as masks, pixel for pixel those of pycocotools.

pycocotools walks the outline in steps of a fifth of a pixel, keeps the points where it passes from
one column of pixels to the next, and takes what lies between them, down the columns (`rleFrPoly`
of its maskApi.c). The steps are the same here, in the same order and precision.

Letters: N corners, S steps along the outline, H x W pixels.
"""

import numpy as np
import numpy.typing as npt

from samprior.storage.rle import counts_to_mask

Integers = npt.NDArray[np.int64]

_SCALE = 5.0
"""Steps per pixel."""

MAX_STEPS = 20_000_000
"""Longer outlines are refused: 4 million pixels, far beyond that of any mask."""


def polygon_mask(corners: npt.ArrayLike, *, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Boolean (H, W) of one polygon; `corners` is x0, y0, x1, y1, ... in pixels.

    Raises:
        ValueError: fewer than three corners, half a corner, or an outline beyond `MAX_STEPS`.
    """
    numbers = np.asarray(corners, np.float64)
    if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"a polygon has at least 3 corners of x and y, got {len(numbers)} numbers")
    scaled = _SCALE * numbers.reshape(-1, 2) + 0.5
    if np.abs(scaled).max() > MAX_STEPS:
        raise ValueError("the polygon lies far outside the image")
    points = np.trunc(scaled).astype(np.int64)  # (N, 2), rounded as C does
    u, v = _outline(points, np.roll(points, -1, axis=0))
    columns, rows = _crossings(u, v, height, width)
    turns = np.sort(columns * height + rows)
    counts = np.diff(turns, prepend=0, append=height * width)
    return counts_to_mask(counts, height=height, width=width)


def _outline(starts: Integers, ends: Integers) -> tuple[Integers, Integers]:
    """(S,) x and y of all steps from `starts` to `ends` (N, 2), both included."""
    spans = np.abs(ends - starts)
    flat = spans[:, 0] >= spans[:, 1]  # steps along x, else along y
    lengths = spans.max(axis=1)
    if int(lengths.sum()) + len(lengths) > MAX_STEPS:
        raise ValueError(f"the polygon's outline is longer than {MAX_STEPS / _SCALE:,.0f} pixels")
    major = np.where(flat, 0, 1)
    edge = np.arange(len(starts))
    # Edges are always computed in the direction of growth, and walked back if need be.
    flip = starts[edge, major] > ends[edge, major]
    low, high = (np.where(flip[:, None], a, b) for a, b in ((ends, starts), (starts, ends)))
    # An edge without length has no slope; its one step repeats the end of the edge before.
    slopes = (high - low)[edge, 1 - major] / np.maximum(lengths, 1)

    of = np.repeat(edge, lengths + 1)  # (S,) the edge of each step
    along = np.arange(len(of)) - np.repeat(np.cumsum(lengths + 1) - (lengths + 1), lengths + 1)
    along = np.where(flip[of], lengths[of] - along, along)
    on_major = low[of, major[of]] + along
    on_minor = np.trunc(low[of, 1 - major[of]] + slopes[of] * along + 0.5).astype(np.int64)
    return np.where(flat[of], on_major, on_minor), np.where(flat[of], on_minor, on_major)


def _crossings(u: Integers, v: Integers, height: int, width: int) -> tuple[Integers, Integers]:
    """Column and row of each point where the outline passes the middle of a column."""
    moved = u[1:] != u[:-1]
    before_u, after_u, before_v, after_v = u[:-1][moved], u[1:][moved], v[:-1][moved], v[1:][moved]
    x = (np.where(after_u < before_u, after_u, after_u - 1) + 0.5) / _SCALE - 0.5
    held = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    y = (np.minimum(after_v, before_v)[held] + 0.5) / _SCALE - 0.5
    rows = np.ceil(np.clip(y, 0, height))
    return x[held].astype(np.int64), rows.astype(np.int64)
