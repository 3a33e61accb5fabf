"""`samprior.crossings` as a zarr v3 codec: from an array of atoms to bytes.

zarr finds it by the entry point of the installed package, so `zarr.open` reads a store's atoms like
any other array. Name and configuration are those of `samprior.storage.crossings`.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON
from zarr.registry import register_codec

from samprior.storage.crossings import (
    CODEC_NAME,
    DEFAULT_TILE_PX,
    checked_tile_px,
    codec_metadata,
    tile_px_of,
)


@dataclass(frozen=True, kw_only=True)
class CrossingsCodec(ArrayBytesCodec):
    """Codes chunks (..., H, W) of uint16 or uint32; the byte format is in docs/crossings.md."""

    is_fixed_size = False

    tile_px: int = DEFAULT_TILE_PX
    """Side of the tiles that can be read alone, pixels."""

    def __post_init__(self) -> None:
        checked_tile_px(self.tile_px)

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read what `to_dict` gave."""
        return cls(tile_px=tile_px_of(data))

    def to_dict(self) -> dict[str, JSON]:
        """Name and configuration, for the array's metadata."""
        return codec_metadata(self.tile_px)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not known ahead."""
        raise NotImplementedError

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        from samprior.storage.crossings.chunk import decode_image

        dtype = _dtype(chunk_spec)
        atoms = await asyncio.to_thread(
            decode_image, chunk_bytes.to_bytes(), chunk_spec.shape, dtype, tile_px=self.tile_px
        )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(atoms)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        from samprior.storage.crossings.chunk import encode_image

        atoms = chunk_array.as_numpy_array().astype(_dtype(chunk_spec), copy=False)
        code = await asyncio.to_thread(encode_image, atoms, tile_px=self.tile_px)
        return chunk_spec.prototype.buffer.from_bytes(code)


def _dtype(chunk_spec: ArraySpec) -> "np.dtype[np.unsignedinteger]":
    dtype: np.dtype[Any] = chunk_spec.dtype.to_native_dtype().newbyteorder("=")
    if dtype not in (np.dtype(np.uint16), np.dtype(np.uint32)) or len(chunk_spec.shape) < 2:
        raise ValueError(
            f"{CODEC_NAME} codes uint16 or uint32 of at least two dimensions, got {dtype} "
            f"{chunk_spec.shape}"
        )
    return dtype


register_codec(CODEC_NAME, CrossingsCodec)
