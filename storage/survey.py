"""Numbers over all images of a store, and which images are strange.

They come from the mask tables: no pixel is read, so every image of a large store takes part.

Letters: n images, M masks of all images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samprior.storage.store import MaskStore

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STRANGE = 3.5
"""Robust z-score from which a value is called strange (Iglewicz and Hoaglin 1993)."""


@dataclass(frozen=True)
class Survey:
    """What the tables of a store say, in the order of the store."""

    num_masks: Ints
    """(n,) masks of each image."""
    coverage: Floats
    """(n,) share of the pixels in at least one mask."""
    largest: Floats
    """(n,) share of the pixels in the largest mask, 0 if there is none."""
    depth: Ints
    """(n,) most masks over one pixel."""
    area_shares: Floats
    """(M,) pixels of each mask as a share of its image's."""
    depth_pixels: Ints
    """Pixels of all images by the number of masks over them."""


def survey(store: MaskStore) -> Survey:
    """Gather the numbers of all images of a store.

    Raises:
        StoreError: a shard that can't be read.
    """
    num_masks, coverage, largest, depth = [], [], [], []
    shares: list[Floats] = [np.zeros(0)]
    depth_pixels = np.zeros(1, np.int64)
    for index in range(len(store)):
        table = store.table(index)
        num_pixels = int(table.atom_areas.sum())
        by_depth = np.zeros(len(table.areas) + 1, np.int64)
        np.add.at(by_depth, table.members.sum(axis=1), table.atom_areas)
        by_depth = by_depth[: int(np.flatnonzero(by_depth)[-1]) + 1]
        shares.append(table.areas / num_pixels)
        num_masks.append(len(table.areas))
        coverage.append(1 - int(table.atom_areas[0]) / num_pixels)
        largest.append(shares[-1].max(initial=0.0))
        depth.append(len(by_depth) - 1)
        missing = max(0, len(by_depth) - len(depth_pixels))
        depth_pixels = np.pad(depth_pixels, (0, missing))
        depth_pixels[: len(by_depth)] += by_depth
    return Survey(
        num_masks=np.array(num_masks, np.int64),
        coverage=np.array(coverage, np.float64),
        largest=np.array(largest, np.float64),
        depth=np.array(depth, np.int64),
        area_shares=np.concatenate(shares),
        depth_pixels=depth_pixels,
    )


def counted(number: float, noun: str) -> str:
    """A number with its noun, such as "1 mask" or "1,204 masks"."""
    return f"{number:,.6g} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share such as "81 %"; near 0 and near 1 with the digits that tell it from them."""
    value = 100 * share
    if 0 < value < 1:
        return f"{value:.2g} %"
    if 99 < value < 100:
        return f"{min(value, 99.99):.4g} %"
    return f"{value:.0f} %"


@dataclass(frozen=True)
class _Measure:
    values: Floats | Ints
    floor: float
    """Smallest spread: where most images are alike the MAD is 0 and any difference endless."""
    tell: Callable[[float], str]
    form: Callable[[float], str]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def z(self) -> Floats:
        distance = np.abs(self.values - self.median)
        return np.asarray(distance / max(1.4826 * float(np.median(distance)), self.floor))


class Strangeness:
    """How far each image lies from the others, as a number and in words.

    The score is the largest of four robust z-scores, |x - median| / (1.4826 MAD), of the number
    of masks, the coverage, the largest mask's share and the depth. Without masks it is infinite.
    """

    def __init__(self, found: Survey) -> None:
        self._num_masks = found.num_masks
        self._measures = (
            _Measure(found.num_masks, 1.0, lambda n: counted(n, "mask"), "{:,.6g}".format),
            _Measure(found.coverage, 0.01, lambda share: f"coverage {percent(share)}", percent),
            _Measure(found.largest, 0.01, lambda share: f"largest mask {percent(share)}", percent),
            _Measure(
                found.depth, 1.0, lambda n: f"up to {counted(n, 'mask')} deep", "{:,.6g}".format
            ),
        )
        self._z = np.stack([measure.z for measure in self._measures])  # (4, n)
        self.scores: Floats = np.where(found.num_masks == 0, np.inf, self._z.max(axis=0))

    def ranking(self) -> list[int]:
        """All images, the strangest first; of equals the first in the store."""
        return [int(index) for index in np.argsort(-self.scores, kind="stable")]

    def reason(self, index: int) -> str:
        """Why an image has its score, such as "coverage 12 %, median 81 %"."""
        if self._num_masks[index] == 0:
            return "no masks"
        order = [int(i) for i in np.argsort(-self._z[:, index], kind="stable")]
        strange = [i for i in order if self._z[i, index] >= STRANGE]
        told = "; ".join(
            f"{measure.tell(float(measure.values[index]))}, median {measure.form(measure.median)}"
            for measure in (self._measures[i] for i in strange or order[:1])
        )
        return told if strange else f"in the usual range: {told}"


def choose(ranking: list[int], num_images: int, *, seed: int = 0) -> tuple[list[int], list[int]]:
    """The images to draw: half of them the strangest, half evenly spaced over the others.

    Args:
        ranking: all images, the strangest first.
        num_images: how many in all; fewer if there aren't as many.
        seed: where between two places the even spacing begins.

    Returns:
        The strangest, in order of strangeness, and the others, in order of the store.
    """
    total = min(num_images, len(ranking))
    strangest, others = ranking[: (total + 1) // 2], sorted(ranking[(total + 1) // 2 :])
    num_spaced = total - len(strangest)
    start = np.random.default_rng(seed).random()
    places = ((np.arange(num_spaced) + start) * len(others) / max(1, num_spaced)).astype(int)
    return strangest, [others[place] for place in places]
