"""What a job does per shard and image stays the same however many there are: calls are counted."""

import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from samprior.pipeline.datasets import Dataset
from samprior.pipeline.forms import FORMS
from samprior.pipeline.job import JobResult, run_job
from samprior.pipeline.precompute import precompute
from samprior.storage import MaskStore
from samprior.storage.errors import StoreError
from samprior.storage.manifest import Receipt


@pytest.fixture
def null_jobs(benchmarks: dict[str, ModuleType]) -> Any:  # noqa: ANN401  # scripts have no types
    return benchmarks["null_jobs"]


def run(jobs: Any, root: Path, num_shards: int, *, form: str = "zarr", **more: Any) -> JobResult:  # noqa: ANN401
    """A job of one image per shard, by `precompute`, as the command calls it."""
    if not (root / "real").exists():
        jobs.write_pictures(root, num_shards)
    pairs = tuple(jobs.find_pairs(root, num_shards))
    dataset = Dataset("null", root, None, pairs, "null")
    out = root / "store"
    return precompute(
        dataset, out, jobs.Nothing(), form=form, images_per_shard=1, workers=0, **more
    )


def listings(
    monkeypatch: pytest.MonkeyPatch, out: Path, work: Callable[[], object]
) -> Counter[str]:
    """How often the folders of a store that have one entry per shard are listed."""
    counts: Counter[str] = Counter()

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def listed(path: Any = ".") -> Any:  # noqa: ANN401
            if isinstance(path, str | Path) and Path(path) in (
                out,
                out / "receipts",
                out / "shards",
            ):
                counts[Path(path).name] += 1
            return real(path)

        return listed

    with monkeypatch.context() as patch:
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, counting(getattr(os, name)))
        work()
    return counts


@pytest.mark.parametrize("form", ["zarr", "webdataset"])
def test_the_store_is_listed_as_often_for_many_shards_as_for_few(
    null_jobs: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    told = []
    for num_shards in (3, 12):
        root = tmp_path / str(num_shards)
        out = root / "store"

        def job(root: Path = root, num_shards: int = num_shards) -> None:
            run(null_jobs, root, num_shards, form=form)

        fresh = listings(monkeypatch, out, job)
        for shard in range(num_shards // 2):
            (out / f"receipts/{shard:06d}.json").unlink()
        resumed = listings(monkeypatch, out, job)
        told.append((fresh, resumed, listings(monkeypatch, out, job)))
    assert told[0] == told[1]
    assert told[0][0]["receipts"] > 0


def test_a_job_takes_steps_in_proportion_to_its_shards(
    null_jobs: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    """A quadratic step would make the second difference twice as large as the first, doubled."""
    steps: dict[str, list[int]] = {"fresh": [], "finished": []}
    writer = null_jobs.ReceiptsOnly(null_jobs.real_digests(tmp_path / "real-shard"))
    form = replace(FORMS["zarr"], write_shard=writer)
    null_jobs.write_pictures(tmp_path, 160)
    for num_shards in (40, 40, 80, 160):  # the first is for what is imported and cached
        for name, told in steps.items():
            count = 0

            def counted(_: FrameType, event: str, __: object) -> None:
                nonlocal count
                count += event in ("call", "c_call")

            maker = null_jobs.Nothing()
            sys.setprofile(counted)
            try:
                plan, header = null_jobs.plan_of(tmp_path, num_shards, maker, 1)
                out = tmp_path / f"store{len(told)}"
                result = run_job(out, plan, header, maker, form=form, workers=0)
            finally:
                sys.setprofile(None)
            assert result.shards_written == (num_shards if name == "fresh" else 0)
            told.append(count)
    for told in steps.values():
        _, one, two, four = told
        assert (four - two) == pytest.approx(2 * (two - one), rel=0.05)


def test_receipts_are_read_once_to_begin_and_once_to_end_and_not_kept(
    null_jobs: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Receipt.from_json
    held: list[weakref.ref[Receipt]] = []
    most = 0

    def read(content: bytes, origin: str | Path) -> Receipt:
        nonlocal most
        receipt = real(content, origin)
        held.append(weakref.ref(receipt))
        most = max(most, sum(one() is not None for one in held))
        return receipt

    monkeypatch.setattr(Receipt, "from_json", read)
    run(null_jobs, tmp_path, 20)
    assert len(held) == 20
    held.clear()
    assert run(null_jobs, tmp_path, 20).shards_written == 0
    assert len(held) == 40
    assert most <= 3


def test_each_image_s_files_are_asked_about_once_per_run(
    null_jobs: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: Counter[str] = Counter()

    def inputs(_: object, pair: Any) -> tuple[int, ...]:  # noqa: ANN401
        asked[pair.key] += 1
        return ()

    monkeypatch.setattr(null_jobs.Nothing, "inputs", inputs)
    for runs in (1, 2):
        run(null_jobs, tmp_path, 5)
        assert sorted(asked.values()) == [runs] * 5


def test_a_shard_that_vanishes_at_the_end_is_told(
    null_jobs: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    def remove(done: int, total: int) -> None:
        if done == total:
            (tmp_path / "store/receipts/000001.json").unlink()

    with pytest.raises(StoreError, match=r"lost 1 shard while this job ran \(1"):
        run(null_jobs, tmp_path, 4, progress=remove)
    assert run(null_jobs, tmp_path, 4).shards_written == 1
    assert len(MaskStore.open(tmp_path / "store").require_complete()) == 4
