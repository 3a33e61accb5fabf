"""Stores that only refer to their pictures: `samprior precompute --images reference`.

Such a store has masks but no pixels. Its receipts name the files of each image below the header's
`pictures_root`, and what was read there once is checked again: that a file is there, its bytes and
its size in pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samprior.storage.cache import BoundedCache
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.manifest import Header, Inputs, Receipt
from samprior.storage.places import Place, checked_name
from samprior.storage.writer import Record, write_shard

CACHE_BYTES = 256 * 2**20
"""Room for decoded pictures, of which a crop needs only a part; 90 of 1280x720."""

SIDES = ("degraded", "clean")
"""The order of a receipt's `pictures` and `inputs`."""


def relative_files(pairs: Mapping[str, tuple[Path, Path]], *, root: Path) -> dict[str, list[str]]:
    """Degraded and clean file of each key, as they lie below `root`.

    Raises:
        UsageError: a file lies elsewhere.
    """
    try:
        return {
            key: [file.absolute().relative_to(root).as_posix() for file in files]
            for key, files in pairs.items()
        }
    except ValueError as error:
        raise UsageError(
            f"--images reference needs all pictures below one folder: {error}"
        ) from None


def resolved_root(header: Header, given: str | Path | None, *, where: str) -> Path | None:
    """Folder of the pictures of the store `where`; None if it holds them itself.

    Raises:
        UsageError: `given` doesn't go with the store, or nobody says where the pictures are.
    """
    if header.images == "stored":
        if given is not None:
            raise UsageError(
                f"{where} holds its pictures; pictures_root is for stores that refer to them"
            )
        return None
    if given is None and header.pictures_root is None:
        raise UsageError(f"{where} does not say where its pictures are; open it with pictures_root")
    return Path(given or header.pictures_root or "")


@dataclass(frozen=True)
class ReferenceWriter:
    """Writes shards without pictures; called as `write_shard`. Pickled to workers."""

    files: Mapping[str, Sequence[str]]
    """Of `relative_files`."""

    def __call__(
        self,
        root: Path | Place,
        shard: int,
        records: Sequence[Record],
        *,
        paired: bool,
        inputs: Mapping[str, Inputs] | None = None,
        quarantined: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> Receipt:
        """Write a shard; see `write_shard`."""
        pictures = {record.key: (*self.files[record.key],) for record in records}
        return write_shard(
            root,
            shard,
            records,
            paired=paired,
            images="reference",
            pictures={key: (degraded, clean) for key, (degraded, clean) in pictures.items()},
            inputs=inputs,
            quarantined=quarantined,
            notes=notes,
        )


class ReferencedPictures:
    """Reads the pictures of such a store; safe in several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._decoded: BoundedCache[npt.NDArray[np.uint8]] = BoundedCache(CACHE_BYTES)

    def read(
        self, side: str, receipt: Receipt, row: int, y: int, x: int, out: npt.NDArray[np.uint8]
    ) -> None:
        """Read the window at (y, x) that fills `out` (H, W, 3), of the picture of one side.

        Raises:
            StoreError: the picture isn't there, or is another than it was.
        """
        key = receipt.keys[row]
        file = self.root / _name(receipt, key, side)

        def decode() -> tuple[npt.NDArray[np.uint8], int]:
            # Imported here: reading stores must not need Pillow.
            from samprior.storage.errors import ImageError
            from samprior.storage.images import read_rgb

            if problem := _problem(file, receipt, key, side):
                raise StoreError(problem)
            try:
                picture = read_rgb(file)
            except ImageError as error:
                raise StoreError(str(error)) from error
            if picture.shape[:2] != receipt.sizes[row]:
                raise StoreError(_changed(file, key))
            return picture, picture.nbytes

        picture = self._decoded.get(file, decode)
        out[...] = picture[y : y + out.shape[0], x : x + out.shape[1]]


def picture_problems(root: Path, receipt: Receipt) -> Iterator[str]:
    """What is wrong with the files that a receipt refers to; they are not decoded."""
    for key in receipt.keys:
        for side in SIDES:
            try:
                problem = _problem(root / _name(receipt, key, side), receipt, key, side)
            except StoreError as error:
                problem = str(error)
            if problem:
                yield problem


def _name(receipt: Receipt, key: str, side: str) -> str:
    try:
        name = receipt.pictures[key][SIDES.index(side)]
    except KeyError:
        raise StoreError(f"receipt {receipt.shard} doesn't name the pictures of {key}") from None
    return checked_name(name, where=f"receipt {receipt.shard}")


def _problem(file: Path, receipt: Receipt, key: str, side: str) -> str | None:
    """What is wrong with a file; None if it has the bytes it had."""
    try:
        num_bytes = file.stat().st_size
    except (OSError, ValueError) as error:  # the latter of names that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        return (
            f"{file}, a picture of {key}, can't be read ({why}); the store only refers "
            "to it. If the dataset was moved, run the same `samprior precompute` from its new "
            "place, or open the store with pictures_root"
        )
    inputs = receipt.inputs.get(key)
    if inputs is not None and inputs[SIDES.index(side)] != num_bytes:
        return _changed(file, key)
    return None


def _changed(file: Path, key: str) -> str:
    return (
        f"{file}, a picture of {key}, is not the one its masks were made of; run the same "
        "`samprior precompute` again"
    )
