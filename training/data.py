"""Random paired crops with their masks, read ahead by threads.

Which crop comes when is a pure function of (seed, samples seen), so resume is one integer, for
any number of threads.

Letters: B crops in a batch, h x w pixels of a crop.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import ConfigError
from samprior.training.priors.regions import RegionBatch, dropout_masks, keep_masks

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Batch:
    """What one training step gets."""

    degraded: Tensor
    """float32 (B, 3, h, w) in [0, 1]."""
    clean: Tensor
    """float32 (B, 3, h, w) in [0, 1]."""
    regions: RegionBatch | None
    """The masks of the crops; None for stages that don't look at them."""
    keys: tuple[str, ...]
    """Images that the crops come from."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.degraded.to(device, non_blocking=True),
            self.clean.to(device, non_blocking=True),
            self.regions.to(device, non_blocking=True) if self.regions else None,
            self.keys,
        )


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


@dataclass(frozen=True, kw_only=True)
class Crops:
    """The endless sequence of training crops of a store."""

    store: MaskStore
    crop_px: int
    seed: int
    augment: bool = True
    min_mask_px: int = 64
    max_mask_iou: float = 0.9
    mask_dropout: float = 0.0
    _keep: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_croppable(self.store, self.crop_px)

    def place(self, sample: int) -> Place:
        """Where the crop number `sample` of the sequence lies: the same at every call."""
        epoch, position = divmod(sample, len(self.store))
        index = int(permutation(self.seed, epoch, len(self.store))[position])
        rng = self._rng(sample, purpose=0)
        height, width = self.store.size(index)
        y = int(rng.integers(height - self.crop_px + 1))
        x = int(rng.integers(width - self.crop_px + 1))
        flip, turns = (bool(rng.integers(2)), int(rng.integers(4))) if self.augment else (False, 0)
        return Place(index, y, x, flip, turns)

    def read(
        self, sample: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], MaskSet, str]:
        """The crop number `sample`: degraded and clean (h, w, 3), masks, key."""
        place = self.place(sample)
        degraded, clean = self.pictures(place)
        return degraded, clean, self.masks(sample, place), self.store.keys[place.index]

    def pictures(self, place: Place) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Degraded and clean (h, w, 3) of a place."""
        degraded, clean = self.store.pictures(
            place.index, place.y, place.x, self.crop_px, self.crop_px
        )
        return turned(degraded, place), turned(clean, place)

    def masks(self, sample: int, place: Place) -> MaskSet:
        """The masks of a place that are worth fusing, less those that dropout hides."""
        keep = self._kept(place.index)
        if self.mask_dropout:
            # Its own generator, so that dropout never changes which crop is seen.
            rng = self._rng(sample, purpose=1)
            keep = keep & dropout_masks(len(keep), rng, share=self.mask_dropout)
        masks = self.store.masks(
            place.index, place.y, place.x, self.crop_px, self.crop_px, keep=keep
        )
        return replace(masks, atoms=turned(masks.atoms, place))

    def _kept(self, index: int) -> npt.NDArray[np.bool_]:
        """Which masks of an image are worth fusing; found once (100 bytes an image)."""
        if index not in self._keep:
            table = self.store.table(index)
            self._keep[index] = keep_masks(
                table.areas,
                table.intersections,
                min_area_px=self.min_mask_px,
                max_iou=self.max_mask_iou,
            )
        return self._keep[index]

    def batch(self, first: int, size: int, *, strides: Sequence[int] | None) -> Batch:
        """The crops `first` to `first + size - 1`; masks pooled for `strides`, or not read."""
        places = {sample: self.place(sample) for sample in range(first, first + size)}
        pictures = [self.pictures(place) for place in places.values()]
        regions = None
        if strides is not None:
            sets = [self.masks(sample, place) for sample, place in places.items()]
            regions = RegionBatch.collate(sets, strides=strides)
        return Batch(
            degraded=to_tensor([degraded for degraded, _ in pictures]),
            clean=to_tensor([clean for _, clean in pictures]),
            regions=regions,
            keys=tuple(self.store.keys[place.index] for place in places.values()),
        )

    def batches(
        self, first: int, size: int, count: int, *, strides: Sequence[int] | None, threads: int
    ) -> Iterator[Batch]:
        """`count` batches in order from sample `first` on, read ahead by `threads` threads."""
        with ThreadPoolExecutor(threads, thread_name_prefix="samprior-crops") as pool:
            ahead: deque[Future[Batch]] = deque()
            for number in range(count + threads):
                if number < count:
                    start = first + number * size
                    ahead.append(pool.submit(self.batch, start, size, strides=strides))
                if number >= threads:
                    yield ahead.popleft().result()

    def _rng(self, sample: int, *, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, sample, purpose))


@lru_cache(maxsize=4)  # threads work on at most two neighbouring epochs
def permutation(seed: int, epoch: int, length: int) -> npt.NDArray[np.int64]:
    """The order of one epoch: each index once, a pure function of its arguments."""
    order = np.random.default_rng((seed, epoch, length)).permutation(length)
    order.flags.writeable = False
    return order


def require_croppable(store: MaskStore, crop_px: int) -> None:
    """Check that a store can be trained on.

    Raises:
        StoreError: shards are missing.
        ConfigError: images without degraded sides, or smaller than a crop.
    """
    store.require_complete()
    if not store.paired:
        raise ConfigError(
            f"{store.root} holds images without degraded sides; train on a paired dataset"
        )
    for index, key in enumerate(store.keys):
        height, width = store.size(index)
        if min(height, width) < crop_px:
            raise ConfigError(f"data.crop_px is {crop_px}, but {key} is {width}x{height}; lower it")


def content_digest(store: MaskStore) -> str:
    """Hex SHA-256 of all that a store holds.

    Its fingerprint says only how it was made: two noise levels of one listing share it.
    """
    digest = hashlib.sha256()
    for receipt in store.receipts.values():
        digest.update(receipt.to_json())
    return digest.hexdigest()


def turned(image: npt.NDArray[Scalar], place: Place) -> npt.NDArray[Scalar]:
    """An image (H, W, ...) flipped and turned as `place` says, contiguous."""
    if place.flip:
        image = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(image, place.quarter_turns))


def to_tensor(images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """uint8 (H, W, 3) images of one size as float32 (B, 3, H, W) in [0, 1]."""
    # In NumPy: torch would start a pool of threads of its own in every reading thread.
    stack = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32, order="C")
    return torch.from_numpy(np.divide(stack, np.float32(255), out=stack))
