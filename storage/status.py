"""How far the job of a store is: from its header, receipts and lock alone; no shard is read.

It may be asked while a job runs. Receipts are counted, and not checked: that is what `samprior
verify` is for. Pace is the one thing that is taken from files' times: those of the receipts, which
are of one clock, the file system's.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from samprior.storage.files import LOCK
from samprior.storage.header import Header
from samprior.storage.manifest import read_header, receipt_files
from samprior.storage.mask_sets import mask_sets, set_name
from samprior.storage.places import open_place
from samprior.storage.tar_job import HEADER, read_tar_header

PACE_OF = 200
"""Receipts, the newest, that tell the pace."""

_PAUSE = 10.0
"""Gaps between receipts of more than so many usual ones are pauses, or a clock that was set."""

_MAX_LOCK_BYTES = 8192


@dataclass(frozen=True)
class Holder:
    """Who writes, or wrote when it was killed; what isn't known is None."""

    host: str | None
    pid: int | None
    started: str | None
    """As the holder said, by the clock of its host."""
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
    """Lately; None before two shards are done."""
    holder: Holder | None = None
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
            "holder": vars(self.holder) if self.holder else None,
            "mask_sets": {name: one.to_record() for name, one in self.mask_sets.items()},
        }


def store_status(root: Path) -> Status:
    """The status of a store or of a folder of tars, and of its further mask sets.

    Raises:
        StoreError: there is neither.
    """
    status = _status(root, _header(root))
    for name in mask_sets(open_place(root)):
        folder = root / set_name(name)
        status.mask_sets[name] = _status(folder, read_header(folder))
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


def _header(root: Path) -> Header:
    is_tars = not (root / "zarr.json").exists() and (root / HEADER).exists()
    return read_tar_header(root) if is_tars else read_header(root)


def _status(root: Path, header: Header) -> Status:
    status = Status(num_shards=header.num_shards, num_images=header.num_images)
    times_s, num_images = [], []
    for shard, file in receipt_files(root).items():
        if shard >= header.num_shards:
            continue
        try:
            content, changed_s = file.read_bytes(), file.stat().st_mtime
        except FileNotFoundError:
            continue  # the shard is being replaced at this moment
        try:
            num_images.append(_add(status, json.loads(content)))
            times_s.append(changed_s)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            status.unreadable.append(f"{file} is no receipt ({error!r})")
    status.images_per_s = pace(times_s, num_images)
    status.holder = _holder(root / LOCK)
    return status


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


def _holder(lock: Path) -> Holder | None:
    """Who holds a lock, or held it last and didn't say that it ended."""
    try:
        with lock.open("rb") as stream:
            is_held = _is_locked(stream.fileno())
            said = _said(stream.read(_MAX_LOCK_BYTES))
    except FileNotFoundError:
        return None
    if not is_held and not said:
        return None
    host, pid, started = (said.get(name) for name in ("host", "pid", "started"))
    is_elsewhere = isinstance(host, str) and host != os.uname().nodename
    return Holder(
        host=host if isinstance(host, str) else None,
        pid=pid if type(pid) is int else None,
        started=started if isinstance(started, str) else None,
        is_alive=True if is_held else None if is_elsewhere else False,
    )


def _is_locked(descriptor: int) -> bool:
    """Whether a process holds the file. The lock is tried, and given back at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _said(content: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
