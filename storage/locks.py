"""Locks: a folder, here or in an object store, has one writer at a time.

The lock is the file `.lock`, which says in JSON who holds it (`samprior.storage.holders`). Its
holder says so again every `BEAT_S` seconds, from a thread, and thereby that it lives.

What is guaranteed:

- On one machine: two processes never hold a lock at once, and that of a process that ended, however
  it did, is free at once (flock; in a bucket, that the process is gone).
- In a bucket: two processes never take a lock at once, on whatever machines; this needs a server
  that knows conditional writes, and one that doesn't is refused.
- A lock whose holder nobody here can judge (another machine, another container) is taken over only
  after its file was watched for `STALE_S` seconds, by the watcher's own monotonic clock, and did
  not change. No two machines' clocks are compared.
- A holder that was taken over all the same, because it stood still or was cut off for that long,
  finds that out at its next beat and stops at its next `Hold.check`.

What isn't: between these two moments two may write at once. So may two machines that share a folder
on which neither sees the other's flock, and that begin in the same moment: the one whose name was
overwritten stops after a beat. Files appear whole, and a shard has a receipt with digests, so what
two writers can have mixed then is found by `samprior verify`.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from samprior.storage.errors import BusyError
from samprior.storage.holders import Holder
from samprior.storage.lock_cells import LOCK as LOCK
from samprior.storage.lock_cells import OURS, Cell, FileCell, ObjectCell, busy, lock_file, named

if TYPE_CHECKING:
    from samprior.storage.places import Place
    from samprior.storage.remote import Version

BEAT_S = 20.0
"""How often a holder says that it lives."""

STALE_S = 120.0
"""How long a lock is watched before it counts as left behind."""

_LOOKS = 24
"""How often the file is looked at meanwhile."""

_log = logging.getLogger(__name__)

V = TypeVar("V")


class Hold(Generic[V]):
    """A lock that this process holds."""

    def __init__(self, cell: Cell[V], me: Holder, version: V) -> None:
        self._cell, self._me, self._version = cell, me, version
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._new_holder: str | None = None

    def check(self) -> None:
        """Call this before each larger step.

        Raises:
            BusyError: another process has taken the lock over; nothing may be written any more.
        """
        if self._new_holder is not None:
            raise BusyError(
                f"the lock of {self._cell.where} was taken over ({self._new_holder}) while this "
                "process stood still or was cut off; let that one end, or run the same command "
                "again then"
            )

    @contextmanager
    def beating(self, beat_s: float) -> Iterator[None]:
        """Say every `beat_s` seconds that this process lives; give the lock back at the end."""
        thread = threading.Thread(target=self._beat_on, args=[beat_s], daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            OURS.discard(self._me.token)
            # Of a forked process, this is another one's lock, and the thread isn't there.
            if os.getpid() == self._me.pid:
                thread.join(timeout=beat_s)
                # It is left behind then, and found to be so later.
                with suppress(OSError):
                    if self._is_mine(self._cell.read()[0]):
                        self._cell.clear()

    def _beat_on(self, beat_s: float) -> None:
        while self._new_holder is None and not self._ended.wait(beat_s):
            # A disk or network that fails now may be back at the next beat; nobody else can take
            # the lock but by way of the same disk or network, and then it shows.
            with suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        self._me = self._me.after(self._since)
        version = self._cell.swap(self._me.to_json(), self._version)
        if version is None:
            content, version = self._cell.read()
            # It may be ours all the same: of a beat that was written, and whose answer was lost.
            if not self._is_mine(content):
                if not self._ended.is_set():  # else it was given back while this beat hung
                    self._new_holder = named(content) if content else "its file was removed"
                return
        self._version = version

    def _is_mine(self, content: bytes) -> bool:
        holder = Holder.from_json(content)
        return holder is not None and holder.token == self._me.token


@contextmanager
def only_writer(
    folder: Path, *, stale_s: float | None = None, beat_s: float | None = None
) -> Iterator[Hold[bytes]]:
    """Hold the folder, made if missing; the system frees it even when this process is killed.

    Args:
        folder: of this machine, or one mounted on it.
        stale_s: how long the lock of another machine is watched; `STALE_S` if None.
        beat_s: `BEAT_S` if None.

    Raises:
        BusyError: another process holds it; or took it over meanwhile.
        StoreError: the file system knows no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The file is never removed: a third process could lock a new one while a second holds the old.
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        cell = FileCell(folder)
        lock_file(descriptor, cell)
        hold = _taken(cell, STALE_S if stale_s is None else stale_s)
        with hold.beating(BEAT_S if beat_s is None else beat_s):
            yield hold
        hold.check()
    finally:
        os.close(descriptor)


@contextmanager
def only_writer_of(
    place: "Place", *, stale_s: float | None = None, beat_s: float | None = None
) -> Iterator[Hold[bytes] | Hold["Version | None"]]:
    """Hold a folder of this machine or of an object store; see `only_writer`.

    Raises:
        BusyError: another process holds it; or took it over meanwhile.
        StoreError: the file system knows no locks, or the server no conditional writes.
        UnreachableError: an object store didn't answer, or refused.
    """
    if place.local is not None:
        with only_writer(place.local, stale_s=stale_s, beat_s=beat_s) as local:
            yield local
        return
    # Imported here, because it builds on files that import this one.
    from samprior.storage.remote import RemoteFolder

    assert isinstance(place, RemoteFolder)
    cell = ObjectCell(place)
    hold = _taken(cell, STALE_S if stale_s is None else stale_s)
    with hold.beating(BEAT_S if beat_s is None else beat_s):
        cell.require_conditions()
        yield hold
    hold.check()


def holder_of(place: "Place") -> Holder | None:
    """Who holds the lock of a folder, or held it when it was killed; None if nobody says so."""
    try:
        return Holder.from_json(place.read(LOCK))
    except FileNotFoundError:
        return None


def _taken(cell: Cell[V], stale_s: float) -> Hold[V]:
    """Take the lock, or raise BusyError."""
    content, version = cell.read()
    holder = Holder.from_json(content)
    if content and not (holder and cell.is_left(holder)):
        version = _watched(cell, content, stale_s)
    me = Holder.this()
    OURS.add(me.token)
    try:
        return Hold(cell, me, _written(cell, me, version))
    except BaseException:
        OURS.discard(me.token)
        raise


def _written(cell: Cell[V], me: Holder, expected: V) -> V:
    """Write who holds a free lock; its version then."""
    version = cell.swap(me.to_json(), expected)
    if version is None:
        content, version = cell.read()
        now = Holder.from_json(content)
        # It may be ours all the same: if the first answer was lost, the second attempt is refused.
        if now is None or now.token != me.token:
            raise busy(cell.where, content)
    return version


def _watched(cell: Cell[V], seen: bytes, stale_s: float) -> V:
    """Watch a lock that nobody has renewed until it counts as left; its version then.

    Raises:
        BusyError: its holder lives.
    """
    holder = Holder.from_json(seen)
    if holder is not None and holder.is_here and holder.process:
        raise busy(cell.where, seen)
    _log.warning(
        "%s has the lock of another machine or container (%s); waiting up to %.0f s to see "
        "whether it is still held",
        cell.where,
        named(seen),
        stale_s,
    )
    until = time.monotonic() + stale_s
    while True:
        # Looked at a last time when the time is over.
        is_last = time.monotonic() >= until
        content, version = cell.read()
        if content != seen and content:
            raise busy(cell.where, content)
        if is_last or not content:
            return version
        time.sleep(max(0.0, min(stale_s / _LOOKS, until - time.monotonic())))
