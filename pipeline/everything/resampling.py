"""The two bilinear resizes that SAM's low-resolution logits go through, composed into one.

The official `Sam.postprocess_masks` enlarges logits (h, w) to the square of the model's input,
cuts the padding off and resizes again to the size of the picture. `Resampling` holds both steps
as tables, each axis by itself:

- composed: every output pixel is a weighted mean of at most three consecutive samples, so pixels
  with the same first sample form a *cell*, bounded by the least and greatest of those samples;
- raw: indices and weights of both steps in PyTorch's own float32 arithmetic, from which any
  pixel's official value follows bit for bit (in `cells`).

Letters: T taps (low-resolution samples along an axis), F pixels of the model's input without
padding, P pixels of the picture.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

TAPS = 3
"""Samples along one axis that a pixel depends on, at most."""

# upsample_bilinear2d turns to another loop where height plus width of its output are at most this.
_SMALL_OUTPUT = 128


class Axis(NamedTuple):
    """One axis of a `Resampling`; a plain tuple of arrays, as compiled kernels take it."""

    edges: Ints
    """(T - 1,): the pixels whose first tap is t are `edges[t]` to `edges[t + 1]`, maybe none."""

    starts: Ints
    """(P,): the first of the three taps of each pixel."""

    weights: Floats
    """(3, P): weights of the three taps, rounded once from the products of both steps."""

    fine_index: Ints
    """(P, 2): the two pixels of the model's input that the second step mixes."""

    fine_weight: Floats
    """(P, 2): their weights."""

    tap_index: Ints
    """(F, 2): the two taps that the first step mixes."""

    tap_weight: Floats
    """(F, 2): their weights."""


class Arithmetic(NamedTuple):
    """How this build of PyTorch rounds both steps."""

    fused: bool
    """Products are added unrounded (fused multiply-add), as on every CPU that can."""

    products_first: bool
    """The first step weights four samples at once instead of one axis after the other."""

    products_second: bool
    """The same of the second step."""


class Tables(NamedTuple):
    """What compiled kernels need to know of a `Resampling`."""

    rows: Axis
    columns: Axis
    arithmetic: Arithmetic


@dataclass(frozen=True, eq=False)
class Resampling:
    """Low-resolution logits to the pixels of one picture or crop."""

    tables: Tables
    """Both axes and how PyTorch rounds on this machine."""

    input_size: tuple[int, int]
    """Height and width of the resized picture inside the model's input."""

    size: tuple[int, int]
    """Height and width of the picture, in pixels."""

    factor: int
    """Pixels of the model's input per low-resolution sample, along each axis."""

    rows_needed: int
    """How many rows of the logits matter; those below belong to the padding."""

    columns_needed: int
    """How many columns of the logits matter."""

    @classmethod
    def of(
        cls,
        low_res: int,
        *,
        img_size: int,
        input_size: tuple[int, int],
        original_size: tuple[int, int],
    ) -> "Resampling":
        """The resampling of logits (low_res, low_res); made once for equal arguments.

        `img_size` is the side of the model's input and a multiple of `low_res`; `input_size` and
        `original_size` are height and width, as `Sam.postprocess_masks` takes them.
        """
        assert low_res >= TAPS, low_res
        assert img_size % low_res == 0, (low_res, img_size)
        assert all(1 <= side <= img_size for side in input_size), (input_size, img_size)
        return _resampling(low_res, img_size, tuple(input_size), tuple(original_size))


@lru_cache(maxsize=64)
def _resampling(
    low_res: int, img_size: int, input_size: tuple[int, int], size: tuple[int, int]
) -> Resampling:
    arithmetic = Arithmetic(
        fused=fused_multiply_add(),
        products_first=2 * img_size <= _SMALL_OUTPUT,
        products_second=sum(size) <= _SMALL_OUTPUT,
    )
    rows, columns = (
        _axis(low_res, img_size, inside, length, arithmetic)
        for inside, length in zip(input_size, size, strict=True)
    )
    return Resampling(
        tables=Tables(rows=rows, columns=columns, arithmetic=arithmetic),
        input_size=input_size,
        size=size,
        factor=img_size // low_res,
        rows_needed=len(rows.edges) + 1,
        columns_needed=len(columns.edges) + 1,
    )


def _axis(low_res: int, img_size: int, inside: int, length: int, arithmetic: Arithmetic) -> Axis:
    fused_first = arithmetic.fused and arithmetic.products_first
    fused_second = arithmetic.fused and arithmetic.products_second
    tap_index, tap_weight = _step(low_res, img_size, fused=fused_first)
    tap_index, tap_weight = tap_index[:inside], tap_weight[:inside]
    fine_index, fine_weight = _step(inside, length, fused=fused_second)
    taps = max(int(tap_index.max()) + 1, TAPS)
    starts = np.minimum(tap_index[fine_index[:, 0], 0], taps - TAPS)  # (P,)
    axis = Axis(
        edges=np.searchsorted(starts, np.arange(taps - TAPS + 2)).astype(np.int32),
        starts=starts,
        weights=_composed(starts, fine_index, fine_weight, tap_index, tap_weight),
        fine_index=fine_index,
        fine_weight=fine_weight,
        tap_index=tap_index,
        tap_weight=tap_weight,
    )
    for table in axis:
        table.setflags(write=False)
    return axis


def _step(source: int, target: int, *, fused: bool) -> tuple[Ints, Floats]:
    """Indices and weights (target, 2) of one bilinear resize, as ATen/native/UpSample.h has them.

    `fused`: whether the compiler made one operation of the source position's product and
    difference; it does in the loop for small outputs only.
    """
    if source == target:
        same = np.arange(target, dtype=np.int32)
        weights = np.stack([np.ones(target, np.float32), np.zeros(target, np.float32)], axis=1)
        return np.stack([same, same], axis=1), weights
    scale, half = np.float32(source) / np.float32(target), np.float32(0.5)
    centres = np.arange(target, dtype=np.float32) + half
    if fused:
        position = (centres.astype(np.float64) * np.float64(scale) - 0.5).astype(np.float32)
    else:
        position = centres * scale - half
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.int32), source - 1)
    share = np.clip(position - first.astype(np.float32), np.float32(0), np.float32(1))
    indices = np.stack([first, np.minimum(first + 1, source - 1)], axis=1).astype(np.int32)
    return indices, np.stack([np.float32(1) - share, share], axis=1)


def _composed(
    starts: Ints, fine_index: Ints, fine_weight: Floats, tap_index: Ints, tap_weight: Floats
) -> Floats:
    """(3, P): the product of both steps' weights, summed in float64 for each tap."""
    composed = np.zeros((len(starts), TAPS))
    pixels = np.arange(len(starts))
    for fine in range(2):
        for tap in range(2):
            held = fine_index[:, fine]
            offset = tap_index[held, tap] - starts
            weight = fine_weight[:, fine].astype(np.float64) * tap_weight[held, tap]
            np.add.at(composed, (pixels, offset), weight)
    return np.ascontiguousarray(composed.T.astype(np.float32))


@lru_cache(maxsize=1)
def fused_multiply_add() -> bool:
    """Whether PyTorch's bilinear resize on this CPU adds products before they are rounded.

    It is compiled several times over and picks a version at run time, so it is asked.
    """
    samples = torch.arange(1, 101, dtype=torch.float32).sqrt()
    seen = F.interpolate(samples[None, None, None], (1, 333), mode="bilinear")[0, 0, 0].numpy()
    indices, weights = _step(100, 333, fused=False)
    products = weights * samples.numpy()[indices]
    return not np.array_equal(products[:, 0] + products[:, 1], seen)
