"""Attention of SAM's image encoder: the official result without its N x N matrices in memory.

The official code makes the scores of all queries and all keys of all heads at once, three times
over (ViT-B at 1024 px: 12 x 4096 x 4096 float32, 805 MB each), and pads the windows before it
projects. Here the scores exist for a few rows of queries at a time, and padding tokens are only
filled in as keys and values.

B images, H x W tokens of an image, G heads, D channels of a head, N = windows times heads,
q rows x p columns of queries and r rows x s columns of keys in a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 2**21
"""Scores that exist at a time on a CPU: 8 MiB of float32, so that writing the bias, adding the
products, the softmax and the sum over the values all meet them in cache. For ViT-H's global
attention half of it takes 1.15 times as long, as each step then waits more for its threads."""


@dataclass(frozen=True, kw_only=True)
class RelativePositions:
    """The relative position tables of one attention layer, one vector per query and key place."""

    rows: Tensor
    """(r, r, D): entry [i, j] is for a query in row i and a key in row j of the window."""

    columns: Tensor
    """(s, s, D): the same for columns."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one attention layer knows besides its input."""

    shape: tuple[int, int]
    """Rows and columns of tokens that see each other; the whole map for global attention."""

    padding: Tensor
    """(3, G, D): query, key and value of a padding token. The official code pads with zeros
    behind the norm, so they are the bias of the projection."""

    positions: RelativePositions | None
    """None for a model without relative positions."""


def attend(qkv: Tensor, window: Window) -> Tensor:
    """Attention within each window of a map of tokens, padded at the right and bottom as needed.

    Args:
        qkv: (B, H, W, 3, G, D) queries, keys and values of the real tokens.
        window: the layer.

    Returns:
        (B, H, W, G * D) in the dtype of `qkv`.
    """
    num_images, height, width, _, num_heads, channels = qkv.shape
    # A CPU takes window by window, which stay in cache and need no query for padding (2.2 times
    # faster than all at once); a GPU wants few and large kernels.
    whole = (num_images, height, width)
    images, rows, columns = (1, *window.shape) if on_cpu(qkv) else whole
    out = qkv.new_empty(num_images, height, width, num_heads, channels)
    for image in range(0, num_images, images):
        for y in range(0, height, rows):
            for x in range(0, width, columns):
                part = (
                    slice(image, image + images),
                    slice(y, y + rows),
                    slice(x, x + columns),
                )
                out[part] = _attend_part(qkv[part], window)
    return out.flatten(3)


def _attend_part(qkv: Tensor, window: Window) -> Tensor:
    """(B, h, w, 3, G, D) -> (B, h, w, G, D) for a part that begins where a window begins."""
    num_images, height, width, _, num_heads, channels = qkv.shape
    padded = _pad(qkv, window)
    rows, columns = window.shape
    down, across = padded.shape[1] // rows, padded.shape[2] // columns
    windows = padded.view(num_images, down, rows, across, columns, 3, num_heads, channels)
    # For one window without padding this is a view.
    q, k, v = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, rows, columns, channels)
    q = q[:, :height, :width]  # of a window that is alone, the real queries only
    attended = _attend(q, k, v, window.positions)  # (N, q, p, D)
    placed = attended.view(num_images, down, across, num_heads, *attended.shape[1:])
    placed = placed.permute(0, 1, 4, 2, 5, 3, 6)
    height_padded, width_padded = down * q.shape[1], across * q.shape[2]
    merged = placed.reshape(num_images, height_padded, width_padded, num_heads, channels)
    return merged[:, :height, :width]


