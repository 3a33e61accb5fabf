"""Differences between two networks on the same images, with their uncertainty.

Images differ far more from each other than networks do, so scores are compared image by image.
The interval and the test speak of the images: other training seeds are another matter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student
from scipy.stats import wilcoxon

from samprior.storage.errors import UsageError

METHOD = (
    "Differences are taken image by image. Interval: 95 %, Student's t over images. p: two-sided "
    "Wilcoxon signed-rank test over images, those without difference left out. Neither speaks of "
    "other training seeds."
)
"""What the figures mean, in words."""


@dataclass(frozen=True)
class PairedDifference:
    """Ours minus theirs, over images."""

    num_images: int
    mean: float
    low: float
    """Lower end of the 95 % interval of the mean; NaN for one image, or if a score is infinite."""
    high: float
    num_higher: int
    """Images on which our value is higher; whether that is a win is for the metric to say."""
    num_lower: int
    p_value: float
    """Of the Wilcoxon test; 1 where no image differs."""


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
    """Compare scores of the same images in the same order.

    Two infinite scores count as equal.

    Raises:
        UsageError: no image, or lists of different lengths.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise UsageError(
            f"paired differences need scores of the same images, got {len(ours)} and {len(theirs)}"
        )
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    same = a == b
    differences = np.where(same, 0.0, np.where(same, 0.0, a) - np.where(same, 0.0, b))
    low, high = _interval(differences)
    return PairedDifference(
        num_images=len(differences),
        mean=_mean(differences),
        low=low,
        high=high,
        num_higher=int((differences > 0).sum()),
        num_lower=int((differences < 0).sum()),
        p_value=_wilcoxon_p(differences),
    )


def _mean(values: npt.NDArray[np.float64]) -> float:
    """The mean; NaN where +inf and -inf meet."""
    with np.errstate(invalid="ignore"):
        return float(values.mean())


def _interval(differences: npt.NDArray[np.float64]) -> tuple[float, float]:
    num = len(differences)
    if num < 2 or not np.isfinite(differences).all():
        return math.nan, math.nan
    half = float(student.ppf(0.975, num - 1) * differences.std(ddof=1) / math.sqrt(num))
    mean = float(differences.mean())
    return mean - half, mean + half


def _wilcoxon_p(differences: npt.NDArray[np.float64]) -> float:
    moved = differences[differences != 0]
    return float(wilcoxon(moved).pvalue) if len(moved) else 1.0
