"""Cut windows out of coded atoms: the inner loops of reading.

Atoms stay as segments until the last step: a window is surveyed (which atoms, how many pixels,
in the order of their first pixel) and painted by going over segments, not pixels.

A tile's words are uint32 (or uint64 where labels need it): first, for each of its H rows and the
end, where the row's segments begin, counted from the tile's first word; then one word per segment,
its label times 65536 plus its first column.

H x W pixels of a window, A atoms of the image, T tiles.
"""

import numpy as np
import numpy.typing as npt

from samprior.storage.arrays import ABSENT
from samprior.storage.compiled import kernel
from samprior.storage.crossings.range_coder import Bytes, Words

TileWords = npt.NDArray[np.unsignedinteger]


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
def survey(
    words: TileWords,
    blocks: Words,
    tile_px: int,
    y: int,
    x: int,
    height: int,
    width: int,
    number: Words,
    order: Words,
    areas: Words,
) -> int:
    """Which atoms a window holds, in the order of their first pixel; how many, or -1 if damaged.

    Args:
        words: of the tiles that the window touches, one after another.
        blocks: (rows of tiles, columns of tiles) the first word of each tile; ABSENT for zeros.
        tile_px: side of the tiles.
        y: the window's first row in the image.
        x: its first column.
        height: its rows.
        width: its columns.
        number: (A,) zeros; becomes the new number of each atom that is there, from 1.
        order: room for A; the atoms that are there.
        areas: room for A; their pixels in the window.
    """
    count = 0
    for line in range(y, y + height):
        for column in range(blocks.shape[1]):
            block = blocks[line // tile_px - y // tile_px, column]
            if block == ABSENT:
                continue
            left = (x // tile_px + column) * tile_px
            right = min(left + tile_px, x + width)
            place = block + np.int64(words[block + line % tile_px])
            last = block + np.int64(words[block + line % tile_px + 1])
            while place < last:
                word = words[place]
                place += 1
                begin = max(left + _column(word), x)
                end = right
                if place < last:
                    end = min(left + _column(words[place]), right)
                label = _label(word)
                if label >= len(number):
                    return -1
                if begin < end and label != 0:
                    if number[label] == 0:
                        order[count] = label
                        areas[count] = 0
                        count += 1
                        number[label] = count
                    areas[number[label] - 1] += end - begin
    return count


@kernel
def paint(
    words: TileWords,
    blocks: Words,
    tile_px: int,
    y: int,
    x: int,
    group: Words,
    number: Words,
    out: npt.NDArray[np.unsignedinteger],
) -> None:
    """Write the numbers of a surveyed window's atoms to `out` (H, W), 0 where there is none."""
    height, width = out.shape
    for line in range(y, y + height):
        row = out[line - y]
        for column in range(blocks.shape[1]):
            block = blocks[line // tile_px - y // tile_px, column]
            left = (x // tile_px + column) * tile_px
            right = min(left + tile_px, x + width)
            if block == ABSENT:
                row[max(left, x) - x : right - x] = 0
                continue
            place = block + np.int64(words[block + line % tile_px])
            last = block + np.int64(words[block + line % tile_px + 1])
            while place < last:
                word = words[place]
                place += 1
                begin = max(left + _column(word), x)
                end = right
                if place < last:
                    end = min(left + _column(words[place]), right)
                if begin < end:
                    row[begin - x : end - x] = number[group[_label(word)]]


@kernel
def outline(
    words: TileWords, blocks: Words, tile_px: int, y: int, x: int, height: int, width: int
) -> int:
    """How often neighbours in the rows of a window differ; for the arguments see `survey`."""
    count = 0
    for line in range(y, y + height):
        before = -1
        for column in range(blocks.shape[1]):
            block = blocks[line // tile_px - y // tile_px, column]
            left = (x // tile_px + column) * tile_px
            right = min(left + tile_px, x + width)
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


@kernel
def merge_atoms(
    members: Bytes, keep: Bytes, order: Words, areas: Words, number: Words, group: Words
) -> int:
    """Make one of the surveyed atoms that lie in the same kept masks; how many are left.

    Args:
        members: (A, bytes) packed bits: the masks of each atom.
        keep: (bytes,) packed bits: the masks that are kept.
        order: the atoms that were found; becomes the first one of each that is left.
        areas: their pixels; becomes those of what is left.
        number: (A,) as `survey` leaves it; becomes the new number of each that is left.
        group: (A,) becomes, at the atoms found, the first that each is taken for; 0 for none.
    """
    size = 4
    while size < 2 * len(order):
        size *= 2
    table = np.zeros(size, np.int64)  # atom 0 is never found
    count = 0
    for found in range(len(order)):
        atom, pixels = order[found], areas[found]
        digest, is_empty = np.int64(1469), True
        for place in range(len(keep)):
            byte = np.int64(members[atom, place] & keep[place])
            digest = ((digest ^ byte) * 16777619) & 0xFFFFFFFF
            is_empty = is_empty and byte == 0
        group[atom] = 0
        number[atom] = 0
        slot = (digest ^ (digest >> 15)) & (size - 1)
        while not is_empty:
            other = table[slot]
            if other == 0:
                # Atoms come by their first pixel, so what is left does too.
                table[slot] = atom
                group[atom] = atom
                order[count], areas[count] = atom, pixels
                count += 1
                number[atom] = count
                break
            is_equal = True
            for place in range(len(keep)):
                differs = (members[atom, place] ^ members[other, place]) & keep[place]
                is_equal = is_equal and differs == 0
            if is_equal:
                group[atom] = other
                areas[number[other] - 1] += pixels
                break
            slot = (slot + 1) & (size - 1)
    return count
