"""The official SAM checkpoints: fetched once, resumed when cut off, checked by SHA-256.

Nothing unchecked ever has a checkpoint's name: bytes arrive in `<file>.part`, which is renamed
only when its SHA-256 begins with the digits that the official file name carries. A lock file
lets one process download while others wait for it.
"""

import fcntl
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from samprior.storage.choices import check_choice
from samprior.storage.errors import CheckpointError
from samprior.storage.files import STAGED_SUFFIX, sha256_of, write_bytes

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/segment_anything"
"""Where Meta publishes the checkpoints (README of facebookresearch/segment-anything)."""

TIMEOUT_S = 30.0
"""Longest silence of the server before a transfer counts as cut off."""

Progress = Callable[[int, int | None], None]
"""Called with bytes there so far and bytes in all (None if the server doesn't say)."""


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A published file and the first digits of its SHA-256."""

    file: str
    sha256_prefix: str


CHECKPOINTS: Mapping[str, OfficialCheckpoint] = {
    "vit_h": OfficialCheckpoint("sam_vit_h_4b8939.pth", "4b8939"),
    "vit_l": OfficialCheckpoint("sam_vit_l_0b3195.pth", "0b3195"),
    "vit_b": OfficialCheckpoint("sam_vit_b_01ec64.pth", "01ec64"),
}


def default_cache() -> Path:
    """`$SAMPRIOR_CACHE`, else `$XDG_CACHE_HOME/samprior`, else `~/.cache/samprior`."""
    if own := os.environ.get("SAMPRIOR_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "samprior"
    return Path.home() / ".cache" / "samprior"


def fetch_checkpoint(
    model: str,
    *,
    cache: Path | None = None,
    base_url: str = OFFICIAL_URL,
    progress: Progress | None = None,
    checkpoints: Mapping[str, OfficialCheckpoint] = CHECKPOINTS,
) -> Path:
    """Give the verified checkpoint of `model` in the cache, downloading it if it isn't there.

    A second process that asks for the same file waits until the first is done.

    Raises:
        UsageError: `model` is none of `checkpoints`.
        CheckpointError: the network or the disk failed (what arrived is kept and resumed by
            the next call), or the content has another SHA-256 (what arrived is deleted).
    """
    check_choice("SAM model", model, checkpoints)
    wanted = checkpoints[model]
    path = (default_cache() if cache is None else cache) / wanted.file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and _recorded_digest(path) is not None:
            _check(path, wanted)
            return path
        with _lock(path):
            if not path.is_file():
                _download(f"{base_url.rstrip('/')}/{wanted.file}", path, wanted, progress)
            _record_digest(path)
            _check(path, wanted)
    except OSError as error:
        raise CheckpointError(f"can't keep {wanted.file} in {path.parent} ({error})") from error
    return path


def checkpoint_digest(path: Path) -> str:
    """Hex SHA-256 of a checkpoint; of a file in the cache it is remembered, as it takes a while.

    Raises:
        CheckpointError: the file can't be read.
    """
    try:
        return _recorded_digest(path) or sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} can't be read ({error})") from error


def _check(path: Path, wanted: OfficialCheckpoint) -> None:
    got = checkpoint_digest(path)
    if not got.startswith(wanted.sha256_prefix):
        raise CheckpointError(
            f"{path} has SHA-256 {got[:12]}..., wanted {wanted.sha256_prefix}...; delete it, "
            "and it is downloaded again"
        )


def _download(url: str, path: Path, wanted: OfficialCheckpoint, progress: Progress | None) -> None:
    """Fill the part file, going on after each cut that brought something, and rename it."""
    part = path.with_name(path.name + STAGED_SUFFIX)
    farthest = part.stat().st_size if part.is_file() else 0
    while not _transfer(url, part, progress):
        reached = part.stat().st_size
        if reached <= farthest:
            raise _unreachable(url, path, "the connection was cut off")
        farthest = reached
    got = sha256_of(part)
    if not got.startswith(wanted.sha256_prefix):
        part.unlink()
        raise CheckpointError(
            f"{url} has SHA-256 {got[:12]}..., wanted {wanted.sha256_prefix}...; the download was "
            f"deleted. Try again, or put the right file at {path}"
        )
    part.replace(path)


def _transfer(url: str, part: Path, progress: Progress | None) -> bool:
    """Ask once for what `part` lacks and append it; whether the file is complete."""
    path = part.with_name(part.name.removesuffix(STAGED_SUFFIX))
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "samprior"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            # Nothing beyond what is there: complete, or longer than the file; the digest tells.
            return True
        raise _unreachable(url, path, f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(url, path, str(getattr(error, "reason", error))) from error
    with response:
        start, total = _span(response, url, path, have)
        # A server that ignores Range sends everything: start over.
        with part.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            stream.truncate()
            done, ended = _copy(response, stream, start, total, progress)
    # A closed connection looks like the end; only the announced length tells them apart.
    return ended and total in (None, done)


def _span(
    response: http.client.HTTPResponse, url: str, path: Path, have: int
) -> tuple[int, int | None]:
    """Where the answer's bytes begin in the file, and the file's length if it is told."""
    length = response.headers.get("Content-Length", "")
    start = 0
    if response.status == 206:
        span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != have:
            raise _unreachable(url, path, f"asked for bytes from {have}, got other ones")
        start = have
    return start, start + int(length) if length.isdecimal() else None


def _copy(
    response: http.client.HTTPResponse,
    stream: BinaryIO,
    start: int,
    total: int | None,
    progress: Progress | None,
) -> tuple[int, bool]:
    """Copy until the server ends or the connection breaks; bytes in the file, and whether ended."""
    done = start
    while True:
        try:
            piece = response.read(1 << 20)
        except (OSError, http.client.HTTPException):
            return done, False
        if not piece:
            return done, True
        stream.write(piece)
        done += len(piece)
        if progress is not None:
            progress(done, total)


def _unreachable(url: str, path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"can't download {url} ({reason}); try again, or put the file at {path} by hand, or use "
        "--segmenter superpixel, which needs no weights"
    )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `<file>.lock`; the system lets go of it when the process ends, however it ends."""
    with path.with_name(f"{path.name}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def _recorded_digest(path: Path) -> str | None:
    """The digest noted for this very file (same size and time of change), if there is one."""
    state = path.stat()
    try:
        note = json.loads(_digest_file(path).read_bytes())
        known = (note["size_bytes"], note["mtime_ns"]) == (state.st_size, state.st_mtime_ns)
        return str(note["sha256"]) if known else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _record_digest(path: Path) -> None:
    state = path.stat()
    note = {
        "size_bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "sha256": checkpoint_digest(path),
    }
    write_bytes(_digest_file(path), json.dumps(note).encode())
