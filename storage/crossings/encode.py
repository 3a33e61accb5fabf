"""Write the code of a tile: each row as edits of the row above.

H x W pixels of a tile, S segments of a row.
"""

import numpy as np

from samprior.storage.compiled import kernel
from samprior.storage.crossings.align import COST_WORDS, NEW, align
from samprior.storage.crossings.contexts import (
    AFTER,
    DIRECTION,
    EVENT,
    FAR,
    FAR_LAST,
    FIRST,
    FIRST_GOES,
    GOES,
    MORE,
    MOVES,
    MOVES_KINDS,
    NEAR,
    NEAR_AFTER,
    NEAR_BEFORE,
    NEAR_PX,
    NEW_BOUNDARY,
    NOWHERE,
    RIGHT,
    direction_context,
    direction_of,
    moved,
    moves_context,
    step_kind,
)
from samprior.storage.crossings.labels import (
    MEMORY_WORDS,
    NOBODY,
    choose_label,
    forget,
    remember_between,
)
from samprior.storage.crossings.numbers import choose, choose_number
from samprior.storage.crossings.range_coder import (
    STATE_WORDS,
    Bytes,
    Words,
    encode,
    finish_encoder,
    start_encoder,
)
from samprior.storage.masks import Atoms

KEPT, GONE, COME = 0, 1, 2
"""What happens next in a row."""

CHOICES_PER_SEGMENT = 256
"""Room for all choices about one segment: an event, a label and a place."""

CHOICES_ROOM = 2048
"""Choices are coded when this is nearly full; a larger room would leave the first cache."""


@kernel
def encode_tile(atoms: Atoms, model: Words, out: Bytes, at: int, limit: int) -> int:
    """Write the code of a tile from byte `at` on; the byte after its last one.

    Args:
        atoms: unsigned integers (H, W).
        model: a copy of the start model; it learns.
        out: where the code goes.
        at: its first byte.
        limit: from this byte on there is no room. A result above it means that more was needed.
    """
    height, width = atoms.shape
    state = np.zeros(STATE_WORDS, np.int64)
    start_encoder(state, at, limit)
    memory = np.empty(MEMORY_WORDS, np.int64)
    forget(memory)
    old_start = np.zeros(width + 1, np.int64)
    old_label, old_history = old_start.copy(), old_start.copy()
    start, label, history = old_start.copy(), old_start.copy(), old_start.copy()
    kept = np.zeros(width + 1, np.int64)
    cost = np.empty(COST_WORDS, np.int64)
    choices = np.empty(CHOICES_ROOM, np.int64)
    num_old, count = 0, 0
    # One piece: functions for each row would have to be handed all these arrays.
    for y in range(height):
        start[0] = 0
        num_new = 1
        for x in range(1, width):
            start[num_new] = x
            num_new += 1 if atoms[y, x] != atoms[y, x - 1] else 0
        is_same = num_new == num_old
        for segment in range(num_new):
            value = np.int64(atoms[y, start[segment]])
            label[segment] = value
            kept[segment] = segment
            is_same = is_same and old_label[segment] == value
        if not is_same:
            align(old_start, old_label, num_old, start, label, num_new, kept, cost)
        new, old, is_recent, neighbour, is_top = 0, 0, 0, NOWHERE, 1 if y == 0 else 0
        while new < num_new or old < num_old:
            if count > CHOICES_ROOM - CHOICES_PER_SEGMENT:
                encode(state, out, model, choices, count)
                count = 0
            event, delta = KEPT, 0
            if new == num_new or kept[new] > old:
                event = GONE
            elif kept[new] == NEW:
                event = COME
            else:
                delta = start[new] - old_start[old]
                if delta == 0 and new > 0:
                    # The usual case, without a call that is handed arrays.
                    past = old_history[old]
                    flags = 2 * is_recent + (1 if old_label[old] == label[new - 1] else 0)
                    choices[count] = 2 * (MOVES + flags * MOVES_KINDS + moves_context(past))
                    count += 1
                    history[new] = moved(past, 0)
                    neighbour = NOWHERE
                    is_recent = 0
                    old += 1
                    new += 1
                    continue
            if old < num_old:
                past = old_history[old]
                is_equal = 1 if new > 0 and old_label[old] == label[new - 1] else 0
                count = _choose_event(choices, count, event, delta, new, past, is_equal, is_recent)
            elif new > 0:
                count = choose(choices, count, MORE + is_recent, 1)
            if event == GONE:
                if 0 < old < num_old - 1:
                    remember_between(memory, old_label[old - 1], old_label[old], old_label[old + 1])
                old += 1
                is_recent = 1
                continue
            if event == KEPT:
                past = old_history[old]
                if new > 0:
                    count = _choose_move(choices, count, past, delta, neighbour)
                    past = moved(past, delta)
                history[new] = past
                neighbour = direction_of(delta)
                old += 1
                is_recent = 0
            else:
                left = label[new - 1] if new > 0 else NOBODY
                two_back = label[new - 2] if new > 1 else NOBODY
                right = old_label[old] if old < num_old else NOBODY
                count = choose_label(
                    choices, count, memory, label[new], left, two_back, right, is_recent, is_top
                )
                if new > 0:
                    above = old_start[old] if old < num_old else NOBODY
                    count = _choose_place(
                        choices, count, start[new], start[new - 1], above, is_recent
                    )
                history[new] = NEW_BOUNDARY
                is_recent = 1
            new += 1
        count = choose(choices, count, MORE + is_recent, 0)
        num_old = num_new
        old_start, start = start, old_start
        old_label, label = label, old_label
        old_history, history = history, old_history
    encode(state, out, model, choices, count)
    return finish_encoder(state, out)


