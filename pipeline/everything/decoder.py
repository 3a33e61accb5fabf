"""SAM's mask decoder for many points on one image, with the work that they share done once.

Same weights, same outputs to float32 rounding as the official `MaskDecoder`, in the order of its
two-way transformer. What makes it cheaper is in `image_side`; `docs/engine.md` derives it.

Letters: P prompts of T tokens, h heads of d channels, J = h·T, N image tokens, C channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from samprior.pipeline.everything.image_side import ImageSide, Projection, Weights
from samprior.pipeline.everything.products import (
    by_head,
    pooled,
    shared_products,
    softmax_over_image,
    softmax_over_tokens,
)
from samprior.pipeline.everything.scratch import Scratch


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """The image's tokens after a layer, for each prompt, before the norm's scale and shift.

    They are `gain * shared + coefficients.T @ directions` with the `shared` of the image side.
    """

    gain: Tensor
    """(P, 1, N)"""
    coefficients: Tensor
    """(P, J, N), or (P, 2 J + 1, N) after the second layer."""
    directions: Tensor
    """(P, J, C), or (P, 2 J + 1, C); the norm's scale is in them."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the transformer makes of some prompts, before any mask is drawn."""

    predicted_iou: Tensor
    """(P, masks)"""
    mixtures: Tensor
    """(P, masks, C / 8): a mask is this mix of the upscaled image tokens."""
    tokens: ImageTokens
    """Lost when the decoder is called again: it keeps its memory."""


