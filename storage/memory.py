"""Copy and fill memory in kernels as fast as it goes, and windows of raw tiles with that.

NumPy takes a call for every tile, most of it overhead and all of that under the GIL. A loop over
bytes in a kernel is no memcpy to the compiler, which can't know that the arrays lie apart, and a
short one of fixed length becomes one store an item.

H x W pixels of a window.
"""

import ctypes
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from samprior.storage.arrays import ABSENT
from samprior.storage.compiled import kernel, numba

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]

Typed = Any
"""What numba hands to code generators; it has no types of its own."""

Numbers = npt.NDArray[np.unsignedinteger]

CHANNELS = 3
"""Bytes of a pixel."""

RUN = 64
"""Items that `fill_run` writes."""


def _copy_bytes(target: Bytes, at: int, source: Bytes, begin: int, count: int) -> None:
    """Copy bytes between arrays that lie apart."""
    target[at : at + count] = source[begin : begin + count]


def _fill_run(target: Numbers, at: int, value: np.unsignedinteger) -> None:
    """Write a value RUN times, from place `at` on."""
    target[at : at + RUN] = value


def _array_at(address: int, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """The array at an address, which somebody else keeps alive."""
    num_bytes = prod(map(int, shape)) * np.dtype(dtype).itemsize
    memory = memoryview((ctypes.c_char * num_bytes).from_address(int(address)))
    return np.ndarray(shape, dtype, memory)


if numba is None:
    copy_bytes, fill_run, array_at = _copy_bytes, _fill_run, _array_at
else:
    from llvmlite import ir
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

    @intrinsic
    def fill_run(typing_context: Typed, target: Typed, at: Typed, value: Typed) -> Typed:
        """`_fill_run` as one store of a vector."""
        signature = types.void(target, types.int64, target.dtype)

        def generate(context: Typed, builder: Typed, signature: Typed, arguments: Typed) -> Typed:
            array, place, item = arguments
            data = context.make_array(signature.args[0])(context, builder, array).data
            vector = ir.VectorType(item.type, RUN)
            nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
            copies = builder.shuffle_vector(
                builder.insert_element(nothing, item, first),
                nothing,
                ir.Constant(ir.VectorType(ir.IntType(32), RUN), [0] * RUN),
            )
            begin = builder.bitcast(builder.gep(data, [place]), vector.as_pointer())
            builder.store(copies, begin, align=item.type.width // 8)
            return context.get_dummy_value()

        return signature, generate

    @intrinsic
    def pointer_to(typing_context: Typed, address: Typed) -> Typed:
        """An address as `numba.carray` takes it."""
        signature = types.voidptr(types.int64)

        def generate(context: Typed, builder: Typed, signature: Typed, arguments: Typed) -> Typed:
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return signature, generate

    @kernel
    def array_at(address: int, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """`_array_at` for kernels."""
        pointer: Typed = pointer_to(address)  # type: ignore[call-arg]  # numba
        array: npt.NDArray[Any] = numba.carray(pointer, shape, dtype)
        return array


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
