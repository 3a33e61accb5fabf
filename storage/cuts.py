"""Cut windows out of coded atoms: the inner loops of reading.

Atoms are held as segments, and a window is painted by going over them once, not over pixels.

A tile's words are uint32 (or uint64 where labels need it): first, for each of its rows and the
end, where the row's segments begin, counted from the tile's first word; then one word per segment,
its label times 65536 plus its first column. The tiles of an image that have been decoded lie one
after another in one array; `blocks` (rows of tiles, columns of tiles) says where each begins.

Index expressions are cast to uint64 where the loop is hot: numba lets negative indices count from
the end, which costs a test each and hides plain runs of memory from the compiler.

H x W pixels of a window, A atoms and K masks of the image, a atoms and k masks of the window.
"""

import numpy as np
import numpy.typing as npt

from samprior.storage.arrays import ABSENT, UNREAD
from samprior.storage.compiled import kernel
from samprior.storage.crossings.range_coder import Bytes, Words
from samprior.storage.memory import RUN, fill_run

Bools = npt.NDArray[np.bool_]
TileWords = npt.NDArray[np.unsignedinteger]

DAMAGED = -3
"""In place of a count: an atom beyond those of the image."""


@kernel
def _column(word: np.unsignedinteger) -> int:
    """First column of the segment that a word stands for."""
    return int(np.int64(word & 0xFFFF))


@kernel
def _label(word: np.unsignedinteger) -> int:
    """Its label."""
    return int(np.int64(word >> 16))


def pack_tile(starts: Words, labels: Words, rows: Words) -> TileWords:
    """The words of a tile from its segments."""
    is_wide = len(labels) > 0 and int(labels.max()) > 0xFFFF
    words: TileWords = np.empty(len(rows) + len(starts), np.uint64 if is_wide else np.uint32)
    words[: len(rows)] = rows + len(rows)
    words[len(rows) :] = (labels << 16) | starts
    return words


