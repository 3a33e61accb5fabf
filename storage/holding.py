"""Workers that outlive their job: a new job, or a repair, waits until they have ended.

The lock of a store is the job's. When the job is killed it is free at once, while a worker may live
on for a moment and write. So each worker holds the store's header file too, shared with the others
(flock), until it ends, however it does. What workers of other machines hold is seen where the file
system takes locks there.
"""

import fcntl
import os
import time
from pathlib import Path

from samprior.storage.errors import BusyError

PATIENCE_S = 60.0
"""How long a new job waits; Ray ends the workers of a dead job within seconds."""

_LOOK_EVERY_S = 0.1


def hold_for_life(file: Path) -> None:
    """Hold a file, with others, until this process ends."""
    # The descriptor is never closed, and closes itself in programs that this process starts.
    fcntl.flock(os.open(file, os.O_RDONLY), fcntl.LOCK_SH)


def wait_for_holders(file: Path, *, patience_s: float = PATIENCE_S) -> None:
    """Wait until nobody holds a file by `hold_for_life`; a missing file is held by nobody.

    Raises:
        BusyError: somebody still does.
    """
    try:
        # NFS gives locks that exclude others on files that are open for writing only.
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        until = time.monotonic() + patience_s
        while not _is_free(descriptor):
            if time.monotonic() > until:
                raise BusyError(
                    f"workers of a job that was killed still write to {file.parent}; end their "
                    "processes (ray::RayWorker), then run the same command again"
                )
            time.sleep(_LOOK_EVERY_S)
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
