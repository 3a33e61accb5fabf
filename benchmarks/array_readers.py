"""Readers of crops from zarr: zarr-python, the same with zarrs' codecs, and tensorstore.

Pictures are raw in square tiles, atoms uint16 in the same tiles under zstd, one shard of them a
picture; members are read once. Nothing of samprior's reader is used. One reader opens samprior's
own store with zarr-python alone.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plain_masks
import zarr
from delivery import Sample
from plain_masks import Bools
from readers import Reader, library
from windows import Window
from zarr.codecs import ZstdCodec

from samprior.storage import Record

NAMES = ("degraded", "clean", "atoms")


class Opened(NamedTuple):
    """The arrays of one picture."""

    tiled: tuple[Any, ...]
    """In the order of NAMES, with the slicing of the library that opened them."""
    members: Bools
    """(A, K)"""


def write_zarr(root: Path, records: Sequence[Record], *, tile_px: int) -> None:
    """A group for each picture."""
    for number, record in enumerate(records):
        group = zarr.open_group(root / f"{number:04d}", mode="w", zarr_format=3)
        for name, pixels in zip(
            NAMES, (record.degraded, record.clean, record.masks.atoms), strict=True
        ):
            tail = pixels.shape[2:]
            sides = (-(-side // tile_px) * tile_px for side in pixels.shape[:2])
            array = group.create_array(
                name,
                shape=pixels.shape,
                dtype=pixels.dtype,
                chunks=(tile_px, tile_px, *tail),
                shards=(*sides, *tail),
                compressors=ZstdCodec(level=3) if name == "atoms" else None,
            )
            array[...] = pixels
        group.create_array("members", data=record.masks.members)


class ZarrPython(Reader):
    """zarr-python as it is."""

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        _, y, x, side = window
        cut = slice(y, y + side), slice(x, x + side)
        opened = self._opened[window.image]
        degraded, clean, atoms = (np.asarray(array[cut]) for array in opened.tiled)
        return Sample(degraded, clean, plain_masks.met_by_atoms(atoms, opened.members))

    @cached_property
    def _opened(self) -> list[Opened]:
        with self._codecs():
            # An array keeps the codecs that were chosen when it was opened.
            return [
                Opened(
                    tuple(zarr.open_array(folder / name, mode="r") for name in NAMES),
                    _members(folder),
                )
                for folder in sorted(self.root.glob("[0-9]*"))
            ]

    def _codecs(self) -> AbstractContextManager[Any]:
        return nullcontext()


class StoreByZarr(Reader):
    """samprior's own store by zarr-python, without samprior's reader; members are read once."""

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        image, y, x, side = window
        cut = image, slice(y, y + side), slice(x, x + side)
        degraded, clean, atoms = (np.asarray(self._arrays[name][cut]) for name in NAMES)
        return Sample(degraded, clean, plain_masks.met_by_atoms(atoms, self._members[image]))

    @cached_property
    def _arrays(self) -> Any:  # noqa: ANN401
        return {name: zarr.open_array(self._shard / name, mode="r") for name in NAMES}

    @cached_property
    def _members(self) -> list[Bools]:
        extent, flat = (
            np.asarray(zarr.open_array(self._shard / name, mode="r")[...])
            for name in ("extent", "members")
        )
        _, _, masks, atoms = extent.T
        ends = np.cumsum(atoms * -(-masks // 8))
        return [
            np.unpackbits(rows.reshape(num_atoms, -1), axis=1, count=num_masks).view(np.bool_)
            for rows, num_atoms, num_masks in zip(
                np.split(flat, ends[:-1]), atoms, masks, strict=True
            )
        ]

    @property
    def _shard(self) -> Path:
        return self.root / "shards" / "000000"


class ZarrWithZarrs(ZarrPython):
    """zarr-python with the codec pipeline of zarrs, in Rust."""

    library = ("zarrs", "zarrs")

    def _codecs(self) -> AbstractContextManager[Any]:
        library(*self.library)
        chosen: AbstractContextManager[Any] = zarr.config.set(
            {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
        )
        return chosen


class TensorStore(Reader):
    """tensorstore; the three arrays of a picture are read at the same time."""

    library = ("tensorstore", "tensorstore")

    def read(self, window: Window) -> Sample:
        """The crop of a window."""
        _, y, x, side = window
        opened = self._opened[window.image]
        # Reads begin here, all three, and are waited for below.
        begun = [array[y : y + side, x : x + side].read() for array in opened.tiled]
        degraded, clean, atoms = (future.result() for future in begun)
        return Sample(degraded, clean, plain_masks.met_by_atoms(atoms, opened.members))

    @cached_property
    def _opened(self) -> list[Opened]:
        # Room for the shards' indices; a tile or two of pictures would fit as well.
        context = library(*self.library).Context({"cache_pool": {"total_bytes_limit": 1_000_000}})
        return [
            Opened(
                tuple(self._open(folder / name, context) for name in NAMES),
                _members(folder),
            )
            for folder in sorted(self.root.glob("[0-9]*"))
        ]

    def _open(self, folder: Path, context: Any) -> Any:  # noqa: ANN401
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
        tensorstore = library(*self.library)
        # The files don't change: their metadata and indices need not be asked for again.
        return tensorstore.open(
            spec,
            read=True,
            open=True,
            context=context,
            recheck_cached=False,
        ).result()


def _members(folder: Path) -> Bools:
    return np.asarray(zarr.open_array(folder / "members", mode="r")[...], np.bool_)
