"""Masks from decoded prompts: SAM's two transposed convolutions, as matrix products.

A transposed convolution with kernel and stride 2 is one product per token, so the parts of the
image that are padding, and the prompts whose masks are dropped anyway, are left out exactly.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from samprior.pipeline.everything.decoder import Decoded
from samprior.pipeline.everything.image_side import ImageSide

LOGITS_PER_TOKEN = 4
"""Rows and columns of logits that an image token spans: two convolutions of stride 2."""


class Upscaling:
    """The official decoder's `output_upscaling` and the product with the mask tokens.

    Letters: Q prompts, C channels, J directions, n image tokens that are wanted; 4 is the 2 x 2
    sub-pixels of a convolution.
    """

    @torch.no_grad()
    def __init__(self, decoder: MaskDecoder) -> None:
        first, norm, _, second, _ = decoder.output_upscaling
        self._norm = norm
        self._first = first.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 4·C/4)
        shift = decoder.transformer.layers[-1].norm4.bias
        self._first_bias = shift @ self._first + first.bias.repeat(4)
        self._second = second.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4·C/8, C/4)
        self._second_bias = second.bias.repeat(4)[:, None]

    @torch.no_grad()
    def image(self, image: ImageSide, *, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
        """The first convolution of the part that prompts share, (rows, columns, C).

        Of a grid of (rows, columns) image tokens, the first `wanted` rows and columns.
        """
        rows, columns = wanted
        shared = image.final_shared.unflatten(1, grid)[:, :rows, :columns]  # (C, rows, columns)
        return torch.einsum("cyx,cd->yxd", shared, self._first)

    @torch.no_grad()
    def __call__(
        self, shared: Tensor, decoded: Decoded, prompts: Tensor | slice, *, grid: tuple[int, int]
    ) -> Tensor:
        """Logits (Q, masks, 4·rows, 4·columns) of some prompts, of the tokens in `shared`."""
        rows, columns, channels = shared.shape
        gain, mixed = (
            part[prompts].unflatten(-1, grid)[..., :rows, :columns].flatten(2)
            for part in (decoded.tokens.gain, decoded.tokens.coefficients)
        )
        directions = decoded.tokens.directions[prompts] @ self._first
        up = shared.view(-1, channels) * gain.mT  # (Q, n, C)
        up = up.baddbmm_(mixed.mT, directions).add_(self._first_bias)
        up = up.view(len(up), -1, len(self._norm.weight))  # (Q, 4n, C/4)
        up = F.layer_norm(up, up.shape[-1:], self._norm.weight, self._norm.bias, self._norm.eps)
        weights = self._second.expand(len(up), -1, -1)
        up = F.gelu(torch.baddbmm(self._second_bias, weights, F.gelu(up).mT))  # (Q, 4·C/8, 4n)
        mixtures = decoded.mixtures[prompts]
        masks = mixtures[:, None] @ up.unflatten(1, (4, -1))  # (Q, 4, masks, 4n)
        masks = masks.view(len(up), 2, 2, -1, rows, columns, 2, 2).permute(0, 3, 4, 6, 1, 5, 7, 2)
        return masks.reshape(len(up), -1, LOGITS_PER_TOKEN * rows, LOGITS_PER_TOKEN * columns)
