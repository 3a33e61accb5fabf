"""The Ray side of a job: a pool of actors, one shard at a time each, losses survived.

A running cluster (`RAY_ADDRESS`) is joined as it is; otherwise a small private instance is
started and stopped with the job.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from samprior.pipeline.folders import counted
from samprior.pipeline.plan import ShardPlan
from samprior.storage.errors import SampriorError, StoreError, UsageError
from samprior.storage.manifest import Receipt

if TYPE_CHECKING:
    from samprior.pipeline.job import MaskMaker, Progress

POLL_S = 0.5
"""How often progress is asked for."""

OBJECT_STORE_BYTES = 256 * 2**20
"""Receipts are all that travels; Ray's default would take 30 % of the memory."""


def run_on_ray(
    todo: Sequence[ShardPlan],
    target: tuple[Path, "MaskMaker"],
    arguments: dict[str, Any],
    workers: int,
    gpus_per_worker: float,
    progress: "Progress | None",
) -> None:
    """Write all shards of `todo` on `workers` actors.

    Raises:
        StoreError: shards whose worker died again and again; the others are written.
    """
    from samprior.pipeline.job import ShardWorker

    with _ray():
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
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=2,
        )
        root = target[0].resolve()
        actors = [
            remote.remote(root, target[1], num_threads=max(1, int(cpus // workers)), **arguments)
            for _ in range(workers)
        ]
        try:
            lost = _Pool(actors, todo, progress).run()
        finally:
            for actor in actors:
                ray.kill(actor)
    if lost:
        raise StoreError(
            f"{counted(len(lost), 'shard')} given up because the worker died each time "
            f"({', '.join(f'shard {shard}: {why}' for shard, why in list(lost.items())[:3])}); "
            "the others are written. Run again with --workers 0 to see the cause"
        )


class _Pool:
    """Hands shards to idle actors until all are written or given up."""

    def __init__(
        self, actors: Sequence[Any], todo: Sequence[ShardPlan], progress: "Progress | None"
    ) -> None:
        self.actors = list(actors)
        self.queue = deque(todo)
        self.progress = progress
        self.num_images = sum(len(shard.pairs) for shard in todo)
        self.images_done = 0
        self.losses: dict[int, int] = {}
        self.given_up: dict[int, str] = {}
        self.running: dict[Any, tuple[Any, ShardPlan]] = {}

    def run(self) -> dict[int, str]:
        idle = list(self.actors)
        while self.queue or self.running:
            while self.queue and idle:
                actor, shard = idle.pop(), self.queue.popleft()
                self.running[actor.write.remote(shard)] = (actor, shard)
            ready, _ = ray.wait(list(self.running), num_returns=1, timeout=POLL_S)
            for reference in ready:
                actor, shard = self.running.pop(reference)
                self._settle(reference, shard)
                idle.append(actor)
            self._report()
        return self.given_up

    def _settle(self, reference: Any, shard: ShardPlan) -> None:  # noqa: ANN401  # Ray has no types
        from samprior.pipeline.job import MAX_LOSSES

        try:
            receipt: Receipt = ray.get(reference)
        except RayTaskError as error:
            raise _cause(error) from error
        except RayActorError as error:
            self.losses[shard.shard] = self.losses.get(shard.shard, 0) + 1
            if self.losses[shard.shard] < MAX_LOSSES:
                self.queue.append(shard)
            else:
                self.given_up[shard.shard] = str(error).splitlines()[0]
            return
        self.images_done += len(receipt.keys) + len(receipt.quarantined)

    def _report(self) -> None:
        """Progress: finished shards, and what their workers say of the running ones."""
        if self.progress is None:
            return
        counts = [actor.count.remote() for actor, _ in self.running.values()]
        answered = ray.wait(counts, num_returns=len(counts), timeout=POLL_S)[0] if counts else []
        running = 0
        for reference in answered:
            # A lost worker shows in its shard's own reference; here it just has no news.
            with suppress(RayActorError):
                running += ray.get(reference)
        self.progress(self.images_done + running, self.num_images)


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    if isinstance(cause, SampriorError | OSError):
        return cause
    return StoreError(f"a worker failed: {cause!r}; run with --workers 0 to see where")


@contextmanager
def _ray() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    try:
        yield
    except RayError as error:
        raise StoreError(f"Ray failed ({error}); try again with --workers 0") from error
    finally:
        ray.shutdown()
