"""COCO run-length codes: written as pycocotools writes them, read with a check of every number.

A code is the lengths of alternating runs outside and inside the mask, down the columns. The C
decoder of pycocotools trusts its input: counts that exceed the image are written past the end of
the buffer. Here a code is either right or refused.

Letters: H x W pixels, K masks, A atoms, R runs of one atom each, N numbers of all codes.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from samprior.storage.masks import MaskSet

Counts = npt.NDArray[np.int64]
"""Run lengths of one mask, the first one outside (and so perhaps 0)."""

MAX_MASK_PIXELS = 4_000_000_000
"""Masks times pixels of one image that are decoded; more would fill most machines' memory."""

_MAX_DIGITS = 7
"""Characters per number: 5 bits each, so 7 hold any count of an image that is read at all."""

_LARGEST_OF_DIGITS = np.int64(1) << (5 * np.arange(1, _MAX_DIGITS) - 1)
"""Signed numbers below these fit into 1, 2, ... characters."""


def encode_masks(masks: MaskSet) -> list[str]:
    """The compressed code of each mask, byte for byte those of pycocotools."""
    return encode_counts(mask_counts(masks))


def mask_counts(masks: MaskSet) -> list[Counts]:
    """Run lengths of each mask, from the atoms: no plane is made."""
    flat = masks.atoms.T.reshape(-1)  # (W * H,) down the columns
    starts = np.flatnonzero(np.concatenate([[flat.size > 0], flat[1:] != flat[:-1]]))  # (R,)
    runs = flat[starts].astype(np.intp)
    return [
        _alternating(column[runs], starts, flat.size)
        for column in np.ascontiguousarray(masks.members.T)
    ]


def encode_counts(counts: Sequence[Counts]) -> list[str]:
    """The compressed code of each list of run lengths (pycocotools' rleToString).

    Each character holds 5 bits, the low ones first, and whether more follow; numbers are signed,
    and from the fourth on they are differences to the number two before.
    """
    numbers = np.concatenate([np.zeros(0, np.int64), *map(_differences, counts)])  # (N,)
    magnitudes = np.where(numbers < 0, ~numbers, numbers)
    lengths = np.searchsorted(_LARGEST_OF_DIGITS, magnitudes, side="right") + 1
    ends = np.concatenate([[0], np.cumsum(lengths)])
    digits = np.empty(ends[-1], np.uint8)
    for place in range(int(lengths.max(initial=0))):
        has = lengths > place
        more = (lengths[has] > place + 1) << 5
        digits[ends[:-1][has] + place] = ((numbers[has] >> (5 * place)) & 31 | more) + 48
    code = digits.tobytes().decode("ascii")
    cuts = ends[np.cumsum([0, *map(len, counts)])]
    return [code[start:stop] for start, stop in pairwise(cuts)]


def decode_counts(code: str) -> Counts:
    """Run lengths of a compressed code (pycocotools' rleFrString).

    Raises:
        ValueError: characters outside the code, or a number that is unfinished or too long.
    """
    if not code.isascii():
        raise ValueError("the code has characters outside ASCII")
    digits = np.frombuffer(code.encode(), np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("the code has characters outside '0' to 'o'")
    last = (digits & 32) == 0
    if not last[-1]:
        raise ValueError("the code ends within a number")
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(np.append(starts, len(digits)))
    if lengths.max() > _MAX_DIGITS:
        raise ValueError("the code has a number beyond any image")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    negative = (digits[last] & 16) != 0
    numbers[negative] -= np.int64(1) << (5 * lengths[negative])
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def counts_to_mask(counts: Counts, *, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Boolean (H, W) of alternating runs outside and inside the mask, down the columns.

    Raises:
        ValueError: a negative run, or runs that don't add up to the image.
    """
    if len(counts) and counts.min() < 0:
        raise ValueError("the code has a negative run")
    if int(counts.sum()) != height * width:
        raise ValueError(f"the runs add up to {int(counts.sum())} of {height * width} pixels")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _alternating(inside: npt.NDArray[np.bool_], starts: Counts, num_pixels: int) -> Counts:
    """Run lengths of a mask that holds the runs from `starts` on where `inside` (R,) says so."""
    turns = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    # A mask that begins in the first pixel has a run of no pixels before.
    first = np.zeros(int(inside[:1].any()), np.int64)
    return np.diff(np.concatenate([first, starts[turns], [num_pixels]]), prepend=0)


def _differences(counts: Counts) -> Counts:
    """What the code says of each number: from the fourth on, the step from two before."""
    return np.concatenate([counts[:3], counts[3:] - counts[1:-2]])
