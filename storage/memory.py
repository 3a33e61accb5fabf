"""Copy windows of raw tiles out of a mapped file: rows by memcpy, without holding the GIL.

NumPy takes a call for every tile, most of it overhead and all of that under the GIL; a loop over
bytes in a kernel is no memcpy to the compiler, which can't know that the arrays lie apart.

H x W pixels of a window.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from samprior.storage.arrays import ABSENT
from samprior.storage.compiled import kernel, numba

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]

Typed = Any
"""What numba hands to code generators; it has no types of its own."""

CHANNELS = 3
"""Bytes of a pixel."""


def _copy_bytes(target: Bytes, at: int, source: Bytes, begin: int, count: int) -> None:
    """Copy bytes between arrays that lie apart."""
    target[at : at + count] = source[begin : begin + count]


if numba is None:
    copy_bytes = _copy_bytes
else:
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    @intrinsic
    def copy_bytes(
        typing_context: Typed, target: Typed, at: Typed, source: Typed, begin: Typed, count: Typed
    ) -> Typed:
        """`_copy_bytes` as memcpy."""
        signature = types.void(target, types.int64, source, types.int64, types.int64)

        def generate(context: Typed, builder: Typed, signature: Typed, arguments: Typed) -> Typed:
            into, from_ = (
                builder.gep(
                    context.make_array(signature.args[array])(
                        context, builder, arguments[array]
                    ).data,
                    [arguments[array + 1]],
                )
                for array in (0, 2)
            )
            cgutils.raw_memcpy(builder, into, from_, arguments[4], 1)  # type: ignore[no-untyped-call]  # numba
            return context.get_dummy_value()

        return signature, generate


@kernel
def copy_window(data: Bytes, spans: Words, tile_px: int, y: int, x: int, out: Bytes) -> None:
    """Copy a window of an image's raw tiles.

    Args:
        data: the object that holds the tiles.
        spans: (rows of tiles, columns of tiles, 2) offset and bytes of each; offset ABSENT is 0.
            They lie inside `data`, and so does the window inside the tiles.
        tile_px: side of the tiles.
        y: the window's first row in the image.
        x: its first column.
        out: (H, W * CHANNELS) contiguous.
    """
    height, row_bytes = out.shape
    width = row_bytes // CHANNELS
    flat = out.reshape(-1)
    for tile_row in range(y // tile_px, (y + height - 1) // tile_px + 1):
        top, bottom = max(y, tile_row * tile_px), min(y + height, (tile_row + 1) * tile_px)
        for tile_column in range(x // tile_px, (x + width - 1) // tile_px + 1):
            left = max(x, tile_column * tile_px)
            count = (min(x + width, (tile_column + 1) * tile_px) - left) * CHANNELS
            offset = spans[tile_row, tile_column, 0]
            for line in range(top, bottom):
                at = (line - y) * row_bytes + (left - x) * CHANNELS
                if offset == ABSENT:
                    flat[at : at + count] = 0
                    continue
                begin = (line - tile_row * tile_px) * tile_px + left - tile_column * tile_px
                copy_bytes(flat, at, data, offset + begin * CHANNELS, count)
