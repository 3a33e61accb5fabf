"""Write files and folders so that they are there whole or not at all."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

STAGED_SUFFIX = ".part"
"""Ending of everything unfinished; nothing that ends so is ever read as data."""


@contextmanager
def staged_file(path: Path) -> Iterator[BinaryIO]:
    """Open a draft for writing; leaving the block flushes it to disk and renames it to `path`.

    An exception inside the block removes the draft and leaves an existing `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft_of(path)
    try:
        with draft.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give an empty draft folder; leaving the block flushes its files and renames it to `path`.

    An existing folder at `path` is replaced. An exception removes the draft.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft_of(path)
    draft.mkdir()
    try:
        yield draft
        for path_inside in (*draft.rglob("*"), draft):
            _sync(path_inside)
        if path.exists():
            shutil.rmtree(path)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with staged_file(path) as stream:
        stream.write(content)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_draft(name: str) -> bool:
    """Whether a file or folder of this name is unfinished."""
    return name.startswith(".") and name.endswith(STAGED_SUFFIX)


def remove_drafts(folder: Path) -> list[Path]:
    """Remove what killed writers left directly in `folder`; return what was removed.

    Call only while no other writer is at work on the folder.
    """
    drafts = sorted(folder.glob(f".*{STAGED_SUFFIX}"))
    for draft in drafts:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
    return drafts


def _draft_of(path: Path) -> Path:
    # Same folder, so that the rename never crosses file systems; a leading dot hides it.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{STAGED_SUFFIX}")


def _sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
