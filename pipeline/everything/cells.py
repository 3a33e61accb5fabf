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

from samprior.pipeline.everything.resampling import TAPS, Axis, Floats, Ints, Tables
from samprior.pipeline.everything.workspace import PADDING, Thresholds, Workspace
from samprior.storage.compiled import kernel

Pair = tuple[np.float32, np.float32]

# Places in a mask's tally: pixels above the three thresholds, then its box, inclusive.
X0, Y0, X1, Y1 = 3, 4, 5, 6
TALLY = 7

_ALL = 3  # thresholds that lie below a cell of the mask's inside
_SETTLED = 3  # the bits of a number of thresholds
_MIXED = 4  # a cell of which the bounds don't say on which side of each threshold it lies
_ANY_MIXED = np.uint64(0x0404040404040404)  # the bit of mixed cells in eight cells at once

# In units of 2**-24 times the greatest sample's size: the weights of a lerp sum to 1 within one
# unit, and it rounds twice, so PyTorch's four lerps are off by at most 4 * 2, ours by 8, the sums
# of the weights by 4. 32 leaves room for second-order terms and for rounding in comparisons.
_MARGIN = np.float32(32 * 2.0**-24)
# Underflow rounds by absolute amounts, far below this.
_MARGIN_LEAST = np.float32(1e-37)
# Larger samples could overflow underway; then, and with NaN, every pixel is left to PyTorch's way.
_LARGEST = np.float32(1e37)
_NO_BOUND = np.float32(np.inf)
# Rows of samples that lie below the lowest threshold by more than this are not looked at, unless a
# mask's margin is larger.
_FAR = np.float32(1e-3)


@kernel
def tally_masks(
    logits: Floats, tables: Tables, at: Thresholds, work: Workspace, tallies: npt.NDArray[np.int64]
) -> None:
    """Fill `tallies` (M, 7) of logits (M, h, w): pixels above each threshold; the middle's box.

    An empty mask's box is left inside out.
    """
    rows, columns = tables.rows, tables.columns
    cells = len(columns.edges) - 1
    reach = np.empty(logits.shape[1], np.int32)
    for k in range(len(logits)):
        samples, tally = logits[k], tallies[k]
        tally[:] = 0
        tally[X0], tally[Y0] = len(columns.starts), len(rows.starts)
        tally[X1], tally[Y1] = -1, -1
        margin = _survey(samples, at, reach)
        for t in range(len(rows.edges) - 1):
            if rows.edges[t] == rows.edges[t + 1] or not (reach[t] | reach[t + 1] | reach[t + 2]):
                continue
            seen = _classify(samples, at, margin, work, t, 0, cells)
            if seen & _SETTLED:
                _tally_settled(tables, work, t, tally)
            if seen & _MIXED:
                _tally_mixed(samples, tables, at, margin, work, t, tally)


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
    margin = _survey(logits, at, np.empty(logits.shape[0], np.int32))
    blocks = np.empty((256, 4), np.int32)
    count = 0
    for t in range(rows[0], rows[1]):
        height = tables.rows.edges[t + 1] - tables.rows.edges[t]
        if height and _classify(logits, at, margin, work, t, columns[0], columns[1]):
            room = count + height * work.values.size  # a block has at least one pixel
            if room > len(blocks):
                grown = np.empty((2 * room, 4), np.int32)
                grown[:count] = blocks[:count]
                blocks = grown
            count = _settled_blocks(tables, work, t, columns, blocks, count)
            count = _mixed_blocks(logits, tables, at, margin, work, t, columns, blocks, count)
    return blocks[:count].copy()


@kernel
def _padded(length: int) -> int:
    """The length rounded up, so that a loop has no rest that is done one by one."""
    return (length + PADDING - 1) // PADDING * PADDING


@kernel
def _survey(logits: Floats, at: Thresholds, reach: Ints) -> np.float32:
    """How near to a threshold rounding could matter, for a mask (h, w); infinite if it could fail.

    That is where samples are not ordinary: every pixel is then left to PyTorch's way. Fills `reach`
    (h,): 0 for rows of which all samples lie below the lowest threshold by more than that.
    """
    largest = np.int32(0)
    for t in range(logits.shape[0]):
        bits = logits[t].view(np.int32)
        count = np.int32(0)
        for u in range(logits.shape[1]):
            # Of numbers without their sign the bits are in the numbers' order, NaN above all.
            largest = max(largest, np.int32(bits[u] & np.int32(0x7FFFFFFF)))
            # "not below", so that NaN counts.
            count += np.int32(not (logits[t, u] - at.low < -_FAR))
        reach[t] = count
    size = np.int32(largest).view(np.float32)
    margin = size * _MARGIN + _MARGIN_LEAST if size <= _LARGEST else _NO_BOUND
    if not margin <= _FAR:
        reach[:] = 1
    return margin


