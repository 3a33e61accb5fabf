"""A store takes up what its dataset has got since, and what is there stays as it is."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from samprior.cli.main import cli
from samprior.pipeline.datasets import Dataset, Pair, find_dataset
from samprior.pipeline.job import JobResult
from samprior.pipeline.plan import plan_shards
from samprior.pipeline.precompute import precompute
from samprior.pipeline.worker import MasksOf
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.growth import LISTING
from samprior.storage.images import Rgb, read_rgb, write_png
from samprior.storage.manifest import Header, digests_of, read_header, read_receipts, shard_folder
from samprior.storage.migrate import migrate_store
from samprior.storage.verify import verify_store

Grow = Callable[..., Dataset]


@dataclass(frozen=True)
class Halves:
    """Two masks, the left and the right half."""

    name: str = "halves"
    stop_at: str | None = None
    """Key at which the user presses Ctrl-C."""

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
def grow(tmp_path: Path, rng: np.random.Generator) -> Grow:
    """Add pictures of these names to the dataset, and find it."""

    def grown(*names: str) -> Dataset:
        for name in names:
            for side in ("noisy", "clean"):
                picture = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                write_png(tmp_path / "data" / side / f"{name}.png", picture)
        return find_dataset(
            "folder",
            tmp_path / "data",
            degraded_pattern="noisy/{key}.png",
            clean_pattern="clean/{key}.png",
        )

    return grown


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "store"


def run(dataset: Dataset, out: Path, maker: Halves | None = None, **more: Any) -> JobResult:  # noqa: ANN401
    return precompute(dataset, out, maker or Halves(), images_per_shard=2, workers=0, **more)


def shards_of(out: Path, count: int) -> list[Any]:
    return [digests_of(shard_folder(out, shard)) for shard in range(count)]


def test_parts_are_cut_each_on_its_own(tmp_path: Path) -> None:
    pairs = [Pair(str(i), tmp_path, tmp_path) for i in range(9)]
    plan = plan_shards(pairs, images_per_shard=2, appended=(1, 3))
    assert [[pair.key for pair in shard.pairs] for shard in plan] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
        ["5"],
        ["6", "7"],
        ["8"],
    ]
    header = Header(
        num_images=9, num_shards=6, images_per_shard=2, paired=True, made_of={}, appended=(1, 3)
    )
    assert header.parts == (5, 1, 3)
    assert [header.planned(shard) for shard in range(6)] == [2, 2, 1, 1, 2, 1]
    with pytest.raises(IndexError):
        header.planned(6)


def test_new_images_become_a_further_part(grow: Grow, out: Path) -> None:
    """New keys may lie anywhere among the old; the order of keys is that of the shards."""
    run(grow("b", "d", "f"), out)
    before, header = shards_of(out, 2), read_header(out)
    dataset = grow("a", "c", "g")
    result = run(dataset, out, append=True)
    assert (result.shards_written, result.num_shards, result.num_images) == (2, 4, 6)
    assert shards_of(out, 2) == before
    store = MaskStore.open(out).require_complete()
    assert store.keys == ("b", "d", "f", "a", "c", "g")
    assert store.header.appended == (3,)
    assert store.fingerprint != header.fingerprint
    by_key = {pair.key: pair for pair in dataset.pairs}
    for record in store:
        assert np.array_equal(record.clean, read_rgb(by_key[record.key].clean))
        assert record.masks.columns["brightness"][0] == record.clean.mean()
    assert verify_store(out).ok
    run(grow("0"), out, append=True)
    store = MaskStore.open(out).require_complete()
    assert store.keys == ("b", "d", "f", "a", "c", "g", "0")
    assert store.header.appended == (3, 1)
    assert verify_store(out).ok


def test_without_new_images_nothing_is_done(grow: Grow, out: Path) -> None:
    dataset = grow("a", "b", "c")
    run(dataset, out)
    before = digests_of(out)
    assert run(dataset, out, append=True).shards_written == 0
    assert digests_of(out) == before
    assert read_header(out).appended == ()


def test_a_grown_store_is_gone_on_with_by_the_plain_command(grow: Grow, out: Path) -> None:
    run(grow("a", "b", "c"), out)
    dataset = grow("0", "d")
    run(dataset, out, append=True)
    before = digests_of(out)
    assert run(dataset, out).shards_written == 0
    assert run(dataset, out, append=True).shards_written == 0
    assert digests_of(out) == before


@pytest.mark.parametrize("append", [False, True])
def test_an_append_that_was_stopped_ends_with_the_same_bytes(
    grow: Grow, out: Path, tmp_path: Path, append: bool
) -> None:
    """By the same command, or by the plain one, as the store knows already what comes."""
    dataset = grow("b", "d", "f")
    for store in (out, tmp_path / "unbroken"):
        run(dataset, store)
    dataset = grow("a", "c", "g", "h")
    run(dataset, tmp_path / "unbroken", append=True)
    for stop_at in ("c", "h"):
        with pytest.raises(KeyboardInterrupt):
            run(dataset, out, Halves(stop_at=stop_at), append=True)
        assert not verify_store(out).broken
    assert MaskStore.open(out).missing_shards == [3]
    assert run(dataset, out, append=append).shards_written == 1
    assert digests_of(out) == digests_of(tmp_path / "unbroken")


def test_a_listing_without_its_header_does_no_harm(grow: Grow, out: Path) -> None:
    """What a job leaves that is killed between the two files."""
    run(grow("a", "b"), out)
    (out / LISTING).write_text(json.dumps({"parts": [["a", "b"], ["c", "d"]]}))
    assert run(grow(), out).shards_written == 0
    assert run(grow("d", "e"), out, append=True).shards_written == 1
    assert MaskStore.open(out).require_complete().keys == ("a", "b", "d", "e")


def test_more_images_while_an_append_is_unfinished(grow: Grow, out: Path) -> None:
    """And a shard of an early part lost meanwhile: the listing tells whose images are whose."""
    run(grow("b", "d", "f"), out)
    dataset = grow("a", "c", "g")
    with pytest.raises(KeyboardInterrupt):
        run(dataset, out, Halves(stop_at="g"), append=True)
    before = shards_of(out, 3)
    (shard_folder(out, 0) / "zarr.json").unlink()
    assert list(verify_store(out, repair=True).broken) == [0]
    assert run(grow("e"), out, append=True).shards_written == 3
    assert MaskStore.open(out).require_complete().keys == ("b", "d", "f", "a", "c", "g", "e")
    assert shards_of(out, 3) == before
    assert verify_store(out).ok


def test_a_grown_dataset_is_refused_without_append(grow: Grow, out: Path) -> None:
    run(grow("b", "d"), out)
    before = digests_of(out)
    dataset = grow("a", "c")
    with pytest.raises(StoreError, match=r"2 images that .* has not \(a, c\); .*--append"):
        run(dataset, out)
    run(dataset, out, append=True)
    assert digests_of(out) != before
    before = digests_of(out)
    with pytest.raises(StoreError, match=r"1 image that .* has not \(e\); .*--append"):
        run(grow("e"), out)
    assert digests_of(out) == before


def test_images_that_vanished_are_told(grow: Grow, out: Path, tmp_path: Path) -> None:
    run(grow("a", "b", "c"), out)
    before = digests_of(out)
    for side in ("noisy", "clean"):
        (tmp_path / "data" / side / "b.png").unlink()
    for append in (False, True):
        with pytest.raises(StoreError, match=r"1 image that the dataset no longer has \(b\)"):
            run(grow("d"), out, append=append)
    assert digests_of(out) == before


def test_only_images_may_be_new(grow: Grow, out: Path) -> None:
    run(grow("a", "b"), out)
    dataset = grow("c")
    before = digests_of(out)
    with pytest.raises(StoreError, match=r"segmenter is halves, wanted thirds"):
        run(dataset, out, Halves("thirds"), append=True)
    with pytest.raises(StoreError, match=r"source is clean, wanted degraded"):
        run(dataset, out, append=True, source="degraded")
    with pytest.raises(StoreError, match=r"images_per_shard is 2, wanted 3"):
        precompute(dataset, out, Halves(), images_per_shard=3, workers=0, append=True)
    assert digests_of(out) == before
    assert precompute(dataset, out, Halves(), workers=0, append=True).num_shards == 2


def test_an_unfinished_store_is_finished_first(grow: Grow, out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(grow("a", "b", "c"), out, Halves(stop_at="c"))
    with pytest.raises(StoreError, match=r"1 of 2 shards; finish it first"):
        run(grow("d"), out, append=True)
    with pytest.raises(StoreError, match="no store to append to"):
        run(grow(), out.with_name("nothing"), append=True)
    assert not out.with_name("nothing").exists()


def test_quarantined_images_are_known_too(grow: Grow, out: Path, tmp_path: Path) -> None:
    dataset = grow("a", "b", "c")
    whole = (tmp_path / "data/clean/b.png").read_bytes()
    (tmp_path / "data/clean/b.png").write_bytes(b"")
    assert list(run(dataset, out).quarantined) == ["b"]
    assert run(grow("d"), out, append=True).num_images == 3
    assert MaskStore.open(out).keys == ("a", "c", "d")
    assert verify_store(out).ok
    (tmp_path / "data/clean/b.png").write_bytes(whole)
    assert run(grow(), out).shards_written == 1
    assert MaskStore.open(out).keys == ("a", "b", "c", "d")


def test_a_damaged_listing_is_told(grow: Grow, out: Path) -> None:
    run(grow("a", "b"), out)
    dataset = grow("c")
    run(dataset, out, append=True)
    content = (out / LISTING).read_text()
    for damaged, message in (
        ("{", "can't be read"),
        (content.replace('"b"', '"x"'), "not those that its header"),
        ("[" * 100_000, "can't be read"),
    ):
        (out / LISTING).write_text(damaged)
        with pytest.raises(StoreError, match=message):
            run(grow("d"), out, append=True)
        assert MaskStore.open(out).require_complete().keys == ("a", "b", "c")


def test_verify_knows_the_parts(grow: Grow, out: Path) -> None:
    run(grow("a", "b", "c"), out)
    run(grow("d", "e"), out, append=True)
    receipts = read_receipts(out)
    assert [len(receipt.keys) for receipt in receipts.values()] == [2, 1, 2]
    assert verify_store(out).ok


def test_a_grown_store_is_migrated(grow: Grow, out: Path, tmp_path: Path) -> None:
    run(grow("a", "b", "c"), out)
    run(grow("d"), out, append=True)
    migrate_store(out, tmp_path / "copy")
    assert digests_of(tmp_path / "copy") == digests_of(out)
    run(grow("e"), tmp_path / "copy", append=True)
    assert MaskStore.open(tmp_path / "copy").keys == ("a", "b", "c", "d", "e")


def test_tars_do_not_grow(grow: Grow, out: Path) -> None:
    with pytest.raises(UsageError, match="--append"):
        run(grow("a"), out, form="webdataset", append=True)


def test_the_command(grow: Grow, out: Path, tmp_path: Path) -> None:
    grow("b", "d")
    command = ["precompute", "--dataset", "folder", "--root", str(tmp_path / "data")]
    command += ["--degraded-pattern", "noisy/{key}.png", "--clean-pattern", "clean/{key}.png"]
    command += ["--segmenter", "superpixel", "--workers", "0", "--out", str(out)]

    def said(*more: str) -> str:
        result = CliRunner().invoke(cli, [*command, *more])
        assert result.exit_code == 0, result.output
        return result.output

    assert "2 images in 1 shard, " in said()
    assert "nothing to append" in said("--append")
    grow("a", "c")
    assert "2 images in 1 shard\n" in said("--append", "--dry-run")
    assert "4 images in 2 shards" in said("--append")
    assert "nothing to append" in said("--append")
    assert "is finished" in said("--dry-run")
