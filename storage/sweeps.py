"""The inner loops between planes and atoms; `storage/planes.py` calls them and says what they do.

A switch is an int64: row of the band, column, mask, in as many bits as each needs.

K masks, H x W pixels, R rows of a band, S sets of masks, B words of 32 masks, A atoms.
"""

import numpy as np
import numpy.typing as npt

from samprior.storage.compiled import kernel

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Segments = npt.NDArray[np.int32]
Atoms = npt.NDArray[np.unsignedinteger]

ALL_ON = 0x0101010101010101
"""Eight pixels of a mask."""


@kernel
def find_switches(
    octets: Bytes,
    words: Ints,
    first_row: int,
    num_rows: int,
    width: int,
    column_bits: int,
    mask_bits: int,
    switches: Ints,
) -> int:
    """Where the masks of a band begin and end, mask by mask; how many, or -1 for lack of room.

    Every mask that is on at the end of a row is switched off there, at column W.

    Args:
        octets: (K, H, W or more) the planes; a byte that isn't 0 is in the mask.
        words: the same bytes by eights.
        first_row: where the band begins.
        num_rows: R.
        width: W; bytes from there on are 0.
        column_bits: that hold W.
        mask_bits: that hold K.
        switches: room for them and 8 more.
    """
    count = 0
    for mask in range(len(words)):
        for row in range(num_rows):
            # Loops over slices are vectorised, loops over indices of the whole are not.
            line = words[mask, first_row + row]
            seen = np.int64(0)
            for place in range(len(line)):
                seen |= line[place]
            if seen == 0:
                continue
            pixels = octets[mask, first_row + row]
            is_on, unchanged = 0, 0
            for place in range(len(line)):
                if line[place] == unchanged:
                    continue
                if count + 8 >= len(switches):
                    return -1
                for column in range(8 * place, 8 * place + 8):
                    # Without a branch, which would be mispredicted.
                    is_in = int(pixels[column] != 0)
                    switches[count] = (((row << column_bits) | column) << mask_bits) | mask
                    count += is_on ^ is_in
                    is_on = is_in
                unchanged = is_on * ALL_ON
            switches[count] = (((row << column_bits) | width) << mask_bits) | mask
            count += is_on
    return count


@kernel
def sweep_switches(
    switches: Ints,
    column_bits: int,
    mask_bits: int,
    width: int,
    keys: Ints,
    slots: Ints,
    segments: Segments,
    sets: Ints,
    digests: Ints,
    areas: Ints,
) -> tuple[int, int]:
    """Follow sorted switches from set to set; how many segments and sets there are.

    Args:
        switches: of a band, sorted.
        column_bits: as for `find_switches`.
        mask_bits: likewise.
        width: W.
        keys: (K,) random numbers.
        slots: (power of two,) zeros, at least twice as many as sets.
        segments: room for (switches, 3): first pixel in the band, one past the last, set.
        sets: room for (S, B): bits of the masks, in the order of their first pixel.
        digests: room for (S,).
        areas: room for (S,): pixels.
    """
    state = np.zeros(sets.shape[1], np.int64)
    num_on, digest, label, begin, place = 0, np.int64(0), -1, 0, 0
    num_segments, num_sets = 0, 0
    while place < len(switches):
        spot = switches[place] >> mask_bits
        end = (spot >> column_bits) * width + (spot & ((1 << column_bits) - 1))
        if label >= 0:
            segments[num_segments, 0] = begin
            segments[num_segments, 1] = end
            segments[num_segments, 2] = label
            num_segments += 1
            areas[label] += end - begin
        while place < len(switches) and switches[place] >> mask_bits == spot:
            mask = switches[place] & ((1 << mask_bits) - 1)
            bit = np.int64(1) << (mask & 31)
            state[mask >> 5] ^= bit
            num_on += 1 if state[mask >> 5] & bit else -1
            digest ^= keys[mask]
            place += 1
        begin, label = end, -1
        if num_on == 0:
            continue
        slot = digest & (len(slots) - 1)
        while label < 0:
            other = slots[slot] - 1
            if other < 0:
                label = num_sets
                num_sets += 1
                slots[slot] = num_sets
                digests[label] = digest
                areas[label] = 0
                for word in range(len(state)):
                    sets[label, word] = state[word]
            elif digests[other] == digest:
                is_equal = True
                for word in range(len(state)):
                    is_equal = is_equal and sets[other, word] == state[word]
                if is_equal:
                    label = other
            slot = (slot + 1) & (len(slots) - 1)
    return num_segments, num_sets


@kernel
def join_sets(
    sets: Ints, digests: Ints, parts: Ints, slots: Ints, numbers: Ints, first: Ints, areas: Ints
) -> int:
    """Number equal sets of all bands alike, from 1 in the order they come; how many differ.

    Args:
        sets: (S, B) of all bands, one after another.
        digests: (S,)
        parts: (S,) their pixels.
        slots: as for `sweep_switches`.
        numbers: room for (S,): becomes the number of each.
        first: room for (S,): becomes the first set of each number, that of 1 at 0.
        areas: (S + 1,) zeros: becomes the pixels of each number; of 0, none.
    """
    count = 0
    for place in range(len(sets)):
        slot = digests[place] & (len(slots) - 1)
        number = 0
        while number == 0:
            other = slots[slot]
            if other == 0:
                count += 1
                number = count
                slots[slot] = number
                first[number - 1] = place
            elif digests[first[other - 1]] == digests[place]:
                is_equal = True
                for word in range(sets.shape[1]):
                    is_equal = is_equal and sets[first[other - 1], word] == sets[place, word]
                if is_equal:
                    number = other
            slot = (slot + 1) & (len(slots) - 1)
        numbers[place] = number
        areas[number] += parts[place]
    return count


@kernel
def paint_segments(segments: Segments, numbers: Ints, atoms: Atoms) -> None:
    """Write the number of each segment's set to the pixels of a band, (R * W,)."""
    for place in range(len(segments)):
        number = numbers[segments[place, 2]]
        run = atoms[segments[place, 0] : segments[place, 1]]
        for pixel in range(len(run)):
            run[pixel] = number


@kernel
def fill_runs(atoms: Atoms, top: int, bottom: int, starts: Ints, held: Ints, planes: Bytes) -> None:
    """Write 1 to the planes of all masks that hold each pixel of a band.

    Args:
        atoms: (H, W)
        top: the band's first row.
        bottom: one past its last.
        starts: (A + 1,) where the masks of each atom begin in `held`.
        held: the masks of all atoms.
        planes: (K, H, W) zeros in the band.
    """
    for row in range(top, bottom):
        line = atoms[row]
        begin = 0
        while begin < len(line):
            atom = line[begin]
            end = begin + 1
            while end < len(line) and line[end] == atom:
                end += 1
            for place in range(starts[atom], starts[np.int64(atom) + 1]):
                run = planes[held[place], row, begin:end]
                for pixel in range(len(run)):
                    run[pixel] = 1
            begin = end
