"""Read the code of a tile, from bytes that may be anything.

Whatever the bytes, nothing outside the arrays is read or written, and the work is bounded by the
tile's pixels. The twin of `samprior.storage.crossings.encode`.

H x W pixels of a tile, S segments of the whole tile.
"""

import numpy as np

from samprior.storage.compiled import kernel
from samprior.storage.crossings.contexts import (
    AFTER,
    DIRECTION,
    EVENT,
    FAR,
    FAR_LAST,
    FIRST,
    FIRST_GOES,
    GOES,
    LEFT,
    MORE,
    MOVES,
    MOVES_KINDS,
    NEAR,
    NEAR_AFTER,
    NEAR_BEFORE,
    NEW_BOUNDARY,
    NOWHERE,
    RIGHT,
    direction_context,
    direction_of,
    moved,
    moves_context,
    step_kind,
)
from samprior.storage.crossings.encode import COME, GONE, KEPT
from samprior.storage.crossings.labels import (
    MEMORY_WORDS,
    NOBODY,
    decode_label,
    forget,
    remember_between,
)
from samprior.storage.crossings.numbers import decode_number
from samprior.storage.crossings.range_coder import (
    STATE_WORDS,
    Bytes,
    Words,
    decode_bit,
    start_decoder,
)

DAMAGED = -1
"""In place of a count: no encoder wrote these bytes."""


@kernel
def decode_tile(
    code: Bytes,
    at: int,
    limit: int,
    model: Words,
    width: int,
    height: int,
    starts: Words,
    labels: Words,
    rows: Words,
) -> int:
    """Read the first `height` rows of a tile; how many segments they have, or DAMAGED.

    Args:
        code: bytes; those of the tile are `at` to below `limit`.
        at: the tile's first byte.
        limit: the byte after its last.
        model: a copy of the start model; it learns.
        width: of the tile, pixels.
        height: rows to read.
        starts: where each segment begins is written here; room for width * height.
        labels: its label.
        rows: (height + 1,) the first segment of each row, and the end.
    """
    state = np.zeros(STATE_WORDS, np.int64)
    start_decoder(state, code, at, limit)
    memory = np.empty(MEMORY_WORDS, np.int64)
    forget(memory)
    old_history = np.zeros(width + 1, np.int64)
    history = old_history.copy()
    above, begin, total = 0, 0, 0
    rows[0] = 0
    # One piece: a function for each row would have to be handed all these arrays.
    for y in range(height):
        above, begin = begin, total
        old, is_recent, neighbour, is_top = above, 0, NOWHERE, 1 if y == 0 else 0
        while True:
            is_first = total == begin
            last = starts[total - 1] if not is_first else -1
            left = labels[total - 1] if not is_first else NOBODY
            right = labels[old] if old < begin else NOBODY
            event, is_still = KEPT, False
            if old < begin:
                if is_first:
                    if decode_bit(state, code, model, FIRST):
                        event = GONE if decode_bit(state, code, model, FIRST_GOES) else COME
                else:
                    flags = 2 * is_recent + (1 if left == right else 0)
                    context = MOVES + flags * MOVES_KINDS + moves_context(old_history[old - above])
                    is_still = decode_bit(state, code, model, context) == 0
                    if not is_still and decode_bit(state, code, model, EVENT + flags):
                        event = GONE if decode_bit(state, code, model, GOES + flags) else COME
            else:
                event = COME
                if not is_first and decode_bit(state, code, model, MORE + is_recent) == 0:
                    break
            if event == GONE:
                if above < old < begin - 1:
                    remember_between(memory, labels[old - 1], right, labels[old + 1])
                old += 1
                is_recent = 1
                continue
            place = 0
            if event == KEPT:
                label, was, past = right, starts[old], old_history[old - above]
                if not is_first:
                    delta = 0
                    if not is_still:
                        context = DIRECTION + direction_context(past, neighbour)
                        is_right = decode_bit(state, code, model, context)
                        kind = step_kind(past, RIGHT if is_right else LEFT)
                        step = decode_number(state, code, model, kind)
                        delta = step if is_right else -step
                    place = was + delta
                    past = moved(past, delta)
                neighbour = direction_of(place - was)
                old += 1
            else:
                two_back = labels[total - 2] if total - begin > 1 else NOBODY
                label = decode_label(
                    state, code, model, memory, left, two_back, right, is_recent, is_top
                )
                past = NEW_BOUNDARY
                if not is_first:
                    place = _decode_place(
                        state, code, model, last, starts[old] if old < begin else NOBODY, is_recent
                    )
            is_recent = 1 if event == COME else 0
            if label == NOBODY or place <= last or place >= width:
                return DAMAGED
            history[total - begin] = past
            starts[total] = place
            labels[total] = label
            total += 1
        rows[y + 1] = total
        old_history, history = history, old_history
    return total


@kernel
def _decode_place(
    state: Words, code: Bytes, model: Words, last: int, above: int, is_recent: int
) -> int:
    """Where a new segment begins."""
    if above == NOBODY:
        return last + decode_number(state, code, model, FAR_LAST)
    if not decode_bit(state, code, model, NEAR + is_recent):
        return last + decode_number(state, code, model, FAR)
    if decode_bit(state, code, model, AFTER):
        return above + decode_number(state, code, model, NEAR_AFTER)
    return above + 1 - decode_number(state, code, model, NEAR_BEFORE)
