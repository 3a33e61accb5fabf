"""Lossless codecs for tiles of pictures: bytes, and how fast a tile comes back.

The store keeps pictures raw; this says what compression would save and cost.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numcodecs
import numpy as np
import rounds
from numcodecs.abc import Codec
from PIL import Image

from samprior.storage.images import Rgb

TILE_SIDES = (128, 256)


@dataclass(frozen=True)
class PictureCodec:
    """A way to keep a tile uint8 (h, w, 3)."""

    name: str
    encode: Callable[[Rgb], bytes]
    decode: Callable[[bytes, tuple[int, ...]], Rgb]


def codecs() -> list[PictureCodec]:
    """All that are compared."""
    by_bit = numcodecs.Blosc.BITSHUFFLE
    return [
        PictureCodec("raw", lambda tile: tile.tobytes(), _raw),
        _general("lz4", numcodecs.LZ4()),
        _general("zstd-1", numcodecs.Zstd(1)),
        _general("zstd-3", numcodecs.Zstd(3)),
        _general("blosc lz4, bitshuffle", numcodecs.Blosc("lz4", 5, by_bit)),
        _general("blosc zstd-3, bitshuffle", numcodecs.Blosc("zstd", 3, by_bit)),
        PictureCodec("differences + zstd-3", _to_differences, _from_differences),
        _by_pillow("PNG", "PNG"),
        _by_pillow("WebP lossless", "WEBP", lossless=True, quality=25, method=1),
    ]


def table(pictures: Sequence[Rgb], *, num_tiles: int, runs: int) -> list[dict[str, object]]:
    """A row for each codec and tile side: ratio to raw, MB/s out of one thread, ms of a tile.

    Tiles are drawn from all pictures; every one is checked to come back as it was.
    """
    rows: list[dict[str, object]] = []
    for side in TILE_SIDES:
        tiles = _draw_tiles(pictures, side, num_tiles)
        raw_bytes = sum(tile.nbytes for tile in tiles)
        held = {codec: [codec.encode(tile) for tile in tiles] for codec in codecs()}
        works = {codec.name: _decoding(codec, blobs, tiles) for codec, blobs in held.items()}
        for codec, blobs in held.items():
            for blob, tile in zip(blobs, tiles, strict=True):
                np.testing.assert_array_equal(codec.decode(blob, tile.shape), tile)
        times = rounds.time_in_turn(works, runs=runs)
        rows += [
            {
                "codec": codec.name,
                "tile side, px": side,
                "raw bytes / bytes": raw_bytes / sum(map(len, blobs)),
                "decoded MB/s": raw_bytes / times[codec.name].median_s / 1e6,
                "ms a tile": times[codec.name].median_s / len(tiles) * 1e3,
            }
            for codec, blobs in held.items()
        ]
    return rows


def thumbnail_bytes(picture: Rgb) -> int:
    """Bytes of a JPEG of quality 75 whose longer side is 160 pixels."""
    thumbnail = Image.fromarray(picture)
    thumbnail.thumbnail((160, 160), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    thumbnail.save(stream, format="JPEG", quality=75)
    return len(stream.getvalue())


def _decoding(
    codec: PictureCodec, blobs: Sequence[bytes], tiles: Sequence[Rgb]
) -> Callable[[], object]:
    shape = tiles[0].shape
    return lambda: [codec.decode(blob, shape) for blob in blobs]


def _draw_tiles(pictures: Sequence[Rgb], side: int, count: int) -> list[Rgb]:
    rng = np.random.default_rng(side)
    tiles = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        y, x = (int(rng.integers(extent // side)) * side for extent in picture.shape[:2])
        tiles.append(np.ascontiguousarray(picture[y : y + side, x : x + side]))
    return tiles


def _general(name: str, codec: Codec) -> PictureCodec:
    """Of any bytes; blosc takes their item size to be 1, as zarr tells it for uint8."""
    return PictureCodec(
        name,
        lambda tile: bytes(codec.encode(tile)),
        lambda blob, shape: _raw(codec.decode(blob), shape),
    )


def _raw(blob: bytes, shape: tuple[int, ...]) -> Rgb:
    # A copy into an array of its own is what any reader of a tile pays.
    return np.frombuffer(blob, np.uint8).reshape(shape).copy()


def _to_differences(tile: Rgb) -> bytes:
    """Each pixel less the one to the left, modulo 256."""
    first = np.zeros((len(tile), 1, 3), np.uint8)
    return bytes(numcodecs.Zstd(3).encode(np.diff(tile, axis=1, prepend=first)))


def _from_differences(blob: bytes, shape: tuple[int, ...]) -> Rgb:
    return np.cumsum(_raw(numcodecs.Zstd(3).decode(blob), shape), axis=1, dtype=np.uint8)


def _by_pillow(name: str, form: str, **settings: object) -> PictureCodec:
    def encode(tile: Rgb) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, format=form, **settings)
        return stream.getvalue()

    def decode(blob: bytes, shape: tuple[int, ...]) -> Rgb:
        with Image.open(io.BytesIO(blob)) as image:
            return np.array(image)

    return PictureCodec(name, encode, decode)
