"""The precompute job: planning, resume with equal bytes, quarantine, losses of workers."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from ray import cloudpickle

from samprior.pipeline.datasets import Pair
from samprior.pipeline.estimate import estimate
from samprior.pipeline.events import Event, ShardWritten
from samprior.pipeline.forms import WEBDATASET
from samprior.pipeline.job import JobResult, MaskMaker, MasksOf, run_job
from samprior.pipeline.makers import Segmented
from samprior.pipeline.plan import ShardPlan, input_bytes, pending, plan_header, plan_shards
from samprior.pipeline.ray_session import ray_session
from samprior.pipeline.sam import random_sam
from samprior.pipeline.segmenters import segmenter_settings
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import BusyError, CheckpointError, StoreError, UsageError
from samprior.storage.files import STAGED_SUFFIX
from samprior.storage.images import Rgb, read_rgb, write_png
from samprior.storage.manifest import digests_of, read_receipts
from samprior.storage.verify import verify_store
from samprior.storage.zarr_files import GroupWriter

# The workers can't import this file, so its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Halves:
    """Two masks, the left and the right half; misbehaves on chosen keys."""

    stop_at: str | None = None
    """Key at which the user presses Ctrl-C."""
    die_at: str | None = None
    """Key at which the worker's process ends."""
    die_once: Path | None = None
    """File that is made at the first death; none follows after it."""

    def describe(self) -> dict[str, Any]:
        return {"segmenter": "halves"}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self._masks_of

    def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        if pair.key == self.stop_at:
            raise KeyboardInterrupt
        if pair.key == self.die_at and not (self.die_once and self.die_once.exists()):
            if self.die_once:
                self.die_once.touch()
            os._exit(1)
        masks = np.zeros((2, *image.shape[:2]), bool)
        middle = image.shape[1] // 2
        masks[0, :, :middle] = masks[1, :, middle:] = True
        return MaskSet.from_masks(masks, brightness=[float(image.mean()), 0.0])


HALVES = Halves()


class Unloadable(Halves):
    def build(self) -> MasksOf:
        raise CheckpointError("checkpoint sam.pth is of vit_b, not vit_h; use --model vit_b")


class DiesLoading(Halves):
    def build(self) -> MasksOf:
        os._exit(1)


class KillsInTurn(Halves):
    """Ends the process at key 4 if that process has just done key 3."""

    def build(self) -> MasksOf:
        seen: list[str] = []

        def masks_of(pair: Pair, image: Rgb) -> MaskSet:
            seen.append(pair.key)
            if seen[-2:] == ["3", "4"]:
                os._exit(1)
            return self._masks_of(pair, image)

        return masks_of


@pytest.fixture
def pairs(tmp_path: Path, rng: np.random.Generator) -> list[Pair]:
    """Seven pairs of 48x40 pictures."""
    found = []
    for number in range(7):
        files = [tmp_path / side / f"{number}.png" for side in ("degraded", "clean")]
        for file in files:
            write_png(file, rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        found.append(Pair(f"{number}", *files))
    return found


@pytest.fixture(scope="module")
def private_ray() -> Iterator[None]:
    """One Ray instance for all tests here; starting one takes seconds."""
    with ray_session():
        yield


def run(
    out: Path,
    pairs: Sequence[Pair],
    maker: MaskMaker = HALVES,
    **settings: Any,  # noqa: ANN401  # of run_job
) -> JobResult:
    plan = plan_shards(pairs, images_per_shard=3)
    header = plan_header(
        plan,
        dataset="folder",
        layout="folders",
        split=None,
        segmenter=maker.describe(),
        source=settings.get("source", "clean"),
        images_per_shard=3,
    )
    settings.setdefault("workers", 0)
    return run_job(out, plan, header, maker, **settings)


def test_plan_holds_every_pair_once_and_in_order(pairs: list[Pair]) -> None:
    plan = plan_shards(pairs, images_per_shard=3)
    assert [len(shard.pairs) for shard in plan] == [3, 3, 1]
    assert [pair for shard in plan for pair in shard.pairs] == pairs
    assert [shard.shard for shard in plan] == [0, 1, 2]
    assert plan_shards([]) == []
    with pytest.raises(UsageError, match="at least 1"):
        plan_shards(pairs, images_per_shard=0)


def test_a_finished_store_holds_the_pictures_and_their_masks(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    seen: list[tuple[int, int]] = []
    result = run(tmp_path / "out", pairs, progress=lambda done, total: seen.append((done, total)))
    assert (result.num_images, result.shards_written, result.num_shards) == (7, 3, 3)
    assert seen == [(done, 7) for done in range(1, 8)]
    store = MaskStore.open(tmp_path / "out").require_complete()
    for record, pair in zip(store, pairs, strict=True):
        assert record.key == pair.key
        assert np.array_equal(record.clean, read_rgb(pair.clean))
        assert np.array_equal(record.degraded, read_rgb(pair.degraded))
        assert record.masks.columns["brightness"][0] == record.clean.mean()
    assert verify_store(tmp_path / "out").ok


def test_the_second_run_does_nothing(tmp_path: Path, pairs: list[Pair]) -> None:
    run(tmp_path / "out", pairs)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("[!.]*")}
    assert run(tmp_path / "out", pairs, Halves(die_at="0")).shards_written == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("[!.]*")} == before


