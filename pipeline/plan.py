"""Plan a job: which images go to which shard, and what is left to do. Pure: no Ray, no writing."""

import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from samprior.pipeline.datasets import Pair
from samprior.storage.errors import UsageError
from samprior.storage.growth import listing_sha256
from samprior.storage.header import Images
from samprior.storage.manifest import Header, Inputs, Receipt

Source = Literal["clean", "degraded", "folder"]
"""Which picture of a pair is segmented; `folder`: another one, which the maker of masks reads."""

IMAGES_PER_SHARD = 32
"""Few enough that a lost worker costs little, enough that a dataset is not a flood of files."""


@dataclass(frozen=True)
class ShardPlan:
    """The pairs of one shard."""

    shard: int
    pairs: tuple[Pair, ...]


def plan_shards(
    pairs: Sequence[Pair],
    *,
    images_per_shard: int = IMAGES_PER_SHARD,
    appended: Sequence[int] = (),
) -> list[ShardPlan]:
    """Cut the pairs, in order, into shards of `images_per_shard`; the last may be smaller.

    Of the pairs, the last `sum(appended)` were appended in parts of so many; each part is cut on
    its own, so that the shards of the parts before it stay as they are.

    Raises:
        UsageError: images_per_shard below 1.
    """
    if images_per_shard < 1:
        raise UsageError(f"images per shard must be at least 1, got {images_per_shard}")
    ends = [len(pairs) - sum(appended[part:]) for part in range(len(appended) + 1)]
    cuts = [
        pairs[place : min(place + images_per_shard, stop)]
        for start, stop in pairwise([0, *ends])
        for place in range(start, stop, images_per_shard)
    ]
    return [ShardPlan(shard, tuple(held)) for shard, held in enumerate(cuts)]


def plan_header(
    plan: Sequence[ShardPlan],
    *,
    dataset: str,
    layout: str,
    split: str | None,
    segmenter: Mapping[str, Any],
    source: Source,
    images_per_shard: int = IMAGES_PER_SHARD,
    paired: bool = True,
    appended: tuple[int, ...] = (),
    images: Images = "stored",
    pictures_root: str | None = None,
) -> Header:
    """The header of the store that this plan makes.

    The listing enters by keys, not by paths or contents: a moved dataset is the same dataset, and
    a mended image is found by its size (see `pending`).
    """
    keys = keys_of(plan)
    return Header(
        num_images=len(keys),
        num_shards=len(plan),
        images_per_shard=images_per_shard,
        paired=paired,
        made_of={
            "dataset": {
                "name": dataset,
                "layout": layout,
                "split": split,
                "listing_sha256": listing_sha256(keys),
            },
            "segmenter": dict(segmenter),
            "source": source,
        },
        appended=appended,
        images=images,
        pictures_root=pictures_root,
    )


def keys_of(plan: Sequence[ShardPlan]) -> list[str]:
    """All keys of a plan, in order."""
    return [pair.key for shard in plan for pair in shard.pairs]


def pending(
    plan: Sequence[ShardPlan],
    receipts: Iterable[Receipt],
    inputs_of: Callable[[Pair], Inputs],
    *,
    retry_quarantined: bool = False,
) -> list[ShardPlan]:
    """The shards still to do: those without a receipt, or of which an input file has changed.

    `receipts` may come one after the other; none is kept. `inputs_of` says of a pair what a
    receipt would say now. With `retry_quarantined`, also those with quarantined images.
    """
    planned = {shard.shard: shard for shard in plan}
    done = {
        receipt.shard
        for receipt in receipts
        if receipt.shard in planned
        and not (retry_quarantined and receipt.quarantined)
        and dict(receipt.inputs) == {p.key: inputs_of(p) for p in planned[receipt.shard].pairs}
    }
    return [shard for shard in plan if shard.shard not in done]


def input_bytes(pair: Pair) -> tuple[int, int]:
    """Bytes of the degraded and the clean file; 0 for one that is missing."""
    return _bytes_of(pair.degraded), _bytes_of(pair.clean)


def _bytes_of(file: Path) -> int:
    # Asked of every image at every start of a job, so the system is asked but once.
    try:
        found = file.stat()
    except (OSError, ValueError):
        if file.is_file():  # raises the error again, unless it says that there is no file
            raise
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
