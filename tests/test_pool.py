"""The pool of Ray workers: endless images, the loading of segmenters, orphans, quarantine again."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, RayActorError

from samprior.pipeline import pool
from samprior.pipeline.crew import Crew
from samprior.pipeline.datasets import Pair
from samprior.pipeline.events import (
    Event,
    Progressed,
    Quarantined,
    ShardWritten,
    Started,
    WorkerLost,
    to_record,
)
from samprior.pipeline.job import JobResult, MasksOf, run_job
from samprior.pipeline.ledger import Ledger
from samprior.pipeline.makers import Segmented, crew_for
from samprior.pipeline.plan import plan_header, plan_shards
from samprior.pipeline.ray_session import ray_session
from samprior.pipeline.sam_segmenter import SamSettings
from samprior.pipeline.segmenters import segmenter_settings
from samprior.pipeline.worker import IDLE
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import BusyError, StoreError, UsageError
from samprior.storage.holding import wait_for_holders
from samprior.storage.images import Rgb, write_png
from samprior.storage.verify import verify_store

# The workers can't import this file, so its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

TIMEOUT_S = 4.0


@dataclass(frozen=True)
class Whole:
    """One mask, the whole picture; misbehaves on chosen keys."""

    log: Path
    """File that gets a line for each time it is built."""
    loop_at: str = ""
    stall: Callable[[], None] | None = None
    fail_at: str = ""
    """Keys at which `error` is raised."""
    error: Exception = RuntimeError("no convergence")  # noqa: RUF009  # never changed
    cold_s: float = 0.0
    """Time that a worker's first image takes beside its own."""

    def describe(self) -> dict[str, Any]:
        return {"segmenter": "whole"}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        with self.log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        left_s = [self.cold_s]

        def masks_of(pair: Pair, image: Rgb) -> MaskSet:
            time.sleep(left_s.pop() if left_s else 0.0)
            return self._masks_of(pair, image)

        return masks_of

    def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        if pair.key == self.loop_at and self.stall:
            self.stall()
        if pair.key in list(self.fail_at):
            raise self.error
        return MaskSet.from_masks(np.ones((1, *image.shape[:2]), bool), mean=[image.mean()])


def loop_in_python() -> None:
    while True:
        time.sleep(0.01)


def loop_in_compiled_code() -> None:
    """Holds the interpreter, so that no other thread of the process goes on."""
    ctypes.PyDLL(None).sleep(10_000)


@pytest.fixture(scope="module")
def private_ray() -> Iterator[None]:
    with ray_session():
        yield


