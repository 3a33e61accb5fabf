"""Paired differences: their mean, interval and test, and what has none of these."""

import math

import numpy as np
import pytest
from scipy import stats

from samprior.storage.errors import UsageError
from samprior.training.paired import paired_difference


@pytest.mark.parametrize("num", [2, 7, 40, 300])
def test_they_are_what_scipy_finds_on_the_two_lists(num: int, rng: np.random.Generator) -> None:
    theirs = rng.normal(30, 3, num)
    ours = theirs + rng.normal(0.05, 0.1, num)
    found = paired_difference(ours.tolist(), theirs.tolist())
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.mean == pytest.approx((ours - theirs).mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.p_value == pytest.approx(stats.wilcoxon(ours - theirs).pvalue)
    assert found.num_higher == (ours > theirs).sum()
    assert found.num_lower == num - found.num_higher


def test_the_sides_are_exchangeable(rng: np.random.Generator) -> None:
    ours, theirs = rng.normal(size=(2, 20))
    there, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert back.mean == -there.mean
    assert (back.low, back.high) == (-there.high, -there.low)
    assert (back.num_higher, back.num_lower) == (there.num_lower, there.num_higher)
    assert back.p_value == there.p_value


def test_equal_networks_differ_by_nothing() -> None:
    found = paired_difference([1.0, 2.0, math.inf], [1.0, 2.0, math.inf])
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert found.num_higher == found.num_lower == 0


def test_one_image_and_infinite_scores_have_no_interval() -> None:
    found = paired_difference([2.0], [1.0])
    assert (found.mean, found.p_value) == (1, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    found = paired_difference([math.inf, 2.0, 3.0], [1.0, 3.0, 1.0])
    assert found.mean == math.inf
    assert math.isnan(found.low)
    assert found.num_higher == 2
    assert math.isnan(paired_difference([math.inf, 1.0], [1.0, math.inf]).mean)


@pytest.mark.parametrize("lists", [([], []), ([1.0], [1.0, 2.0])])
def test_other_images_are_refused(lists: tuple[list[float], list[float]]) -> None:
    with pytest.raises(UsageError, match="scores of the same images"):
        paired_difference(*lists)
