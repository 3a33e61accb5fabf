"""What a job tells while it works: small records, for a bar, plain lines, or a script.

A job calls its listener, in the thread that started it, with one event after the other. Counts of
images include quarantined ones. `docs/jobs.md` lists the events as JSON.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Started:
    """What is there was compared with the plan; what is left begins."""

    name: ClassVar[str] = "started"
    num_shards: int
    """Of the whole plan; so are `num_images`."""
    num_images: int
    shards_done: int
    """Written by earlier runs; so are `images_done`."""
    images_done: int


@dataclass(frozen=True)
class Progressed:
    """How far this run is. Told about twice a second, and after each image without Ray."""

    name: ClassVar[str] = "progress"
    images_done: int
    """By this run; images of unfinished shards count, and may be lost with their worker."""
    images_to_do: int
    """By this run in all."""
    num_masks: int
    """Of the images that this run has made."""
    num_quarantined: int
    """By this run."""
    workers: int
    """That have loaded their segmenter and live."""


@dataclass(frozen=True)
class ShardWritten:
    """A shard has its receipt."""

    name: ClassVar[str] = "shard"
    shard: int
    num_images: int
    num_masks: int
    stored_bytes: int


@dataclass(frozen=True)
class Quarantined:
    """An image could not be used."""

    name: ClassVar[str] = "quarantined"
    key: str
    reason: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker's process ended before its work; another one takes it up."""

    name: ClassVar[str] = "worker_lost"
    why: str
    shard: int | None
    """What it worked on; None: it was loading the segmenter."""


Event = Started | Progressed | ShardWritten | Quarantined | WorkerLost

Listener = Callable[[Event], None]


def to_record(event: Event) -> dict[str, Any]:
    """An event as JSON."""
    return {"event": event.name, **asdict(event)}
