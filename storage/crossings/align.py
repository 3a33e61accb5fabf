"""Which segments of a row continue which of the row above: a matter of bytes, not of correctness.

S segments of a row.
"""

from samprior.storage.compiled import kernel
from samprior.storage.crossings.contexts import log2
from samprior.storage.crossings.range_coder import Words

NEW = -1
"""In place of a segment above: this one continues none."""

COST_OF_COMING, COST_OF_GOING = 14, 4
"""Bits, about, of an event."""

MAX_CELLS = 4096
"""Larger searches are cut short: rows of that many segments are noise."""

COST_WORDS = 3 * MAX_CELLS
"""Room for the costs of a search, borders included."""


@kernel
def align(
    old_start: Words,
    old_label: Words,
    num_old: int,
    start: Words,
    label: Words,
    num_new: int,
    kept: Words,
    cost: Words,
) -> None:
    """Write to `kept` (S,) the old segment that each new one continues, or NEW; in rising order."""
    kept[:num_new] = NEW
    first, old_end, new_end = 0, num_old, num_new
    if num_old * num_new > MAX_CELLS:
        while first < min(old_end, new_end) and old_label[first] == label[first]:
            kept[first] = first
            first += 1
        while first < min(old_end, new_end) and old_label[old_end - 1] == label[new_end - 1]:
            old_end -= 1
            new_end -= 1
            kept[new_end] = old_end
    if (old_end - first) * (new_end - first) > MAX_CELLS:
        return
    _fill(old_start, old_label, start, label, first, old_end - first, new_end - first, cost)
    _trace(old_start, old_label, start, label, first, old_end - first, new_end - first, kept, cost)


@kernel
def _fill(
    old_start: Words,
    old_label: Words,
    start: Words,
    label: Words,
    first: int,
    num_old: int,
    num_new: int,
    cost: Words,
) -> None:
    """Least bits for the first `new` and `old` segments, at cost[new * (num_old + 1) + old]."""
    width = num_old + 1
    for old in range(width):
        cost[old] = old * COST_OF_GOING
    for new in range(1, num_new + 1):
        row = new * width
        here, place = label[first + new - 1], start[first + new - 1]
        # Held in variables: what was just written takes time to be read again.
        before, left = cost[row - width], new * COST_OF_COMING
        cost[row] = left
        for old in range(1, width):
            above = cost[row - width + old]
            least = min(above + COST_OF_COMING, left + COST_OF_GOING)
            there = first + old - 1
            if old_label[there] == here:
                least = min(least, before + _price(old_start[there] - place))
            cost[row + old] = least
            before, left = above, least


@kernel
def _trace(
    old_start: Words,
    old_label: Words,
    start: Words,
    label: Words,
    first: int,
    num_old: int,
    num_new: int,
    kept: Words,
    cost: Words,
) -> None:
    """Follow the least costs back and enter who continues whom."""
    width, new, old = num_old + 1, num_new, num_old
    while new > 0:
        here, there = first + new - 1, first + old - 1
        least = cost[new * width + old]
        if (
            old > 0
            and old_label[there] == label[here]
            and least == cost[(new - 1) * width + old - 1] + _price(old_start[there] - start[here])
        ):
            new -= 1
            old -= 1
            kept[here] = there
        elif least == cost[(new - 1) * width + old] + COST_OF_COMING:
            new -= 1
        else:
            old -= 1


@kernel
def _price(delta: int) -> int:
    """Bits, about, of a move."""
    return 1 if abs(delta) < 2 else 2 * log2(abs(delta)) + 1
