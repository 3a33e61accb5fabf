"""The decoder's products of prompts with what they share, and its two softmaxes.

On a CPU each prompt is a product of its own: a batched one would copy the shared matrix for every
prompt. On a GPU it is one launch, and the copies cost less than as many launches.

Letters: P prompts, T tokens of a prompt, h heads of d channels, J = h·T, N image tokens.
"""

import torch
from torch import Tensor


def shared_products(queries: Tensor, shared: Tensor, *, out: Tensor) -> Tensor:
    """(P, h, T, d) times (h, d, N) into `out` (P, J, N), whose prompts may lie apart."""
    into = by_head(out, len(shared))
    if _one_by_one(queries):
        for one, there in zip(queries, into, strict=True):
            torch.bmm(one, shared, out=there)
    else:
        into.copy_(queries @ shared)
    return out


def pooled(weights: Tensor, shared: Tensor) -> Tensor:
    """(P, h, T, d): sums over the image of (h, d, N), weighted by (P, J, N)."""
    heads = by_head(weights, len(shared))
    if _one_by_one(weights):
        return torch.stack([torch.bmm(one, shared.mT) for one in heads])
    return heads @ shared.mT


def softmax_over_image(scores: Tensor) -> Tensor:
    """Softmax of (P, J, N) over N, in place."""
    return torch.softmax(scores, -1, out=scores)


def softmax_over_tokens(scores: Tensor, *, heads: int, out: Tensor) -> Tensor:
    """Softmax of (P, J, N) over each head's T tokens, into `out`, whose prompts may lie apart."""
    split, into = by_head(scores, heads), by_head(out, heads)
    if _one_by_one(scores):
        for one, there in zip(split, into, strict=True):
            torch.softmax(one, 1, out=there)
    else:
        into.copy_(torch.softmax(split, 2))
    return out


def by_head(matrix: Tensor, heads: int) -> Tensor:
    """(P, J, N) to (P, h, T, N), a view."""
    prompts, rows, columns = matrix.shape
    return matrix.view(prompts, heads, rows // heads, columns)


def _one_by_one(matrix: Tensor) -> bool:
    return matrix.device.type == "cpu"
