"""Memory that is used again: fresh pages cost as much as the arithmetic on them."""

import math

import torch
from torch import Tensor


class Scratch:
    """Float32 buffers by name; a buffer grows to the largest shape that was asked for.

    Asked for again with the same shape, a buffer is the same memory with what was written to it;
    with another shape, that is lost.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor of this shape with whatever was in the buffer."""
        count = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count:
            buffer = torch.empty(count, dtype=torch.float32, device=self._device)
            self._buffers[name] = buffer
        return buffer[:count].view(shape)
