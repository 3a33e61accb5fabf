"""Tars that a job writes: those of an export, whatever broke the job off."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samprior.pipeline.datasets import Pair
from samprior.pipeline.estimate import estimate
from samprior.pipeline.forms import WEBDATASET, ZARR, Form
from samprior.pipeline.job import JobResult, MasksOf, run_job
from samprior.pipeline.plan import plan_header, plan_shards
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import BusyError, StoreError, UsageError
from samprior.storage.images import Rgb, write_png
from samprior.storage.locks import only_writer
from samprior.storage.manifest import digests_of, read_receipts
from samprior.storage.shards import export_webdataset, read_webdataset


@dataclass(frozen=True)
class Halves:
    """Two masks, the left and the right half."""

    stop_at: str | None = None
    """Key at which the user presses Ctrl-C."""
    name: str = "halves"

    def describe(self) -> dict[str, Any]:
        return {"segmenter": self.name}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self._masks_of

    def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        if pair.key == self.stop_at:
            raise KeyboardInterrupt
        masks = np.zeros((2, *image.shape[:2]), bool)
        middle = image.shape[1] // 2
        masks[0, :, :middle] = masks[1, :, middle:] = True
        return MaskSet.from_masks(masks, brightness=[float(image.mean()), 0.0])


@pytest.fixture
def pairs(tmp_path: Path, rng: np.random.Generator) -> list[Pair]:
    """Seven pairs of 24x20 pictures."""
    found = []
    for number in range(7):
        files = [tmp_path / side / f"{number}.png" for side in ("degraded", "clean")]
        for file in files:
            write_png(file, rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        found.append(Pair(f"seq/{number}", *files))
    return found


def run(
    out: Path,
    pairs: Sequence[Pair],
    maker: Halves | None = None,
    *,
    form: Form = WEBDATASET,
    **settings: Any,  # noqa: ANN401  # of run_job
) -> JobResult:
    maker = maker or Halves()
    plan = plan_shards(pairs, images_per_shard=3)
    header = plan_header(
        plan,
        dataset="folder",
        layout="folders",
        split=None,
        segmenter=maker.describe(),
        source="clean",
        images_per_shard=3,
    )
    return run_job(out, plan, header, maker, form=form, workers=0, **settings)


def exported(tmp_path: Path, pairs: Sequence[Pair]) -> dict[str, str]:
    """Digests of tars and index of the export of the equal store."""
    run(tmp_path / "store", pairs, form=ZARR)
    export_webdataset(MaskStore.open(tmp_path / "store"), tmp_path / "export")
    return tars_of(tmp_path / "export")


def tars_of(folder: Path) -> dict[str, str]:
    digests, _ = digests_of(folder)
    return {name: digests[name] for name in digests if name.endswith((".tar", "index.json"))}


def test_tars_and_index_are_those_of_an_export(tmp_path: Path, pairs: list[Pair]) -> None:
    seen: list[tuple[int, int]] = []
    result = run(tmp_path / "out", pairs, progress=lambda *done: seen.append(done))
    assert (result.num_images, result.shards_written, result.num_shards) == (7, 3, 3)
    assert seen == [(done, 7) for done in range(1, 8)]
    found = tars_of(tmp_path / "out")
    assert list(found) == ["000000.tar", "000001.tar", "000002.tar", "index.json"]
    assert found == exported(tmp_path, pairs)
    records = list(read_webdataset(tmp_path / "out"))
    assert [record.key for record in records] == [pair.key for pair in pairs]
    assert result.stored_bytes == sum(f.stat().st_size for f in (tmp_path / "out").glob("*.tar"))


def test_a_stopped_job_has_no_index_and_goes_on_to_the_same_bytes(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    run(tmp_path / "unbroken", pairs)
    out = tmp_path / "broken"
    for stop_at in ("seq/1", "seq/4", "seq/6"):
        with pytest.raises(KeyboardInterrupt):
            run(out, pairs, Halves(stop_at=stop_at))
        assert not (out / "index.json").exists()
        with pytest.raises(StoreError, match=r"no finished export .*--format webdataset"):
            read_webdataset(out)
    assert len(read_receipts(out)) == 2
    (out / ".000002.tar.01234567.part").touch()  # of a kill that nothing can catch
    assert run(out, pairs).shards_written == 1
    assert digests_of(out) == digests_of(tmp_path / "unbroken")


def test_the_second_run_does_nothing(tmp_path: Path, pairs: list[Pair]) -> None:
    out = tmp_path / "out"
    run(out, pairs)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("[!.]*")}
    assert run(out, pairs, Halves(stop_at="seq/0")).shards_written == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("[!.]*")} == before


def test_a_lost_tar_and_a_lost_index_are_made_again(tmp_path: Path, pairs: list[Pair]) -> None:
    out = tmp_path / "out"
    run(out, pairs)
    before = digests_of(out)
    (out / "000001.tar").unlink()
    assert run(out, pairs).shards_written == 1
    (out / "000002.tar").write_bytes((out / "000002.tar").read_bytes()[:-512])
    assert run(out, pairs).shards_written == 1
    (out / "index.json").unlink()
    assert run(out, pairs).shards_written == 0
    assert digests_of(out) == before


def test_bad_pictures_are_quarantined_and_mended_ones_taken_up(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    out = tmp_path / "out"
    whole = {place: pairs[place].clean.read_bytes() for place in (1, 6)}
    for place in whole:
        pairs[place].clean.write_bytes(b"")
    result = run(out, pairs)
    assert list(result.quarantined) == ["seq/1", "seq/6"]
    # The third shard was of the one picture: it has a receipt and no tar.
    assert [tar.name for tar in sorted(out.glob("*.tar"))] == ["000000.tar", "000001.tar"]
    assert tars_of(out) == exported(tmp_path, pairs)
    index = json.loads((out / "index.json").read_bytes())
    assert [entry["num_samples"] for entry in index["shards"]] == [2, 3]

    for place, content in whole.items():
        pairs[place].clean.write_bytes(content)
    assert run(out, pairs).shards_written == 2
    run(tmp_path / "whole", pairs)
    assert digests_of(out) == digests_of(tmp_path / "whole")

    pairs[6].clean.write_bytes(b"")
    run(out, pairs)
    assert not (out / "000002.tar").exists()
    assert len(list(read_webdataset(out))) == 6


def test_other_folders_and_settings_are_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    out = tmp_path / "out"
    run(out, pairs)
    with pytest.raises(StoreError, match=r"made with other settings.*wanted others"):
        run(out, pairs, Halves(name="others"))
    with pytest.raises(StoreError, match="no samprior store"):
        run(out, pairs, form=ZARR)
    run(tmp_path / "store", pairs, form=ZARR)
    with pytest.raises(StoreError, match="no samprior folder of tars"):
        run(tmp_path / "store", pairs)
    with pytest.raises(StoreError, match="no export of samprior"):
        export_webdataset(MaskStore.open(tmp_path / "store"), out)
    with only_writer(out), pytest.raises(BusyError):
        run(out, pairs)
    header = out / "header.json"
    header.write_text(header.read_text().replace("halves", "hulves"))
    with pytest.raises(StoreError, match="was altered"):
        run(out, pairs)
    header.write_text("[]")
    with pytest.raises(StoreError, match="no samprior header"):
        run(out, pairs)


def test_keys_that_tars_can_not_hold_are_refused_before_any_work(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    odd = [Pair("__x__/0", pairs[0].degraded, pairs[0].clean)]
    with pytest.raises(UsageError, match="passes over __x__/"):
        run(tmp_path / "out", odd, Halves(stop_at="__x__/0"))
    assert not (tmp_path / "out").exists()


def test_an_estimate_is_that_of_the_form(pairs: list[Pair]) -> None:
    plan = plan_shards(pairs, images_per_shard=3)
    sizes = {
        form.noun: estimate(plan, Halves(), source="clean", paired=True, form=form).bytes_per_image
        for form in (ZARR, WEBDATASET)
    }
    assert sizes["store"] != sizes["folder of tars"]
