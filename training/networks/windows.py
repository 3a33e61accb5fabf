"""Attention within square windows of a feature map, as in Swin Transformer and Uformer.

Windows may lie half a window further down and to the right (shifted); the map is then rolled, and
pixels that only the roll brought together don't see each other.
"""

# B images, C channels, K heads of D channels each, H x W pixels, Y x X windows of N pixels each

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_APART = -100.0
"""Added to the logits of pixels that must not see each other; the official value."""


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B, Y, X, N, C); H and W are multiples of the window's side."""
    batch, height, width, channels = x.shape
    cut = x.reshape(batch, height // window, window, width // window, window, channels)
    return cut.transpose(2, 3).flatten(3, 4)


def from_windows(windows: Tensor, window: int) -> Tensor:
    """(B, Y, X, N, C) back to (B, H, W, C)."""
    batch, down, across, _, channels = windows.shape
    cut = windows.reshape(batch, down, across, window, window, channels)
    return cut.transpose(2, 3).reshape(batch, down * window, across * window, channels)


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for each relative position and head.

    Args:
        channels: divisible by `heads`.
        heads: attention heads.
        window: side of a window, in pixels of the feature map.
        shifted: whether the map was rolled by half a window, so that the last row and the last
            column of windows hold pixels of both ends of the map, which must not see each other.
    """

    relative_position_index: Tensor
    apart: Tensor

    def __init__(self, channels: int, *, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.heads = heads
        self.shifted = shifted
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", _relative_positions(window))
        self.register_buffer("apart", _ends_apart(window), persistent=False)
        self.qkv = nn.ModuleDict(
            {"to_q": nn.Linear(channels, channels), "to_kv": nn.Linear(channels, 2 * channels)}
        )
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor) -> Tensor:
        """Map (B, Y, X, N, C) to the same shape."""
        q = self.qkv["to_q"](windows)
        k, v = self.qkv["to_kv"](windows).chunk(2, dim=-1)
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.permute(2, 0, 1)  # (K, N, N)
        attended = self._shifted(q, k, v, bias) if self.shifted else self._attend(q, k, v, bias)
        out: Tensor = self.proj(attended)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        *_, pixels, channels = q.shape
        by_head = (-1, pixels, self.heads, channels // self.heads)
        # (B Y X, K, N, D) each
        q_heads, k_heads, v_heads = (part.reshape(by_head).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q_heads, k_heads, v_heads, attn_mask=bias[None])
        return attended.transpose(1, 2).reshape(q.shape)

    def _shifted(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attend apart: inner windows, last row, last column, corner.

        Each of the four has one bias for all of its windows. One call for all would need a bias
        per window, which is larger than the windows themselves.
        """
        bands = []
        for rows, last_row in _inner_and_last(q.shape[1]):
            parts = []
            for columns, last_column in _inner_and_last(q.shape[2]):
                held = (slice(None), rows, columns)
                mask = bias + self.apart[last_row, last_column]
                parts.append(self._attend(q[held], k[held], v[held], mask))
            bands.append(torch.cat(parts, dim=2))
        return torch.cat(bands, dim=1)


def _inner_and_last(number: int) -> Iterator[tuple[slice, int]]:
    """The places before the last one, if any, with 0; the last one with 1."""
    if number > 1:
        yield slice(number - 1), 0
    yield slice(number - 1, number), 1


def _coordinates(window: int) -> tuple[Tensor, Tensor]:
    """Row and column of each of a window's pixels, (N,) each."""
    pixels = torch.arange(window**2)
    return pixels // window, pixels % window


def _relative_positions(window: int) -> Tensor:
    """Row of the bias table for each pair of pixels, int64 (N, N)."""
    rows, columns = _coordinates(window)
    below = rows[:, None] - rows + window - 1
    beside = columns[:, None] - columns + window - 1
    return below * (2 * window - 1) + beside


def _ends_apart(window: int) -> Tensor:
    """Bias by (in the last row, in the last column) of windows, (2, 2, N, N)."""
    half = window - window // 2
    rows, columns = (place >= half for place in _coordinates(window))
    across_rows = rows[:, None] != rows
    across_columns = columns[:, None] != columns
    neither = torch.zeros_like(across_rows)
    apart = torch.stack([neither, across_columns, across_rows, across_rows | across_columns])
    return (_APART * apart).reshape(2, 2, window**2, window**2)
