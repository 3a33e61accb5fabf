"""The ledger of a job: which tasks follow from lost workers. No Ray, no disk."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samprior.pipeline.datasets import Pair
from samprior.pipeline.ledger import MAX_LOSSES, Ledger, Loss, Task
from samprior.pipeline.plan import ShardPlan, plan_shards

LOSS = Loss("worker 17 ended", "it ends its worker")


def plan(num_images: int, per_shard: int = 32) -> list[ShardPlan]:
    nowhere = Path("nowhere")
    pairs = [Pair(f"{number:03d}", nowhere, nowhere) for number in range(num_images)]
    return plan_shards(pairs, images_per_shard=per_shard)


def keys(task: Task) -> set[str]:
    return {pair.key for pair in task.suspects or task.shard.pairs}


def work_off(ledger: Ledger, deadly: set[str]) -> tuple[dict[int, set[str]], int]:
    """Do all tasks, with images that always end their worker: keys by shard, and workers lost."""
    written: dict[int, set[str]] = {}
    lost = 0
    while ledger.queue:
        task = ledger.queue.popleft()
        at_work = keys(task) - ledger.skipped(task).keys()
        if at_work & deadly:
            lost += 1
            ledger.lose(task, LOSS)
        else:
            ledger.finish(task)
            if not task.suspects:
                written[task.shard.shard] = at_work
    return written, lost


def test_one_guilty_image_of_32_is_found_for_the_logarithm_of_workers() -> None:
    for guilty in ("000", "017", "031"):
        ledger = Ledger(plan(32))
        written, lost = work_off(ledger, {guilty})
        assert ledger.guilty == {0: {guilty: LOSS.reason}}
        assert written[0] == {f"{number:03d}" for number in range(32)} - {guilty}
        # Twice as a whole, once at each of 16, 8, 4, 2, and twice alone.
        assert lost == 2 + 4 + 2


@given(
    num_images=st.integers(1, 70),
    per_shard=st.integers(1, 33),
    deadly=st.sets(st.integers(0, 69), max_size=6),
)
def test_every_guilty_image_is_found_and_no_other(
    num_images: int, per_shard: int, deadly: set[int]
) -> None:
    shards = plan(num_images, per_shard)
    guilty = {f"{number:03d}" for number in deadly if number < num_images}
    ledger = Ledger(shards)
    written, _ = work_off(ledger, guilty)
    for shard in shards:
        held = {pair.key for pair in shard.pairs}
        if len(held) > 1 and held <= guilty:
            assert "isn't the images" in ledger.given_up[shard.shard]
        else:
            assert written[shard.shard] == held - guilty
            assert ledger.guilty.get(shard.shard, {}).keys() == held & guilty
    assert len(written) + len(ledger.given_up) == len(shards)


def test_one_loss_is_the_machine_s_fault() -> None:
    ledger = Ledger(plan(4, 2))
    first = ledger.queue.popleft()
    ledger.lose(first, LOSS)
    assert [task.shard.shard for task in ledger.queue] == [1, 0]
    assert not any(task.suspects for task in ledger.queue)
    assert work_off(ledger, set()) == ({0: {"000", "001"}, 1: {"002", "003"}}, 0)


def test_a_task_that_was_lost_with_its_machine_counts_nothing() -> None:
    ledger = Ledger(plan(2))
    for _ in range(10):
        ledger.take_back(ledger.queue.popleft())
    assert work_off(ledger, set())[1] == 0
    assert ledger.guilty == {}


def test_a_worker_lost_once_alone_makes_nobody_guilty() -> None:
    """Workers that are killed at random: the shard is written whole in the end."""
    ledger = Ledger(plan(8))
    lost_once: Counter[frozenset[str]] = Counter()
    while ledger.queue:
        task = ledger.queue.popleft()
        names = frozenset(keys(task))
        lost_once[names] += 1
        limit = 1 if len(names) == 1 else MAX_LOSSES
        if lost_once[names] <= limit:
            ledger.lose(task, LOSS)
        else:
            ledger.finish(task)
    assert (ledger.guilty, ledger.given_up) == ({}, {})


def test_what_no_image_does_alone_is_given_up_in_the_end() -> None:
    ledger = Ledger(plan(6, 3))
    while ledger.queue:
        task = ledger.queue.popleft()
        if task.shard.shard == 1 and not task.suspects:
            ledger.lose(task, LOSS)
        else:
            ledger.finish(task)
    assert ledger.guilty == {}
    assert ledger.given_up.keys() == {1}
    assert ledger.given_up[1].startswith(LOSS.why)


@pytest.mark.parametrize("num_known", [1, 4])
def test_the_images_at_work_are_tried_alone(num_known: int) -> None:
    """When it is known what the worker was at, all others are spared."""
    ledger = Ledger(plan(32))
    task = ledger.queue.popleft()
    at = task.shard.pairs[8 : 8 + num_known]
    ledger.lose(task, LOSS, at=at)
    assert [trial.suspects for trial in ledger.queue] == [at]
    written, lost = work_off(ledger, {"008"})
    assert ledger.guilty == {0: {"008": LOSS.reason}}
    assert len(written[0]) == 31
    assert lost == (1 if num_known == 1 else 4)


def test_images_that_are_found_one_by_one_are_all_found() -> None:
    ledger = Ledger(plan(8))
    deadly = ["001", "003", "004", "006", "007"]
    while ledger.queue:
        task = ledger.queue.popleft()
        at_work = sorted(keys(task) - ledger.skipped(task).keys())
        met = next((key for key in at_work if key in deadly), None)
        if met:
            at = tuple(pair for pair in task.shard.pairs if pair.key == met)
            ledger.lose(task, LOSS, at=at)
        else:
            ledger.finish(task)
    assert sorted(ledger.guilty[0]) == deadly
    assert ledger.given_up == {}
