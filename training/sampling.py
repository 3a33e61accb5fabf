"""Which crop comes when: a pure function of (seed, samples seen), so resume is one integer.

Every epoch has each image once. The draws of a sample come from a counter-based generator, so they
depend on nothing that was drawn before.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

PLACES, DROPOUT, MIXUP, RAIN, LAYERS, MIXED = range(6)
"""What draws are for; each purpose has its own, so that one never moves the other."""

Augment = Literal["flips_turns", "hflip", "none"]
"""How crops are turned: mirrored and by quarter turns, mirrored left to right alone, not at all."""


@dataclass(frozen=True)
class Place:
    """Where a training crop lies and how it is turned."""

    index: int
    """Image of the store."""
    y: int
    x: int
    flip: bool
    """Mirrored left to right, before turning."""
    quarter_turns: int
    """Anti-clockwise."""


class Draws:
    """The random numbers of one sample, for one purpose: the same at every call."""

    def __init__(self, seed: int, sample: int, purpose: int) -> None:
        self._generator = np.random.Philox(key=seed, counter=[0, 0, purpose, sample])

    def below(self, *limits: int) -> list[int]:
        """A whole number from 0 to below each limit (of at most 2 ** 32)."""
        return _scaled(self._generator.random_raw(len(limits)), limits)

    def generator(self) -> np.random.Generator:
        """A NumPy generator that goes on from here."""
        return np.random.Generator(self._generator)


def drawn(seed: int, sample: int, purpose: int, *limits: int) -> list[int]:
    """`Draws(seed, sample, purpose).below(*limits)`, faster: no generator is made for it."""
    # Made anew, NumPy's generator asks the system for entropy first: five times as slow.
    held = vars(_of_thread)
    generator = held.get("generator") or held.setdefault("generator", np.random.Philox(0))
    state = _first_state(seed)
    counter = np.array([0, 0, purpose, sample], np.uint64)
    generator.state = {**state, "state": {**state["state"], "counter": counter}}
    return _scaled(generator.random_raw(len(limits)), limits)


_of_thread = threading.local()


@lru_cache(maxsize=4)
def _first_state(seed: int) -> dict[str, Any]:
    """The state of a generator that nothing was drawn from; not to be changed."""
    return dict(np.random.Philox(key=seed).state)


def _scaled(words: npt.NDArray[np.uint64], limits: Sequence[int]) -> list[int]:
    # The high half of a product is even to within a part in 2 ** 32 of the limit.
    return [
        ((word >> 32) * limit) >> 32 for word, limit in zip(words.tolist(), limits, strict=True)
    ]


@lru_cache(maxsize=4)  # threads work on at most two neighbouring epochs
def permutation(seed: int, epoch: int, length: int) -> npt.NDArray[np.int64]:
    """The order of one epoch: each index once, a pure function of its arguments."""
    order = np.random.default_rng((seed, epoch, length)).permutation(length)
    order.flags.writeable = False
    return order


def image_of(seed: int, sample: int, num_images: int) -> int:
    """The image that crop number `sample` of the sequence is cut from."""
    epoch, position = divmod(sample, num_images)
    return int(permutation(seed, epoch, num_images)[position])


def share_of_rank(first: int, batch_size: int, number: int, *, rank: int, world_size: int) -> range:
    """The samples of batch `number` of a rank, counted from sample `first` of all ranks.

    All ranks together take the samples in order, whatever their number: step by step each takes
    its piece of the next `world_size * batch_size`.
    """
    begin = first + (number * world_size + rank) * batch_size
    return range(begin, begin + batch_size)