@kernel
def _classify(
    logits: Floats,
    at: Thresholds,
    margin: np.float32,
    work: Workspace,
    t: int,
    first: int,
    end: int,
) -> int:
    """Fill `work.sides` for the cells (t, first) to (t, end - 1); the bits that occur in them.

    Bits of the padding may be among them.
    """
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
    return seen


@kernel
def _tally_settled(tables: Tables, work: Workspace, t: int, tally: npt.NDArray[np.int64]) -> None:
    """Add the settled cells of one row."""
    edges, y0, y1 = tables.columns.edges, tables.rows.edges[t], tables.rows.edges[t + 1]
    sides, widths = work.sides, work.widths
    low, middle, high = np.int32(0), np.int32(0), np.int32(0)
    for u in range(_padded(len(edges) - 1)):
        width, side = widths[u], sides[u]
        settled = np.int32(side < _MIXED)
        low += width * (settled & np.int32(side >= 1))
        middle += width * (settled & np.int32(side >= 2))
        high += width * (settled & np.int32(side >= _ALL))
    height = np.int64(y1 - y0)
    tally[0] += height * low
    tally[1] += height * middle
    tally[2] += height * high
    if middle:
        # Most runs lie inside the box found so far; then the loops end at once.
        first, last = 0, len(edges) - 2
        while edges[first] < tally[X0] and not (
            sides[first] & 2 and edges[first] < edges[first + 1]
        ):
            first += 1
        while edges[last + 1] - 1 > tally[X1] and not (
            sides[last] & 2 and edges[last] < edges[last + 1]
        ):
            last -= 1
        _widen(tally, edges[first], y0, edges[last + 1] - 1, y1 - 1)


@kernel
def _tally_mixed(
    logits: Floats,
    tables: Tables,
    at: Thresholds,
    margin: np.float32,
    work: Workspace,
    t: int,
    tally: npt.NDArray[np.int64],
) -> None:
    """Add the mixed cells of one row, pixel by pixel."""
    places, row, weights = work.places, work.values, tables.rows.weights
    cells = len(tables.columns.edges) - 1
    lower, inside, upper = np.int32(0), np.int32(0), np.int32(0)
    x0, y0, x1, y1 = tally[X0], tally[Y0], tally[X1], tally[Y1]
    count = _mix_columns(logits, tables.columns, work, t, 0, cells)
    mixed = work.mixed
    for y in range(tables.rows.edges[t], tables.rows.edges[t + 1]):
        mix = weights[0, y], weights[1, y], weights[2, y]
        low, middle, high, sure = _mix_rows(mixed, mix, at, margin, row, count)
        if not sure:
            _settle(logits, tables, at, margin, work, y, count)
            low, middle, high = np.int32(0), np.int32(0), np.int32(0)
            for i in range(count):
                low += np.int32(row[i] > at.low)
                middle += np.int32(row[i] > at.middle)
                high += np.int32(row[i] > at.high)
        lower += low
        inside += middle
        upper += high
        if middle:
            first, last = 0, count - 1
            while places[first] < x0 and not row[first] > at.middle:
                first += 1
            while places[last] > x1 and not row[last] > at.middle:
                last -= 1
            x0, x1 = min(x0, places[first]), max(x1, places[last])
            y0, y1 = min(y0, y), max(y1, y)
    tally[0] += lower
    tally[1] += inside
    tally[2] += upper
    tally[X0], tally[Y0], tally[X1], tally[Y1] = x0, y0, x1, y1


@kernel
def _widen(tally: npt.NDArray[np.int64], x0: int, y0: int, x1: int, y1: int) -> None:
    """Make the tally's box hold this one."""
    tally[X0], tally[Y0] = min(tally[X0], x0), min(tally[Y0], y0)
    tally[X1], tally[Y1] = max(tally[X1], x1), max(tally[Y1], y1)


@kernel
def _settled_blocks(
    tables: Tables, work: Workspace, t: int, columns: tuple[int, int], blocks: Ints, count: int
) -> int:
    """Append the runs of settled cells of one row to `count` other blocks; the new count."""
    edges, y0, y1 = tables.columns.edges, tables.rows.edges[t], tables.rows.edges[t + 1]
    sides, u = work.sides, columns[0]
    while u < columns[1]:
        start = u
        while u < columns[1] and sides[u] == _ALL:
            u += 1
        if edges[start] < edges[u]:
            count = _append(blocks, count, y0, y1, edges[start], edges[u])
        u += 1
    return count


