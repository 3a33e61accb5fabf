"""Folders of object stores: few requests, several at once, and errors that name the object.

An object appears whole, or not at all, when the last byte of it has come. A file that is large is
sent in parts, some at once. What a dropped connection broke off is sent again (see `clients`).
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from samprior.storage.clients import Bucket, load_obstore
from samprior.storage.errors import StoreError, UnreachableError
from samprior.storage.places import (
    check_end,
    check_ranges,
    checked_inside,
    checked_name,
    joined,
    missing,
)

NEAR_BYTES = 256 * 1024
"""Pieces with a smaller gap between them come with one request: the bytes in the gap take less
time than another answer, some 3 ms at 100 MB/s against 20 ms."""

MAX_REQUESTS = 32
"""Requests in flight when many whole files are read."""

PART_BYTES = 8 * 2**20
"""A larger file is sent in parts of at least so much; S3 takes no fewer than 5 MiB."""

PARTS_AT_ONCE = 4
"""Parts of a file in flight: 32 MiB in memory, and 2 Mbit/s each before `WRITE_TIMEOUT_S` hits."""

MAX_PARTS = 9000
"""S3 takes 10,000."""

Version = dict[str, str]
"""What a server calls the present content of an object: `e_tag`, and `version` where it has it."""

_LARGEST_OBJECT = 2**63 - 1
"""Bytes that can be counted; the server knows the true size."""


class RemoteFolder:
    """A folder of a bucket: all objects whose keys begin with its name and a slash."""

    local = None

    def __init__(self, bucket: Bucket, folder: str) -> None:
        self.bucket = bucket
        self.folder = folder

    @property
    def url(self) -> str:
        """`SCHEME://BUCKET/FOLDER`."""
        return joined(self.bucket.url, self.folder)

    def below(self, folder: str) -> "RemoteFolder":
        """See `Place`."""
        return RemoteFolder(self.bucket, self._key(folder))

    def read(self, name: str) -> bytes:
        """See `Place`."""
        with self._reading(name) as (obstore, client):
            return bytes(obstore.get(client, self._key(name)).bytes())

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """See `Place`."""
        if len(names) < 2:
            return [self.read(name) for name in names]
        with ThreadPoolExecutor(min(MAX_REQUESTS, len(names))) as threads:
            return list(threads.map(self.read, names))

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Place`."""
        check_ranges(ranges, size=_LARGEST_OBJECT, file=self._url_of(name))
        # obstore could join them itself, but panics if a joined range ends beyond the object.
        spans = _joined_spans(ranges)
        if not spans:
            return [b""] * len(ranges)
        starts, stops = zip(*spans, strict=True)
        with self._reading(name) as (obstore, client):
            blocks = obstore.get_ranges(
                client, self._key(name), starts=starts, ends=stops, coalesce=0
            )
        for block, (start, stop) in zip(blocks, spans, strict=True):
            if len(block) != stop - start:
                raise StoreError(f"{self._url_of(name)} ends before byte {stop}")
        held = {start: memoryview(block) for start, block in zip(starts, blocks, strict=True)}
        return [_piece(held, start, stop) for start, stop in ranges]

    def read_end(self, name: str, num_bytes: int) -> bytes:
        """See `Place`."""
        with self._reading(name) as (obstore, client):
            options = {"range": {"suffix": num_bytes}}
            content = bytes(obstore.get(client, self._key(name), options=options).bytes())
        check_end(len(content), num_bytes, self._url_of(name))
        return content

    def size(self, name: str) -> int:
        """See `Place`."""
        with self._reading(name) as (obstore, client):
            return int(obstore.head(client, self._key(name))["size"])

    def sizes(self) -> dict[str, int]:
        """See `Place`."""
        with self._reading("") as (obstore, client):
            found = obstore.list(client, self.folder or None).collect()
        inside = {self._name_in(self.folder, about["path"]): about["size"] for about in found}
        return {name: int(inside[name]) for name in sorted(inside) if name}

    def names(self, folder: str = "") -> list[str]:
        """See `Place`."""
        key = self._key(folder)
        with self._reading(folder) as (obstore, client):
            found = obstore.list_with_delimiter(client, key or None)
        paths = [*found["common_prefixes"], *(about["path"] for about in found["objects"])]
        return sorted({self._name_in(key, path) for path in paths} - {""})

    def write(self, name: str, content: bytes) -> None:
        """See `Place`."""
        with self._writing(name) as (obstore, client):
            obstore.put(client, self._key(name), content, use_multipart=False)

    def write_file(self, name: str, path: Path) -> None:
        """See `Place`."""
        size = path.stat().st_size
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        parts = {"chunk_size": part, "max_concurrency": PARTS_AT_ONCE}
        with self._writing(name) as (obstore, client):
            try:
                obstore.put(client, self._key(name), path, **parts)
            except FileNotFoundError:
                # The upload of parts may be gone because it was ended, and the answer was lost.
                obstore.put(client, self._key(name), path, **parts)

    def remove(self, name: str) -> None:
        """See `Place`."""
        self._remove([self._key(checked_inside(name, where=self.url))])

    def remove_folder(self, name: str) -> None:
        """See `Place`."""
        folder = self.below(checked_inside(name, where=self.url))
        self._remove([joined(folder.folder, inside) for inside in folder.sizes()])

    def read_version(self, name: str) -> tuple[bytes, Version]:
        """An object and its version, which `swap` takes."""
        with self._reading(name) as (obstore, client):
            found = obstore.get(client, self._key(name))
            return bytes(found.bytes()), _version(found.meta)

    def swap(self, name: str, content: bytes, expected: Version | None) -> Version | None:
        """Write a small object if it has the version expected, or isn't there if that is None.

        Returns:
            Its version now; None if it had another one, or was there or gone, and stays as it is.
        """
        mode = "create" if expected is None else expected
        with self._writing(name, is_patient=False) as (obstore, client):
            refusals = (
                obstore.exceptions.AlreadyExistsError,
                obstore.exceptions.PreconditionError,
            )
            try:
                return _version(obstore.put(client, self._key(name), content, mode=mode))
            except refusals:
                return None

    def _remove(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        with self._writing("") as (obstore, client):
            try:
                obstore.delete(client, keys)
            except FileNotFoundError:
                # Some servers say so of what is gone; then the others are removed one by one.
                for key in keys:
                    with suppress(FileNotFoundError):
                        obstore.delete(client, key)

    def _key(self, name: str) -> str:
        return joined(self.folder, checked_name(name, where=self.url))

    def _url_of(self, name: str) -> str:
        return joined(self.url, name)

    @staticmethod
    def _name_in(folder: str, key: str) -> str:
        """A listed key as seen from its folder; empty for the folder's own marker object."""
        return key.removeprefix(folder).removeprefix("/")

    @contextmanager
    def _reading(self, name: str) -> Iterator[tuple[ModuleType, object]]:
        """obstore and the client, and its errors as ours."""
        obstore = load_obstore(self.bucket.scheme)
        try:
            yield obstore, self.bucket.client(obstore)
        except FileNotFoundError:
            raise missing(self._url_of(name)) from None  # the cause would add a page, and no news
        except obstore.exceptions.BaseError as error:
            said = _one_line(str(error))
            if "416 Range Not Satisfiable" in said:
                raise StoreError(f"{self._url_of(name)} ends before the bytes wanted") from None
            raise UnreachableError(f"{self._url_of(name)} can't be read: {said}") from None

    @contextmanager
    def _writing(
        self, name: str, *, is_patient: bool = True
    ) -> Iterator[tuple[ModuleType, object]]:
        """obstore and a client, and its errors as ours."""
        obstore = load_obstore(self.bucket.scheme)
        try:
            yield obstore, self.bucket.client(obstore, is_patient=is_patient)
        except FileNotFoundError:
            raise UnreachableError(
                f"{self._url_of(name)} can't be written: there is no bucket "
                f"{self.bucket.url}; make it, or name another"
            ) from None
        except obstore.exceptions.BaseError as error:
            raise UnreachableError(
                f"{self._url_of(name)} can't be written: {_one_line(str(error))}; if that was not "
                "the network, see that the credentials allow writing and removing, then run the "
                "same command again"
            ) from None


def _version(about: Any) -> Version:  # noqa: ANN401  # obstore's, of a get or a put
    return {key: about[key] for key in ("e_tag", "version") if about[key]}


def _joined_spans(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The fewest ranges that hold all given ones without reading a gap of over `NEAR_BYTES`."""
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in ranges if span[0] < span[1]):
        if spans and start - spans[-1][1] < NEAR_BYTES:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def _piece(held: dict[int, memoryview], start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` out of the block, keyed by its first byte, that holds them."""
    if start >= stop:
        return b""
    first = max(begin for begin in held if begin <= start)
    return bytes(held[first][start - first : stop - first])


def _one_line(message: str) -> str:
    """What obstore says without its debug output, and of the server's XML only the code."""
    said = message.partition("\n\nDebug source")[0]
    code = re.search(r"<Code>(\w+)</Code>", said)
    said = re.sub(r"[:\s]*(<\?xml|<Error>).*", "", said, flags=re.DOTALL)
    return " ".join(said.split()) + (f" ({code[1]})" if code else "")
