"""Read batches of crops ahead by threads into buffers that are used again.

Threads, not worker processes: what a process reads has to be copied to the one that trains, which
takes longer than reading it. Pictures stay bytes until they are on the device.

Letters: B crops in a batch, h x w pixels of a crop.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from samprior.storage.errors import ConfigError
from samprior.training import batches
from samprior.training.data import Batch, Crops, to_floats
from samprior.training.priors.regions import RegionBatch
from samprior.training.sampling import Place, share_of_rank


class Buffer:
    """Room for what is large in a batch, which a GPU may still be copying from."""

    def __init__(self, batch_size: int, crop_px: int, *, pinned: bool) -> None:
        self.pictures = torch.empty(
            (2, batch_size, crop_px, crop_px, 3), dtype=torch.uint8, pin_memory=pinned
        )
        self.pinned = pinned
        self.copied: torch.cuda.Event | None = None

    @cached_property
    def atoms(self) -> Tensor:
        """int32 (B, h, w); made when it is first asked for, as not all stages read masks."""
        return torch.empty(self.pictures.shape[1:4], dtype=torch.int32, pin_memory=self.pinned)

    def wait(self) -> None:
        """Wait until the last copy from here is done."""
        if self.copied is not None:
            self.copied.synchronize()
            self.copied = None


@dataclass(frozen=True)
class RawBatch:
    """A batch as it was read. Pictures and atoms are overwritten once the next batch is taken."""

    buffer: Buffer
    regions: RegionBatch | None
    """The masks of the crops; None for stages that don't look at them."""
    keys: tuple[str, ...]
    """Images that the crops come from."""
    samples: range
    """Places of the crops in the sequence; the next batch of one rank begins at `samples.stop`."""

    @property
    def degraded(self) -> Tensor:
        """uint8 (B, h, w, 3)."""
        return self.buffer.pictures[0]

    @property
    def clean(self) -> Tensor:
        """uint8 (B, h, w, 3)."""
        return self.buffer.pictures[1]

    def to(self, device: torch.device) -> Batch:
        """The batch as floats on a device, in memory of its own."""
        pictures = self.buffer.pictures.to(device, non_blocking=True)
        regions = self.regions.to(device, non_blocking=True) if self.regions else None
        if regions and device.type == "cpu":
            regions = replace(regions, atoms=regions.atoms.clone())
        if device.type == "cuda":
            self.buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch
            self.buffer.copied.record()
        degraded, clean = to_floats(pictures)
        return Batch(degraded, clean, regions, self.keys, self.samples)


@dataclass(frozen=True, kw_only=True)
class CropLoader:
    """Batches of a sequence of crops, in order, from any sample on, for one rank of several.

    The crops are those of the sequence, whatever the numbers of threads, ranks and batches.
    """

    crops: Crops
    batch_size: int
    first: int = 0
    """Sample of the sequence to begin at; of a broken-off run, the number of samples seen."""
    num_batches: int | None = None
    """Batches of this rank; None goes on for ever."""
    strides: Sequence[int] | None = ()
    """Strides at which masks are pooled; None reads no masks."""
    threads: int = 2
    """Threads that read ahead; 0 reads in the calling one."""
    rank: int = 0
    world_size: int = 1
    pinned: bool = False
    """Whether buffers are page-locked, for copies to a GPU that don't wait."""

    def __post_init__(self) -> None:
        counts = (self.first, self.threads, self.num_batches or 0)
        if self.batch_size < 1 or min(counts) < 0 or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                "a loader needs a batch of at least 1, first, threads and num_batches of 0 or more "
                f"and a rank below the world size, got {self.batch_size}, {self.first}, "
                f"{self.threads}, {self.num_batches}, {self.rank} of {self.world_size}"
            )

    def __iter__(self) -> Iterator[RawBatch]:
        """Read from `first` on; each call begins anew."""
        # One more is in the caller's hands, and one is about to be.
        buffers = deque(
            Buffer(self.batch_size, self.crops.crop_px, pinned=self.pinned)
            for _ in range(self.threads + 2)
        )
        if not self.threads:
            for number in self._numbers():
                yield self._read(number, buffers[0])
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="samprior-crops") as pool:
            ahead: deque[Future[RawBatch]] = deque()
            try:
                for number in self._numbers():
                    buffers.rotate(-1)
                    ahead.append(pool.submit(self._read, number, buffers[0]))
                    if len(ahead) > self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _numbers(self) -> Iterator[int]:
        number = 0
        while self.num_batches is None or number < self.num_batches:
            yield number
            number += 1

    def _read(self, number: int, buffer: Buffer) -> RawBatch:
        samples = share_of_rank(
            self.first, self.batch_size, number, rank=self.rank, world_size=self.world_size
        )
        return read_batch(self.crops, samples, buffer, strides=self.strides)


def read_batch(
    crops: Crops, samples: range, buffer: Buffer, *, strides: Sequence[int] | None
) -> RawBatch:
    """Read some crops of the sequence into a buffer; masks pooled for `strides`, or not read."""
    places = [crops.place(sample) for sample in samples]
    buffer.wait()
    _read_pictures(crops, samples, places, buffer)
    regions = None
    if strides is not None:
        regions = _read_regions(crops, samples, places, buffer).with_cells(strides)
    keys = tuple(crops.store.keys[place.index] for place in places)
    return RawBatch(buffer, regions, keys, samples)


def _read_pictures(crops: Crops, samples: range, places: Sequence[Place], buffer: Buffer) -> None:
    pictures = buffer.pictures.numpy()
    are_read = batches.read_pictures(crops.store, places, pictures)
    for sample, place, degraded, clean in zip(samples, places, *pictures, strict=True):
        if are_read:
            crops.mix_sample(sample, degraded, clean)
        else:
            crops.read_sample(sample, place, degraded, clean)


def _read_regions(
    crops: Crops, samples: range, places: Sequence[Place], buffer: Buffer
) -> RegionBatch:
    keeps = [crops.keep(sample, place) for sample, place in zip(samples, places, strict=True)]
    regions = batches.read_regions(crops.store, places, keeps, buffer.atoms.numpy())
    if regions is not None:
        return regions
    return RegionBatch.collate(
        [crops.masks(sample, place) for sample, place in zip(samples, places, strict=True)]
    )


class CropDataset(IterableDataset[dict[str, Any]]):
    """The same batches for a `torch.utils.data.DataLoader` with `batch_size=None`.

    With any number of workers the batches come in the order of the sequence. Worker processes copy
    what they read, so `CropLoader` is faster.
    """

    def __init__(self, loader: CropLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches by name: `degraded`, `clean` (uint8), `regions`, `keys`, `first` (sample)."""
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        loader = self.loader
        for number in loader._numbers():
            # DataLoader takes one batch of each worker in turn.
            if number % workers == mine:
                buffer = Buffer(loader.batch_size, loader.crops.crop_px, pinned=False)
                raw = loader._read(number, buffer)
                yield {
                    "degraded": raw.degraded,
                    "clean": raw.clean,
                    "regions": raw.regions,
                    "keys": raw.keys,
                    "first": raw.samples.start,
                }