def test_a_stopped_job_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    run(tmp_path / "unbroken", pairs)
    for stop_at in ("1", "4", "6"):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", pairs, Halves(stop_at=stop_at))
    assert len(read_receipts(tmp_path / "broken")) == 2
    assert MaskStore.open(tmp_path / "broken").missing_shards == [2]
    assert run(tmp_path / "broken", pairs).shards_written == 1
    assert digests_of(tmp_path / "broken") == digests_of(tmp_path / "unbroken")


def test_drafts_of_workers_that_were_lost_meanwhile_are_removed(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    run(tmp_path / "wanted", pairs)
    out = tmp_path / "out"

    def lose_a_worker(event: Event) -> None:
        if isinstance(event, ShardWritten):
            (out / "shards" / f".{event.shard + 1:06d}.0123abcd{STAGED_SUFFIX}").mkdir()
            (out / "receipts" / f".{event.shard:06d}.json.0123abcd{STAGED_SUFFIX}").touch()

    run(out, pairs, listen=lose_a_worker)
    assert {file.relative_to(out) for file in out.rglob("*")} == {
        file.relative_to(tmp_path / "wanted") for file in (tmp_path / "wanted").rglob("*")
    }


def test_source_chooses_the_segmented_picture(tmp_path: Path, pairs: list[Pair]) -> None:
    run(tmp_path / "out", pairs, source="degraded")
    record = MaskStore.open(tmp_path / "out")[0]
    assert record.masks.columns["brightness"][0] == record.degraded.mean()


def test_bad_pictures_are_quarantined_and_a_mended_one_is_taken_up(
    tmp_path: Path, pairs: list[Pair], rng: np.random.Generator
) -> None:
    whole = pairs[1].degraded.read_bytes()
    pairs[1].degraded.write_bytes(whole[: len(whole) // 2])
    write_png(pairs[4].clean, rng.integers(0, 256, (40, 47, 3), dtype=np.uint8))
    pairs[6].clean.write_bytes(b"")
    out = tmp_path / "out"
    result = run(out, pairs)
    assert list(result.quarantined) == ["1", "4", "6"]
    assert str(pairs[1].degraded) in result.quarantined["1"]
    assert "47x40" in result.quarantined["4"]
    assert "empty" in result.quarantined["6"]
    store = MaskStore.open(out)
    assert store.keys == ("0", "2", "3", "5")
    assert store.quarantined == result.quarantined
    assert [record.key for record in store] == list(store.keys)

    pairs[1].degraded.write_bytes(whole)
    result = run(out, pairs)
    assert result.shards_written == 1
    assert list(result.quarantined) == ["4", "6"]
    assert MaskStore.open(out).keys == ("0", "1", "2", "3", "5")


def test_a_segmenter_that_fails_on_one_picture_costs_only_that(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    class Picky(Halves):
        def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
            if pair.key == "2":
                raise RuntimeError("no convergence")
            return super()._masks_of(pair, image)

    result = run(tmp_path / "out", pairs, Picky())
    assert result.quarantined == {"2": "RuntimeError: no convergence"}
    assert result.num_images == 6


def test_another_job_s_store_is_refused_and_says_what_differs(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    out = tmp_path / "out"
    run(out, pairs)
    before = digests_of(out)
    with pytest.raises(StoreError, match=r"made_of\.source is clean, wanted degraded.*--out"):
        run(out, pairs, source="degraded")
    with pytest.raises(StoreError, match="listing_sha256"):
        run(out, pairs[1:])
    assert digests_of(out) == before


def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path, pairs: list[Pair]) -> None:
    with pytest.raises(StoreError, match="no samprior store"):
        run(tmp_path, pairs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "degraded"]


def test_two_jobs_never_write_to_one_store(tmp_path: Path, pairs: list[Pair]) -> None:
    out = tmp_path / "out"
    messages = []

    def second_job(done: int, total: int) -> None:
        with pytest.raises(BusyError) as refused:
            run(out, pairs)
        messages.append(str(refused.value))

    run(out, pairs, progress=second_job)
    assert len(messages) == 7
    assert all("another process" in message for message in messages)


def test_a_full_disk_leaves_whole_shards_only(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = GroupWriter.write_table

    def full(group: GroupWriter, name: str, values: np.ndarray) -> None:
        if "000001" in group.folder.name:
            raise OSError(28, "No space left on device")
        real(group, name, values)

    monkeypatch.setattr(GroupWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        run(out, pairs)
    assert sorted(folder.name for folder in (out / "shards").iterdir()) == ["000000", "zarr.json"]
    assert [receipt.name for receipt in (out / "receipts").iterdir()] == ["000000.json"]
    monkeypatch.undo()
    assert run(out, pairs).shards_written == 2
    assert verify_store(out).ok


def test_pending_asks_for_what_has_no_receipt(tmp_path: Path, pairs: list[Pair]) -> None:
    plan = plan_shards(pairs, images_per_shard=3)
    assert pending(plan, [], input_bytes) == plan
    run(tmp_path / "out", pairs)
    receipts = list(read_receipts(tmp_path / "out").values())
    assert pending(plan, receipts, input_bytes) == []
    assert pending(plan, receipts, lambda pair: (*input_bytes(pair), "masks")) == plan
    del receipts[1]
    assert pending(plan, receipts, input_bytes) == [ShardPlan(1, tuple(pairs[3:6]))]


def test_the_estimate_measures_probes_and_writes_nothing(tmp_path: Path, pairs: list[Pair]) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = plan_shards(pairs, images_per_shard=3)
    guess = estimate(plan, Halves(), source="clean", paired=True)
    assert guess.num_probes == 3
    assert guess.seconds_per_image > 0
    assert guess.bytes_per_image > 40 * 48 * 3 * 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("engine", ["fast", "official"])
def test_sam_s_masks_end_in_the_store(tmp_path: Path, pairs: list[Pair], engine: str) -> None:
    """The official classes, with few random weights."""
    settings = segmenter_settings(
        "sam",
        model=random_sam(0),
        engine=engine,
        points_per_side=4,
        pred_iou_thresh=-10.0,
        stability_score_thresh=0.0,
    )
    run(tmp_path / "out", pairs[:4], Segmented(settings))
    segment = settings.build()
    store = MaskStore.open(tmp_path / "out")
    assert store.header.made_of["segmenter"]["engine"] == engine
    assert sum(len(record.masks) for record in store) > 4
    for record, pair in zip(store, pairs[:4], strict=True):
        masks = segment(read_rgb(pair.clean))
        assert np.array_equal(record.masks.to_masks(), masks.to_masks())
        for name in ("predicted_iou", "stability", "point"):
            assert np.array_equal(record.masks.columns[name], masks.columns[name], equal_nan=True)


@pytest.mark.usefixtures("private_ray")
def test_ray_writes_the_same_bytes_as_one_process(tmp_path: Path, pairs: list[Pair]) -> None:
    maker = Segmented(segmenter_settings("superpixel", levels=(2, 4)))
    seen: list[tuple[int, int]] = []
    here = run(tmp_path / "here", pairs, maker)
    result = run(
        tmp_path / "ray",
        pairs,
        maker,
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (result.num_images, result.shards_written) == (here.num_images, here.shards_written)
    assert digests_of(tmp_path / "ray") == digests_of(tmp_path / "here")
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.usefixtures("private_ray")
def test_ray_writes_the_same_tars_as_one_process(tmp_path: Path, pairs: list[Pair]) -> None:
    run(tmp_path / "here", pairs, form=WEBDATASET)
    result = run(tmp_path / "ray", pairs, form=WEBDATASET, workers=2)
    assert (result.num_images, result.shards_written) == (7, 3)
    assert digests_of(tmp_path / "ray") == digests_of(tmp_path / "here")


@pytest.mark.usefixtures("private_ray")
def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path, pairs: list[Pair]) -> None:
    dying = Halves(die_at="4", die_once=tmp_path / "died")
    result = run(tmp_path / "out", pairs, dying, workers=1)
    assert (tmp_path / "died").exists()
    assert result.num_images == 7
    run(tmp_path / "unbroken", pairs)
    assert digests_of(tmp_path / "out") == digests_of(tmp_path / "unbroken")


@pytest.mark.usefixtures("private_ray")
def test_an_image_that_kills_its_worker_is_found_and_quarantined(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    out = tmp_path / "out"
    result = run(out, pairs, Halves(die_at="4"), workers=2)
    assert list(result.quarantined) == ["4"]
    assert "worker process ended" in result.quarantined["4"]
    store = MaskStore.open(out).require_complete()
    assert store.keys == ("0", "1", "2", "3", "5", "6")
    assert verify_store(out).ok
    assert run(out, pairs, Halves(die_at="4"), workers=2).shards_written == 0


@pytest.mark.usefixtures("private_ray")
def test_the_only_image_of_a_shard_may_be_the_guilty_one(tmp_path: Path, pairs: list[Pair]) -> None:
    result = run(tmp_path / "out", pairs, Halves(die_at="6"), workers=1)
    assert list(result.quarantined) == ["6"]
    assert result.num_images == 6


@pytest.mark.usefixtures("private_ray")
def test_a_shard_that_kills_its_worker_by_no_one_image_is_given_up_and_the_others_are_written(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    with pytest.raises(StoreError, match=r"1 shard given up .*shard 1.*--workers 0"):
        run(tmp_path / "out", pairs, KillsInTurn(), workers=1)
    assert MaskStore.open(tmp_path / "out").missing_shards == [1]
    assert verify_store(tmp_path / "out").broken == {}
    assert run(tmp_path / "out", pairs).shards_written == 1


@pytest.mark.usefixtures("private_ray")
def test_a_segmenter_that_can_not_be_built_is_told_before_any_shard(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    for workers in (0, 2):
        with pytest.raises(CheckpointError) as told:
            run(tmp_path / "out", pairs, Unloadable(), workers=workers)
        assert str(told.value).startswith("checkpoint sam.pth is of vit_b")
        assert len(str(told.value).splitlines()) == 1
    with pytest.raises(StoreError, match="ended while it loaded the segmenter") as lost:
        run(tmp_path / "out", pairs, DiesLoading(), workers=1)
    assert len(str(lost.value).splitlines()) == 1
    assert MaskStore.open(tmp_path / "out").missing_shards == [0, 1, 2]


# A node that doesn't come up in time is told by a bare Exception.
@pytest.mark.parametrize("kind", [ConnectionError, Exception])
def test_a_ray_that_does_not_start_is_told(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def refuse(**_: object) -> None:
        raise kind("no GCS\nmany more lines")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(StoreError) as told:
        run(tmp_path / "out", pairs, workers=1)
    assert str(told.value) == "Ray can't be started or reached (no GCS); try --workers 0"


def test_a_private_ray_leaves_nothing_below_the_home_folder(tmp_path: Path) -> None:
    program = """
import os, ray
from samprior.pipeline.ray_session import ray_session
os.environ.pop("RAY_AUTH_MODE", None)
for _ in range(2):
    with ray_session():
        assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
    assert "RAY_AUTH_MODE" not in os.environ
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    subprocess.run(
        [sys.executable, "-c", program], env=kept | {"HOME": str(tmp_path)}, check=True, timeout=300
    )
    assert list(tmp_path.iterdir()) == []


def test_a_private_ray_joins_no_cluster_that_was_left_behind() -> None:
    program = """
import ray
from samprior.pipeline.ray_session import ray_session
with ray_session():
    assert len(ray.nodes()) == 1
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Not in tmp_path: names of sockets have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        left = Path(folder) / "ray" / "ray_current_cluster"
        left.parent.mkdir()
        left.write_text("192.0.2.2:40959")
        environment = kept | {"HOME": folder, "RAY_TMPDIR": folder}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)


@pytest.mark.parametrize(
    ("passing", "raised"),
    [
        (OSError(errno.EIO, "Input/output error"), OSError),
        (OSError(errno.EMFILE, "Too many open files"), OSError),
        (MemoryError(), StoreError),
    ],
)
def test_what_the_machine_lacks_quarantines_nothing(
    tmp_path: Path,
    pairs: list[Pair],
    monkeypatch: pytest.MonkeyPatch,
    passing: Exception,
    raised: type[Exception],
) -> None:
    real: Callable[..., Image.Image] = Image.open

    def fail(path: Path, **options: Any) -> Image.Image:  # noqa: ANN401  # of Image.open
        if path == pairs[4].clean:
            raise passing
        return real(path, **options)

    out = tmp_path / "out"
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(raised) as told:
        run(out, pairs)
    assert len(str(told.value).splitlines()) == 1
    assert MaskStore.open(out).missing_shards == [1, 2]
    monkeypatch.undo()
    result = run(out, pairs)
    assert (result.shards_written, result.quarantined) == (2, {})


def test_pictures_of_one_shard_may_differ_in_size(tmp_path: Path, rng: np.random.Generator) -> None:
    pairs = []
    for number, shape in enumerate([(40, 48, 3), (130, 20, 3), (9, 200, 3)]):
        file = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file)
        pairs.append(Pair(f"{number}", file, file))
    run(tmp_path / "out", pairs)
    store = MaskStore.open(tmp_path / "out")
    assert [store.size(index) for index in range(3)] == [(40, 48), (130, 20), (9, 200)]
    assert all(np.array_equal(store[n].clean, read_rgb(p.clean)) for n, p in enumerate(pairs))
