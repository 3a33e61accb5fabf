"""The decoder's work on the image that no prompt changes, done once per image.

SAM's two-way transformer updates N image tokens for every prompt. An update adds, to each token,
a mix of J = heads x prompt tokens vectors, and normalises; so with `shared` the tokens of the image
and `directions` the J vectors of a prompt, the tokens are always

    keys = scale * (gain * shared + coefficients.T @ directions) + shift

and a linear map of them is a map of `shared`, which is made here, and one of J vectors. Nothing of
size N x C is computed per prompt. `docs/engine.md` derives the formulas.

Letters: C channels, N image tokens, h heads of d channels.
"""

from dataclasses import dataclass
from typing import Self

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn

from samprior.storage.errors import UsageError


@dataclass(frozen=True, eq=False)
class Weights:
    """The official decoder's layers, and what follows from their weights alone.

    The output projections of the image's attention are centred over the channels, so that sums of
    them have mean 0, as the layer norm wants it.
    """

    first: TwoWayAttentionBlock
    second: TwoWayAttentionBlock
    final: Attention
    final_norm: nn.LayerNorm
    num_heads: int
    first_out: Tensor
    """(C, h·d) centred output projection of the first layer's image attention."""
    first_out_scaled: Tensor
    """(C, h·d) the same times the first norm's scale, centred again."""
    second_out: Tensor
    """(C, h·d) centred output projection of the second layer's image attention."""
    constant: Tensor
    """(C,) centred: the first norm's shift and the second output projection's bias."""

    @classmethod
    @torch.no_grad()
    def of(cls, decoder: MaskDecoder) -> Self:
        """Prepare a decoder's weights; the decoder is not changed.

        Raises:
            UsageError: a decoder that is not built like SAM's.
        """
        transformer = decoder.transformer
        _check_build(transformer)
        first, second = transformer.layers
        first_out = _centred(first.cross_attn_image_to_token.out_proj.weight)
        second_out = second.cross_attn_image_to_token.out_proj
        return cls(
            first=first,
            second=second,
            final=transformer.final_attn_token_to_image,
            final_norm=transformer.norm_final_attn,
            num_heads=transformer.num_heads,
            first_out=first_out,
            first_out_scaled=_centred(first.norm4.weight[:, None] * first_out),
            second_out=_centred(second_out.weight),
            constant=_centred(first.norm4.bias + second_out.bias),
        )


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear map of the image tokens, of which the shared part is done."""

    layer: nn.Linear
    shared: Tensor
    """(h, d, N): the map of the shared part, without its bias."""
    position: Tensor | None
    """(h, d, N): the map of what is added whatever the prompt; None adds nothing."""


@dataclass(frozen=True, eq=False)
class ImageSide:
    """What all prompts on an image share."""

    first_keys: Tensor
    """(h, d, N), as the next two: the first layer's attention, whose image side is all shared."""
    first_values: Tensor
    first_queries: Tensor
    first_cross: Tensor
    """(h, d, N): products of the shared part with the first layer's output projection."""
    first_square: Tensor
    """(N,) squared norm of the shared part."""
    second_keys: Projection
    second_values: Projection
    second_queries: Projection
    second_cross: tuple[Tensor, Tensor, Tensor]
    """Products of the shared part with the first layer's output projection (h, d, N), with the
    second's (h, d, N) and with the constant (N,)."""
    second_square: Tensor
    """(N,)"""
    final_keys: Projection
    final_values: Projection
    final_shared: Tensor
    """(C, N) shared part of the tokens that the masks are drawn from."""

    @classmethod
    @torch.no_grad()
    def of(cls, weights: Weights, embedding: Tensor, position: Tensor) -> Self:
        """Of an image embedding (C, N) with the dense prompt added, and its positions (C, N)."""
        first, second, final = weights.first, weights.second, weights.final
        asked, asking = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        at = embedding + position

        def heads(matrix: Tensor) -> Tensor:
            return matrix.view(weights.num_heads, -1, matrix.shape[-1])

        def project(layer: nn.Linear, shared: Tensor, added: Tensor | None) -> Projection:
            moved = None if added is None else heads(_affine(layer, added))
            return Projection(layer, heads(layer.weight @ shared), moved)

        centred = _centred(embedding + asking.out_proj.bias[:, None])
        scaled = _centred(centred * first.norm4.weight[:, None])
        uncentred = centred * first.norm4.weight[:, None]
        last = scaled * second.norm4.weight[:, None]
        to_tokens, to_image = second.cross_attn_token_to_image, second.cross_attn_image_to_token
        return cls(
            first_keys=heads(_affine(asked.k_proj, at)),
            first_values=heads(_affine(asked.v_proj, embedding)),
            first_queries=heads(_affine(asking.q_proj, at)),
            first_cross=heads(weights.first_out.T @ centred),
            first_square=centred.square().sum(0),
            second_keys=project(to_tokens.k_proj, uncentred, position),
            second_values=project(to_tokens.v_proj, uncentred, None),
            second_queries=project(
                to_image.q_proj, uncentred, position + first.norm4.bias[:, None]
            ),
            second_cross=(
                heads(weights.first_out_scaled.T @ scaled),
                heads(weights.second_out.T @ scaled),
                weights.constant @ scaled,
            ),
            second_square=scaled.square().sum(0),
            final_keys=project(final.k_proj, last, position),
            final_values=project(final.v_proj, last, None),
            final_shared=last,
        )


def _affine(layer: nn.Linear, matrix: Tensor) -> Tensor:
    """The layer on the columns of (C, N)."""
    return torch.addmm(layer.bias[:, None], layer.weight, matrix)


def _centred(matrix: Tensor) -> Tensor:
    """Minus the mean over the channels, which come first."""
    return matrix - matrix.mean(0, keepdim=True)


def _check_build(transformer: TwoWayTransformer) -> None:
    skips = [layer.skip_first_layer_pe for layer in transformer.layers]
    if skips != [True, False]:
        raise UsageError(
            f"the fast engine knows SAM's decoder of two layers, got {len(skips)}; use "
            "engine='official'"
        )
