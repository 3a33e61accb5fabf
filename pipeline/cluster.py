"""The Ray side of a job: how many workers there are and what each gets, and a Ray that may fail.

What a pool of workers doesn't survive, the end of Ray itself, is survived here: Ray is started, or
joined, anew, and the pool goes on with what is left.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from samprior.pipeline.crew import Crew
from samprior.pipeline.events import Listener, WorkerLost
from samprior.pipeline.folders import counted
from samprior.pipeline.ledger import Ledger
from samprior.pipeline.plan import ShardPlan
from samprior.pipeline.pool import Pool, RayWorker, Tally
from samprior.pipeline.ray_session import RayGoneError, Session, ray_session
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.holding import wait_for_holders
from samprior.storage.places import Place

if TYPE_CHECKING:
    from samprior.pipeline.worker import MaskMaker

MAX_ENDS = 4
"""How often Ray may end with no shard written in between."""

_ASK_AGAIN_S = 2.0
"""How often a cluster is asked for its size."""


def run_on_ray(
    todo: Sequence[ShardPlan],
    target: "tuple[Place, MaskMaker]",
    arguments: dict[str, Any],
    crew: Crew,
    tell: Listener,
) -> None:
    """Write all shards of `todo`.

    Args:
        todo: the shards.
        target: where to, and the maker of masks.
        arguments: further ones of `ShardWorker`.
        crew: the workers.
        tell: called with what happens.

    Raises:
        SampriorError, OSError: what a worker raised, such as a checkpoint it can't load.
        StoreError: shards whose worker died again and again, the others are written; or Ray ended
            again and again.
    """
    ledger, tally = Ledger(todo), Tally()
    images_to_do = sum(len(shard.pairs) for shard in todo)
    num_ended, images_then = 0, -1
    while True:
        with ray_session(address=crew.address) as session:
            start_actor, wanted = _resolve(crew, session, target, arguments)
            pool = Pool(
                ledger,
                session,
                start_actor,
                wanted=wanted,
                image_timeout_s=crew.image_timeout_s,
                tell=tell,
                tally=tally,
                images_to_do=images_to_do,
            )
            try:
                pool.run()
                break
            except (RayGoneError, RayError) as error:
                why = _why_gone(error, session)
        tell(WorkerLost(f"all, for Ray has ended: {why}", None))
        num_ended, images_then = (num_ended + 1 if tally.images == images_then else 1), tally.images
        if num_ended == MAX_ENDS:
            raise StoreError(f"Ray has ended {num_ended} times ({why}); try --workers 0")
        if (folder := target[0].local) is not None:
            # Its workers end a moment after it, and may be writing still.
            wait_for_holders(folder / arguments["held"])
    if ledger.given_up:
        told = [f"shard {shard}: {why}" for shard, why in list(ledger.given_up.items())[:3]]
        raise StoreError(
            f"{counted(len(ledger.given_up), 'shard')} given up because the worker died each time "
            f"({', '.join(told)}); the others are written. Run again with --workers 0 to see the "
            "cause"
        )


def _why_gone(error: Exception, session: Session) -> str:
    """Why a new Ray is needed; raises the error again if that would change nothing."""
    if isinstance(error, RayError) and not session.is_gone:
        raise error
    if not session.is_ours:
        raise StoreError(f"Ray has ended ({error}); start it again") from error
    return str(error).splitlines()[0]


def _resolve(
    crew: Crew, session: Session, target: "tuple[Place, MaskMaker]", arguments: dict[str, Any]
) -> tuple[Callable[[], Any], Callable[[], int]]:
    """How to start an actor, and how many there should be now."""
    size = _size()
    gpus = crew.gpus_per_worker
    crew = replace(crew, gpus_per_worker=min(1.0, size.get("GPU", 0.0)) if gpus is None else gpus)
    if crew.cluster is None:
        _require_room(crew, size)
    root, maker = target
    num_cpus, num_threads = _share(crew, size)
    # Two calls at a time: one writes, the other answers how far it is.
    actor_class: Any = ray.remote(RayWorker)
    remote = actor_class.options(
        num_cpus=num_cpus,
        num_gpus=crew.gpus_per_worker,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=2,
    )
    # Sent once and not with each worker: both may have the paths of all pictures.
    sent, store_shard = ray.put(maker), ray.put(arguments["store_shard"])
    rest = {**arguments, "store_shard": store_shard, "num_threads": num_threads}
    return lambda: remote.remote(root, sent, **rest), _Room(crew, num_cpus, size)


class _Room:
    """How many workers there should be: as asked for, or as a cluster has room for by now."""

    def __init__(self, crew: Crew, num_cpus: float, size: dict[str, float]) -> None:
        self.crew = crew
        self.num_cpus = num_cpus
        self.asked = time.monotonic()
        self.room = self._room(size)

    def __call__(self) -> int:
        if self.crew.workers is not None:
            return self.crew.workers
        if time.monotonic() - self.asked > _ASK_AGAIN_S:
            self.room, self.asked = self._room(_size()), time.monotonic()
        return self.room

    def _room(self, size: dict[str, float]) -> int:
        """At least one, which then waits for a machine that has room."""
        needs = {"GPU": self.crew.gpus_per_worker or 0.0, "CPU": self.num_cpus}
        rooms = [size.get(kind, 0.0) / needed for kind, needed in needs.items() if needed]
        return max(1, int(min(rooms, default=1.0)))


def _share(crew: Crew, size: dict[str, float]) -> tuple[float, int]:
    """Cores that are reserved for a worker, and threads that it may use."""
    cpus = size.get("CPU", 1.0)
    if crew.cpus_per_worker is not None:
        return crew.cpus_per_worker, max(1, int(crew.cpus_per_worker))
    if crew.workers is None:
        return 1.0, 1
    num_threads = max(1, int(min(cpus / crew.workers, _largest_machine())))
    # More workers than there are cores share them here; on a cluster they wait for more.
    return (1.0 if crew.cluster else min(1.0, cpus / crew.workers)), num_threads


def _require_room(crew: Crew, size: dict[str, float]) -> None:
    """Raise UsageError if this machine alone has no room for a worker: it would wait for ever."""
    for kind, option, needed in (
        ("GPU", "--gpus-per-worker", crew.gpus_per_worker or 0.0),
        ("CPU", "--cpus-per-worker", crew.cpus_per_worker or 0.0),
    ):
        if needed > size.get(kind, 0.0):
            way = "choose --device cpu, or " if kind == "GPU" else ""
            raise UsageError(
                f"a worker needs {needed:g} {kind}, Ray has {size.get(kind, 0.0):g}; {way}give a "
                f"smaller {option}"
            )


def _size() -> dict[str, float]:
    """What all machines have together, by kind."""
    size: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return size


def _largest_machine() -> float:
    """Cores of the machine that has most."""
    machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return max(
        (machine["Resources"].get("CPU", 0.0) for machine in machines if machine["Alive"]),
        default=1.0,
    )