class Decoder:
    """The two-way transformer and the heads of one SAM, in float32.

    Raises:
        UsageError: a decoder of another build than SAM's two layers.
    """

    def __init__(self, sam: Sam) -> None:
        self.sam = sam
        self.weights = Weights.of(sam.mask_decoder)
        self._scratch = Scratch(sam.device)

    @torch.no_grad()
    def image(self, embedding: Tensor) -> ImageSide:
        """Everything that does not depend on prompts, of one embedding (C, rows, columns)."""
        encoder = self.sam.prompt_encoder
        dense = embedding + encoder.no_mask_embed.weight.view(-1, 1, 1)
        return ImageSide.of(self.weights, dense.flatten(1), encoder.get_dense_pe()[0].flatten(1))

    @torch.no_grad()
    def __call__(self, image: ImageSide, points: Tensor) -> Decoded:
        """Decode foreground points (P, 2), x and y in pixels of the encoder's input."""
        prompts = self._prompt_tokens(points)
        tokens, values, after = self._first_layer(image, prompts)
        tokens, after = self._second_layer(image, prompts, tokens, values, after)
        return self._heads(image, prompts, tokens, after)

    def _prompt_tokens(self, points: Tensor) -> Tensor:
        """(P, T, C): the IoU token, the mask tokens, and the embedded point and its padding."""
        decoder = self.sam.mask_decoder
        labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        sparse, _ = self.sam.prompt_encoder(
            points=(points[:, None], labels), boxes=None, masks=None
        )
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        return torch.cat([own.expand(len(points), -1, -1), sparse], dim=1)

    def _first_layer(self, image: ImageSide, prompts: Tensor) -> tuple[Tensor, Tensor, ImageTokens]:
        """Tokens (P, T, C), values (P, h, T, d) that the image attends to, and its tokens."""
        layer = self.weights.first
        tokens = layer.norm1(layer.self_attn(q=prompts, k=prompts, v=prompts))
        asked = layer.cross_attn_token_to_image
        scores = self._scores(
            "scores", self._divided(asked.q_proj, tokens + prompts), image.first_keys
        )
        heard = pooled(softmax_over_image(scores), image.first_values)
        tokens = layer.norm2(tokens + asked.out_proj(_merged(heard)))
        tokens = layer.norm3(tokens + layer.mlp(tokens))

        asking = layer.cross_attn_image_to_token
        keys, values = (
            self._divided(asking.k_proj, tokens + prompts),
            self._split(asking.v_proj(tokens)),
        )
        scores = self._scores("scores", keys, image.first_queries)
        num_prompts, num_mixed, num_image = scores.shape
        # With room for the second layer's, so that both are one matrix later.
        room = self._scratch("coefficients", num_prompts, 2 * num_mixed + 1, num_image)
        mixed = softmax_over_tokens(scores, heads=self.weights.num_heads, out=room[:, :num_mixed])
        directions = _directions(values, self.weights.first_out)
        cross = self._scores("products", values, image.first_cross)
        inverse = _inverse_spread(cross, mixed, directions, image.first_square, eps=layer.norm4.eps)
        mixed.mul_(inverse)
        return tokens, values, ImageTokens(inverse, mixed, directions * layer.norm4.weight)

    def _second_layer(
        self, image: ImageSide, prompts: Tensor, tokens: Tensor, values: Tensor, at: ImageTokens
    ) -> tuple[Tensor, ImageTokens]:
        """Tokens (P, T, C) after the second layer, and the image's tokens."""
        layer, before = self.weights.second, self.weights.first.norm4
        asking = tokens + prompts
        tokens = layer.norm1(tokens + layer.self_attn(q=asking, k=asking, v=tokens))
        asked = layer.cross_attn_token_to_image
        queries = self._divided(asked.q_proj, tokens + prompts)
        scores = self._moved_scores(queries, image.second_keys, at)
        heard = self._moved_values(scores, image.second_values, at, before.bias)
        tokens = layer.norm2(tokens + asked.out_proj(heard))
        tokens = layer.norm3(tokens + layer.mlp(tokens))

        asking_image = layer.cross_attn_image_to_token
        keys = self._divided(asking_image.k_proj, tokens + prompts)
        own = self._split(asking_image.v_proj(tokens))
        scores = self._moved_scores(keys, image.second_queries, at)
        return tokens, self._moved_image(image, scores, values, own, at)

    def _moved_image(
        self, image: ImageSide, scores: Tensor, first: Tensor, second: Tensor, at: ImageTokens
    ) -> ImageTokens:
        """The image's tokens after the second layer, from its scores and both layers' values."""
        norm, constant = self.weights.second.norm4, self.weights.constant
        num_prompts, num_mixed, num_image = scores.shape
        # The memory that the first layer left room in, with its own coefficients.
        mixed = self._scratch("coefficients", num_prompts, 2 * num_mixed + 1, num_image)
        softmax_over_tokens(
            scores, heads=self.weights.num_heads, out=mixed[:, num_mixed : 2 * num_mixed]
        )
        mixed[:, -1] = 1
        centred = at.directions - at.directions.mean(-1, keepdim=True)
        added = _directions(second, self.weights.second_out)
        directions = torch.cat([centred, added, constant.expand(num_prompts, 1, -1)], dim=1)
        by_first, by_second, by_constant = image.second_cross
        cross = self._scratch("products", num_prompts, 2 * num_mixed + 1, num_image)
        shared_products(first, by_first, out=cross[:, :num_mixed])
        shared_products(second, by_second, out=cross[:, num_mixed : 2 * num_mixed])
        cross[:, -1] = by_constant
        inverse = _inverse_spread(
            cross.mul_(at.gain),
            mixed,
            directions,
            image.second_square * at.gain[:, 0].square(),
            eps=norm.eps,
        )
        mixed.mul_(inverse)
        return ImageTokens(at.gain * inverse, mixed, directions * norm.weight)

    def _heads(self, image: ImageSide, prompts: Tensor, tokens: Tensor, at: ImageTokens) -> Decoded:
        """The final attention, of the tokens that are read only, and the two heads."""
        decoder, final = self.sam.mask_decoder, self.weights.final
        # The IoU token and the mask tokens but the first, which is for unambiguous prompts.
        read = [0, *range(2, decoder.num_mask_tokens + 1)]
        tokens, asking = tokens[:, read], (tokens + prompts)[:, read]
        scores = self._moved_scores(self._divided(final.q_proj, asking), image.final_keys, at)
        shift = self.weights.second.norm4.bias
        heard = self._moved_values(scores, image.final_values, at, shift)
        tokens = self.weights.final_norm(tokens + final.out_proj(heard))
        mixers: Sequence[nn.Module] = decoder.output_hypernetworks_mlps[1:]
        return Decoded(
            decoder.iou_prediction_head(tokens[:, 0])[:, 1:],
            torch.stack([mix(tokens[:, 1 + k]) for k, mix in enumerate(mixers)], dim=1),
            at,
        )

    def _divided(self, layer: nn.Linear, tokens: Tensor) -> Tensor:
        """(P, h, T, d) queries or keys, divided by the root of d, which the softmax wants."""
        projected = self._split(layer(tokens))
        return projected / math.sqrt(projected.shape[-1])

    def _split(self, projected: Tensor) -> Tensor:
        """(P, T, h·d) to (P, h, T, d)."""
        prompts, tokens, _ = projected.shape
        return projected.view(prompts, tokens, self.weights.num_heads, -1).transpose(1, 2)

    def _scores(self, name: str, queries: Tensor, shared: Tensor) -> Tensor:
        """(P, J, N): products of (P, h, T, d) with what prompts share, (h, d, N)."""
        num_prompts, num_heads, num_tokens, _ = queries.shape
        out = self._scratch(name, num_prompts, num_heads * num_tokens, shared.shape[-1])
        return shared_products(queries, shared, out=out)

    def _moved_scores(self, queries: Tensor, projection: Projection, at: ImageTokens) -> Tensor:
        """(P, J, N): products of (P, h, T, d) with a projection of the image's tokens."""
        assert projection.position is not None
        scores = self._scores("scores", queries, projection.position)
        scores.addcmul_(self._scores("products", queries, projection.shared), at.gain)
        directions = self._split(at.directions @ projection.layer.weight.T)  # (P, h, J', d)
        mixing = (queries @ directions.mT).flatten(1, 2)
        return scores.baddbmm_(mixing, at.coefficients)

    def _moved_values(
        self, scores: Tensor, projection: Projection, at: ImageTokens, shift: Tensor
    ) -> Tensor:
        """(P, T, h·d): means of a projection of the image's tokens, weighted by the softmax."""
        weights = softmax_over_image(scores)
        num_heads = self.weights.num_heads
        mixing = by_head(weights @ at.coefficients.mT, num_heads)  # (P, h, T, J')
        directions = self._split(at.directions @ projection.layer.weight.T)
        heard = mixing @ directions + pooled(weights.mul_(at.gain), projection.shared)
        constant: Tensor = projection.layer(shift)
        return _merged(heard) + constant


def _merged(heads: Tensor) -> Tensor:
    """(P, h, T, d) to (P, T, h·d)."""
    return heads.transpose(1, 2).flatten(2)


def _directions(values: Tensor, out: Tensor) -> Tensor:
    """(P, J, C): what the output projection (C, h·d) makes of the values (P, h, T, d)."""
    split = out.view(len(out), values.shape[1], -1).permute(1, 2, 0)  # (h, d, C)
    return (values @ split).flatten(1, 2)


def _inverse_spread(
    cross: Tensor, mixed: Tensor, directions: Tensor, square: Tensor, *, eps: float
) -> Tensor:
    """(P, 1, N): 1 / root of (mean square + eps) of the tokens, as a layer norm divides by.

    |shared + mixed.T @ directions|^2 = square + sum of mixed * (2 cross + Gram matrix @ mixed).
    `cross` (P, J, N), products of the shared part with the directions, is overwritten.
    """
    gram = directions @ directions.mT
    product = cross.baddbmm_(gram, mixed, beta=2).mul_(mixed).sum(1)
    # Rounding can take the mean square of tokens that are nearly constant below 0.
    mean = product.add_(square).div_(directions.shape[-1]).clamp_min_(0)
    return mean.add_(eps).rsqrt_()[:, None]