@pytest.fixture
def pairs(tmp_path: Path, rng: np.random.Generator) -> list[Pair]:
    """Eight pictures of 24x32."""
    found = []
    for number in range(8):
        file = tmp_path / "pictures" / f"{number}.png"
        write_png(file, rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        found.append(Pair(f"{number}", file, file))
    return found


def run(out: Path, pairs: list[Pair], maker: Whole, **settings: Any) -> JobResult:  # noqa: ANN401
    plan = plan_shards(pairs, images_per_shard=4)
    header = plan_header(
        plan,
        dataset="d",
        layout="d",
        split=None,
        segmenter=maker.describe(),
        source="clean",
        images_per_shard=4,
    )
    return run_job(out, plan, header, maker, **settings)


@pytest.mark.usefixtures("private_ray")
def test_each_worker_builds_its_segmenter_once(tmp_path: Path, pairs: list[Pair]) -> None:
    events: list[Event] = []
    run(tmp_path / "out", pairs, Whole(tmp_path / "log"), workers=2, listen=events.append)
    builds = (tmp_path / "log").read_text().split()
    assert len(builds) == len(set(builds)) <= 2
    assert events[0] == Started(num_shards=2, num_images=8, shards_done=0, images_done=0)
    written = [event for event in events if isinstance(event, ShardWritten)]
    assert sorted(event.shard for event in written) == [0, 1]
    last = events[-1]
    assert isinstance(last, Progressed)
    assert (last.images_done, last.images_to_do, last.num_masks) == (8, 8, 8)


@pytest.mark.usefixtures("private_ray")
@pytest.mark.parametrize("stall", [loop_in_python, loop_in_compiled_code])
def test_an_endless_image_is_found_and_quarantined(
    tmp_path: Path,
    pairs: list[Pair],
    monkeypatch: pytest.MonkeyPatch,
    stall: Callable[[], None],
) -> None:
    monkeypatch.setattr(pool, "COLD", 1)  # the replaced workers have nothing to load
    events: list[Event] = []
    maker = Whole(tmp_path / "log", loop_at="5", stall=stall)
    crew = Crew(workers=1, image_timeout_s=TIMEOUT_S)
    result = run(tmp_path / "out", pairs, maker, workers=crew, listen=events.append)
    reason = "took longer than --image-timeout 4 s, 2 times when this image was tried alone"
    assert result.quarantined == {"5": reason}
    assert MaskStore.open(tmp_path / "out").require_complete().keys == tuple("0123467")
    assert verify_store(tmp_path / "out").ok
    assert Quarantined("5", reason) in events
    lost = [event for event in events if isinstance(event, WorkerLost)]
    assert {event.shard for event in lost} == {1}
    if stall is loop_in_python:
        assert len(lost) == 2, "the worker said itself which image it was at"


@pytest.mark.usefixtures("private_ray")
def test_a_slow_first_image_of_each_worker_is_nobody_s_fault(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    maker = Whole(tmp_path / "log", cold_s=3.0)
    crew = Crew(workers=1, image_timeout_s=1.0)
    assert run(tmp_path / "out", pairs, maker, workers=crew).quarantined == {}


@pytest.mark.usefixtures("private_ray")
def test_an_image_that_needs_too_much_is_quarantined_and_the_rest_is_finished(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    events: list[Event] = []
    maker = Whole(tmp_path / "log", fail_at="5", error=MemoryError())
    result = run(tmp_path / "out", pairs, maker, workers=1, listen=events.append)
    assert result.quarantined == {"5": "out of memory, 2 times when this image was tried alone"}
    assert MaskStore.open(tmp_path / "out").require_complete().keys == tuple("0123467")
    lost = [event for event in events if isinstance(event, WorkerLost)]
    assert len(lost) == 2, "each time the worker said which image it was at, and was replaced"


@pytest.mark.usefixtures("private_ray")
def test_a_machine_that_has_too_little_for_any_image_is_told(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    maker = Whole(tmp_path / "log", fail_at="01234567", error=MemoryError())
    with pytest.raises(StoreError, match=r"out of memory at .*fewer workers"):
        run(tmp_path / "out", pairs, maker, workers=1)
    assert MaskStore.open(tmp_path / "out").missing_shards == [0, 1]


@pytest.mark.usefixtures("private_ray")
def test_a_search_by_halves_finds_the_image(tmp_path: Path, pairs: list[Pair]) -> None:
    events: list[Event] = []
    maker = Whole(tmp_path / "log", loop_at="6", stall=lambda: os._exit(1))
    result = run(tmp_path / "out", pairs, maker, workers=2, listen=events.append)
    assert list(result.quarantined) == ["6"]
    # Twice as a whole, once as a half of two, twice alone.
    assert sum(isinstance(event, WorkerLost) for event in events) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_quarantined_images_are_tried_again_on_demand(
    tmp_path: Path, pairs: list[Pair], workers: int, request: pytest.FixtureRequest
) -> None:
    if workers:
        request.getfixturevalue("private_ray")
    out, log = tmp_path / "out", tmp_path / "log"
    first = run(out, pairs, Whole(log, fail_at="5"), workers=workers)
    assert first.quarantined == {"5": "RuntimeError: no convergence"}
    assert run(out, pairs, Whole(log), workers=workers).shards_written == 0
    again = run(out, pairs, Whole(log), workers=workers, retry_quarantined=True)
    assert (again.shards_written, again.quarantined) == (1, {})
    assert MaskStore.open(out).keys == tuple("01234567")
    assert run(out, pairs, Whole(log), workers=0, retry_quarantined=True).shards_written == 0


def test_a_job_waits_for_the_workers_of_a_dead_one(tmp_path: Path) -> None:
    file = tmp_path / "zarr.json"
    wait_for_holders(file)  # nobody holds what isn't there
    file.touch()
    program = (
        "import sys; from pathlib import Path\n"
        "from samprior.storage.holding import hold_for_life\n"
        "hold_for_life(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()\n"
    )
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match="workers of a job that was killed still write"):
            wait_for_holders(file, patience_s=0.2)
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
    wait_for_holders(file, patience_s=0.2)


@dataclass(frozen=True, eq=False)
class Reference:
    """What Ray gives for a call."""

    answer: object


class Verdicts:
    """Actors that end as Ray says of them, one answer after the other."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.killed = 0

    def get(self, reference: Any) -> object:  # noqa: ANN401
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    def wait(self, answers: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return answers[:1], answers[1:]

    def kill(self, actor: object) -> None:
        self.killed += 1

    def start(self) -> Any:  # noqa: ANN401
        call = SimpleNamespace(remote=lambda *_: Reference(self.answers.pop(0)))
        return SimpleNamespace(begin=call, store=call, look=call)


def died(text: str) -> RayActorError:
    return RayActorError("0" * 32, f"The actor died unexpectedly.\n{text}")


def unreachable() -> ActorUnavailableError:
    return ActorUnavailableError("Socket closed", b"0" * 16)


DIED_WITH_NODE = died("The actor died because its node has died. Node Id: 4a97")
WRITTEN = pool.Written(num_masks=8, stored_bytes=1, quarantined={})


@pytest.mark.parametrize(
    ("answers", "losses"),
    [
        ([*[DIED_WITH_NODE] * pool.MAX_LOADING_LOSSES, "node", WRITTEN], 0),
        (["node", died("its worker process has died"), "node", WRITTEN], 1),
        (["node", unreachable(), died("its worker process has died"), "node", WRITTEN], 1),
        (["node", unreachable(), unreachable(), DIED_WITH_NODE, "node", WRITTEN], 0),
        (["node", unreachable(), IDLE, "node", WRITTEN], 0),
    ],
    ids=["before it began", "it alone", "it alone, told later", "its machine", "neither"],
)
def test_machines_are_told_from_images(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, answers: list[Any], losses: int
) -> None:
    """Only an image is accused of the loss of its worker; a machine's loss accuses nobody."""
    verdicts = Verdicts(*answers)
    monkeypatch.setattr(pool, "ray", verdicts)
    monkeypatch.setattr(pool.Pool, "_poll", lambda _: None)
    ledger = Ledger(plan_shards(pairs, images_per_shard=8))
    lost, events = [], list[Event]()
    lose = ledger.lose
    monkeypatch.setattr(ledger, "lose", lambda *a, **k: (lost.append(a), lose(*a, **k)))
    session = SimpleNamespace(check=lambda: None, has_node=lambda _: True, is_gone=False)
    pool.Pool(
        ledger,
        session,  # type: ignore[arg-type]
        verdicts.start,
        wanted=lambda: 1,
        image_timeout_s=None,
        tell=events.append,
        tally=pool.Tally(),
        images_to_do=8,
    ).run()
    assert len(lost) == losses
    assert any(isinstance(event, WorkerLost) for event in events)
    assert sum(isinstance(event, ShardWritten) for event in events) == 1


def test_crews_that_can_not_be_are_refused() -> None:
    for settings, option in (
        ({"gpus_per_worker": -1.0}, "--gpus-per-worker"),
        ({"cpus_per_worker": float("nan")}, "--cpus-per-worker"),
        ({"image_timeout_s": 0.0}, "--image-timeout"),
        ({"image_timeout_s": 5.0, "workers": 0}, "--image-timeout"),
    ):
        with pytest.raises(UsageError, match=option):
            Crew(**settings)  # type: ignore[arg-type]


@pytest.mark.usefixtures("private_ray")
def test_a_worker_for_which_there_is_no_room_is_told(tmp_path: Path, pairs: list[Pair]) -> None:
    for needs, option in (
        ({"gpus_per_worker": 64.0}, "--gpus-per-worker"),
        ({"cpus_per_worker": 4096.0}, "--cpus-per-worker"),
    ):
        crew = Crew(workers=1, **needs)
        with pytest.raises(UsageError, match=option):
            run(tmp_path / "out", pairs, Whole(tmp_path / "log"), workers=crew)


def test_crews_on_this_machine_and_on_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    superpixel = Segmented(segmenter_settings("superpixel"))
    sam = Segmented(SamSettings(device="cpu"))
    anywhere = Segmented(SamSettings())
    open_crew = Crew(workers=None, gpus_per_worker=None)
    assert crew_for(superpixel, open_crew) == Crew(workers=8)
    assert crew_for(sam, open_crew) == Crew(workers=1)
    two_each = Crew(workers=None, gpus_per_worker=None, cpus_per_worker=2.0)
    assert crew_for(superpixel, two_each).workers == 4

    on_cluster = Crew(workers=None, gpus_per_worker=None, address="head:6379")
    assert crew_for(superpixel, on_cluster) == Crew(workers=None, address="head:6379")
    assert crew_for(sam, on_cluster).gpus_per_worker == 0.0
    assert crew_for(anywhere, on_cluster).gpus_per_worker is None  # known when it is joined
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert crew_for(anywhere, open_crew).workers is None
    assert crew_for(anywhere, Crew(workers=0)).workers == 0


def test_events_are_json() -> None:
    for event in (
        Started(1, 2, 0, 0),
        Progressed(1, 2, 3, 0, 1),
        ShardWritten(0, 2, 3, 100),
        Quarantined("a", "it is empty"),
        WorkerLost("ended", None),
    ):
        record = to_record(event)
        assert record.pop("event") == event.name
        assert record == vars(event)
