"""Run-length codes are those of pycocotools, and any other code is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from samprior.storage import MaskSet
from samprior.storage.rle import (
    counts_to_mask,
    decode_counts,
    encode_counts,
    encode_masks,
    mask_counts,
)


def codes_of_pycocotools(planes: np.ndarray) -> list[str]:
    return [coco.encode(np.asfortranarray(p.astype(np.uint8)))["counts"].decode() for p in planes]


def same_codes(planes: np.ndarray) -> bool:
    codes = encode_masks(MaskSet.from_masks(planes))
    height, width = planes.shape[1:]
    back = [counts_to_mask(decode_counts(c), height=height, width=width) for c in codes]
    return codes == codes_of_pycocotools(planes) and all(map(np.array_equal, back, planes))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 6), st.integers(0, 999))
def test_codes_are_those_of_pycocotools(height: int, width: int, num_masks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert same_codes(rng.random((num_masks, height, width)) < rng.random((num_masks, 1, 1)))


def test_masks_at_the_limits() -> None:
    for shape in ((1, 1), (1, 9), (9, 1), (5, 7)):
        planes = np.zeros((2 + 2 * shape[0] * shape[1], *shape), bool)
        planes[1] = True
        single = np.eye(shape[0] * shape[1], dtype=bool).reshape(-1, *shape)
        planes[2:] = np.concatenate([single, ~single])
        assert same_codes(planes)


def test_large_masks_use_numbers_of_several_digits() -> None:
    rows, columns = np.mgrid[:1200, :900]
    discs = [
        (rows - y) ** 2 + (columns - x) ** 2 < r * r
        for y, x, r in [(600, 400, 350), (3, 3, 50), (1199, 899, 9)]
    ]
    empty = np.zeros_like(discs[0])
    assert same_codes(np.stack([*discs, ~discs[0], empty, ~empty]))


@given(st.lists(st.lists(st.integers(0, 10**8), max_size=9), max_size=5))
def test_any_counts_come_back(lists: list[list[int]]) -> None:
    counts = [np.array(numbers, np.int64) for numbers in lists]
    codes = encode_counts(counts)
    assert [decode_counts(code).tolist() for code in codes] == lists


def test_no_masks_have_no_codes() -> None:
    masks = MaskSet.from_masks(np.zeros((0, 4, 5), bool))
    assert mask_counts(masks) == []
    assert encode_masks(masks) == []


@pytest.mark.parametrize(("name", "num_masks"), [("dog", 66), ("truck", 47)])
def test_codes_of_real_masks(shared_data: Path, name: str, num_masks: int) -> None:
    files = [shared_data / "sam_masks" / name / "masks" / f"{k}.png" for k in range(num_masks)]
    assert same_codes(np.stack([np.asarray(Image.open(file)) > 0 for file in files]))
