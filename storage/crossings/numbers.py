"""Choices and numbers of the crossings code, entered for the encoder and read back.

The encoder first enters the choices of a row in an array, then codes them in one loop
(`range_coder.encode`): handing the coder's arrays to small functions would cost more than coding.
"""

from samprior.storage.compiled import kernel
from samprior.storage.crossings.contexts import NUMBER_CONTEXTS, NUMBERS, log2
from samprior.storage.crossings.range_coder import EVEN, Bytes, Words, decode_bit, decode_raw

MAX_PLACES = 33
"""Bits of the largest number; labels have 32."""


@kernel
def choose(choices: Words, count: int, context: int, bit: int) -> int:
    """Enter a choice; how many there are then."""
    choices[count] = 2 * context + bit
    return count + 1


@kernel
def choose_number(choices: Words, count: int, kind: int, value: int) -> int:
    """Enter the choices of a number from 1 on (Elias gamma, its first bits learned)."""
    base = NUMBERS + kind * NUMBER_CONTEXTS
    places = log2(value)
    for place in range(places):
        count = choose(choices, count, base + min(place, 11), 1)
    count = choose(choices, count, base + min(places, 11), 0)
    if places > 0:
        second = (value >> (places - 1)) & 1
        count = choose(choices, count, base + 12 + min(places, 11), second)
        if places > 1:
            third = (value >> (places - 2)) & 1
            count = choose(choices, count, base + 24 + 2 * min(places, 11) + second, third)
            for place in range(places - 3, -1, -1):
                count = choose(choices, count, EVEN, (value >> place) & 1)
    return count


@kernel
def decode_number(state: Words, code: Bytes, model: Words, kind: int) -> int:
    """Read what `choose_number` entered: from 1 to below 2 ** (MAX_PLACES + 1)."""
    base = NUMBERS + kind * NUMBER_CONTEXTS
    places = 0
    while places < MAX_PLACES and decode_bit(state, code, model, base + min(places, 11)):
        places += 1
    value = 1
    if places > 0:
        second = decode_bit(state, code, model, base + 12 + min(places, 11))
        value = 2 + second
        if places > 1:
            context = base + 24 + 2 * min(places, 11) + second
            value = 2 * value + decode_bit(state, code, model, context)
            value = (value << (places - 2)) | decode_raw(state, code, places - 2)
    return value
