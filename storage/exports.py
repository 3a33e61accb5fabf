"""What all exports share: the folder they may write to, and the places of keys in it.

An export's folder is marked with a digest of the store and of the options, so that a broken-off
export is gone on with, and that of another store, or of this one before it changed, is refused.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samprior.storage.errors import StoreError, UsageError
from samprior.storage.files import STAGED_SUFFIX, remove_drafts, write_bytes
from samprior.storage.locks import LOCK, only_writer
from samprior.storage.manifest import canonical_json
from samprior.storage.store import MaskStore
from samprior.storage.writer import Record

MARK = ".fingerprint"
"""File that says of which store, and with which options, a folder is the export."""

Progress = Callable[[int, int], None]
"""Called with (images written, images in all)."""

Side = Literal["clean", "degraded"]
"""Which picture of a pair is written where a format has one picture per image."""


@contextmanager
def export_folder(out: Path, store: MaskStore, options: Mapping[str, Any]) -> Iterator[None]:
    """Hold `out`, made if missing, as the folder of this export.

    Raises:
        StoreError: the store is unfinished, or `out` holds anything but this export.
        UsageError: a key that is no path below a folder.
        BusyError: another export writes to it.
    """
    store.require_complete()
    check_keys(store.keys)
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; choose a folder for the export")
    claim = _digest(store, options)
    _refuse_strangers(out, claim)
    with only_writer(out):
        for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
            remove_drafts(folder)
        if not (out / MARK).exists():
            write_bytes(out / MARK, claim.encode())
        yield


def check_keys(keys: Iterable[str]) -> None:
    """Raise UsageError for a key that is no plain relative path, which could leave its folder."""
    for key in keys:
        parts = key.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
            raise UsageError(f"key {key!r} can't be exported: it is no path below a folder")


def below(folder: Path, key: str, suffix: str = "") -> Path:
    """The file or folder of a (checked) key below `folder`."""
    return folder / f"{key}{suffix}"


def check_side(store: MaskStore, side: Side) -> None:
    """Raise UsageError if the store doesn't have the wanted picture."""
    if side == "degraded" and not store.paired:
        raise UsageError(f"{store.url} has one picture per image, and no degraded one")


def write_picture(path: Path, record: Record, side: Side) -> None:
    """Write the wanted picture; one that an earlier run of this export wrote is kept."""
    if not path.exists():
        write_bytes(path, png_bytes(record.clean if side == "clean" else record.degraded))


def png_bytes(pixels: npt.NDArray[np.uint8], *, level: int = 1) -> bytes:
    """A PNG file of uint8 (H, W, 3) or (H, W).

    Photographs hardly shrink beyond level 1, however long the compressor tries; masks do.
    """
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=level)
    return stream.getvalue()


def _digest(store: MaskStore, options: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(store.fingerprint.encode() + canonical_json(dict(options)))
    # The receipts too: a store keeps its fingerprint when a mended image is done again.
    for receipt in store.stored_receipts():
        digest.update(receipt.to_json())
    return digest.hexdigest()


def _refuse_strangers(out: Path, claim: str) -> None:
    mark = out / MARK
    if mark.exists():
        if mark.read_text() != claim:
            raise StoreError(
                f"{out} holds an export of another store, or with other options, or of this one "
                "before it was changed; choose another folder"
            )
    elif out.exists() and any(
        path.name != LOCK and path.suffix != STAGED_SUFFIX for path in out.iterdir()
    ):
        raise StoreError(f"{out} holds files that are no export of samprior; choose another folder")
