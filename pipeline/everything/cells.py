"""Compiled kernels that say of whole cells, or else of single pixels, on which side they lie.

A cell is the block of pixels that share their first tap on both axes; all its values lie between
the least and the greatest of 3 x 3 samples. Cells that are not settled by these bounds are
evaluated with the composed weights; values so near a threshold that rounding could decide are
evaluated again as PyTorch rounds. Every comparison `value > threshold` made of these values is
the one that the official code makes.

All kernels that call each other are in this file, because Numba's cache on disk looks for changes
in the file of the kernel that is called first and nowhere else.

Letters: T x U samples (rows and columns needed), cell (t, u) has first taps t and u, P x Q pixels.
"""

import numpy as np
import numpy.typing as npt

from samprior.pipeline.everything.compiled import Thresholds, Workspace, kernel
from samprior.pipeline.everything.resampling import TAPS, Axis, Floats, Ints, Tables

Pair = tuple[np.float32, np.float32]

# Places in a mask's tally: pixels above the three thresholds, then its box, inclusive.
X0, Y0, X1, Y1 = 3, 4, 5, 6
TALLY = 7

_ALL = 3  # thresholds that lie below a cell of the mask's inside
_MIXED = 4  # a cell of which the bounds don't say on which side of each threshold it lies

# In units of 2**-24 times the greatest sample's size: the weights of a lerp sum to 1 within one
# unit, and it rounds twice, so PyTorch's four lerps are off by at most 4 * 2, ours by 8, the sums
# of the weights by 4. 32 leaves room for second-order terms and for rounding in comparisons.
_MARGIN = np.float32(32 * 2.0**-24)
# Underflow rounds by absolute amounts, far below this.
_MARGIN_LEAST = np.float32(1e-37)
# Larger samples could overflow underway; then, and with NaN, every pixel is left to PyTorch's way.
_LARGEST = np.float32(1e37)
_NO_BOUND = np.float32(np.inf)


@kernel
def tally_masks(
    logits: Floats, tables: Tables, at: Thresholds, work: Workspace, tallies: npt.NDArray[np.int64]
) -> None:
    """Fill `tallies` (M, 7) of logits (M, h, w): pixels above each threshold; the middle's box.

    An empty mask's box is left inside out.
    """
    rows, columns = tables.rows, tables.columns
    cells = len(columns.edges) - 1
    for k in range(len(logits)):
        samples, tally = logits[k], tallies[k]
        tally[:] = 0
        tally[X0], tally[Y0] = len(columns.starts), len(rows.starts)
        tally[X1], tally[Y1] = -1, -1
        floor = _margin_floor(samples)
        for t in range(len(rows.edges) - 1):
            if rows.edges[t] == rows.edges[t + 1]:
                continue
            if _classify(samples, at, floor, work, t, 0, cells):
                _tally_row(samples, tables, at, floor, work, t, tally)


