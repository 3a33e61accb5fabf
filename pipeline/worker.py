"""What a worker of the job does: turn the pairs of a shard into masks, and store them.

The same class lives in a Ray actor or, with `workers=0`, in the process of the job itself.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from samprior.pipeline.datasets import Pair
from samprior.pipeline.plan import ShardPlan, Source, input_bytes
from samprior.pipeline.shortages import has_vanished, is_of_the_gpu, is_out_of_memory
from samprior.storage.errors import ImageError, MachineError, StoreError
from samprior.storage.images import Rgb, read_rgb
from samprior.storage.manifest import Inputs, Receipt
from samprior.storage.masks import MaskSet
from samprior.storage.places import Place
from samprior.storage.writer import Record, write_shard

T = TypeVar("T")

MasksOf = Callable[[Pair, Rgb], MaskSet]
"""Masks of a pair, given the picture that is to be segmented."""


@runtime_checkable
class ManyMasksOf(Protocol):
    """A `MasksOf` that works faster on several pictures at once."""

    @property
    def images_at_once(self) -> int:
        """How many pictures it wants at a time; a shard may end with fewer."""

    def __call__(self, pair: Pair, image: Rgb, /) -> MaskSet:
        """Masks of one picture."""

    def many(self, pairs: Sequence[Pair], images: Sequence[Rgb]) -> Iterator[MaskSet]:
        """Masks of each picture, in order."""

    def take_notes(self) -> tuple[str, ...]:
        """What there is to say about the work since the last call, for the receipt."""


class ShardWriter(Protocol):
    """Writes one shard whole, and then its receipt; such as `storage.writer.write_shard`."""

    def __call__(
        self,
        root: Path | Place,
        shard: int,
        records: Sequence[Record],
        *,
        paired: bool,
        inputs: Mapping[str, Inputs] | None = None,
        quarantined: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> Receipt:
        """Write; the arguments are those of `write_shard`."""


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


class UnfitError(StoreError):
    """A worker's process lacks memory or its GPU failed, with an image that may be why."""

    def __init__(self, message: str, *, key: str, reason: str) -> None:
        super().__init__(message)
        self.key = key
        self.reason = reason
        """What the receipt says of the image if it does so again and again."""

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str]]:
        return partial(type(self), key=self.key, reason=self.reason), (str(self),)


def inputs_of(maker: MaskMaker, pair: Pair) -> Inputs:
    """What a receipt says of a pair's files: both pictures, and the masks' own if there are any."""
    return (*input_bytes(pair), *maker.inputs(pair))


@dataclass(frozen=True)
class Look:
    """Where a worker is in its task."""

    images: int
    """Finished, skipped and quarantined ones included."""
    masks: int
    quarantined: int
    at: tuple[str, ...]
    """Keys of the images that are being segmented; none while it stores, or waits."""


IDLE = Look(0, 0, 0, ())


