"""Codes of whole images: the lengths of their tiles' codes, then the codes.

    lengths   of each tile's code in bytes, in reading order, LEB128 (7 bits a byte, low ones first)
    codes     end to end

Tiles of 0 everywhere have no code; tiles at the right and bottom edges are smaller. Any tile can be
read alone. A stack of images is one image after the other.

H x W pixels of an image, T tiles of all images.
"""

import numpy as np

from samprior.storage.compiled import kernel
from samprior.storage.crossings.decode import DAMAGED, decode_tile
from samprior.storage.crossings.encode import encode_tile
from samprior.storage.crossings.range_coder import Bytes, Words
from samprior.storage.crossings.start import START_MODEL
from samprior.storage.masks import Atoms

Runs = tuple[Words, Words, Words]
"""Segments of a tile: starts (S,), labels (S,), and the first segment of each row (H + 1,)."""


def encode_image(atoms: Atoms, *, tile_px: int, sides: tuple[int, int] | None = None) -> bytes:
    """The code of atoms (H, W), or of a stack (..., H, W).

    Args:
        atoms: unsigned integers; the code is the same for all their types.
        tile_px: side of the tiles that can be read alone.
        sides: height and width that each image has in the code, at least H and W; below and to the
            right there is 0. Default: H and W.
    """
    height, width = sides or atoms.shape[-2:]
    room = min(tile_px, height) * min(tile_px, width)
    scratch = np.empty(room, atoms.dtype)
    places = [(y, x) for y in range(0, height, tile_px) for x in range(0, width, tile_px)]
    codes = [
        _encode_part(image, y, x, min(tile_px, height - y), min(tile_px, width - x), scratch)
        for image in atoms.reshape(-1, *atoms.shape[-2:])
        for y, x in places
    ]
    return b"".join(_leb128(len(code)) for code in codes) + b"".join(codes)


def decode_image(
    code: bytes, shape: tuple[int, ...], dtype: np.dtype[np.unsignedinteger], *, tile_px: int
) -> Atoms:
    """Atoms (H, W) or a stack (..., H, W) from their code.

    Raises:
        ValueError: the code is damaged, or of another shape or type.
    """
    atoms = np.zeros(shape, dtype)
    tiles = list(_tiles(atoms, tile_px))
    content = np.frombuffer(code, np.uint8)
    places = tile_places(content, len(tiles))
    for tile, at, limit in zip(tiles, places, places[1:], strict=False):
        if at != limit:
            runs = decode_runs(content, int(at), int(limit), *tile.shape)
            if int(runs[1].max()) > np.iinfo(dtype).max:
                raise ValueError(f"the code holds labels beyond {dtype}")
            _paint(*runs, tile)
    return atoms


def tile_places(code: Bytes, num_tiles: int) -> Words:
    """(T + 1,) where the code of each tile begins, and the end.

    Raises:
        ValueError: the lengths don't fit the code.
    """
    places = np.zeros(num_tiles + 1, np.int64)
    if not _read_places(code, places) or places[-1] != len(code):
        raise ValueError(f"the lengths of {num_tiles} tiles don't add up to {len(code)} bytes")
    return places


def decode_runs(code: Bytes, at: int, limit: int, height: int, width: int) -> Runs:
    """The segments of a tile, whose code is bytes `at` to below `limit`.

    Raises:
        ValueError: no encoder wrote this.
    """
    starts = np.empty(height * width, np.int64)
    labels = np.empty(height * width, np.int64)
    rows = np.empty(height + 1, np.int64)
    count = decode_tile(code, at, limit, START_MODEL.copy(), width, height, starts, labels, rows)
    if count == DAMAGED:
        raise ValueError("a tile's code is damaged")
    return starts[:count], labels[:count], rows


def _encode_part(image: Atoms, y: int, x: int, height: int, width: int, scratch: Atoms) -> bytes:
    """The code of the tile at (y, x), which may reach beyond the image."""
    held = image[y : y + height, x : x + width]
    if not held.any():
        return b""
    # Contiguous, whatever the image: of each layout a kernel would be compiled anew. And always in
    # the same memory: to fetch new pages takes longer than the copy.
    tile = scratch[: height * width].reshape(height, width)
    if held.shape != tile.shape:
        tile[:] = 0
    tile[: held.shape[0], : held.shape[1]] = held
    return _encode_tile(tile)


def _encode_tile(tile: Atoms) -> bytes:
    """The code of a tile that isn't 0 everywhere."""
    room = 4096
    while True:
        out = np.empty(room, np.uint8)
        end = encode_tile(tile, START_MODEL.copy(), out, 0, room)
        if end <= room:
            # At least a byte: none stands for a tile of 0.
            return out[:end].tobytes() or b"\0"
        room = end


def _tiles(atoms: Atoms, tile_px: int) -> list[Atoms]:
    """Views of all tiles, in reading order."""
    height, width = atoms.shape[-2:]
    return [
        image[y : y + tile_px, x : x + tile_px]
        for image in atoms.reshape(-1, height, width)
        for y in range(0, height, tile_px)
        for x in range(0, width, tile_px)
    ]


def _leb128(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


@kernel
def _read_places(code: Bytes, places: Words) -> bool:
    """Add up the lengths at the code's begin; whether they are all there."""
    at, total = 0, 0
    for tile in range(len(places) - 1):
        places[tile] = total
        shift = 0
        while True:
            if at == len(code) or shift > 35:
                return False
            byte = int(np.int64(code[at]))
            at += 1
            total += (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
    places[-1] = total
    for tile in range(len(places)):
        places[tile] += at
    return True


@kernel
def _paint(starts: Words, labels: Words, rows: Words, tile: Atoms) -> None:
    """Write the segments' labels to their pixels."""
    height, width = tile.shape
    for y in range(height):
        for segment in range(rows[y], rows[y + 1]):
            end = starts[segment + 1] if segment + 1 < rows[y + 1] else width
            tile[y, starts[segment] : end] = labels[segment]
