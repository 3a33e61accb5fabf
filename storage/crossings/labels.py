"""Labels of new segments: told by what was seen nearby, at last by number.

A tile's memory is one int64 array: the recent labels, most recent first; the highest label so far;
how many recent ones there are; and for each pair of neighbours what came between them last.
"""

from samprior.storage.compiled import kernel
from samprior.storage.crossings.contexts import (
    BETWEEN,
    DOWN,
    LISTED,
    NEXT,
    RANK,
    TWO_BACK,
    UP,
    UPWARD,
    between_slot,
)
from samprior.storage.crossings.numbers import choose, choose_number, decode_number
from samprior.storage.crossings.range_coder import Bytes, Words, decode_bit

NOBODY = -1
"""In place of a label: there is none."""

RECENT = 32
"""How many labels are kept as recent."""

HIGHEST, NUM_RECENT, BETWEENS = RECENT, RECENT + 1, RECENT + 2
"""Places in the memory, behind the recent labels."""

MEMORY_WORDS = BETWEENS + 256


@kernel
def forget(memory: Words) -> None:
    """Begin a tile."""
    memory[:] = NOBODY
    memory[NUM_RECENT] = 0


@kernel
def remember_between(memory: Words, left: int, label: int, right: int) -> None:
    """A segment that lay between two others has gone; it may come back."""
    memory[BETWEENS + between_slot(left, right)] = label


@kernel
def choose_label(
    choices: Words,
    count: int,
    memory: Words,
    label: int,
    left: int,
    two_back: int,
    right: int,
    is_recent: int,
    is_top: int,
) -> int:
    """Enter the choices of a new segment's label; how many choices there are then.

    Args:
        choices: where they are entered.
        count: how many there are.
        memory: of the tile.
        label: the new segment's.
        left: label of the segment to its left, or NOBODY.
        two_back: label of the one before that.
        right: label of the next segment of the row above.
        is_recent: 1 if a segment has just come or gone in this row.
        is_top: 1 in the tile's first row.
    """
    slot = BETWEENS + between_slot(left, right)
    usual = memory[slot]
    is_told = False
    if usual not in (NOBODY, left, right):
        is_told = label == usual
        count = choose(choices, count, BETWEEN, 1 if is_told else 0)
    if not is_told and two_back not in (NOBODY, usual):
        is_told = label == two_back
        count = choose(choices, count, TWO_BACK + is_recent, 1 if is_told else 0)
    if not is_told and right not in (NOBODY, two_back, usual, left):
        is_told = label == right
        count = choose(choices, count, NEXT + is_recent, 1 if is_told else 0)
    if not is_told:
        rank = _rank_of(memory, label)
        count = choose(choices, count, LISTED + is_top, 0 if rank == NOBODY else 1)
        if rank != NOBODY:
            count = choose_number(choices, count, RANK, rank + 1)
        elif label > memory[HIGHEST]:
            count = choose(choices, count, UPWARD, 1)
            count = choose_number(choices, count, UP, label - memory[HIGHEST])
        else:
            count = choose(choices, count, UPWARD, 0)
            count = choose_number(choices, count, DOWN, memory[HIGHEST] - label + 1)
    _remember(memory, slot, label)
    return count


@kernel
def decode_label(
    state: Words,
    code: Bytes,
    model: Words,
    memory: Words,
    left: int,
    two_back: int,
    right: int,
    is_recent: int,
    is_top: int,
) -> int:
    """Read what `choose_label` entered; NOBODY if there can be no such label."""
    slot = BETWEENS + between_slot(left, right)
    usual = memory[slot]
    label = NOBODY
    if usual not in (NOBODY, left, right) and decode_bit(state, code, model, BETWEEN):
        label = usual
    if (
        label == NOBODY
        and two_back not in (NOBODY, usual)
        and decode_bit(state, code, model, TWO_BACK + is_recent)
    ):
        label = two_back
    if (
        label == NOBODY
        and right not in (NOBODY, two_back, usual, left)
        and decode_bit(state, code, model, NEXT + is_recent)
    ):
        label = right
    if label == NOBODY:
        label = _decode_number_of_label(state, code, model, memory, is_top)
    if 0 <= label <= 0xFFFFFFFF:
        _remember(memory, slot, label)
        return label
    return NOBODY


@kernel
def _decode_number_of_label(
    state: Words, code: Bytes, model: Words, memory: Words, is_top: int
) -> int:
    if decode_bit(state, code, model, LISTED + is_top):
        rank = decode_number(state, code, model, RANK) - 1
        return memory[rank] if rank < memory[NUM_RECENT] else NOBODY
    if decode_bit(state, code, model, UPWARD):
        return int(memory[HIGHEST]) + decode_number(state, code, model, UP)
    return int(memory[HIGHEST]) + 1 - decode_number(state, code, model, DOWN)


@kernel
def _rank_of(memory: Words, label: int) -> int:
    """Place of a label among the recent ones, or NOBODY."""
    for place in range(memory[NUM_RECENT]):
        if memory[place] == label:
            return place
    return NOBODY


@kernel
def _remember(memory: Words, slot: int, label: int) -> None:
    """Enter a label between its neighbours, and as the most recent one."""
    memory[slot] = label
    memory[HIGHEST] = max(memory[HIGHEST], label)
    place = 0
    while place < memory[NUM_RECENT] and memory[place] != label:
        place += 1
    if place == memory[NUM_RECENT]:
        if place < RECENT:
            memory[NUM_RECENT] += 1
        else:
            place -= 1  # the oldest one drops out
    while place > 0:
        memory[place] = memory[place - 1]
        place -= 1
    memory[0] = label