@kernel
def _choose_event(
    choices: Words,
    count: int,
    event: int,
    delta: int,
    new: int,
    past: int,
    is_equal: int,
    is_recent: int,
) -> int:
    """Enter what happens to an old segment: kept where it was, moved, gone, or one comes before."""
    if new == 0:
        count = choose(choices, count, FIRST, 0 if event == KEPT else 1)
        if event != KEPT:
            count = choose(choices, count, FIRST_GOES, 1 if event == GONE else 0)
        return count
    flags = 2 * is_recent + is_equal
    is_still = event == KEPT and delta == 0
    context = MOVES + flags * MOVES_KINDS + moves_context(past)
    count = choose(choices, count, context, 0 if is_still else 1)
    if not is_still:
        count = choose(choices, count, EVENT + flags, 0 if event == KEPT else 1)
        if event != KEPT:
            count = choose(choices, count, GOES + flags, 1 if event == GONE else 0)
    return count


@kernel
def _choose_move(choices: Words, count: int, past: int, delta: int, neighbour: int) -> int:
    """Enter where a kept boundary moves, if it does."""
    if delta == 0:
        return count
    direction = direction_of(delta)
    context = DIRECTION + direction_context(past, neighbour)
    count = choose(choices, count, context, 1 if direction == RIGHT else 0)
    return choose_number(choices, count, step_kind(past, direction), abs(delta))


@kernel
def _choose_place(
    choices: Words, count: int, place: int, last: int, above: int, is_recent: int
) -> int:
    """Enter where a new segment begins: near the next one of the row above, or beyond the last."""
    if above == NOBODY:
        return choose_number(choices, count, FAR_LAST, place - last)
    shift = place - above
    is_near = -NEAR_PX < shift <= NEAR_PX
    count = choose(choices, count, NEAR + is_recent, 1 if is_near else 0)
    if not is_near:
        return choose_number(choices, count, FAR, place - last)
    count = choose(choices, count, AFTER, 1 if shift > 0 else 0)
    if shift > 0:
        return choose_number(choices, count, NEAR_AFTER, shift)
    return choose_number(choices, count, NEAR_BEFORE, 1 - shift)
