"""The file of a lock: in a folder of this machine, or in an object store.

Both are cells whose content is changed only from what it is known to be; `samprior.storage.locks`
is built on that.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from samprior.storage.errors import BusyError, StoreError
from samprior.storage.holders import MAX_BYTES, UNKNOWN, Holder

if TYPE_CHECKING:
    from samprior.storage.remote import RemoteFolder, Version

LOCK = ".lock"
"""File of a folder that its only writer holds locked."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

OURS: set[str] = set()
"""Tokens of the locks that this process holds, or is about to take. One that isn't here and yet
names this process could not be given back, since the object store didn't answer then."""

V = TypeVar("V")


class Cell(Protocol[V]):
    """The content of a lock's file, changed only from what it is known to be."""

    @property
    def where(self) -> str:
        """The folder, for messages."""

    def read(self) -> tuple[bytes, V]:
        """The content, and what `swap` takes as its version; no content if nobody holds it."""

    def swap(self, content: bytes, expected: V) -> V | None:
        """Write, if the version is still the one expected: the new version, or None."""

    def clear(self) -> None:
        """Leave no content."""

    def is_left(self, holder: Holder) -> bool:
        """Whether a holder surely has ended."""


def named(content: bytes) -> str:
    """Who holds a lock with this content, for messages."""
    return str(Holder.from_json(content) or UNKNOWN)


def busy(where: str, content: bytes) -> BusyError:
    """The error of a lock with this content, which another process holds."""
    return BusyError(f"another process writes to {where} ({named(content)}); wait until it ends")


class FileCell:
    """`.lock` of a folder, whose flock this process holds. Its version is its content.

    It is opened anew each time: only that makes a client of NFS ask the server. Swapping is not
    atomic among machines, and need not be where they see each other's flock.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._file = folder / LOCK

    def read(self) -> tuple[bytes, bytes]:
        """See `Cell`."""
        with self._file.open("rb") as stream:
            content = stream.read(MAX_BYTES)
        return content, content

    def swap(self, content: bytes, expected: bytes) -> bytes | None:
        """See `Cell`."""
        if self.read()[0] != expected:
            return None
        # In place, as the flock is that of this very file; in one write, as others read it.
        with self._file.open("r+b", buffering=0) as stream:
            stream.write(content)
            stream.truncate(len(content))
        return content

    def clear(self) -> None:
        """See `Cell`."""
        os.truncate(self._file, 0)

    def is_left(self, holder: Holder) -> bool:
        """See `Cell`."""
        # Here flock tells: it is ours now.
        return holder.is_here


class ObjectCell:
    """`.lock` of a folder in an object store; there only while it is held."""

    def __init__(self, place: "RemoteFolder") -> None:
        self.where = place.url
        self._place = place

    def read(self) -> tuple[bytes, "Version | None"]:
        """See `Cell`."""
        try:
            return self._place.read_version(LOCK)
        except FileNotFoundError:
            return b"", None

    def swap(self, content: bytes, expected: "Version | None") -> "Version | None":
        """See `Cell`."""
        return self._place.swap(LOCK, content, expected)

    def clear(self) -> None:
        """See `Cell`."""
        self._place.remove(LOCK)

    def is_left(self, holder: Holder) -> bool:
        """See `Cell`."""
        return holder.is_gone or (holder.is_this_process and holder.token not in OURS)

    def require_conditions(self) -> None:
        """Raise StoreError if the server makes an object that is there already."""
        content, _ = self.read()
        if content and self._place.swap(LOCK, content, None) is not None:
            raise StoreError(
                f"the server of {self.where} ignores conditions of writing (If-None-Match), "
                "without which two jobs could write at once; write to a folder, and copy that"
            )


def lock_file(descriptor: int, cell: FileCell) -> None:
    """Lock the open file of a cell until it is closed.

    Raises:
        BusyError: another process holds it.
        StoreError: the file system knows no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy(cell.where, cell.read()[0]) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise StoreError(
            f"{cell.where} lies on a file system without locks ({error.strerror}); mount it with "
            "locks, or choose another folder"
        ) from error
