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
from samprior.pipeline.everything.linear import linear

LOGITS_PER_TOKEN = 4
"""Rows and columns of logits that an image token spans: two convolutions of stride 2."""


class Upscaling:
    """The official decoder's `output_upscaling` and the product with the mask tokens.

    Letters: Q prompts, C channels, J directions, R x W image tokens that are wanted; 4 is the
    2 x 2 sub-pixels of a convolution.
    """

    @torch.no_grad()
    def __init__(self, decoder: MaskDecoder) -> None:
        first, norm, _, second, _ = decoder.output_upscaling
        self._norm = norm
        self._first = first.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4·C/4, C)
        shift = decoder.transformer.layers[-1].norm4.bias
        self._first_bias = self._first @ shift + first.bias.repeat(4)
        self._second = second.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4·C/8, C/4)
        self._second_bias = second.bias.repeat(4)

    @torch.no_grad()
    def image(self, image: ImageSide, *, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
        """The first convolution of the part that prompts share, (R, W, C).

        Of a grid of (rows, columns) image tokens, the first `wanted` rows and columns.
        """
        rows, columns = wanted
        shared = image.final_shared.view(-1, *grid)[:, :rows, :columns]  # (C, R, W)
        return torch.einsum("cyx,dc->yxd", shared, self._first)

    @torch.no_grad()
    def __call__(
        self, shared: Tensor, decoded: Decoded, prompts: Tensor | slice, *, grid: tuple[int, int]
    ) -> Tensor:
        """Logits (Q, masks, 4·R, 4·W) of some prompts, of the tokens in `shared` (R, W, C)."""
        rows, columns, _ = shared.shape
        gain, mixed = (
            part[prompts]
            .view(-1, part.shape[1], *grid)[..., :rows, :columns]
            .permute(0, 2, 3, 1)
            .contiguous()
            for part in (decoded.tokens.gain, decoded.tokens.coefficients)
        )  # (Q, R, W, 1 or J)
        up = _products(mixed, self._first @ decoded.tokens.directions[prompts].mT)
        up = up.addcmul_(shared, gain).add_(self._first_bias)  # (Q, R, W, 4·C/4)
        norm = self._norm
        up = up.view(len(up), rows, 4 * columns, -1)
        up = F.gelu(F.layer_norm(up, up.shape[-1:], norm.weight, norm.bias, norm.eps))
        up = F.gelu(linear(up, self._second, self._second_bias))  # (Q, R, 4·W, 4·C/8)
        masks = _products(up.view(len(up), rows, 16 * columns, -1), decoded.mixtures[prompts])
        masks = masks.view(len(up), rows, columns, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
        return masks.reshape(len(up), -1, LOGITS_PER_TOKEN * rows, LOGITS_PER_TOKEN * columns)


def _products(x: Tensor, weights: Tensor) -> Tensor:
    """(Q, R, W, D): a linear layer (D, K) for each of Q maps (R, W, K)."""
    if len(x) == 1:
        return linear(x, weights[0])
    return (x.flatten(1, 2) @ weights.mT).view(*x.shape[:3], -1)