@kernel
def mask_blocks(
    logits: Floats,
    tables: Tables,
    threshold: np.float32,
    work: Workspace,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> Ints:
    """Disjoint blocks (B, 4) y0, y1, x0, x1 that make up one mask, of logits (h, w).

    Only cells from `rows[0]` to `rows[1] - 1` and so for columns are looked at.
    """
    at = Thresholds(threshold, threshold, threshold)
    floor = _margin_floor(logits)
    blocks = np.empty((256, 4), np.int32)
    count = 0
    for t in range(rows[0], rows[1]):
        if _classify(logits, at, floor, work, t, columns[0], columns[1]):
            room = count + work.values.size  # a block has at least one pixel
            if room > len(blocks):
                grown = np.empty((2 * room, 4), np.int32)
                grown[:count] = blocks[:count]
                blocks = grown
            count = _row_blocks(logits, tables, at, floor, work, t, columns, blocks, count)
    return blocks[:count].copy()


@kernel
def _margin_floor(logits: Floats) -> np.float32:
    """What is added to every margin of a mask (h, w): infinite if not all samples are ordinary."""
    ordinary = 0
    for t in range(logits.shape[0]):
        for u in range(logits.shape[1]):
            ordinary += np.abs(logits[t, u]) <= _LARGEST
    return _MARGIN_LEAST if ordinary == logits.size else _NO_BOUND


@kernel
def _classify(
    logits: Floats, at: Thresholds, floor: np.float32, work: Workspace, t: int, first: int, end: int
) -> bool:
    """Fill `work.sides` for the cells (t, first) to (t, end - 1); whether any is not below all."""
    least, greatest, sides = work.least, work.greatest, work.sides
    for u in range(first, end + TAPS - 1):
        a, b, c = logits[t, u], logits[t + 1, u], logits[t + 2, u]
        low = a if a < b else b
        high = a if a > b else b
        least[u] = low if low < c else c
        greatest[u] = high if high > c else c
    seen = 0
    for u in range(first, end):
        a, b, c = least[u], least[u + 1], least[u + 2]
        low = a if a < b else b
        low = low if low < c else c
        a, b, c = greatest[u], greatest[u + 1], greatest[u + 2]
        high = a if a > b else b
        high = high if high > c else c
        margin = (high if high > -low else -low) * _MARGIN + floor
        # Differences, not sums: rounding a sum with the threshold could swallow the margin.
        above = np.int32(low - at.low > margin)
        above += np.int32(low - at.middle > margin)
        above += np.int32(low - at.high > margin)
        # "not below" instead of "above", so that NaN counts as undecided.
        reached = np.int32(not (high - at.low < -margin))
        reached += np.int32(not (high - at.middle < -margin))
        reached += np.int32(not (high - at.high < -margin))
        sides[u] = above if above == reached else _MIXED
        seen |= sides[u]
    return seen != 0


@kernel
def _tally_row(
    logits: Floats,
    tables: Tables,
    at: Thresholds,
    floor: np.float32,
    work: Workspace,
    t: int,
    tally: npt.NDArray[np.int64],
) -> None:
    """Add one row of classified cells, run by run."""
    edges, y0, y1 = tables.columns.edges, tables.rows.edges[t], tables.rows.edges[t + 1]
    u, cells = 0, len(edges) - 1
    while u < cells:
        end = _run_end(work.sides, u, cells)
        side, x0, x1 = work.sides[u], edges[u], edges[end]
        if side == _MIXED:
            _evaluate(logits, tables, at, floor, work, t, u, end)
            for y in range(y0, y1):
                _tally_pixels(work.values[y - y0, x0:x1], y, x0, at, tally)
        elif x0 < x1:
            for threshold in range(side):
                tally[threshold] += (y1 - y0) * (x1 - x0)
            if side >= 2:
                _widen(tally, x0, y0, x1 - 1, y1 - 1)
        u = end


@kernel
def _tally_pixels(
    values: Floats, y: int, x0: int, at: Thresholds, tally: npt.NDArray[np.int64]
) -> None:
    """Add some evaluated pixels of row y, the first of which is x0."""
    low, middle, high = 0, 0, 0
    for x in range(len(values)):
        low += values[x] > at.low
        middle += values[x] > at.middle
        high += values[x] > at.high
    tally[0] += low
    tally[1] += middle
    tally[2] += high
    if middle:
        # Most runs lie inside the box found so far; then the loops end at once.
        first, last = x0, x0 + len(values) - 1
        while first < tally[X0] and not values[first - x0] > at.middle:
            first += 1
        while last > tally[X1] and not values[last - x0] > at.middle:
            last -= 1
        _widen(tally, first, y, last, y)


@kernel
def _widen(tally: npt.NDArray[np.int64], x0: int, y0: int, x1: int, y1: int) -> None:
    """Make the tally's box hold this one."""
    tally[X0], tally[Y0] = min(tally[X0], x0), min(tally[Y0], y0)
    tally[X1], tally[Y1] = max(tally[X1], x1), max(tally[Y1], y1)


@kernel
def _row_blocks(
    logits: Floats,
    tables: Tables,
    at: Thresholds,
    floor: np.float32,
    work: Workspace,
    t: int,
    columns: tuple[int, int],
    blocks: Ints,
    count: int,
) -> int:
    """Append the blocks of one row of classified cells to `count` others; the new count."""
    edges, y0, y1 = tables.columns.edges, tables.rows.edges[t], tables.rows.edges[t + 1]
    u = columns[0]
    while u < columns[1]:
        end = _run_end(work.sides, u, columns[1])
        side, x0, x1 = work.sides[u], edges[u], edges[end]
        if side == _MIXED:
            _evaluate(logits, tables, at, floor, work, t, u, end)
            for y in range(y0, y1):
                count = _pixel_blocks(work.values[y - y0, x0:x1], y, x0, at, blocks, count)
        elif side == _ALL and x0 < x1 and y0 < y1:
            count = _append(blocks, count, y0, y1, x0, x1)
        u = end
    return count


@kernel
def _pixel_blocks(values: Floats, y: int, x0: int, at: Thresholds, blocks: Ints, count: int) -> int:
    """Append the runs of some evaluated pixels of row y, the first of which is x0."""
    x = 0
    while x < len(values):
        start = x
        while x < len(values) and values[x] > at.middle:
            x += 1
        if start < x:
            count = _append(blocks, count, y, y + 1, x0 + start, x0 + x)
        x += 1
    return count


@kernel
def _append(blocks: Ints, count: int, y0: int, y1: int, x0: int, x1: int) -> int:
    """Add one block to `count` others; the new count."""
    blocks[count, 0], blocks[count, 1], blocks[count, 2], blocks[count, 3] = y0, y1, x0, x1
    return count + 1


@kernel
def _run_end(sides: Ints, u: int, end: int) -> int:
    """One past the last cell of the run of equal sides that begins at u."""
    side = sides[u]
    u += 1
    while u < end and sides[u] == side:
        u += 1
    return u


@kernel
def _evaluate(
    logits: Floats,
    tables: Tables,
    at: Thresholds,
    floor: np.float32,
    work: Workspace,
    t: int,
    first: int,
    end: int,
) -> None:
    """Fill `work.values[: cell height, its columns]` for the cells (t, first) to (t, end - 1).

    The values are on the official side of each threshold; they need not be the official values.
    """
    size = np.float32(0)
    for u in range(first, end + TAPS - 1):
        size = max(size, work.greatest[u], -work.least[u])
    margin = size * _MARGIN + floor
    y0, x0, x1 = tables.rows.edges[t], tables.columns.edges[first], tables.columns.edges[end]
    _mix_columns(logits, tables.columns, work.mixed, t, x0, x1)
    for y in range(y0, tables.rows.edges[t + 1]):
        if _mix_rows(tables.rows, work, y, y - y0, x0, x1, at, margin):
            for x in range(x0, x1):
                if _is_near(work.values[y - y0, x], at, margin):
                    work.values[y - y0, x] = _official_logit(logits, tables, y, x)


@kernel
def _mix_columns(logits: Floats, columns: Axis, mixed: Floats, t: int, x0: int, x1: int) -> None:
    """Fill `mixed` (3, Q) with the three rows of samples from t on, at pixels x0 to x1."""
    starts, weights = columns.starts, columns.weights
    for x in range(x0, x1):
        u, a, b, c = starts[x], weights[0, x], weights[1, x], weights[2, x]
        for row in range(TAPS):
            left, middle, right = logits[t + row, u], logits[t + row, u + 1], logits[t + row, u + 2]
            mixed[row, x] = a * left + b * middle + c * right


@kernel
def _mix_rows(
    rows: Axis,
    work: Workspace,
    y: int,
    row: int,
    x0: int,
    x1: int,
    at: Thresholds,
    margin: np.float32,
) -> bool:
    """Fill a row of `work.values` with pixels (y, x0) to (y, x1 - 1); whether any is near."""
    mixed, values = work.mixed, work.values
    a, b, c = rows.weights[0, y], rows.weights[1, y], rows.weights[2, y]
    near = 0
    for x in range(x0, x1):
        value = a * mixed[0, x] + b * mixed[1, x] + c * mixed[2, x]
        values[row, x] = value
        near |= _is_near(value, at, margin)
    return near != 0


@kernel
def _is_near(value: np.float32, at: Thresholds, margin: np.float32) -> bool:
    """Whether rounding could decide on which side of a threshold this lies; True for NaN."""
    return (
        (not np.abs(value - at.low) > margin)
        | (not np.abs(value - at.middle) > margin)
        | (not np.abs(value - at.high) > margin)
    )


@kernel
def _official_logit(logits: Floats, tables: Tables, y: int, x: int) -> np.float32:
    """What PyTorch's two resizes on the CPU give pixel (y, x), bit for bit."""
    rows, columns, rounding = tables.rows, tables.columns, tables.arithmetic
    y0, y1 = rows.fine_index[y, 0], rows.fine_index[y, 1]
    x0, x1 = columns.fine_index[x, 0], columns.fine_index[x, 1]
    upper = _input_logit(logits, tables, y0, x0), _input_logit(logits, tables, y0, x1)
    lower = _input_logit(logits, tables, y1, x0), _input_logit(logits, tables, y1, x1)
    heights = rows.fine_weight[y, 0], rows.fine_weight[y, 1]
    widths = columns.fine_weight[x, 0], columns.fine_weight[x, 1]
    return _bilinear(upper, lower, heights, widths, rounding.fused, rounding.products_second)


@kernel
def _input_logit(logits: Floats, tables: Tables, y: int, x: int) -> np.float32:
    """What the first resize gives pixel (y, x) of the model's input."""
    rows, columns, rounding = tables.rows, tables.columns, tables.arithmetic
    t0, t1 = rows.tap_index[y, 0], rows.tap_index[y, 1]
    u0, u1 = columns.tap_index[x, 0], columns.tap_index[x, 1]
    upper, lower = (logits[t0, u0], logits[t0, u1]), (logits[t1, u0], logits[t1, u1])
    heights = rows.tap_weight[y, 0], rows.tap_weight[y, 1]
    widths = columns.tap_weight[x, 0], columns.tap_weight[x, 1]
    return _bilinear(upper, lower, heights, widths, rounding.fused, rounding.products_first)


@kernel
def _bilinear(
    upper: Pair, lower: Pair, heights: Pair, widths: Pair, fused: bool, products: bool
) -> np.float32:
    """One bilinear mix of 2 x 2 samples in the order of PyTorch's loops.

    upsample_generic_Nd (usual) mixes along the width and then along the height;
    upsample_linear_channels_last (`products`, for small outputs) weights all four at once.
    """
    h0, h1 = heights
    w0, w1 = widths
    if products:
        total = _add_product(h0 * w0, upper[0], (h0 * w1) * upper[1], fused)
        total = _add_product(h1 * w0, lower[0], total, fused)
        return _add_product(h1 * w1, lower[1], total, fused)
    above = _add_product(w0, upper[0], w1 * upper[1], fused)
    below = _add_product(w0, lower[0], w1 * lower[1], fused)
    return _add_product(h0, above, h1 * below, fused)


@kernel
def _add_product(
    weight: np.float32, sample: np.float32, rest: np.float32, fused: bool
) -> np.float32:
    """weight * sample + rest, rounded once (fused) or twice."""
    if fused:
        # float64 holds a product of float32 exactly. Its own rounding of the sum would have to
        # hit the middle of two float32 values to matter: once in 2**29, of pixels on the edge.
        return np.float32(np.float64(weight) * np.float64(sample) + np.float64(rest))
    return np.float32(weight * sample) + rest
