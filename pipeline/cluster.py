"""The Ray side of a job: a pool of actors, one shard at a time each, losses survived.

A shard that keeps killing its worker is searched for the image that does it: each is tried alone,
and the guilty ones are quarantined.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from samprior.pipeline.datasets import Pair
from samprior.pipeline.folders import counted
from samprior.pipeline.plan import ShardPlan
from samprior.pipeline.ray_session import first_line, ray_session
from samprior.pipeline.worker import MaskMaker, ShardWorker
from samprior.storage.errors import SampriorError, StoreError, UsageError
from samprior.storage.manifest import Receipt
from samprior.storage.places import Place

if TYPE_CHECKING:
    from samprior.pipeline.job import Progress

POLL_S = 0.5
"""How often progress is asked for."""

MAX_LOSSES = 2
"""Deaths of its worker that count against a shard or an image; one may be the machine's fault."""

GUILTY = f"the worker process ended, {MAX_LOSSES} times when this image was tried alone"
"""Reason of an image in quarantine that kills its worker."""

_LOST = (RayActorError, OutOfMemoryError, WorkerCrashedError)


def run_on_ray(
    todo: Sequence[ShardPlan],
    target: tuple[Place, MaskMaker],
    arguments: dict[str, Any],
    workers: int,
    gpus_per_worker: float,
    progress: "Progress | None",
) -> None:
    """Write all shards of `todo` on `workers` actors.

    Raises:
        SampriorError, OSError: what a worker raised, such as a checkpoint it can't load.
        StoreError: shards whose worker died again and again; the others are written.
    """
    with ray_session():
        workers = min(workers, len(todo))
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus = resources.get("CPU", 1.0)
        if gpus_per_worker > resources.get("GPU", 0.0):
            raise UsageError(
                f"a worker needs {gpus_per_worker:g} GPU, Ray has {resources.get('GPU', 0.0):g}; "
                "choose --device cpu"
            )
        # Two calls at a time: one writes, the other answers how far it is.
        actor_class: Any = ray.remote(ShardWorker)
        remote = actor_class.options(
            num_cpus=min(1.0, cpus / workers),  # more workers than cores share them
            num_gpus=gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
        )
        root, maker = target
        num_threads = max(1, int(cpus // workers))
        pool = _Pool(
            lambda: remote.remote(root, maker, num_threads=num_threads, **arguments),
            todo,
            progress,
        )
        lost = pool.run(workers)
    if lost:
        raise StoreError(
            f"{counted(len(lost), 'shard')} given up because the worker died each time "
            f"({', '.join(f'shard {shard}: {why}' for shard, why in list(lost.items())[:3])}); "
            "the others are written. Run again with --workers 0 to see the cause"
        )


@dataclass(frozen=True)
class _Task:
    """What an actor is given to do."""

    shard: ShardPlan
    suspect: Pair | None = None
    """The image of the shard that is tried alone; None: the shard is written."""


class _Pool:
    """Hands tasks to idle actors until all shards are written or given up."""

    def __init__(
        self, start_actor: Callable[[], Any], todo: Sequence[ShardPlan], progress: "Progress | None"
    ) -> None:
        self.start_actor = start_actor
        self.actors: list[Any] = []
        self.queue = deque(_Task(shard) for shard in todo)
        self.running: dict[Any, tuple[Any, _Task]] = {}
        self.progress = progress
        self.num_images = sum(len(shard.pairs) for shard in todo)
        self.images_done = 0
        self.losses: Counter[_Task] = Counter()
        self.untried: dict[int, int] = {}
        """Of each shard that was searched, the number of images still to be tried alone."""
        self.guilty: dict[int, dict[str, str]] = {}
        """Of each shard that was searched, the images that kill a worker, and the reason."""
        self.given_up: dict[int, str] = {}

    def run(self, workers: int) -> dict[int, str]:
        """Do all; the shards given up, and why."""
        try:
            self.actors = [self.start_actor() for _ in range(workers)]
            self._load()
            idle = list(self.actors)
            while self.queue or self.running:
                while self.queue and idle:
                    actor, task = idle.pop(), self.queue.popleft()
                    self.running[self._hand(actor, task)] = (actor, task)
                ready, _ = ray.wait(list(self.running), num_returns=1, timeout=POLL_S)
                for reference in ready:
                    actor, task = self.running.pop(reference)
                    idle.append(actor if self._settle(reference, task) else self._replace(actor))
                self._report()
        finally:
            for actor in self.actors:
                ray.kill(actor)
        return self.given_up

    def _load(self) -> None:
        """Build all segmenters before any shard is risked; an error of building is raised."""
        try:
            ray.get([actor.load.remote() for actor in self.actors])
        except RayTaskError as error:
            raise _cause(error) from error
        except _LOST as error:
            raise StoreError(
                f"a worker ended while it loaded the segmenter ({first_line(error)}); try fewer "
                "--workers, or --workers 0"
            ) from error

    def _hand(self, actor: Any, task: _Task) -> Any:  # noqa: ANN401  # Ray has no types
        if task.suspect is not None:
            return actor.probe.remote(task.suspect)
        return actor.write.remote(task.shard, self.guilty.get(task.shard.shard))

    def _replace(self, lost: Any) -> Any:  # noqa: ANN401  # as above
        # Calls to an actor that Ray restarts may fail too, and would count against their images.
        self.actors.remove(lost)
        ray.kill(lost)
        self.actors.append(self.start_actor())
        return self.actors[-1]

    def _settle(self, reference: Any, task: _Task) -> bool:  # noqa: ANN401  # as above
        """Take the result of a task; whether its actor lives."""
        try:
            receipt: Receipt | None = ray.get(reference)
        except RayTaskError as error:
            raise _cause(error) from error
        except _LOST as error:
            self._lose(task, first_line(error))
            return False
        if receipt is None:
            self._conclude(task.shard)
        else:
            self.images_done += len(receipt.keys) + len(receipt.quarantined)
        return True

    def _lose(self, task: _Task, why: str) -> None:
        shard = task.shard.shard
        self.losses[task] += 1
        if self.losses[task] < MAX_LOSSES:
            self.queue.append(task)
        elif task.suspect is not None:
            self.guilty[shard][task.suspect.key] = GUILTY
            self._conclude(task.shard)
        elif shard not in self.guilty:
            self.guilty[shard] = {}
            self.untried[shard] = len(task.shard.pairs)
            self.queue.extend(_Task(task.shard, pair) for pair in task.shard.pairs)
        else:
            self.given_up[shard] = why

    def _conclude(self, shard: ShardPlan) -> None:
        """One image more was tried alone; after the last, write the shard without the guilty."""
        self.untried[shard.shard] -= 1
        if self.untried[shard.shard]:
            return
        guilty = self.guilty[shard.shard]
        if not guilty:
            self.given_up[shard.shard] = "none of its images does it alone"
        elif len(guilty) == len(shard.pairs) > 1:
            self.given_up[shard.shard] = "each of its images does it alone, so it isn't the images"
        else:
            self.queue.append(_Task(shard))

    def _report(self) -> None:
        """Progress: finished shards, and what their workers say of the running ones."""
        if self.progress is None:
            return
        writing = [actor for actor, task in self.running.values() if task.suspect is None]
        counts = [actor.count.remote() for actor in writing]
        answered = ray.wait(counts, num_returns=len(counts), timeout=POLL_S)[0] if counts else []
        running = 0
        for reference in answered:
            # A lost worker shows in its shard's own reference; here it just has no news.
            with suppress(*_LOST):
                running += ray.get(reference)
        self.progress(self.images_done + running, self.num_images)


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    if isinstance(cause, SampriorError | OSError):
        return cause
    return StoreError(f"a worker failed: {cause!r}; run with --workers 0 to see where")
