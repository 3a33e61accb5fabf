"""Send a shard to an object store: written in a folder of this machine, the receipt sent last.

An object store has no rename, but each object appears whole. So a shard counts only by its receipt:
that of an earlier version goes first, then the files come, side by side, then what is left of
an earlier version goes, and only then comes the receipt. Whoever is killed in between leaves files
that don't count; the next writer of the shard writes over them.
"""

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from samprior.storage.manifest import Receipt, receipt_name
from samprior.storage.places import Place

FILES_AT_ONCE = 8
"""Files of a shard on their way at the same time; a shard has some 17, most of them small."""

SCRATCH = "samprior-shard-"
"""Prefix of the folders in which shards are written first, in the folder for temporary files."""


def upload_shard(
    place: Place,
    shard: int,
    write: Callable[[Path], Receipt],
    *,
    held: Callable[[Place, int], Iterable[str]],
) -> Receipt:
    """Write a shard at a place that isn't on this machine.

    Args:
        place: of the store.
        shard: its number.
        write: writes the shard and its receipt below a folder, as in a store.
        held: names of the files of the shard that may be at the place.

    Raises:
        UnreachableError: the object store didn't answer, or refused; the shard doesn't count.
    """
    with _scratch_folder() as scratch:
        receipt = write(scratch)
        last = receipt_name(shard)
        files = (file for file in scratch.rglob("*") if file.is_file())
        names = {file.relative_to(scratch).as_posix(): file for file in files}
        receipt_file = names.pop(last)
        place.remove(last)
        with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
            # Large ones first; the first error is raised once every thread has ended.
            order = sorted(names, key=lambda name: -names[name].stat().st_size)
            list(threads.map(lambda name: place.write_file(name, names[name]), order))
        for name in sorted(set(held(place, shard)) - names.keys()):
            place.remove(name)
        place.write_file(last, receipt_file)
    return receipt


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """An empty folder for temporary files; those of writers that were killed are removed."""
    there = Path(tempfile.gettempdir())
    _remove_left(there)
    # It gets its name only once it is locked: one that has the name and no lock is left over.
    draft = Path(tempfile.mkdtemp(prefix="samprior-", dir=there))
    folder = there / f"{SCRATCH}{uuid.uuid4().hex}"
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        draft.rename(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_left(there: Path) -> None:
    for folder in there.glob(f"{SCRATCH}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or gone
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # at work
        finally:
            os.close(descriptor)