@kernel
def _mixed_blocks(
    logits: Floats,
    tables: Tables,
    at: Thresholds,
    margin: np.float32,
    work: Workspace,
    t: int,
    columns: tuple[int, int],
    blocks: Ints,
    count: int,
) -> int:
    """Append the runs of pixels in mixed cells of one row to `count` others; the new count."""
    places, row, weights = work.places, work.values, tables.rows.weights
    found = _mix_columns(logits, tables.columns, work, t, columns[0], columns[1])
    for y in range(tables.rows.edges[t], tables.rows.edges[t + 1]):
        mix = weights[0, y], weights[1, y], weights[2, y]
        if not _mix_rows(work.mixed, mix, at, margin, row, found)[3]:
            _settle(logits, tables, at, margin, work, y, found)
        i = 0
        while i < found:
            start = i
            while i < found and row[i] > at.middle and places[i] - places[start] == i - start:
                i += 1
            if start < i:
                count = _append(blocks, count, y, y + 1, places[start], places[i - 1] + 1)
            else:
                i += 1
    return count


@kernel
def _append(blocks: Ints, count: int, y0: int, y1: int, x0: int, x1: int) -> int:
    """Add one block to `count` others; the new count."""
    blocks[count, 0], blocks[count, 1], blocks[count, 2], blocks[count, 3] = y0, y1, x0, x1
    return count + 1


@kernel
def _mix_columns(
    logits: Floats,
    columns: Axis,
    work: Workspace,
    t: int,
    first: int,
    end: int,
) -> int:
    """Mix three rows of samples, from t on, for the columns of pixels in mixed cells; their number.

    Fills `work.places` and `work.mixed`.
    """
    count = _list_mixed(columns.edges, work, first, end)
    starts, weights, places, mixed = columns.starts, columns.weights, work.places, work.mixed
    upper, middle, lower = logits[t], logits[t + 1], logits[t + 2]
    for i in range(count):
        # Unsigned, so that no index counts from the end, or the loop is not compiled to vectors.
        x = np.uint32(places[i])
        u = np.uint32(starts[x])
        v, w = u + np.uint32(1), u + np.uint32(2)
        a, b, c = weights[0, x], weights[1, x], weights[2, x]
        mixed[0, i] = a * upper[u] + b * upper[v] + c * upper[w]
        mixed[1, i] = a * middle[u] + b * middle[v] + c * middle[w]
        mixed[2, i] = a * lower[u] + b * lower[v] + c * lower[w]
    for i in range(count, _padded(count)):
        mixed[0, i] = mixed[1, i] = mixed[2, i] = -_LARGEST  # below all thresholds
    return count


@kernel
def _list_mixed(edges: Ints, work: Workspace, first: int, end: int) -> int:
    """Fill `work.places` with the columns of pixels in mixed cells; their number."""
    sides, places, count = work.sides, work.places, 0
    for word in range(first // 8, (end + 7) // 8):
        if not work.words[word] & _ANY_MIXED:
            continue
        for u in range(max(first, 8 * word), min(end, 8 * word + 8)):
            if sides[u] == _MIXED:
                for x in range(edges[u], edges[u + 1]):
                    places[count] = x
                    count += 1
    return count


@kernel
def _mix_rows(
    mixed: Floats,
    weights: tuple[np.float32, np.float32, np.float32],
    at: Thresholds,
    margin: np.float32,
    values: Floats,
    count: int,
) -> tuple[np.int32, np.int32, np.int32, bool]:
    """Fill `values` with `count` pixels of a row; how many of them lie above each threshold.

    And whether that is sure: none is so near a threshold that rounding could matter.
    """
    a, b, c = weights
    # Sums as wide as the values, or the loop is not compiled to vector instructions.
    low, middle, high, reached = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
    for i in range(_padded(count)):
        value = a * mixed[0, i] + b * mixed[1, i] + c * mixed[2, i]
        values[i] = value
        low += np.int32(value - at.low > margin)
        middle += np.int32(value - at.middle > margin)
        high += np.int32(value - at.high > margin)
        # "not below", so that NaN counts as near.
        reached += np.int32(not (value - at.low < -margin))
        reached += np.int32(not (value - at.middle < -margin))
        reached += np.int32(not (value - at.high < -margin))
    return low, middle, high, bool(low + middle + high == reached)


@kernel
def _settle(
    logits: Floats,
    tables: Tables,
    at: Thresholds,
    margin: np.float32,
    work: Workspace,
    y: int,
    count: int,
) -> None:
    """Replace the values of row y that are near a threshold by the official ones."""
    values = work.values
    for i in range(count):
        if _is_near(values[i], at, margin):
            values[i] = _official_logit(logits, tables, y, work.places[i])


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
