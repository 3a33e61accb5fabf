"""What a worker of the job does: turn the pairs of a shard into masks, and store them.

The same class lives in a Ray actor or, with `workers=0`, in the process of the job itself.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from samprior.pipeline.datasets import Pair
from samprior.pipeline.plan import ShardPlan, Source, input_bytes
from samprior.storage.errors import ImageError, StoreError
from samprior.storage.images import Rgb, read_rgb
from samprior.storage.manifest import Inputs, Receipt
from samprior.storage.masks import MaskSet
from samprior.storage.writer import Record, write_shard

MasksOf = Callable[[Pair, Rgb], MaskSet]
"""Masks of a pair, given the picture that is to be segmented."""


class MaskMaker(Protocol):
    """Where masks come from: a segmenter, or masks that somebody made before. Pickled to actors."""

    def describe(self) -> dict[str, Any]:
        """What determines all masks, as JSON; part of the store's fingerprint."""

    def inputs(self, pair: Pair) -> Inputs:
        """Sizes and digests of files that hold the pair's masks; () when they are made anew.

        Part of the receipt: the shard is written again when they change.
        """

    def build(self) -> MasksOf:
        """Load what is needed; called once per worker."""


def inputs_of(maker: MaskMaker, pair: Pair) -> Inputs:
    """What a receipt says of a pair's files: both pictures, and the masks' own if there are any."""
    return (*input_bytes(pair), *maker.inputs(pair))


class ShardWorker:
    """Writes shards, one at a time; lives in an actor, or in this process."""

    def __init__(
        self,
        root: Path,
        maker: MaskMaker,
        *,
        source: Source,
        paired: bool,
        num_threads: int | None = None,
    ) -> None:
        if num_threads is not None:
            # Read by torch when `build` imports it; importing it here would cost seconds.
            os.environ["OMP_NUM_THREADS"] = str(num_threads)
        self.root = root
        self.maker = maker
        self.source = source
        self.paired = paired
        self.on_image: Callable[[], None] | None = None
        self.images_done = 0
        self.masks_of: MasksOf | None = None

    def load(self) -> None:
        """Build the maker, unless that is done.

        Not part of the construction, because Ray gives the error of a call as it was raised, but
        of one that is raised in an actor's constructor only the text.
        """
        if self.masks_of is None:
            self.masks_of = self.maker.build()

    def count(self) -> int:
        """Images of the shard at hand that are finished; an actor answers while it writes."""
        return self.images_done

    def write(self, shard: ShardPlan, skip: Mapping[str, str] | None = None) -> Receipt:
        """Segment and store a shard; images that can't be used are quarantined with the reason.

        `skip` has keys that are quarantined unseen, and the reason.
        """
        self.load()
        records = []
        quarantined = dict(skip or {})
        self.images_done = 0
        for pair in shard.pairs:
            if pair.key not in quarantined:
                made = self._try(pair)
                if isinstance(made, Record):
                    records.append(made)
                else:
                    quarantined[pair.key] = made
            self.images_done += 1
            if self.on_image:
                self.on_image()
        return write_shard(
            self.root,
            shard.shard,
            records,
            paired=self.paired,
            inputs={pair.key: inputs_of(self.maker, pair) for pair in shard.pairs},
            quarantined=quarantined,
        )

    def probe(self, pair: Pair) -> None:
        """Segment one image and store nothing: whether it kills this process."""
        self.load()
        self._try(pair)

    def _try(self, pair: Pair) -> Record | str:
        """The pair's record, or why it can't be used.

        Raises:
            OSError, StoreError: the disk, the network or the memory failed, not the image.
        """
        try:
            return self._record(pair)
        except Exception as error:
            # What the machine lacks at the moment says nothing against the image.
            if isinstance(error, OSError):
                raise
            if _is_out_of_memory(error):
                raise StoreError(
                    f"out of memory at {pair.key}; finished shards are kept. Run again with fewer "
                    "--workers, or where there is more"
                ) from error
            return _reason(error)

    def _record(self, pair: Pair) -> Record:
        clean = read_rgb(pair.clean)
        degraded = read_rgb(pair.degraded) if self.paired else clean
        if degraded.shape != clean.shape:
            raise ImageError(
                f"{pair.degraded} is {degraded.shape[1]}x{degraded.shape[0]}, {pair.clean} is "
                f"{clean.shape[1]}x{clean.shape[0]}; a pair must be of one size"
            )
        assert self.masks_of is not None
        masks = self.masks_of(pair, clean if self.source == "clean" else degraded)
        return Record(key=pair.key, degraded=degraded, clean=clean, masks=masks)


def _is_out_of_memory(error: Exception) -> bool:
    # torch's class by name, since most segmenters never import torch.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
