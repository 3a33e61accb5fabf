"""Test-time local converter (TLC): global averages become averages over a window.

A network trained on crops meets averages over far more pixels when it restores whole images. TLC
(Chu et al., "Improving Image Restoration by Revisiting Global Information Aggregation", ECCV 2022)
averages over a window about as large as a crop instead. No weight is added, renamed or changed.

Letters: B images, C channels, H x W pixels; k x l is the window.
"""

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage.errors import UsageError

WINDOW_PX = 384
"""The window of NAFNet's authors: 1.5 times their crops of 256 px."""


class LocalAvgPool2d(nn.Module):
    """Mean over the window around each pixel; the mean of all where the map is no larger.

    Where the window would leave the map, the nearest window inside counts.
    """

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, or to (B, C, 1, 1) if the window covers all of it."""
        height, width = x.shape[-2:]
        k, l = min(self.window[0], height), min(self.window[1], width)  # noqa: E741
        if (k, l) == (height, width):
            return F.adaptive_avg_pool2d(x, 1)
        # One axis at a time: running sums stay smaller than over both, and round less.
        sums = x.to(torch.promote_types(x.dtype, torch.float32))
        means = _windows(_windows(sums, k).transpose(-1, -2), l).transpose(-1, -2) / (k * l)
        rows, columns = height - means.shape[-2], width - means.shape[-1]
        border = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return F.pad(means, border, mode="replicate").to(x.dtype)

    def extra_repr(self) -> str:
        """The window, for print(network)."""
        return f"window={self.window}"


@torch.no_grad()
def with_local_pooling(network: nn.Module, window_px: int = WINDOW_PX) -> nn.Module:
    """A network in eval mode that shares all weights with `network` and averages locally.

    Args:
        network: a `RestorationNetwork` with `nn.AdaptiveAvgPool2d(1)` in it, such as NAFNet; it is
            left as it is.
        window_px: side of the window in pixels of the image; deeper layers have fewer.

    Raises:
        UsageError: there is no such pooling, or the window is smaller than a pixel somewhere.
    """
    weights = chain(network.parameters(), network.buffers())
    local = copy.deepcopy(network, {id(tensor): tensor for tensor in weights})
    places = list(_global_pools(local))
    if not places:
        raise UsageError(
            f"{type(network).__name__} has no global average pooling that TLC could make local; "
            "leave out --tlc"
        )
    side, shapes = _probe(local.eval(), places)
    for (parent, name), (height, width) in zip(places, shapes, strict=True):
        window = (window_px * height // side, window_px * width // side)
        if min(window) < 1:
            raise UsageError(
                f"TLC's window of {window_px} px is less than a pixel in the deepest layers; "
                f"the authors' is {WINDOW_PX}"
            )
        setattr(parent, name, LocalAvgPool2d(window))
    return local


def _windows(x: Tensor, size: int) -> Tensor:
    """Sums of (..., N, M) over each `size` neighbours along N: (..., N - size + 1, M)."""
    sums = F.pad(x.cumsum(dim=-2), (0, 0, 1, 0))
    return sums[..., size:, :] - sums[..., : sums.shape[-2] - size, :]


def _global_pools(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every global average pooling, as the module that holds it and its name there."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                yield parent, name


def _probe(
    network: nn.Module, places: list[tuple[nn.Module, str]]
) -> tuple[int, list[tuple[int, int]]]:
    """The side of a small square image, and the (H, W) that each pooling gets of it.

    As in the official code, the network is run once to find out.
    """
    side = int(network.padding_multiple)  # type: ignore[arg-type]  # an int, by the protocol
    seen: dict[nn.Module, tuple[int, int]] = {}

    def note(pool: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        seen[pool] = (height, width)

    pools = [getattr(parent, name) for parent, name in places]
    hooks = [pool.register_forward_pre_hook(note) for pool in pools]
    network(next(network.parameters()).new_zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return side, [seen[pool] for pool in pools]
