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
from samprior.training.mixing import RainLayers, add_rain, mix_up
from samprior.training.priors.regions import RegionBatch, dropout_masks, keep_masks
from samprior.training.sampling import (
    DROPOUT,
    MIXED,
    MIXUP,
    PLACES,
    RAIN,
    Augment,
    Draws,
    Place,
    drawn,
    image_of,
)
from samprior.training.turns import turn_atoms, turn_picture

_FINELY = 2**32
"""Parts that a share is told in: the most that `drawn` can tell apart."""


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
    samples: range
    """Places of the crops in the sequence."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """The endless sequence of training crops of a store; safe in several threads."""

    store: MaskStore
    crop_px: int
    """Side of the square crops, pixels."""
    seed: int
    augment: Augment = "flips_turns"
    """Random flips and quarter turns, flips left to right alone, or none."""
    min_mask_px: int = 64
    """Smaller masks of an image are left out, pixels."""
    max_mask_iou: float = 0.9
    """A mask whose IoU with a larger kept one is above this is left out."""
    mask_dropout: float = 0.0
    """Share of the masks hidden at random."""
    outline_tries: int = 1
    """Places drawn per crop, of which the one with most mask outlines is taken; 1 draws evenly."""
    mixup_alpha: float = 0.0
    """Each crop is mixed with another one at a share from Beta(alpha, alpha); 0 mixes none."""
    mixup_share: float = 1.0
    """Share of the crops that are mixed."""
    rain_layers: RainLayers | None = field(default=None, compare=False, repr=False)
    """Layers (H, W) that RainMix lays over crops; None adds no rain."""
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
        room = self._room(index)
        y, x, flip, turns, *more = drawn(
            self.seed, sample, PLACES, *room, 2, 4, *room * (self.outline_tries - 1)
        )
        if more:
            tries = [(y, x), *zip(more[::2], more[1::2], strict=True)]
            side = self.crop_px
            outlines = [self.store.outline(index, *place, side, side) for place in tries]
            y, x = tries[int(np.argmax(outlines))]
        return self._placed(index, y, x, flip, turns)

    def read(
        self, sample: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], MaskSet, str]:
        """The crop number `sample`: degraded and clean (h, w, 3), masks, key."""
        place = self.place(sample)
        degraded, clean = np.empty((2, self.crop_px, self.crop_px, 3), np.uint8)
        self.read_sample(sample, place, degraded, clean)
        return degraded, clean, self.masks(sample, place), self.store.keys[place.index]

    def read_sample(
        self,
        sample: int,
        place: Place,
        degraded: npt.NDArray[np.uint8],
        clean: npt.NDArray[np.uint8],
    ) -> None:
        """Read the pictures of a sample at its place into arrays (h, w, 3), and mix them."""
        self.read_pictures(place, degraded, clean)
        self.mix_sample(sample, degraded, clean)

    def mix_sample(
        self, sample: int, degraded: npt.NDArray[np.uint8], clean: npt.NDArray[np.uint8]
    ) -> None:
        """Add rain to the pictures (h, w, 3) of a sample, and mix them with another's."""
        if self.rain_layers is not None:
            add_rain(degraded, clean, self.rain_layers, Draws(self.seed, sample, RAIN))
        if self.mixup_alpha and self._is_mixed(sample):
            draws = Draws(self.seed, sample, MIXUP)
            others = np.empty_like(degraded), np.empty_like(clean)
            self.read_pictures(self._any_place(draws), *others)
            # Drawn from the store, not from the batch: the same for any number of ranks.
            share = draws.generator().beta(self.mixup_alpha, self.mixup_alpha)
            mix_up((degraded, clean), others, share)

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
        masks = self.store.masks(
            place.index,
            place.y,
            place.x,
            self.crop_px,
            self.crop_px,
            keep=self.keep(sample, place),
        )
        if not place.flip and not place.quarter_turns:
            return masks
        atoms = turn_atoms(masks.atoms, place)
        return MaskSet.counted(atoms, masks.members, masks.columns, atom_areas=masks.atom_areas)

    def keep(self, sample: int, place: Place) -> npt.NDArray[np.bool_]:
        """Which masks of the image count in a sample (K,)."""
        keep = self._kept(place.index)
        if not self.mask_dropout:
            return keep
        # Its own draws, so that dropout never changes which crop is seen.
        rng = Draws(self.seed, sample, DROPOUT).generator()
        return keep & dropout_masks(len(keep), rng, share=self.mask_dropout)

    def _is_mixed(self, sample: int) -> bool:
        # Its own draw, so that the share never changes what a crop is mixed with.
        (drawn_of_all,) = drawn(self.seed, sample, MIXED, _FINELY)
        return drawn_of_all < self.mixup_share * _FINELY

    def _any_place(self, draws: Draws) -> Place:
        (index,) = draws.below(len(self.store))
        return self._placed(index, *draws.below(*self._room(index), 2, 4))

    def _room(self, index: int) -> tuple[int, int]:
        """How many rows and columns of an image a crop can begin at."""
        height, width = self.store.size(index)
        return height - self.crop_px + 1, width - self.crop_px + 1

    def _placed(self, index: int, y: int, x: int, flip: int, turns: int) -> Place:
        flips, turned = self.augment != "none", self.augment == "flips_turns"
        return Place(index, y, x, bool(flip and flips), turns if turned else 0)

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
            raise ConfigError(
                f"data.crop_px is {crop_px}, but image {key} is {width}x{height}; lower it"
            )


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
