"""Segmentation consistency: IoUs as planes give them, both directions, sets without masks."""

import numpy as np
import pytest

from samprior.storage import MaskSet
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb
from samprior.training.consistency import ConsistencyMeasure, consistency, mask_ious


def random_masks(rng: np.random.Generator, num_masks: int, shape: tuple[int, int]) -> MaskSet:
    planes = np.zeros((num_masks, *shape), bool)
    for plane in planes:
        (y0, y1), (x0, x1) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in shape)
        plane[y0:y1, x0:x1] = True
    return MaskSet.from_masks(planes)


@pytest.mark.parametrize(("num_first", "num_second"), [(5, 7), (1, 12), (0, 3), (3, 0), (0, 0)])
def test_ious_are_those_of_the_planes(
    num_first: int, num_second: int, rng: np.random.Generator
) -> None:
    first, second = (random_masks(rng, num, (23, 31)) for num in (num_first, num_second))
    wanted = [[(a & b).sum() / (a | b).sum() for b in second.to_masks()] for a in first.to_masks()]
    np.testing.assert_allclose(
        mask_ious(first, second), np.reshape(wanted, (num_first, num_second)), rtol=1e-12
    )


def test_equal_sets_agree_fully_in_any_order(rng: np.random.Generator) -> None:
    masks = random_masks(rng, 9, (40, 30))
    shuffled = masks.select(rng.permutation(9))
    assert set(dict(consistency(shuffled, masks).values()).values()) == {1.0}
    other = random_masks(rng, 6, (40, 30))
    first, second = consistency(other, masks), consistency(other, shuffled)
    assert dict(first.values()) == pytest.approx(dict(second.values()), abs=1e-12)
    assert first.found.iou < 1


def test_a_case_counted_by_hand() -> None:
    clean = np.zeros((2, 4, 8), bool)
    clean[0, :, :4] = True  # 16 px
    clean[1, :2, 4:6] = True  # 4 px
    other = np.zeros((3, 4, 8), bool)
    other[0, :, :2] = True  # 8 px, IoU 8/16 with the first: not above 0.5
    other[1, :2, 4:6] = True  # the second itself
    other[2, 3:, 7:] = True  # 1 px, meets nothing
    found = consistency(MaskSet.from_masks(other), MaskSet.from_masks(clean))
    assert vars(found.found) == {
        "iou": 0.75,
        "iou_by_area": (16 * 0.5 + 4) / 20,
        "above_50": 0.5,
        "above_75": 0.5,
    }
    assert found.right.iou == 0.5
    assert found.right.iou_by_area == pytest.approx((8 * 0.5 + 4) / 13)
    assert found.right.above_50 == pytest.approx(1 / 3)
    values = dict(found.values())
    assert next(iter(values)) == "mask_iou"
    assert values["mask_iou"] == 0.625
    assert len(values) == 10


def test_sets_without_masks() -> None:
    none = MaskSet.from_masks(np.zeros((0, 3, 4), bool))
    blank = MaskSet.from_masks(np.zeros((2, 3, 4), bool))
    some = MaskSet.from_masks(np.ones((1, 3, 4), bool))
    for empty in (none, blank):
        assert set(dict(consistency(empty, none).values()).values()) == {1.0}
        assert set(dict(consistency(empty, some).values()).values()) == {0.0}
        assert set(dict(consistency(some, empty).values()).values()) == {0.0}


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match=r"one size, got \(3, 4\) and \(4, 3\)"):
        consistency(*(MaskSet.from_masks(np.ones((1, *s), bool)) for s in ((3, 4), (4, 3))))


def test_the_clean_picture_is_segmented_once() -> None:
    seen = []

    def segment(picture: Rgb) -> MaskSet:
        seen.append(int(picture[0, 0, 0]))
        return MaskSet.from_masks(picture[None, :, :, 0] > 9)

    measure = ConsistencyMeasure(segment, name="a threshold")
    clean = np.full((4, 4, 3), 20, np.uint8)
    same, dark = clean.copy(), np.zeros((4, 4, 3), np.uint8)
    found = measure(clean, (dark, same))
    assert [one["mask_iou"] for one in found] == [0.0, 1.0]
    assert seen == [20, 0, 20]
    assert "masks by a threshold" in measure.remark
