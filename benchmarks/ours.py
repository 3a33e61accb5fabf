"""What the benchmarks call of samprior's store, in one place.

Deliberately thin: who changes the store's or the loader's interface adapts these functions only.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path

import measure
import numpy as np
from delivery import Batch, Sample, collated
from plain_masks import Bools
from readers import Reader
from windows import Window

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.writer import write_shard
from samprior.training.data import Crops
from samprior.training.loader import CropLoader, RawBatch
from samprior.training.sampling import Place

PICTURES = {"clean", "degraded"}
"""Arrays of a shard that are not masks."""


def write_store(root: Path, records: Sequence[Record]) -> MaskStore:
    """A store of one shard that holds the records."""
    pictures = [(record.degraded, record.clean) for record in records]
    return measure.write_store(root, pictures, [record.masks for record in records])


def mask_bytes(root: Path) -> dict[str, int]:
    """Bytes of all files of a store's shards but the pictures', by array; "metadata" is the rest.

    Receipts and the header, which speak of pictures and masks together, are left out.
    """
    held: dict[str, int] = {}
    for shard in sorted((root / "shards").glob("[0-9]*")):
        for file in (file for file in shard.rglob("*") if file.is_file()):
            array = file.relative_to(shard).parts[0]
            if array not in PICTURES:
                name = "metadata" if file.name == "zarr.json" else array
                held[name] = held.get(name, 0) + file.stat().st_size
    return held


def keep_masks(root: Path, sets: Sequence[MaskSet]) -> None:
    """Write a whole shard of the masks alone, receipt and all."""
    records = []
    for number, masks in enumerate(sets):
        nothing = np.broadcast_to(np.uint8(0), (*masks.shape, 3))
        records.append(Record(str(number), nothing, nothing, masks))
    write_shard(root, 0, records, paired=False, images="parent")


def all_planes(store: MaskStore, image: int) -> Bools:
    """Every mask (K, H, W) of an image."""
    return store.masks(image, 0, 0, *store.size(image)).to_masks()


def planes_of(store: MaskStore, window: Window) -> Bools:
    """Planes (K', side, side) of the masks that meet a window."""
    return store.masks(window.image, window.y, window.x, window.side, window.side).to_masks()


def masks_of(store: MaskStore, window: Window) -> MaskSet:
    """The masks that meet a window, as atoms and members: what training gets."""
    return store.masks(window.image, window.y, window.x, window.side, window.side)


def sample(store: MaskStore, window: Window) -> Sample:
    """A crop of both pictures, with its masks as planes."""
    record = store.crop(window.image, window.y, window.x, window.side, window.side)
    return Sample(record.degraded, record.clean, record.masks.to_masks())


def crop(store: MaskStore, window: Window) -> Record:
    """A crop of both pictures, with its masks as atoms and members."""
    return store.crop(window.image, window.y, window.x, window.side, window.side)


class StoreReader(Reader):
    """The store as a reader among others: planes, for this process or for a DataLoader."""

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        return sample(self._store, window)

    @cached_property
    def _store(self) -> MaskStore:
        return MaskStore.open(self.root)


class StoreAtoms(StoreReader):
    """The same without planes: what training gets."""

    def stream(self, windows: Sequence[Window]) -> Iterator[Record]:  # type: ignore[override]
        """Crops with their masks as atoms and members."""
        return (crop(self._store, window) for window in windows)


class WindowCrops(Crops):
    """Crops at given windows, not turned, with all masks: what the peers read."""

    windows: Sequence[Window] = ()

    def place(self, sample: int) -> Place:
        """The window of a sample."""
        image, y, x, _ = self.windows[sample]
        return Place(image, y, x, flip=False, quarter_turns=0)


@lru_cache
def _crops(store: MaskStore, crop_px: int) -> WindowCrops:
    """Kept from run to run, as training keeps it: which masks are worth reading is found once."""
    return WindowCrops(store=store, crop_px=crop_px, seed=0, min_mask_px=0, max_mask_iou=1)


def release() -> None:
    """Let go of stores, so that their files are no longer mapped."""
    _crops.cache_clear()


def batches(
    store: MaskStore,
    windows: Sequence[Window],
    *,
    batch_size: int,
    threads: int,
    planes: bool,
) -> Iterator[Batch | RawBatch]:
    """Crops of windows in order, in batches, read ahead by threads; 0: by the calling one.

    With `planes` they are collated as every peer's are; without, they are what training gets: bytes
    of pictures, and masks as atoms and members.
    """
    if planes:
        yield from _batches_of_planes(store, windows, batch_size, threads)
        return
    crops = _crops(store, windows[0].side)
    object.__setattr__(crops, "windows", windows)  # it is frozen
    num_whole, rest = divmod(len(windows), batch_size)
    for first, size, count in (
        (0, batch_size, num_whole),
        (num_whole * batch_size, rest, min(rest, 1)),
    ):
        if count:
            yield from CropLoader(
                crops=crops, batch_size=size, first=first, num_batches=count, threads=threads
            )


def _batches_of_planes(
    store: MaskStore, windows: Sequence[Window], batch_size: int, threads: int
) -> Iterator[Batch]:
    """What every peer delivers."""

    def read(first: int) -> Batch:
        return collated([sample(store, each) for each in windows[first : first + batch_size]])

    starts = range(0, len(windows), batch_size)
    if threads == 0:
        yield from map(read, starts)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Batch]] = deque()
        for first in starts:
            ahead.append(pool.submit(read, first))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        yield from (future.result() for future in ahead)
