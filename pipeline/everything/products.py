"""The decoder's products of prompts with what they share, and its two softmaxes.

On a CPU each prompt is a product of its own, whose result goes to its place at once. On a GPU,
where as many launches would cost more than the work, all prompts are the rows of one product per
head, which is put in order afterwards.

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
        rows = queries.transpose(0, 1).flatten(1, 2)  # (h, P·T, d)
        into.copy_(_prompts_first(torch.bmm(rows, shared), len(queries)))
    return out


def pooled(weights: Tensor, shared: Tensor) -> Tensor:
    """(P, h, T, d): sums over the image of (h, d, N), weighted by (P, J, N)."""
    heads = by_head(weights, len(shared))
    if _one_by_one(weights):
        return torch.stack([torch.bmm(one, shared.mT) for one in heads])
    rows = heads.transpose(0, 1).flatten(1, 2)  # (h, P·T, N)
    return _prompts_first(torch.bmm(rows, shared.mT), len(weights)).contiguous()


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


def _prompts_first(rows: Tensor, prompts: int) -> Tensor:
    """(h, P·T, X) to (P, h, T, X), a view."""
    heads, count, columns = rows.shape
    return rows.view(heads, prompts, count // prompts, columns).transpose(0, 1)


def _one_by_one(matrix: Tensor) -> bool:
    return matrix.device.type == "cpu"
