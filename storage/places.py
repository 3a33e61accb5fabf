"""Where a store lies: a folder of this machine, or one in an object store (s3://, gs://,
az://).

Readers and writers of the store ask a `Place` for its files by name and need not know which of the
two it is. What is written is there whole or not at all.
Names are relative, with `/` between their parts; a name that would leave the folder is refused, so
names may come from files that nobody has checked. Places are small: they can be pickled, used from
several threads, and carried into forked processes.
"""

import errno
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from samprior.storage.errors import StoreError, UsageError
from samprior.storage.files import staged_file, write_bytes

SCHEMES = ("s3", "gs", "az")
"""Object stores that are known; buckets of other servers that speak S3 are s3:// too."""

COPY_BYTES = 2**20
"""Bytes of a file that are held while it is copied."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@runtime_checkable
class Place(Protocol):
    """A folder that files are read from and written to. Safe in several threads; can be pickled.

    All methods raise
    FileNotFoundError: there is no such file;
    StoreError: a name leads out of the folder, or a file ends before the bytes that were asked for;
    UnreachableError: an object store didn't answer, or refused (it is a StoreError and an OSError).
    """

    @property
    def url(self) -> str:
        """How a user would name the folder."""

    @property
    def local(self) -> Path | None:
        """The folder, if it is one of this machine; its files can then be mapped."""

    def below(self, folder: str) -> "Place":
        """A folder inside this one; nothing is asked or read."""

    def read(self, name: str) -> bytes:
        """A whole file."""

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Whole files, in the order of their names; remote ones are fetched together."""

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Pieces of a file from byte `start` up to `stop`, in the order given.

        Of a remote file, pieces near each other come with one request, the others together.
        """

    def read_end(self, name: str, num_bytes: int) -> bytes:
        """The last bytes of a file."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every file in the folder and the folders below it, by name, in order.

        Of a remote folder this takes one request per 1,000 files. A missing folder has no files.
        """

    def names(self, folder: str = "") -> list[str]:
        """What lies directly in a folder, files and folders, in order; nothing if it's missing."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; folders on the way to it are made."""

    def write_file(self, name: str, path: Path) -> None:
        """The same with the content of a file of this machine, which is never held whole."""

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""

    def remove_folder(self, name: str) -> None:
        """Remove a folder below this one and all it holds; nothing happens if there is none."""


def open_place(where: str | Path | Place) -> Place:
    """The place that a path or URL names; a place is given back as it is. Nothing is read yet.

    Raises:
        UsageError: a URL of another scheme, or one with more in it than bucket and folder.
    """
    if isinstance(where, Path):
        return LocalFolder(where)
    if not isinstance(where, str):
        return where
    if "://" not in where:
        return LocalFolder(Path(where))
    parts = urlsplit(where)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalFolder(Path(unquote(parts.path)))
    if parts.scheme not in SCHEMES:
        # The URL itself isn't repeated: it may hold a password.
        raise UsageError(
            "a store is a folder of this machine, or a URL of s3://, gs://, az:// or file://, not "
            f"{parts.scheme}://{parts.hostname or ''}; mount what lies elsewhere as a folder, or "
            "copy the store"
        )
    return _open_bucket(where)


def _open_bucket(url: str) -> Place:
    """The remote folder of `SCHEME://BUCKET/FOLDER`.

    Keys may hold `?`, `#` and `%`, so all that follows the bucket is taken as it stands.
    """
    # Imported here because they build on this file; obstore itself is imported on first use.
    from samprior.storage.clients import Bucket
    from samprior.storage.remote import RemoteFolder

    scheme, _, rest = url.partition("://")
    bucket, _, folder = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        noun = "container" if scheme == "az" else "bucket"  # without the URL, as above
        raise UsageError(
            f"{scheme}:// needs a {noun} and a folder, as in {scheme}://{noun}/folder; "
            "credentials come from the environment"
        )
    return RemoteFolder(Bucket(scheme, bucket), checked_name(folder.strip("/"), where=url))


def is_file(place: Place, name: str) -> bool:
    """Whether there is a file of this name."""
    try:
        place.size(name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def checked_name(name: str, *, where: str) -> str:
    """The name, if it leads to something inside the folder `where`, or is empty (the folder).

    Raises:
        StoreError: it doesn't.
    """
    if name and any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
        raise StoreError(f"{where} names a file {name!r}, which does not lie below it")
    return name


def checked_inside(name: str, *, where: str) -> str:
    """The name, if it leads to something inside the folder `where` and isn't that folder.

    Raises:
        StoreError: it doesn't.
    """
    if not name:
        raise StoreError(f"{where} itself is not removed, only what lies in it")
    return checked_name(name, where=where)


def joined(folder: str, name: str) -> str:
    """Two relative names as one; either may be empty."""
    return f"{folder}/{name}" if folder and name else folder or name


class LocalFolder:
    """A folder of this machine, or one mounted on it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def url(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def local(self) -> Path:
        """The path."""
        return self.path

    def below(self, folder: str) -> "LocalFolder":
        """See `Place`."""
        return LocalFolder(self._file(folder))

    def read(self, name: str) -> bytes:
        """See `Place`."""
        return self._file(name).read_bytes()

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """See `Place`."""
        return [self.read(name) for name in names]

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Place`."""
        file = self._file(name)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            check_ranges(ranges, size=os.fstat(descriptor).st_size, file=str(file))
            return [os.pread(descriptor, stop - start, start) for start, stop in ranges]
        finally:
            os.close(descriptor)

    def read_end(self, name: str, num_bytes: int) -> bytes:
        """See `Place`."""
        size = self.size(name)
        check_end(size, num_bytes, str(self._file(name)))
        return self.read_ranges(name, [(size - num_bytes, size)])[0]

    def size(self, name: str) -> int:
        """See `Place`."""
        return self._file(name).stat().st_size

    def sizes(self) -> dict[str, int]:
        """See `Place`."""
        files = sorted(file for file in self.path.rglob("*") if file.is_file())
        return {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}

    def names(self, folder: str = "") -> list[str]:
        """See `Place`."""
        try:
            return sorted(path.name for path in self._file(folder).iterdir())
        except FileNotFoundError:
            return []

    def write(self, name: str, content: bytes) -> None:
        """See `Place`."""
        write_bytes(self._file(name), content)

    def write_file(self, name: str, path: Path) -> None:
        """See `Place`."""
        with path.open("rb") as source, staged_file(self._file(name)) as draft:
            shutil.copyfileobj(source, draft, COPY_BYTES)

    def remove(self, name: str) -> None:
        """See `Place`."""
        self._file(checked_inside(name, where=self.url)).unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """See `Place`."""
        folder = self._file(checked_inside(name, where=self.url))
        if folder.is_dir():
            shutil.rmtree(folder)

    def _file(self, name: str) -> Path:
        return self.path / checked_name(name, where=self.url)


def check_ranges(ranges: Sequence[tuple[int, int]], *, size: int, file: str) -> None:
    """Raise StoreError if a range isn't one, or reaches beyond the `size` bytes of a file."""
    for start, stop in ranges:
        if not 0 <= start <= stop <= size:
            raise StoreError(f"{file} has no bytes {start} to {stop}")


def check_end(size: int, num_bytes: int, file: str) -> None:
    """Raise StoreError if a file has fewer bytes than are wanted of its end."""
    if size < num_bytes:
        raise StoreError(f"{file} has {size} bytes, fewer than the {num_bytes} at its end")


def missing(url: str) -> FileNotFoundError:
    """The error of a file that isn't there."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
