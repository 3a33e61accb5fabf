"""A pool of Ray actors that works off a ledger: one task at a time each, losses survived.

Actors are asked for all at once, and begin as Ray finds room for them, now or when machines join.
One that is lost is replaced. Its task goes back to the ledger, which counts the loss, unless the
actor's whole machine was lost.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from samprior.pipeline.datasets import Pair
from samprior.pipeline.events import (
    Listener,
    Progressed,
    Quarantined,
    ShardWritten,
    WorkerLost,
)
from samprior.pipeline.ledger import MAX_LOSSES, Ledger, Loss, Task
from samprior.pipeline.plan import ShardPlan
from samprior.pipeline.ray_session import Session, first_line
from samprior.pipeline.worker import IDLE, Look, MaskMaker, ShardWorker, UnfitError
from samprior.storage.errors import SampriorError, StoreError
from samprior.storage.holding import hold_for_life
from samprior.storage.places import Place

POLL_S = 0.5
"""How often progress is asked for and told."""

ANSWERING_S = 2.0
"""A worker whose last answer is older may be unable to answer."""

MAX_LOADING_LOSSES = 5
"""Workers that may end one after the other while they load, with none that succeeds."""

MAX_UNFIT = 5
"""Workers that may lack memory or a GPU in a row before any task of the job was done."""

COLD = 10
"""How many times as long as others a worker's first image may take, with which libraries are
loaded and programs compiled."""

_LOST = (
    RayActorError,
    OutOfMemoryError,
    WorkerCrashedError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
)

_NODE_DIED = "because its node has died"
"""In Ray's text; of an actor that was not placed yet, nothing else tells that."""

_TIMES = f"{MAX_LOSSES} times when this image was tried alone"


@dataclass(frozen=True)
class Written:
    """What there is to say of a shard; little, so that it travels with the answer itself."""

    num_masks: int
    stored_bytes: int
    quarantined: dict[str, str]


