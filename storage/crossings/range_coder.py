"""A binary adaptive range coder: bits with learned probabilities, to and from bytes.

The coder is LZMA's (32-bit range, carry by a cached byte) with probabilities of 16 bits that
learn fast at first and slowly later. All state is int64, so that interpreted and compiled runs
give the same bytes.

A model is an int64 array with a word per context: probability of a 0 in 1/65536 times 256, plus
how often the context was seen (at most `SEEN_LIMIT`).
"""

import numpy as np
import numpy.typing as npt

from samprior.storage.compiled import kernel

Words = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

SEEN_LIMIT = 254
"""From then on a context learns at the same slow rate."""

LEAST = 32
"""Least probability of either bit, in 1/65536."""

TOP = 1 << 24
"""The range is kept at this or above."""

RATES = np.array([65536 * 2 // (2 * seen + 3) for seen in range(SEEN_LIMIT + 1)], np.int64)
"""Share, in 1/65536, by which a probability moves after being seen this often."""

LOW, RANGE, CACHE, PENDING, AT, START, LIMIT = 0, 1, 2, 3, 4, 5, 6
"""Places in a coder's state. AT is the next byte, START the first of this code, LIMIT one past the
last that may be written or read. The decoder keeps the bits it has read ahead in LOW."""

STATE_WORDS = 7

EVEN = (1 << 30) - 1
"""In place of a context: both bits are equally likely and nothing is learned."""


@kernel
def learned(word: int, bit: int) -> int:
    """The word of a context that has seen a bit: its probability has moved towards it."""
    probability, seen = word >> 8, word & 255
    if bit:
        probability -= (probability * RATES[seen]) >> 16
    else:
        probability += ((65536 - probability) * RATES[seen]) >> 16
    # Neither outcome may become impossible.
    probability = min(max(probability, LEAST), 65536 - LEAST)
    return int((probability << 8) | min(seen + 1, SEEN_LIMIT))


@kernel
def start_encoder(state: Words, at: int, limit: int) -> None:
    """Write a code from byte `at` of the output on; from byte `limit` on there is no room."""
    state[LOW] = 0
    state[RANGE] = 0xFFFFFFFF
    state[CACHE] = 0
    state[PENDING] = 1
    state[AT] = at - 1  # the first byte is always 0 and is left out
    state[START] = at
    state[LIMIT] = limit


@kernel
def encode(state: Words, out: Bytes, model: Words, choices: Words, num_choices: int) -> None:
    """Write choices, each 2 * context + bit; a context of EVEN is not learned, 0 as likely as 1."""
    # One loop without calls: handing arrays on costs more than coding a bit.
    low, span, cache = state[LOW], state[RANGE], state[CACHE]
    pending, at, start, limit = state[PENDING], state[AT], state[START], state[LIMIT]
    for place in range(num_choices):
        bit, context = choices[place] & 1, choices[place] >> 1
        if context == EVEN:
            bound = span >> 1
        else:
            word = model[context]
            model[context] = learned(word, bit)
            bound = (span >> 16) * (word >> 8)
        if bit:
            low += bound
            span -= bound
        else:
            span = bound
        while span < TOP:
            span <<= 8
            if low < 0xFF000000 or low > 0xFFFFFFFF:
                # The top byte goes out; bytes of 255 waited for a carry.
                byte = cache + (low >> 32)
                while pending > 0:
                    if start <= at < limit:
                        out[at] = byte & 255
                    at += 1
                    pending -= 1
                    byte = 255 + (low >> 32)
                cache = (low >> 24) & 255
            pending += 1
            low = (low & 0x00FFFFFF) << 8
    state[LOW], state[RANGE], state[CACHE] = low, span, cache
    state[PENDING], state[AT] = pending, at


@kernel
def finish_encoder(state: Words, out: Bytes) -> int:
    """Write what is left; the byte after the code's last one. Zeros at its end are left out.

    A result above the limit means that there was no room.
    """
    # Of all values that decode alike, the one with most zeros at its end.
    low, high = state[LOW], state[LOW] + state[RANGE] - 1
    num_bits = 32
    while (high >> num_bits) << num_bits < low:
        num_bits -= 1
    state[LOW] = (high >> num_bits) << num_bits
    # Forty even choices of 0 leave LOW as it is and move its five bytes out.
    state[RANGE] = 0xFFFFFFFF
    zeros = np.full(40, 2 * EVEN)
    encode(state, out, zeros, zeros, 40)
    end = int(state[AT])
    if end > state[LIMIT]:
        return end
    while end > state[START] and out[end - 1] == 0:
        end -= 1
    return end


@kernel
def start_decoder(state: Words, code: Bytes, at: int, limit: int) -> None:
    """Read a code from byte `at` on; bytes from `limit` on read as 0."""
    state[LOW] = 0
    state[RANGE] = 0xFFFFFFFF
    state[AT] = at
    state[LIMIT] = limit
    for _ in range(4):
        state[LOW] = (state[LOW] << 8) | _next_byte(state, code)


@kernel
def decode_bit(state: Words, code: Bytes, model: Words, context: int) -> int:
    """Read a bit that `encode_bit` wrote."""
    # State is read once and written once, as in `encode_bit`.
    word, low, span = model[context], state[LOW], state[RANGE]
    bound = (span >> 16) * (word >> 8)
    if low < bound:
        span = bound
        bit = 0
    else:
        low -= bound
        span -= bound
        bit = 1
    model[context] = learned(word, bit)
    while span < TOP:
        span <<= 8
        low = (low << 8) | _next_byte(state, code)
    state[LOW], state[RANGE] = low, span
    return bit


@kernel
def decode_raw(state: Words, code: Bytes, num_bits: int) -> int:
    """Read bits that `encode_raw` wrote."""
    low, span = state[LOW], state[RANGE]
    value = 0
    for _ in range(num_bits):
        bound = span >> 1
        bit = 1 if low >= bound else 0
        low -= bit * bound
        span = span - bound if bit else bound
        value = (value << 1) | bit
        while span < TOP:
            span <<= 8
            low = (low << 8) | _next_byte(state, code)
    state[LOW], state[RANGE] = low, span
    return value


@kernel
def _next_byte(state: Words, code: Bytes) -> np.int64:
    at = state[AT]
    state[AT] = at + 1
    return np.int64(code[at]) if at < state[LIMIT] else np.int64(0)
