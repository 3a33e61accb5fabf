"""The forms that masks are kept in, each at its best: bytes, decoding, reading a crop.

Every form holds the same: all masks bit for bit, their areas, boxes, predicted IoUs, stabilities
and prompt points. What SA-1B writes as text the others keep as one zstd blob of numbers. Readers
hold boxes and members in memory, parsed; a crop decodes only the masks whose box meets it, or the
tiles that meet it. SA-1B's JSON is parsed for every crop.

K masks, H x W pixels, A atoms.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numcodecs
import numpy as np
import numpy.typing as npt
from numcodecs.abc import Codec
from PIL import Image
from plain_masks import (
    Bools,
    Note,
    all_planes,
    boxes_of,
    met_by_atoms,
    met_by_box,
    parsed,
    planes_of_atoms,
    sa1b_json,
    stacked,
    table_blob,
)
from windows import Window

from samprior.storage import MaskSet


class Encoded(NamedTuple):
    """The masks of one image in some form."""

    blobs: list[bytes]
    known: npt.NDArray[np.generic] | None
    """What a reader holds in memory: boxes (K, 4) or members (A, K), also in the blobs."""
    shape: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk: all blobs, and 4 bytes for the length of each."""
        return sum(len(blob) + 4 for blob in self.blobs)


class MaskFormat(Protocol):
    """A form that masks are kept in."""

    @property
    def name(self) -> str:
        """For the table."""

    def encode(self, planes: Bools, masks: MaskSet) -> Encoded:
        """Keep planes (K, H, W); of `masks` only the columns are used."""

    def decode(self, held: Encoded) -> Bools:
        """All planes (K, H, W)."""

    def crop(self, held: Encoded, window: Window) -> Bools:
        """Planes (K', side, side) of the masks that meet the window."""


@dataclass(frozen=True)
class Sa1b:
    """SA-1B's JSON: compressed COCO run lengths and all fields of its annotations."""

    name: str
    zstd: Codec | None = None
    """Over the whole file; None: as SA-1B is published."""

    def encode(self, planes: Bools, masks: MaskSet) -> Encoded:
        """Keep planes (K, H, W); of `masks` only the columns are used."""
        text = sa1b_json(planes, masks)
        height, width = planes.shape[1:]
        return Encoded([self.zstd.encode(text) if self.zstd else text], None, (height, width))

    def decode(self, held: Encoded) -> Bools:
        """All planes (K, H, W)."""
        return all_planes(self._notes(held), held.shape)

    def crop(self, held: Encoded, window: Window) -> Bools:
        """Planes (K', side, side) of the masks that meet the window."""
        return met_by_box(self._notes(held), window)

    def _notes(self, held: Encoded) -> list[Note]:
        (blob,) = held.blobs
        return parsed(self.zstd.decode(blob) if self.zstd else blob)


@dataclass(frozen=True)
class PlaneByPlane:
    """Each mask a blob of its own, of the whole plane; boxes tell which a crop needs."""

    name: str
    to_blob: Callable[[Bools], bytes]
    from_blob: Callable[[bytes, tuple[int, int], slice], Bools]
    """Some rows of a plane of (H, W)."""

    def encode(self, planes: Bools, masks: MaskSet) -> Encoded:
        """Keep planes (K, H, W); of `masks` only the columns are used."""
        boxes = boxes_of(planes)
        blobs = [self.to_blob(plane) for plane in planes]
        height, width = planes.shape[1:]
        return Encoded([*blobs, table_blob(planes, boxes, masks)], boxes, (height, width))

    def decode(self, held: Encoded) -> Bools:
        """All planes (K, H, W)."""
        planes = np.empty((len(held.blobs) - 1, *held.shape), np.bool_)
        for plane, blob in zip(planes, held.blobs[:-1], strict=True):
            plane[:] = self.from_blob(blob, held.shape, slice(None))
        return planes

    def crop(self, held: Encoded, window: Window) -> Bools:
        """Planes (K', side, side) of the masks that meet the window."""
        _, y, x, side = window
        assert held.known is not None
        x0, y0, x1, y1 = held.known.T
        near = np.flatnonzero((x0 < x + side) & (y0 < y + side) & (x1 > x) & (y1 > y))
        bands = (self.from_blob(held.blobs[k], held.shape, slice(y, y + side)) for k in near)
        cuts = [band[:, x : x + side] for band in bands]
        return stacked([cut for cut in cuts if cut.any()], side)