class ShardWorker:
    """Writes shards, one at a time; lives in an actor, or in this process."""

    def __init__(
        self,
        root: Path | Place,
        maker: MaskMaker,
        *,
        source: Source,
        paired: bool,
        store_shard: ShardWriter = write_shard,
        num_threads: int | None = None,
    ) -> None:
        if num_threads is not None:
            # Read by torch when `build` imports it; importing it here would cost seconds.
            os.environ["OMP_NUM_THREADS"] = str(num_threads)
        self.root = root
        self.maker = maker
        self.source = source
        self.paired = paired
        self.store_shard = store_shard
        self.on_image: Callable[[], None] | None = None
        self._look = IDLE
        self.masks_of: MasksOf | None = None
        self._notes: list[str] = []

    def load(self) -> None:
        """Build the maker, unless that is done.

        Not part of the construction, because Ray gives the error of a call as it was raised, but
        of one that is raised in an actor's constructor only the text.
        """
        if self.masks_of is None:
            self.masks_of = self.maker.build()

    def look(self) -> Look:
        """How far the task at hand is; an actor answers while it works."""
        return self._look

    def write(self, shard: ShardPlan, skip: Mapping[str, str] | None = None) -> Receipt:
        """Segment and store a shard; images that can't be used are quarantined with the reason.

        `skip` has keys that are quarantined unseen, and the reason.
        """
        self.load()
        records = []
        quarantined = dict(skip or {})
        num_masks = 0
        wanted = [pair for pair in shard.pairs if pair.key not in quarantined]
        for pair, made in self._all_made(wanted, num_skipped=len(quarantined)):
            if isinstance(made, Record):
                records.append(made)
                num_masks += len(made.masks)
            else:
                quarantined[pair.key] = made
            num_done = len(records) + len(quarantined)
            self._look = Look(num_done, num_masks, len(quarantined), self._look.at)
            if self.on_image:
                self.on_image()
        self._look = replace(self._look, at=())
        receipt = self.store_shard(
            self.root,
            shard.shard,
            records,
            paired=self.paired,
            inputs={pair.key: inputs_of(self.maker, pair) for pair in shard.pairs},
            quarantined=quarantined,
            notes=self._take_notes(),
        )
        self._look = IDLE
        return receipt

    def probe(self, pairs: Sequence[Pair]) -> None:
        """Segment images and store nothing: whether they end this process."""
        self.load()
        for _ in self._all_made(pairs):
            self._look = replace(self._look, images=self._look.images + 1)
        self._look = IDLE
        self._take_notes()

    def _all_made(
        self, pairs: Sequence[Pair], *, num_skipped: int = 0
    ) -> Iterator[tuple[Pair, Record | str]]:
        """`_made` of all pairs, in batches; says before each what it will be at."""
        self._look = Look(num_skipped, 0, num_skipped, ())
        while pairs:
            # Asked each time: a segmenter that runs out of memory goes on with fewer.
            batch, pairs = pairs[: self._images_at_once], pairs[self._images_at_once :]
            self._look = replace(self._look, at=tuple(pair.key for pair in batch))
            yield from self._made(batch)

    def _take_notes(self) -> tuple[str, ...]:
        notes, self._notes = tuple(self._notes), []
        theirs = self.masks_of.take_notes() if isinstance(self.masks_of, ManyMasksOf) else ()
        return notes + theirs

    @property
    def _images_at_once(self) -> int:
        return self.masks_of.images_at_once if isinstance(self.masks_of, ManyMasksOf) else 1

    def _made(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Record | str]]:
        """Each pair with its record, or with the reason why it can't be used.

        Raises:
            OSError, StoreError: the disk, the network or the memory failed, not an image.
        """
        read = [(pair, _tried(pair, partial(self._pictures, pair))) for pair in pairs]
        whole = [(pair, pictures) for pair, pictures in read if not isinstance(pictures, str)]
        masks = iter(self._masks(whole))
        for pair, pictures in read:
            if isinstance(pictures, str):
                yield pair, pictures
                continue
            made = next(masks)
            yield pair, made if isinstance(made, str) else Record(pair.key, *pictures, made)

    def _pictures(self, pair: Pair) -> tuple[Rgb, Rgb]:
        """The degraded and the clean picture; the clean one twice where there is no other."""
        clean = read_rgb(pair.clean)
        degraded = read_rgb(pair.degraded) if self.paired else clean
        if degraded.shape != clean.shape:
            raise ImageError(
                f"{pair.degraded} is {degraded.shape[1]}x{degraded.shape[0]}, {pair.clean} is "
                f"{clean.shape[1]}x{clean.shape[0]}; a pair must be of one size"
            )
        return degraded, clean

    def _masks(self, read: Sequence[tuple[Pair, tuple[Rgb, Rgb]]]) -> Sequence[MaskSet | str]:
        """Masks of each pair's source picture, or why there are none."""
        masks_of = self.masks_of
        assert masks_of is not None
        # Of "folder" the maker reads pictures of its own, and looks at the size alone.
        of_degraded = self.source == "degraded"
        sources = [degraded if of_degraded else clean for _, (degraded, clean) in read]
        pairs = [pair for pair, _ in read]
        if isinstance(masks_of, ManyMasksOf) and len(pairs) > 1:
            # If one picture fails all are done again one by one, which tells the one.
            try:
                return list(masks_of.many(pairs, sources))
            except Exception as error:
                keys = f"{pairs[0].key} to {pairs[-1].key}"
                self._notes.append(f"batch {keys} done one by one: {_reason(error)}")
        return [
            _tried(pair, partial(masks_of, pair, image))
            for pair, image in zip(pairs, sources, strict=True)
        ]


def _tried(pair: Pair, work: Callable[[], T]) -> T | str:
    """What the work gives, or why the pair can't be used.

    Raises:
        OSError, StoreError: the disk, the network or the memory failed, not the image.
    """
    try:
        return work()
    except Exception as error:
        # What the machine lacks at the moment says nothing against the image.
        if isinstance(error, OSError):
            raise
        if is_out_of_memory(error):
            raise UnfitError(
                f"out of memory at {pair.key}; finished shards are kept. Run again with fewer "
                "workers, or where there is more; with --workers 1 or more a single image that "
                "needs too much is quarantined",
                key=pair.key,
                reason="out of memory",
            ) from error
        if is_of_the_gpu(error):
            raise UnfitError(
                f"the GPU failed at {pair.key} ({_first_line(error)}); finished shards are kept. "
                "Run the same command again",
                key=pair.key,
                reason="the GPU failed",
            ) from error
        if isinstance(error, ImageError) and has_vanished(pair):
            raise MachineError(
                f"the folder of {pair.clean} or {pair.degraded} is gone or empty; put it back (is "
                "it mounted?), then run the same command again: finished shards are kept"
            ) from error
        return _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