@kernel
def cut(
    words: TileWords,
    blocks: Words,
    tile_px: int,
    y: int,
    x: int,
    members: Bytes,
    keep: Bytes,
    out: npt.NDArray[np.unsignedinteger],
    order: Words,
    areas: Words,
) -> int:
    """Paint a window's atoms, numbered from 1 by first pixel; how many, or UNREAD or DAMAGED.

    Args:
        words: of the image's tiles.
        blocks: the first word of each tile; ABSENT for zeros, UNREAD if it is not there.
        tile_px: side of the tiles.
        y: the window's first row in the image.
        x: its first column.
        members: (A, bytes) packed bits: the masks of each atom.
        keep: (bytes,) packed bits: the masks that count. Atoms that differ only in others become
            one, or none where no mask is left. Empty: all count, and no two atoms are compared.
        out: (H, W) the numbers, 0 where there is none.
        order: room for A; the image's atom behind each number; of several, the first met.
        areas: room for A; their pixels in the window, the first entry of those in none.
    """
    height, width = out.shape
    flat = out.reshape(-1)
    number = np.full(len(members), -1, np.int64)
    table = np.zeros(_table_size(len(members)) if len(keep) else 1, np.int64)
    number[0], order[0], areas[0], count = 0, 0, 0, 0
    for line in range(y, y + height):
        tile_row, tile_line = divmod(line, tile_px)
        row = (line - y) * width
        for column in range(x // tile_px, (x + width - 1) // tile_px + 1):
            block = blocks[tile_row, column]
            left = column * tile_px - x
            right = min(left + tile_px, width)
            if block < 0:
                if block == UNREAD:
                    return UNREAD
                begin = max(left, 0)
                areas[0] += right - begin
                _fill(flat, row + begin, row + right, 0)
                continue
            place = block + np.int64(words[block + tile_line])
            last = block + np.int64(words[block + tile_line + 1])
            word = words[np.uint64(place)]
            begin = left + _column(word)
            while begin < right:
                label = _label(word)
                place += 1
                following = right
                if place < last:
                    word = words[np.uint64(place)]
                    following = left + _column(word)
                end = min(following, right)
                if end > 0:
                    if label >= len(number):
                        return DAMAGED
                    new = number[np.uint64(label)]
                    if new < 0:
                        new = _number_of(label, members, keep, table, order, count)
                        if new > count:
                            count = new
                            order[count], areas[count] = label, 0
                        number[label] = new
                    begin = max(begin, 0)
                    areas[np.uint64(new)] += end - begin
                    _fill(flat, row + begin, row + end, new)
                begin = following
    return count


@kernel
def _fill(flat: npt.NDArray[np.unsignedinteger], begin: int, end: int, number: int) -> None:
    """Write a segment; what is beyond it may be overwritten, as the next segment's is to come."""
    value = flat.dtype.type(number)
    if begin + RUN > len(flat):
        for place in range(begin, end):
            flat[place] = value
        return
    while True:
        fill_run(flat, begin, value)
        begin += RUN
        if begin >= end:
            return
        if begin + RUN > len(flat):
            begin = end - RUN


@kernel
def _number_of(
    label: int, members: Bytes, keep: Bytes, table: Words, order: Words, count: int
) -> int:
    """The number of an atom that is met for the first time, where `count` have one already.

    `table` finds numbers by the kept masks of their atoms; 0 is a free slot.
    """
    if len(keep) == 0:
        return count + 1
    digest, is_empty = np.int64(1469), True
    for place in range(len(keep)):
        byte = np.int64(members[label, place] & keep[place])
        digest = ((digest ^ byte) * 16777619) & 0xFFFFFFFF
        is_empty = is_empty and byte == 0
    if is_empty:
        return 0
    slot = (digest ^ (digest >> 15)) & (len(table) - 1)
    while table[slot] != 0:
        other, is_equal = order[table[slot]], True
        for place in range(len(keep)):
            differs = (members[label, place] ^ members[other, place]) & keep[place]
            is_equal = is_equal and differs == 0
        if is_equal:
            return int(table[slot])
        slot = (slot + 1) & (len(table) - 1)
    table[slot] = count + 1
    return count + 1


@kernel
def _table_size(num_atoms: int) -> int:
    """A power of two of which at most half is filled."""
    size = 4
    while size < 2 * num_atoms:
        size *= 2
    return size


@kernel
def members_of(
    members: Bytes, keep: Bytes, order: Words, num_masks: int, only_met: bool
) -> tuple[Bools, Words]:
    """Members (a, k) of a window's atoms, and which masks of the image the k are.

    Args:
        members: (A, bytes) packed bits: the masks of each atom.
        keep: (bytes,) the masks that count; empty: all.
        order: (a,) atoms of the image; the first is taken for the one in no mask.
        num_masks: K.
        only_met: leave out masks that hold none of the atoms.
    """
    bits = np.zeros(members.shape[1], np.uint8)
    for atom in order[1:]:
        for place in range(len(bits)):
            bits[place] |= members[atom, place]
    met = np.empty(num_masks, np.int64)
    count = 0
    for mask in range(num_masks):
        byte, bit = mask >> 3, 7 - (mask & 7)
        is_kept = len(keep) == 0 or keep[byte] >> bit & 1
        if is_kept and (not only_met or bits[byte] >> bit & 1):
            met[count] = mask
            count += 1
    found = np.zeros((len(order), count), np.bool_)
    for atom in range(1, len(order)):
        for mask in range(count):
            byte, bit = met[mask] >> 3, 7 - (met[mask] & 7)
            found[atom, mask] = members[order[atom], byte] >> bit & 1
    return found, met[:count].copy()


@kernel
def outline(
    words: TileWords, blocks: Words, tile_px: int, y: int, x: int, height: int, width: int
) -> int:
    """How often neighbours in the rows of a window differ, or UNREAD; for arguments see `cut`."""
    count = 0
    for line in range(y, y + height):
        before = -1
        for column in range(x // tile_px, (x + width - 1) // tile_px + 1):
            block = blocks[line // tile_px, column]
            left = column * tile_px
            right = min(left + tile_px, x + width)
            if block == UNREAD:
                return UNREAD
            if block == ABSENT:
                count += 1 if before > 0 else 0
                before = 0
                continue
            place = block + np.int64(words[block + line % tile_px])
            last = block + np.int64(words[block + line % tile_px + 1])
            while place < last:
                word = words[place]
                place += 1
                end = right
                if place < last:
                    end = min(left + _column(words[place]), right)
                label = _label(word)
                if max(left + _column(word), x) < end:
                    count += 1 if before >= 0 and label != before else 0
                    before = label
    return count


@kernel
def measure(words: TileWords, y: int, x: int, width: int, areas: Words, boxes: Words) -> bool:
    """Add a tile's atoms to `areas` (A,) and `boxes` (A, 4): x0, y0, x1, y1; whether it fits.

    The tile's first pixel is (x, y) of the image; `width` is its columns.
    """
    height = np.int64(words[0]) - 1
    for line in range(height):
        place, last = np.int64(words[line]), np.int64(words[line + 1])
        while place < last:
            word = words[place]
            place += 1
            begin, end = _column(word), width
            if place < last:
                end = _column(words[place])
            atom = _label(word)
            if atom >= len(areas):
                return False
            areas[atom] += end - begin
            box = boxes[atom]
            box[0] = min(box[0], x + begin)
            box[1] = min(box[1], y + line)
            box[2] = max(box[2], x + end)
            box[3] = max(box[3], y + line + 1)
    return True