class RayWorker(ShardWorker):
    """A `ShardWorker` in an actor, which holds a store's folder until its process ends."""

    def __init__(self, root: Place, maker: MaskMaker, *, held: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(root, maker, **options)
        self.held = None if root.local is None else root.local / held

    def begin(self) -> str:
        """Load the segmenter; which machine this is.

        Not part of the construction, because Ray gives the error of a call as it was raised, but
        of one that is raised in an actor's constructor only the text.
        """
        if self.held is not None:
            hold_for_life(self.held)
        self.load()
        return str(ray.get_runtime_context().get_node_id())

    def store(self, shard: ShardPlan, skip: dict[str, str]) -> Written:
        """Write a shard."""
        receipt = self.write(shard, skip)
        return Written(sum(receipt.num_masks), receipt.stored_bytes, dict(receipt.quarantined))


@dataclass
class _Member:
    """One actor, and what is known of it."""

    actor: Any
    node: str | None = None
    """Where it lives; None until it has loaded."""
    task: Task | None = None
    look: Look = IDLE
    """As of its last answer."""
    looking: Any = None
    """The question that it hasn't answered yet."""
    answered: float = 0.0
    """Monotonic time of that."""
    since: float = 0.0
    """Monotonic time when its task began, or it last got on with it."""
    is_warm: bool = False
    """Whether it has made an image."""
    overdue: tuple[Pair, ...] | None = None
    """It was ended because these images took too long; none: it isn't known which did."""


@dataclass
class Tally:
    """What this run has done; of whole shards."""

    images: int = 0
    masks: int = 0
    quarantined: int = 0


class Pool:
    """Hands tasks to idle actors until the ledger is empty."""

    def __init__(
        self,
        ledger: Ledger,
        session: Session,
        start_actor: Callable[[], Any],
        *,
        wanted: Callable[[], int],
        image_timeout_s: float | None,
        tell: Listener,
        tally: Tally,
        images_to_do: int,
    ) -> None:
        self.ledger = ledger
        self.session = session
        self.start_actor = start_actor
        self.wanted = wanted
        self.image_timeout_s = image_timeout_s
        self.tell = tell
        self.tally = tally
        self.images_to_do = images_to_do
        self.members: list[_Member] = []
        self.running: dict[Any, _Member] = {}
        """By the answer that is waited for: to `begin`, or to the task at hand."""
        self.lost_loading = 0
        self.is_fit = False
        """Whether any task was done."""
        self.num_unfit = 0
        """Workers that lacked memory or a GPU before that."""
        self.polled = 0.0

    def run(self) -> None:
        """Do all tasks.

        Raises:
            SampriorError, OSError: what a worker raised, such as a checkpoint it can't load.
            StoreError: workers end while they load.
            RayGoneError: Ray itself has ended; tasks that were at hand are in the ledger again.
        """
        self._tell_progress()
        try:
            while self.ledger.queue or any(member.task for member in self.members):
                self._recruit()
                self._hand_out()
                for answer in self._answers():
                    self._settle(answer, self.running.pop(answer))
                self._poll()
            self._tell_progress()
        finally:
            for member in self.members:
                if member.task:
                    self.ledger.take_back(member.task)
                if not self.session.is_gone:  # else it would be waited for
                    ray.kill(member.actor)

    def _recruit(self) -> None:
        """Ask for actors, as many as are wanted and have something to do."""
        num_tasks = len(self.ledger.queue) + sum(bool(member.task) for member in self.members)
        for _ in range(min(self.wanted(), num_tasks) - len(self.members)):
            member = _Member(self.start_actor())
            self.members.append(member)
            self.running[member.actor.begin.remote()] = member

    def _hand_out(self) -> None:
        for member in self.members:
            if not self.ledger.queue:
                return
            if member.node is not None and member.task is None:
                task = member.task = self.ledger.queue.popleft()
                member.look, member.looking, member.since = IDLE, None, time.monotonic()
                answer = (
                    member.actor.probe.remote(task.suspects)
                    if task.suspects
                    else member.actor.store.remote(task.shard, self.ledger.skipped(task))
                )
                self.running[answer] = member

    def _answers(self) -> list[Any]:
        """All answers that are there, after at most `POLL_S`."""
        waited_for = list(self.running)
        ready, _ = ray.wait(waited_for, num_returns=1, timeout=POLL_S)
        if ready:
            ready, _ = ray.wait(waited_for, num_returns=len(waited_for), timeout=0)
        return list(ready)

    def _settle(self, answer: Any, member: _Member) -> None:  # noqa: ANN401  # Ray has no types
        """Take an answer, or the loss of its actor."""
        try:
            value = ray.get(answer)
        except RayTaskError as error:
            cause = _cause(error)
            if not isinstance(cause, UnfitError):
                raise cause from error
            self._lose_unfit(member, cause)
            return
        except _LOST as error:
            if isinstance(error, ActorUnavailableError) and member.overdue is None:
                self._ask_again(member)
            else:
                self._lose(member, error)
            return
        if isinstance(value, Look):
            self._let_go(member)
            return
        task, member.task = member.task, None
        if task is None:
            member.node = value
            self.lost_loading = 0
        else:
            self.ledger.finish(task)
            member.is_warm = self.is_fit = True
        if isinstance(value, Written) and task is not None:
            self._count(task.shard, value)

    def _count(self, shard: ShardPlan, written: Written) -> None:
        self.tally.images += len(shard.pairs)
        self.tally.masks += written.num_masks
        self.tally.quarantined += len(written.quarantined)
        for key, reason in written.quarantined.items():
            self.tell(Quarantined(key, reason))
        self.tell(
            ShardWritten(shard.shard, len(shard.pairs), written.num_masks, written.stored_bytes)
        )

    def _lose_unfit(self, member: _Member, error: UnfitError) -> None:
        """Replace an actor whose process lacks memory or a GPU, as if it had ended.

        Raises:
            UnfitError: that is all that has happened so far: it is the machine.
        """
        self.num_unfit += not self.is_fit
        if self.num_unfit == MAX_UNFIT:
            raise error
        task, member.task = member.task, None
        self.members.remove(member)
        ray.kill(member.actor)
        self.tell(WorkerLost(first_line(error), task.shard.shard if task else None))
        if task:
            loss = Loss(first_line(error), f"{error.reason}, {_TIMES}")
            self.ledger.lose(task, loss, at=_named(task, [error.key]))

    def _ask_again(self, member: _Member) -> None:
        """Have Ray say what became of an actor that can't be reached: it dies of a task, or goes
        down with its machine, which Ray knows only some seconds later.
        """
        self.session.check()
        self.running[member.actor.look.remote()] = member

    def _let_go(self, member: _Member) -> None:
        """Forget an actor that lives, while the answer to its task was lost on the way."""
        task, member.task = member.task, None
        self.members.remove(member)
        ray.kill(member.actor)
        self.tell(WorkerLost("it could not be reached", task.shard.shard if task else None))
        if task:
            self.ledger.take_back(task)

    def _lose(self, member: _Member, error: Exception) -> None:
        """Forget an actor that was lost; calls to one that Ray starts again may fail as well."""
        self.session.check()
        task, member.task = member.task, None
        self.members.remove(member)
        ray.kill(member.actor)
        why = self._why(member, error)
        self.tell(WorkerLost(why, task.shard.shard if task else None))
        if self._is_machine_lost(member, error):
            if task:
                self.ledger.take_back(task)
        elif task:
            self.ledger.lose(task, Loss(why, self._reason(member, error)), at=member.overdue or ())
        else:
            self._lose_loading(why)

    def _is_machine_lost(self, member: _Member, error: Exception) -> bool:
        """Whether an actor was lost with its machine, of which nobody is accused."""
        if member.node is not None and not self.session.has_node(member.node):
            return True
        return _NODE_DIED in str(error)

    def _lose_loading(self, why: str) -> None:
        self.lost_loading += 1
        if self.lost_loading == MAX_LOADING_LOSSES:
            raise StoreError(
                f"a worker ended while it loaded the segmenter ({why}); try fewer --workers, or "
                "--workers 0"
            )

    def _why(self, member: _Member, error: Exception) -> str:
        if member.overdue is not None:
            return f"ended by --image-timeout {self.image_timeout_s:g}"
        return first_line(error)

    def _reason(self, member: _Member, error: Exception) -> str:
        """What the receipt says of an image that does this; it names no process."""
        if member.overdue is not None:
            return f"took longer than --image-timeout {self.image_timeout_s:g} s, {_TIMES}"
        if isinstance(error, OutOfMemoryError) or "OUT_OF_MEMORY" in str(error).upper():
            return f"the worker process was ended for want of memory, {_TIMES}"
        return f"the worker process ended, {_TIMES}"

    def _poll(self) -> None:
        """Now and then: what the actors say of their tasks, which are overdue, and the progress."""
        now = time.monotonic()
        if now - self.polled < POLL_S:
            return
        self.polled = now
        self.session.check()
        busy = [member for member in self.members if member.task]
        self._look_at(busy, now)
        if self.image_timeout_s is not None:
            for member in busy:
                self._end_if_overdue(member, now, self.image_timeout_s)
        self._tell_progress()

    def _tell_progress(self) -> None:
        writing = [m.look for m in self.members if m.task and not m.task.suspects]
        self.tell(
            Progressed(
                images_done=self.tally.images + sum(look.images for look in writing),
                images_to_do=self.images_to_do,
                num_masks=self.tally.masks + sum(look.masks for look in writing),
                num_quarantined=self.tally.quarantined + sum(k.quarantined for k in writing),
                workers=sum(member.node is not None for member in self.members),
            )
        )

    def _look_at(self, busy: Iterable[_Member], now: float) -> None:
        """Take the answers that are there and ask again; nobody is waited for."""
        for member in busy:
            if member.looking is not None and ray.wait([member.looking], timeout=0)[0]:
                try:
                    look: Look = ray.get(member.looking)
                except (*_LOST, RayTaskError):
                    member.looking = None
                    continue  # shows in the answer to the task itself
                member.is_warm |= look.images > look.quarantined
                if look != member.look:
                    member.look, member.since = look, now
                member.looking, member.answered = None, now
            if member.looking is None:
                member.looking = member.actor.look.remote()

    def _end_if_overdue(self, member: _Member, now: float, timeout_s: float) -> None:
        look, task = member.look, member.task
        is_storing = look != IDLE and not look.at
        if task is None or member.overdue is not None or is_storing:
            return
        patience = 1 if member.is_warm else COLD
        if now - member.since > patience * timeout_s * max(1, len(look.at)):
            # A worker that answers is where it says. One that doesn't (a loop in compiled code
            # stops all of its threads) may have gone on to another image since.
            is_answering = now - member.answered < ANSWERING_S
            member.overdue = _named(task, look.at) if is_answering else ()
            ray.kill(member.actor)


def _named(task: Task, keys: Iterable[str]) -> tuple[Pair, ...]:
    return tuple(pair for pair in task.suspects or task.shard.pairs if pair.key in set(keys))


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    if isinstance(cause, SampriorError | OSError):
        return cause
    return StoreError(f"a worker failed: {cause!r}; run with --workers 0 to see where")
