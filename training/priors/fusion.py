"""SPF: fuse the masks of an image into its restored version, for training only.

Follows the outline of Zhang et al., "Distilling Semantic Priors from SAM to Efficient Image
Restoration Models" (CVPR 2024), after their abstract; the layers and the mask encodings below are
our choices, as the abstract gives none.

Letters: B images of H x W pixels, K masks m_k of one image, Cs channels of mask features.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage.choices import check_choice
from samprior.training.priors.regions import RegionBatch

MaskRepr = Literal["map", "idmap", "topk"]
"""How a varying number of masks becomes a fixed number of channels."""

TOP_K = 32
"""Masks that `topk` shows as planes of their own."""

MASK_CHANNELS: dict[str, int] = {"map": 4, "idmap": 2, "topk": TOP_K + 1}
"""Cs of each representation, the boundary channel included."""


def mask_features(image: Tensor, regions: RegionBatch, *, mask_repr: MaskRepr = "map") -> Tensor:
    """Encode the masks of `image` (B, 3, H, W) as S (B, Cs, H, W) with values in [0, 1].

    The last channel is 1 along the boundaries of the top-most masks; the others are:

    * `map`: each pixel is the mean over its masks of the mask's mean colour; pixels in no mask
      get the mean colour of all such pixels. SAM-Deblur's MAP, except that it adds overlapping
      masks up where we divide by max(1, number of masks over the pixel).
    * `idmap`: one number from the places of the pixel's masks in the list (SAM-Deblur's CAT).
    * `topk`: membership in the 32 largest masks, one channel each, zero where there are fewer.

    Raises:
        UsageError: an unknown representation, or masks of another size than the images.
    """
    check_choice("mask_repr", mask_repr, MASK_CHANNELS)
    regions.check_image(image)
    if mask_repr == "map":
        atom_values = _mean_colours(image, regions)
    elif mask_repr == "idmap":
        atom_values = _id_values(regions)
    else:
        atom_values = regions.in_largest(TOP_K)
    encoded = regions.to_pixels(atom_values.to(image.dtype))
    return torch.cat([encoded, mask_boundaries(regions).to(image.dtype)], dim=1)


def mask_boundaries(regions: RegionBatch) -> Tensor:
    """Bool (B, 1, H, W): whether a 4-neighbour has another top-most mask (or none, or one)."""
    top = regions.atom_top.index_select(0, regions.atoms.reshape(-1)).reshape(regions.atoms.shape)
    edge = torch.zeros_like(top, dtype=torch.bool)
    down = top[:, 1:] != top[:, :-1]
    across = top[:, :, 1:] != top[:, :, :-1]
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    return edge[:, None]


def _mean_colours(image: Tensor, regions: RegionBatch) -> Tensor:
    """MAP per atom: (A, 3), in float64 (exact for constant images)."""
    atom_sums = regions.sum_by_atom(image)
    mask_means = regions.sum_by_mask(atom_sums) / regions.mask_areas.clamp(min=1)[:, None]
    held = regions.sum_of_masks(mask_means) / regions.atom_depth.clamp(min=1)[:, None]
    # Atoms without a mask are the first ones of each image: their mean is that of the uncovered.
    uncovered = atom_sums / regions.atom_areas.clamp(min=1)[:, None]
    return torch.where(regions.atom_depth[:, None] > 0, held, uncovered)


def _id_values(regions: RegionBatch) -> Tensor:
    """CAT per atom: (A, 1). Mask k adds 2(k+1), or 2(255-k)-1 from k = 127 on; clipped, / 255."""
    k = regions.mask_position
    per_mask = torch.where(k < 127, 2 * (k + 1), 2 * (255 - k) - 1)
    return regions.sum_of_masks(per_mask[:, None].double()).clamp(0, 255) / 255


class SemanticPriorFusion(nn.Module):
    """Refine restored images with the masks; starts as the identity. 42,019 parameters for `map`.

    The image's features are scaled and shifted by factors that both the image and the masks
    decide, pass one residual block, and give a correction whose last convolution starts at zero.

    Args:
        mask_repr: `map`, `idmap` or `topk`, see `mask_features`.
        channels: width of all inner layers.
        use_masks: False feeds zeros in place of the masks: the control that tells what the masks
            add from what a second network adds. May be set at any time.
    """

    def __init__(
        self, mask_repr: MaskRepr = "map", channels: int = 32, *, use_masks: bool = True
    ) -> None:
        super().__init__()
        check_choice("mask_repr", mask_repr, MASK_CHANNELS)
        self.mask_repr: MaskRepr = mask_repr
        self.use_masks = use_masks
        self.from_image = nn.Conv2d(3, channels, 3, padding=1)
        self.from_masks = nn.Conv2d(MASK_CHANNELS[mask_repr], channels, 3, padding=1)
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.modulate = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.residual1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.residual2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.to_image = nn.Conv2d(channels, 3, 3, padding=1)
        nn.init.zeros_(self.to_image.weight)
        assert self.to_image.bias is not None
        nn.init.zeros_(self.to_image.bias)

    def forward(self, image: Tensor, regions: RegionBatch) -> Tensor:
        """Refine (B, 3, H, W) in [0, 1]; the result has the same shape and isn't clamped.

        Pass a detached image where the gradient must stop at it.

        Raises:
            UsageError: masks of another size than the images.
        """
        a = _leaky(self.from_image(image))
        b = _leaky(self.from_masks(self._features(image, regions)))
        scale, shift = self.modulate(_leaky(self.mix(torch.cat([a, b], 1)))).chunk(2, dim=1)
        f = a * (1 + scale) + shift
        f = f + self.residual2(_leaky(self.residual1(f)))
        refined: Tensor = image + self.to_image(f)
        return refined

    def _features(self, image: Tensor, regions: RegionBatch) -> Tensor:
        if self.use_masks:
            return mask_features(image, regions, mask_repr=self.mask_repr)
        batch, _, height, width = image.shape
        return image.new_zeros(batch, MASK_CHANNELS[self.mask_repr], height, width)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)
