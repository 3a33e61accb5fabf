"""Who holds a lock: what its file says, and whether that process still lives.

Clocks of two machines are never compared: how long a lock has been held is what its holder says,
by its own monotonic clock; `started` is for people.
"""

import json
import os
import sys
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

MAX_BYTES = 8192
"""More is no file of a lock."""

_MAX_COMMAND = 1000
_MAX_NAME = 255

UNKNOWN = "who does not say its name"
"""A holder whose file can't be read."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lock; on disk as JSON."""

    host: str
    pid: int
    started: str
    """When it took the lock: UTC, ISO 8601, by the clock of its host."""
    command: str
    held_s: int
    """How long it has held it, seconds, when it last said so."""
    beats: int
    """How often it has said so; two files of one holder never have the same content."""
    token: str
    """Of this holding of this lock alone."""
    machine: str
    """Boot and PID namespace: where these are equal, `pid` means the same process."""
    process: str
    """When the process started, in ticks since the boot; tells a `pid` that was used again. Empty
    where the system doesn't say."""

    @classmethod
    def this(cls) -> Self:
        """This process, which takes a lock now."""
        return cls(
            host=os.uname().nodename[:_MAX_NAME],
            pid=os.getpid(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            command=" ".join(sys.argv)[:_MAX_COMMAND],
            held_s=0,
            beats=0,
            token=uuid.uuid4().hex,
            machine=_machine(),
            process=_start_of("self") or "",
        )

    def after(self, since: float) -> Self:
        """The same at its next beat; `since` is the monotonic time when it took the lock."""
        held_s = max(self.held_s, int(time.monotonic() - since))
        return replace(self, held_s=held_s, beats=self.beats + 1)

    def to_json(self) -> bytes:
        """The content of the lock's file; never shorter than that of an earlier beat."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Self | None:
        """Read `to_json`'s bytes back; None if the content is something else, or half of it."""
        try:
            record = json.loads(content[:MAX_BYTES])
            return cls(
                host=_printable(record["host"]),
                pid=int(record["pid"]),
                started=_printable(record["started"]),
                command=_printable(record["command"]),
                held_s=int(record["held_s"]),
                beats=int(record["beats"]),
                token=_printable(record["token"]),
                machine=_printable(record["machine"]),
                process=_printable(record["process"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}, since {_duration(self.held_s)}"

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, where its `pid` and its file locks mean what they mean to us."""
        ours = (os.uname().nodename[:_MAX_NAME], _machine())
        return (self.host, self.machine) == ours

    @property
    def is_gone(self) -> bool:
        """Whether it surely has ended; that can be told only of one that is here."""
        return self.is_here and bool(self.process) and _start_of(str(self.pid)) != self.process

    @property
    def is_this_process(self) -> bool:
        """Whether it is, or was, a holding of this very process."""
        return self.is_here and (self.pid, self.process) == (os.getpid(), _start_of("self") or "")


def _machine() -> str:
    """Where the system doesn't tell, the name of the host has to do."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return sys.platform


def _start_of(pid: str) -> str | None:
    """When a living process started, in ticks since the boot; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything; state is the first field after it, start the 20th.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in ("Z", "X") else rest[18]


def _printable(text: object) -> str:
    """Text for one line of a message."""
    return "".join(letter for letter in str(text) if letter.isprintable())[:_MAX_COMMAND]


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