def _pad(qkv: Tensor, window: Window) -> Tensor:
    """`qkv` with padding tokens up to whole windows; itself where it needs none."""
    num_images, height, width = qkv.shape[:3]
    rows, columns = window.shape
    padded_shape = (-(-height // rows) * rows, -(-width // columns) * columns)
    if padded_shape == (height, width):
        return qkv
    padded = window.padding.repeat(num_images, *padded_shape, 1, 1, 1)
    padded[:, :height, :width] = qkv
    return padded


def _attend(q: Tensor, k: Tensor, v: Tensor, positions: RelativePositions | None) -> Tensor:
    """Queries (N, q, p, D), keys and values (N, r, s, D) -> (N, q, p, D)."""
    if positions is None:
        q_flat, k_flat, v_flat = (tokens.flatten(1, 2)[None] for tokens in (q, k, v))
        return F.scaled_dot_product_attention(q_flat, k_flat, v_flat)[0].view(q.shape)
    attend_biased = attend_blocked if on_cpu(q) else attend_folded
    return attend_biased(q, k, v, positions)


def on_cpu(tensor: Tensor) -> bool:
    """Whether loops over blocks that fit into a cache pay."""
    return tensor.device.type == "cpu"


def attend_blocked(q: Tensor, k: Tensor, v: Tensor, positions: RelativePositions) -> Tensor:
    """Attention with relative positions in blocks of about SCORES_AT_ONCE scores.

    Args:
        q: (N, q, p, D) queries, the first q rows and p columns of their window.
        k: (N, r, s, D) keys.
        v: (N, r, s, D) values.
        positions: tables for windows of r x s.

    Returns:
        (N, q, p, D), contiguous.
    """
    keys, values = k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2)  # (N, D, rs), (N, rs, D)
    columns = positions.columns[: q.shape[2]]
    out = q.new_empty(q.shape)
    for heads, rows in _blocks(q.shape, num_keys=values.shape[1]):
        block = q[heads, rows]
        scores = _bias(block, positions.rows[rows], columns)
        scores.baddbmm_(block.flatten(1, 2), keys[heads], alpha=q.shape[-1] ** -0.5)
        torch.softmax(scores, -1, out=scores)
        out[heads, rows] = (scores @ values[heads]).view(block.shape)
    return out


def _blocks(shape: torch.Size, *, num_keys: int) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and of query rows that cover queries of `shape` (N, q, p, D)."""
    num_heads, height, width, _ = shape
    rows = max(1, min(height, SCORES_AT_ONCE // (width * num_keys)))
    heads = max(1, SCORES_AT_ONCE // (rows * width * num_keys))
    for head in range(0, num_heads, heads):
        for row in range(0, height, rows):
            yield slice(head, head + heads), slice(row, min(row + rows, height))


def _bias(q: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What relative positions add to the scores of q (N, q, p, D): (N, qp, rs), contiguous.

    As in the official code the queries are not scaled here.
    """
    for_rows, for_columns = _position_scores(q, rows, columns)
    bias = q.new_empty(*q.shape[:3], rows.shape[1], columns.shape[1])
    torch.add(for_rows[..., None], for_columns[..., None, :], out=bias)
    return bias.view(len(q), q.shape[1] * q.shape[2], -1)


def _position_scores(q: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """(N, q, p, r) and (N, q, p, s), whose outer sum is the bias of the scores."""
    for_rows = torch.einsum("nqpd,qrd->nqpr", q, rows)
    for_columns = torch.einsum("nqpd,psd->nqps", q, columns)
    return for_rows, for_columns


def attend_folded(q: Tensor, k: Tensor, v: Tensor, positions: RelativePositions) -> Tensor:
    """The same as `attend_blocked` as one fused attention, for kernels that take no large bias.

    A query is followed by its r + s position scores and a key by the one-hot codes of its row
    and column, so that their product is the biased score, exactly.
    """
    height, width = k.shape[1:3]
    for_rows, for_columns = _position_scores(
        q, positions.rows[: q.shape[1]], positions.columns[: q.shape[2]]
    )
    queries = torch.cat([q * q.shape[-1] ** -0.5, for_rows, for_columns], -1).flatten(1, 2)
    row_codes = torch.eye(height, dtype=k.dtype, device=k.device)[:, None].expand(-1, width, -1)
    column_codes = torch.eye(width, dtype=k.dtype, device=k.device).expand(height, -1, -1)
    codes = torch.cat([row_codes, column_codes], -1).expand(len(k), -1, -1, -1)
    keys, values = torch.cat([k, codes], -1).flatten(1, 2), v.flatten(1, 2)
    # The kernels without an N x N matrix want widths in steps of 8 values (16 bytes of a 16-bit
    # type), and the flash kernel, which takes 16-bit types only, values as wide as the keys: all
    # are padded with zeros. Beyond 256, where flash ends, the memory-efficient kernel goes on.
    wide = -(-keys.shape[-1] // 8) * 8
    queries, keys, values = (
        F.pad(tokens, (0, wide - tokens.shape[-1]))[None] for tokens in (queries, keys, values)
    )
    attended = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return attended[0, ..., : q.shape[-1]].reshape(q.shape)
