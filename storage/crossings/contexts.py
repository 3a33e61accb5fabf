"""The contexts of the crossings code: what a choice depends on. Part of the byte format.

A boundary's history is one int64, so that kernels keep it in a register: see `_history`.
"""

from samprior.storage.compiled import kernel

NEAR_PX = 8
"""A new segment this near to where the next one of the row above begins is placed by that."""

NOWHERE, RIGHT, LEFT = 0, 1, 2
"""Directions of a move."""

LONG = 62
"""Rows are counted up to here."""

UNKNOWN = 63
"""In place of a count of rows."""

OLDEST = 15
LARGEST_STEP = 0xFFFF

NEW_BOUNDARY = UNKNOWN << 6
"""The history of a segment that has just come."""

# Where each choice has its contexts.
MOVES_KINDS = 76
MOVES = 0
EVENT = MOVES + 4 * MOVES_KINDS
GOES = EVENT + 4
DIRECTION = GOES + 4
FIRST = DIRECTION + 81
FIRST_GOES = FIRST + 1
MORE = FIRST_GOES + 1
BETWEEN = MORE + 2
TWO_BACK = BETWEEN + 1
NEXT = TWO_BACK + 2
LISTED = NEXT + 2
UPWARD = LISTED + 2
NEAR = UPWARD + 1
AFTER = NEAR + 2
NUMBERS = AFTER + 1

# Kinds of numbers, each with its own contexts.
NUMBER_CONTEXTS = 48
RANK, UP, DOWN, NEAR_AFTER, NEAR_BEFORE, FAR, FAR_LAST, STEP_KINDS = 0, 1, 2, 3, 4, 5, 6, 7
NUM_CONTEXTS = NUMBERS + (STEP_KINDS + 20) * NUMBER_CONTEXTS


@kernel
def log2(value: int) -> int:
    """Place of the highest set bit of a positive value."""
    place = 0
    while value >> (place + 1):
        place += 1
    return place


@kernel
def _history(still: int, before: int, step: int, turn: int, turn_before: int, age: int) -> int:
    """All that is known of how a boundary has moved.

    Args:
        still: rows since the last move.
        before: rows between the last two moves, or UNKNOWN.
        step: pixels of the last move.
        turn: direction of the last move.
        turn_before: direction of the one before.
        age: rows since the segment came.
    """
    return (
        min(still, LONG)
        | (before << 6)
        | (min(step, LARGEST_STEP) << 12)
        | (turn << 28)
        | (turn_before << 30)
        | (min(age, OLDEST) << 32)
    )


@kernel
def moved(history: int, delta: int) -> int:
    """The history after a row in which the boundary moved by `delta` pixels."""
    still, turn, age = history & 63, (history >> 28) & 3, history >> 32
    if delta == 0:
        # Its fields for rows count on; the others stay.
        return history + (1 if still < LONG else 0) + ((1 if age < OLDEST else 0) << 32)
    before = UNKNOWN if turn == NOWHERE else still
    return _history(0, before, abs(delta), direction_of(delta), turn, age + 1)


@kernel
def moves_context(history: int) -> int:
    """0 to MOVES_KINDS - 1: how likely this boundary is to move now."""
    still, before, step = history & 63, (history >> 6) & 63, (history >> 12) & LARGEST_STEP
    turn, turn_before, age = (history >> 28) & 3, (history >> 30) & 3, history >> 32
    if turn == NOWHERE:
        return age
    if still == 0:
        rhythm = 3 if before == UNKNOWN else min(before, 2)
        goes_on = 1 if turn == turn_before else 0
        return 16 + ((min(step, 3) - 1) * 4 + rhythm) * 2 + goes_on
    due = 0 if before == UNKNOWN else min(max(still - before, -2), 2) + 3
    if still < 3:
        length = still - 1
    else:
        length = 2 if still < 5 else 3 if still < 9 else 4 if still < 17 else 5
    return 40 + due * 6 + length


@kernel
def direction_context(history: int, neighbour: int) -> int:
    """0 to 80: which way it moves; `neighbour` is the direction of the boundary to the left."""
    still, turn, turn_before = history & 63, (history >> 28) & 3, (history >> 30) & 3
    pause = 0 if still == 0 else 1 if still < 3 else 2
    return neighbour * 27 + (turn * 3 + turn_before) * 3 + pause


@kernel
def step_kind(history: int, direction: int) -> int:
    """Kind of the number that says how far it moves."""
    still, step, turn = history & 63, (history >> 12) & LARGEST_STEP, (history >> 28) & 3
    if turn == NOWHERE:
        return STEP_KINDS + 18
    if turn != direction:
        return STEP_KINDS + 17
    if still > 2:
        return STEP_KINDS + 16
    if still > 0:
        return STEP_KINDS + 19
    if step < 4:
        return STEP_KINDS + step
    places = log2(step)
    return STEP_KINDS + min(15, 4 + 2 * (places - 2) + ((step >> (places - 1)) & 1))


@kernel
def direction_of(delta: int) -> int:
    """RIGHT, LEFT, or NOWHERE for 0."""
    if delta == 0:
        return NOWHERE
    return RIGHT if delta > 0 else LEFT


@kernel
def between_slot(left: int, right: int) -> int:
    """Where the label last seen between two others is kept."""
    return ((left + 1) * 61 + (right + 1) * 17) & 255