@dataclass(frozen=True)
class AtomTiles:
    """Atoms uint16 (H, W) in square tiles, one blob each, and one of members."""

    name: str
    codec: Codec
    tile_px: int

    def encode(self, planes: Bools, masks: MaskSet) -> Encoded:
        """Keep planes (K, H, W); of `masks` only the columns are used."""
        made = MaskSet.from_masks(planes)
        assert made.atoms.dtype == np.uint16
        tiles = (np.ascontiguousarray(made.atoms[tile]) for tile in self._tiles(made.shape))
        blobs = [bytes(self.codec.encode(tile)) for tile in tiles]
        members = bytes(numcodecs.Zstd(3).encode(np.packbits(made.members, axis=1)))
        tables = table_blob(planes, made.boxes, masks)
        return Encoded([*blobs, members, tables], made.members, made.shape)

    def decode(self, held: Encoded) -> Bools:
        """All planes (K, H, W)."""
        return planes_of_atoms(self._read(held, 0, 0, *held.shape), _members(held))

    def crop(self, held: Encoded, window: Window) -> Bools:
        """Planes (K', side, side) of the masks that meet the window."""
        _, y, x, side = window
        return met_by_atoms(self._read(held, y, x, y + side, x + side), _members(held))

    def _read(
        self, held: Encoded, top: int, left: int, bottom: int, right: int
    ) -> npt.NDArray[np.uint16]:
        """Atoms of a window, of which only the tiles that it meets are decoded."""
        window = np.empty((bottom - top, right - left), np.uint16)
        for number, (rows, columns) in enumerate(self._tiles(held.shape)):
            y0, y1 = max(rows.start, top), min(rows.stop, bottom)
            x0, x1 = max(columns.start, left), min(columns.stop, right)
            if y0 < y1 and x0 < x1:
                flat = np.frombuffer(self.codec.decode(held.blobs[number]), np.uint16)
                tile = flat.reshape(rows.stop - rows.start, columns.stop - columns.start)
                part = tile[y0 - rows.start : y1 - rows.start, x0 - columns.start :]
                window[y0 - top : y1 - top, x0 - left : x1 - left] = part[:, : x1 - x0]
        return window

    def _tiles(self, shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        for y in range(0, shape[0], self.tile_px):
            for x in range(0, shape[1], self.tile_px):
                bottom, right = min(y + self.tile_px, shape[0]), min(x + self.tile_px, shape[1])
                yield slice(y, bottom), slice(x, right)


def formats() -> list[MaskFormat]:
    """All that ours are compared with."""
    zstd, slow = numcodecs.Zstd(3), numcodecs.Zstd(19)
    shuffled, by_bit = (
        numcodecs.Blosc(cname="zstd", clevel=3, shuffle=how)
        for how in (numcodecs.Blosc.SHUFFLE, numcodecs.Blosc.BITSHUFFLE)
    )
    return [
        Sa1b("SA-1B JSON"),
        Sa1b("SA-1B JSON + zstd-3", zstd),
        PlaneByPlane("packed bits + zstd-3, by mask", _to_bits, _from_bits),
        PlaneByPlane("PNG by mask, 1 bit", _to_png, _from_png),
        AtomTiles("atoms uint16, tiles of 128, zstd-3", zstd, 128),
        AtomTiles("atoms uint16, tiles of 128, zstd-19", slow, 128),
        AtomTiles("atoms uint16, tiles of 256, zstd-3", zstd, 256),
        AtomTiles("atoms uint16, tiles of 256, zstd-19", slow, 256),
        AtomTiles("atoms uint16, tiles of 128, blosc zstd-3, shuffle", shuffled, 128),
        AtomTiles("atoms uint16, tiles of 128, blosc zstd-3, bitshuffle", by_bit, 128),
    ]


def _members(held: Encoded) -> Bools:
    assert held.known is not None
    return held.known.astype(np.bool_, copy=False)


def _to_bits(plane: Bools) -> bytes:
    return bytes(numcodecs.Zstd(3).encode(np.packbits(plane, axis=1)))


def _from_bits(blob: bytes, shape: tuple[int, int], rows: slice) -> Bools:
    packed = np.frombuffer(numcodecs.Zstd(3).decode(blob), np.uint8).reshape(shape[0], -1)
    return np.unpackbits(packed[rows], axis=1, count=shape[1]).view(np.bool_)


def _to_png(plane: Bools) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(plane).save(stream, format="PNG")
    return stream.getvalue()


def _from_png(blob: bytes, shape: tuple[int, int], rows: slice) -> Bools:
    with Image.open(io.BytesIO(blob)) as image:
        return np.asarray(image, np.bool_)[rows]
