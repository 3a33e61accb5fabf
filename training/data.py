"""Random paired crops of a store with their masks, and the batches that training gets.

Letters: B crops in a batch, h x w pixels of a crop.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import ConfigError
from samprior.training.priors.regions import RegionBatch, dropout_masks, keep_masks
from samprior.training.sampling import DROPOUT, PLACES, Draws, Place, image_of
from samprior.training.turns import turn_atoms, turn_picture


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


@dataclass(frozen=True, kw_only=True)
class Crops:
    """The endless sequence of training crops of a store; safe in several threads."""

    store: MaskStore
    crop_px: int
    """Side of the square crops, pixels."""
    seed: int
    augment: bool = True
    """Flips and quarter turns."""
    min_mask_px: int = 64
    """Smaller masks of an image are left out, pixels."""
    max_mask_iou: float = 0.9
    """A mask whose IoU with a larger kept one is above this is left out."""
    mask_dropout: float = 0.0
    """Share of the masks hidden at random."""
    outline_tries: int = 1
    """Places drawn per crop, of which the one with most mask outlines is taken; 1 draws evenly."""
    _keep: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.crop_px < 1 or self.seed < 0:
            raise ConfigError(
                f"crops have at least a pixel and a seed of 0 or more, got {self.crop_px} and "
                f"{self.seed}"
            )
        require_croppable(self.store, self.crop_px)
        if self.outline_tries < 1:
            raise ConfigError(f"data.outline_tries must be at least 1, got {self.outline_tries}")

    def place(self, sample: int) -> Place:
        """Where the crop number `sample` of the sequence lies: the same at every call."""
        index = image_of(self.seed, sample, len(self.store))
        height, width = self.store.size(index)
        room = (height - self.crop_px + 1, width - self.crop_px + 1)
        y, x, flip, turns, *more = Draws(self.seed, sample, PLACES).below(
            *room, 2, 4, *room * (self.outline_tries - 1)
        )
        if more:
            tries = [(y, x), *zip(more[::2], more[1::2], strict=True)]
            side = self.crop_px
            outlines = [self.store.outline(index, *place, side, side) for place in tries]
            y, x = tries[int(np.argmax(outlines))]
        return Place(index, y, x, bool(flip and self.augment), turns if self.augment else 0)

    def read(
        self, sample: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], MaskSet, str]:
        """The crop number `sample`: degraded and clean (h, w, 3), masks, key."""
        place = self.place(sample)
        degraded, clean = np.empty((2, self.crop_px, self.crop_px, 3), np.uint8)
        self.read_pictures(place, degraded, clean)
        return degraded, clean, self.masks(sample, place), self.store.keys[place.index]

    def read_pictures(
        self, place: Place, degraded: npt.NDArray[np.uint8], clean: npt.NDArray[np.uint8]
    ) -> None:
        """Read the pictures of a place into arrays (h, w, 3)."""
        if not place.flip and not place.quarter_turns:
            self.store.read_pictures(place.index, place.y, place.x, degraded, clean)
            return
        straight = np.empty((2, *degraded.shape), np.uint8)
        self.store.read_pictures(place.index, place.y, place.x, *straight)
        for picture, out in zip(straight, (degraded, clean), strict=True):
            turn_picture(picture, place, out)

    def masks(self, sample: int, place: Place) -> MaskSet:
        """The masks of a place that are worth fusing, less those that dropout hides."""
        keep = self._kept(place.index)
        if self.mask_dropout:
            # Its own draws, so that dropout never changes which crop is seen.
            rng = Draws(self.seed, sample, DROPOUT).generator()
            keep = keep & dropout_masks(len(keep), rng, share=self.mask_dropout)
        masks = self.store.masks(
            place.index, place.y, place.x, self.crop_px, self.crop_px, keep=keep
        )
        if not place.flip and not place.quarter_turns:
            return masks
        atoms = turn_atoms(masks.atoms, place)
        return MaskSet.counted(atoms, masks.members, masks.columns, atom_areas=masks.atom_areas)

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


def require_croppable(store: MaskStore, crop_px: int) -> None:
    """Check that a store can be trained on.

    Raises:
        StoreError: shards are missing.
        ConfigError: images without degraded sides, or smaller than a crop.
    """
    store.require_complete()
    if not store.paired:
        raise ConfigError(
            f"{store.url} holds images without degraded sides; train on a paired dataset"
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
    for receipt in store.stored_receipts():
        digest.update(receipt.to_json())
    return digest.hexdigest()


def to_tensor(images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """uint8 (H, W, 3) images of one size as float32 (B, 3, H, W) in [0, 1]."""
    return to_floats(torch.from_numpy(np.stack(images)))


def to_floats(pictures: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) as float32 (..., 3, H, W) in [0, 1], contiguous, on the same device."""
    floats = pictures.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    # A tensor on the device: of a plain number a GPU takes the reciprocal, which rounds.
    return floats.div_(torch.full((), 255.0, device=pictures.device))
