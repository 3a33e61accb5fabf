"""What is left of a job, and the search for images that end their worker. Pure: no Ray, no disk.

A shard whose worker ends may have met the machine's fault, so it is tried again. When it ends a
second time, its images are suspects: halves of them are tried and divided until a guilty one is
alone. An image is guilty when it has ended `MAX_LOSSES` workers alone; then the shard is written
without it. For one guilty image of n that costs about log2(n) workers, and twice the work.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from samprior.pipeline.datasets import Pair
from samprior.pipeline.plan import ShardPlan

MAX_LOSSES = 2
"""Ends of its worker that count against a shard or an image; one may be the machine's fault."""

MAX_FRUITLESS = 2
"""Searches of a shard that find nobody guilty; one may be for a machine that was in trouble."""


@dataclass(frozen=True)
class Task:
    """What a worker is given to do."""

    shard: ShardPlan
    suspects: tuple[Pair, ...] = ()
    """Images of the shard that are tried without storing them; none: the shard is written."""


@dataclass(frozen=True)
class Loss:
    """Why a task has lost its worker."""

    why: str
    """For people; may name processes."""
    reason: str
    """For the receipt of an image that is found guilty of it; equal from run to run."""


class Ledger:
    """Tasks to do, what was lost at them, and what follows from it."""

    def __init__(self, todo: Sequence[ShardPlan]) -> None:
        self.queue = deque(Task(shard) for shard in todo)
        self.guilty: dict[int, dict[str, str]] = {}
        """By shard, the images that end their worker, and the reason."""
        self.given_up: dict[int, str] = {}
        """By shard, why it is not written."""
        self._losses: Counter[int | tuple[int, str]] = Counter()
        """Of shards when they were written, and of images when they were alone."""
        self._fruitless: Counter[int] = Counter()
        self._known: Counter[int] = Counter()
        """Guilty images of a shard when its search began."""
        self._untried: Counter[int] = Counter()
        """Trials of a shard's search that have no end yet."""

    def skipped(self, task: Task) -> dict[str, str]:
        """Images that a shard is written without, and the reason."""
        return self.guilty.get(task.shard.shard, {})

    def take_back(self, task: Task) -> None:
        """Do a task again that was lost for no fault of its own, such as with its machine."""
        self.queue.appendleft(task)

    def finish(self, task: Task) -> None:
        """A task has come to its end."""
        for image in task.suspects:
            self._losses[task.shard.shard, image.key] = 0
        if task.suspects:
            self._end_trial(task.shard)

    def lose(self, task: Task, loss: Loss, *, at: Sequence[Pair] = ()) -> None:
        """A task has lost its worker.

        Args:
            task: what it was.
            loss: why it was lost.
            at: images of the task of which one is surely meant; empty: it may be any.
        """
        if len(task.suspects) == 1:
            self._accuse(task, task.suspects[0], loss)
            return
        if len(at) == 1:  # as good as alone
            self._losses[task.shard.shard, at[0].key] += 1
        if task.suspects:
            self._divide(task.shard, task.suspects, at)
            self._end_trial(task.shard)
        else:
            self._lose_writing(task, loss, at)

    def _lose_writing(self, task: Task, loss: Loss, at: Sequence[Pair]) -> None:
        shard = task.shard.shard
        self._losses[shard] += 1
        if self._losses[shard] < MAX_LOSSES and not at:
            self.queue.append(task)
        elif self._fruitless[shard] == MAX_FRUITLESS:
            self.given_up[shard] = f"{loss.why}, and none of its images does it alone"
        else:
            guilty = self.skipped(task)
            self._known[shard] = len(guilty)
            self._divide(task.shard, [p for p in task.shard.pairs if p.key not in guilty], at)

    def _divide(self, shard: ShardPlan, suspects: Sequence[Pair], at: Sequence[Pair]) -> None:
        """Try the halves of the suspects, or those alone that were at work."""
        middle = (len(suspects) + 1) // 2
        parts = [at] if at else [suspects[:middle], suspects[middle:]]
        trials = [Task(shard, tuple(part)) for part in parts if part]
        self._untried[shard.shard] += len(trials)
        self.queue.extend(trials)

    def _accuse(self, task: Task, image: Pair, loss: Loss) -> None:
        shard = task.shard.shard
        self._losses[shard, image.key] += 1
        if self._losses[shard, image.key] < MAX_LOSSES:
            self.queue.append(task)
            return
        self.guilty.setdefault(shard, {})[image.key] = loss.reason
        self._end_trial(task.shard)

    def _end_trial(self, shard: ShardPlan) -> None:
        """One trial has ended; after the last, write the shard without the guilty."""
        number = shard.shard
        self._untried[number] -= 1
        if self._untried[number]:
            return
        num_guilty = len(self.guilty.get(number, {}))
        if num_guilty == len(shard.pairs) > 1:
            self.given_up[number] = "each of its images does it alone, so it isn't the images"
            return
        self._fruitless[number] += num_guilty == self._known[number]
        self._losses[number] = 0
        self.queue.append(Task(shard))
