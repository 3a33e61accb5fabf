"""How far the job of a store is: from its header, receipts and lock alone; no shard is read.

It may be asked while a job runs. Receipts are counted, and not checked: that is what `samprior
verify` is for. Pace is the one thing that is taken from files' times: those of the receipts, which
are of one clock, the file system's.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from samprior.storage.header import Header
from samprior.storage.holders import Holder
from samprior.storage.locks import LOCK, holder_of
from samprior.storage.manifest import read_header, receipt_name, receipt_shards
from samprior.storage.mask_sets import mask_sets, set_name
from samprior.storage.places import Place, is_file, open_place
from samprior.storage.tar_job import HEADER, read_tar_header

PACE_OF = 200
"""Receipts, the newest, that tell the pace."""

_PAUSE = 10.0
"""Gaps between receipts of more than so many usual ones are pauses, or a clock that was set."""

_AT_ONCE = 256
"""Receipts that are read together, and held."""


@dataclass(frozen=True)
class Writer:
    """Who writes, or wrote when it was killed; what isn't known is None."""

    host: str | None
    pid: int | None
    command: str | None
    held_s: int | None
    """How long it had the store when it last said so."""
    is_alive: bool | None
    """None: it is of another machine, which can't be asked from here."""


@dataclass
class Status:
    """What is done, and what is left."""

    num_shards: int
    num_images: int
    """Of the plan, as is `num_shards`."""
    shards_done: int = 0
    images_done: int = 0
    """Quarantined ones included."""
    num_masks: int = 0
    stored_bytes: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    """What is wrong with receipts; they count as not done."""
    images_per_s: float | None = None
    """Lately; None before two shards are done, and of object stores."""
    writer: Writer | None = None
    """None: no job runs, and none was killed."""
    mask_sets: dict[str, "Status"] = field(default_factory=dict)

    @property
    def masks_per_image(self) -> float | None:
        """None before there is an image."""
        num_images = self.images_done - len(self.quarantined)
        return self.num_masks / num_images if num_images else None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the pace of late."""
        left = self.num_images - self.images_done
        return left / self.images_per_s if left and self.images_per_s else None

    def to_record(self) -> dict[str, Any]:
        """The status as JSON."""
        record = {name: value for name, value in vars(self).items() if name != "mask_sets"}
        return {
            **record,
            "masks_per_image": self.masks_per_image,
            "eta_s": self.eta_s,
            "writer": vars(self.writer) if self.writer else None,
            "mask_sets": {name: one.to_record() for name, one in self.mask_sets.items()},
        }


def store_status(where: str | Path | Place) -> Status:
    """The status of a store or of a folder of tars, and of its further mask sets.

    Raises:
        StoreError: there is neither.
        UnreachableError: an object store didn't answer.
    """
    place = open_place(where)
    status = _status(place, _header(place))
    for name in mask_sets(place):
        of_set = place.below(set_name(name))
        status.mask_sets[name] = _status(of_set, read_header(of_set))
    return status


def pace(times_s: Sequence[float], num_images: Sequence[int]) -> float | None:
    """Images a second, from when each shard was finished and how many images it has.

    Pauses are left out, and so is what a clock did that was set. None: nothing tells the pace.
    """
    newest = sorted(zip(times_s, num_images, strict=True))[-PACE_OF:]
    gaps = [(later - earlier, images) for (earlier, _), (later, images) in pairwise(newest)]
    positive = sorted(gap for gap, _ in gaps if gap > 0)
    if not positive:
        return None
    limit = _PAUSE * positive[len(positive) // 2]
    used = [(gap, images) for gap, images in gaps if gap <= limit]
    return sum(images for _, images in used) / sum(gap for gap, _ in used)


def _header(place: Place) -> Header:
    is_tars = not is_file(place, "zarr.json") and is_file(place, HEADER)
    return read_tar_header(place) if is_tars else read_header(place)


def _status(place: Place, header: Header) -> Status:
    status = Status(num_shards=header.num_shards, num_images=header.num_images)
    times_s, num_images = [], []
    for name, content in _receipts(place, header.num_shards):
        try:
            images = _add(status, json.loads(content))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            status.unreadable.append(f"{place.url}/{name} is no receipt ({error!r})")
            continue
        changed_s = _changed_s(place, name)
        if changed_s is not None:
            num_images.append(images)
            times_s.append(changed_s)
    status.images_per_s = pace(times_s, num_images)
    status.writer = writer_of(place)
    return status


def _receipts(place: Place, num_shards: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of each receipt of the plan."""
    names = [receipt_name(shard) for shard in receipt_shards(place) if shard < num_shards]
    for start in range(0, len(names), _AT_ONCE):
        part = names[start : start + _AT_ONCE]
        try:
            yield from zip(part, place.read_many(part), strict=True)
        except FileNotFoundError:
            yield from _one_by_one(place, part)


def _one_by_one(place: Place, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The same where a shard is being replaced at this moment."""
    for name in names:
        try:
            yield name, place.read(name)
        except FileNotFoundError:
            continue


def _changed_s(place: Place, name: str) -> float | None:
    """When a file was written, where that is known."""
    if place.local is None:
        return None
    try:
        return (place.local / name).stat().st_mtime
    except FileNotFoundError:
        return None


def _add(status: Status, receipt: Mapping[str, Any]) -> int:
    """Count a receipt; its images."""
    num_masks = sum(map(int, receipt["num_masks"]))
    quarantined = {str(key): str(reason) for key, reason in receipt["quarantined"].items()}
    num_images = len(receipt["keys"]) + len(quarantined)
    status.stored_bytes += int(receipt["stored_bytes"])
    status.num_masks += num_masks
    status.quarantined |= quarantined
    status.images_done += num_images
    status.shards_done += 1
    return num_images


def writer_of(place: Place) -> Writer | None:
    """Who holds the lock, or held it last and didn't say that it ended."""
    try:
        is_said = bool(place.size(LOCK))
    except FileNotFoundError:
        return None
    holder = holder_of(place)
    is_held = None if place.local is None else _is_locked(place.local / LOCK)
    if not is_said and not is_held:
        return None
    if holder is None:
        return Writer(None, None, None, None, is_held)
    return Writer(holder.host, holder.pid, holder.command, holder.held_s, _lives(holder, is_held))


def _lives(holder: Holder, is_held: bool | None) -> bool | None:
    """Whether a holder is alive, by what the system says of the file's lock, and of the process."""
    if is_held:
        return True
    if not holder.is_here:
        return None
    return is_held is None and not holder.is_gone


def _is_locked(lock: Path) -> bool:
    """Whether a process holds the file. The lock is tried, and given back at once."""
    with lock.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
