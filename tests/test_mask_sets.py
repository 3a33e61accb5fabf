"""A store has several sets of masks by name, over the same pictures."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from samprior.cli.main import cli
from samprior.pipeline.datasets import Dataset, Pair, find_dataset
from samprior.pipeline.job import JobResult
from samprior.pipeline.precompute import precompute
from samprior.pipeline.worker import MasksOf
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import BusyError, CheckpointError, StoreError, UsageError
from samprior.storage.images import Rgb, read_rgb, write_png
from samprior.storage.locks import only_writer
from samprior.storage.manifest import digests_of, read_receipt, write_header, write_receipt
from samprior.storage.mask_sets import check_name
from samprior.storage.migrate import migrate_store
from samprior.storage.places import LocalFolder
from samprior.storage.verify import verify_store
from samprior.storage.writer import write_shard
from samprior.training.config import load_config
from samprior.training.data import content_digest
from samprior.training.run import train

Make = Callable[..., Any]


@dataclass(frozen=True)
class Bands:
    """Masks side by side, as many as told; the brightness is that of the picture segmented."""

    count: int = 2
    fail_at: str | None = None
    stop_at: str | None = None

    def describe(self) -> dict[str, Any]:
        return {"segmenter": "bands", "count": self.count}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self._masks_of

    def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        if pair.key == self.stop_at:
            raise KeyboardInterrupt
        if pair.key == self.fail_at:
            raise RuntimeError("no convergence")
        masks = np.zeros((self.count, *image.shape[:2]), bool)
        for band, mask in enumerate(masks):
            mask[:, band :: self.count] = True
        return MaskSet.from_masks(masks, brightness=[float(image.mean())] * self.count)


@pytest.fixture
def dataset(tmp_path: Path, rng: np.random.Generator) -> Dataset:
    """Five pairs of two sizes."""
    for number in range(5):
        for side in ("noisy", "clean"):
            picture = rng.integers(0, 256, (20 + number % 2, 24, 3), dtype=np.uint8)
            write_png(tmp_path / "data" / side / f"{number}.png", picture)
    return found(tmp_path)


def found(tmp_path: Path) -> Dataset:
    return find_dataset(
        "folder",
        tmp_path / "data",
        degraded_pattern="noisy/{key}.png",
        clean_pattern="clean/{key}.png",
    )


def run(dataset: Dataset, out: Path, count: int = 2, **more: Any) -> JobResult:  # noqa: ANN401
    maker = Bands(count, more.pop("fail_at", None), more.pop("stop_at", None))
    return precompute(dataset, out, maker, workers=0, **more)


@pytest.fixture
def root(tmp_path: Path, dataset: Dataset) -> Path:
    """A store of three shards, and the set `blurred` of masks of the degraded pictures."""
    run(dataset, tmp_path / "store", images_per_shard=2)
    run(dataset, tmp_path / "store", 3, masks="blurred", source="degraded")
    return tmp_path / "store"


def test_a_set_has_the_store_s_pictures_and_its_own_masks(root: Path, dataset: Dataset) -> None:
    main, store = MaskStore.open(root), MaskStore.open(root, masks="blurred").require_complete()
    assert main.mask_sets == store.mask_sets == ["main", "blurred"]
    assert store.keys == main.keys
    assert store.paired
    for index, (record, pair) in enumerate(zip(store, dataset.pairs, strict=True)):
        assert np.array_equal(record.clean, read_rgb(pair.clean))
        assert np.array_equal(record.degraded, read_rgb(pair.degraded))
        assert len(record.masks) == len(store.table(index).areas) == 3
        assert record.masks.columns["brightness"][0] == record.degraded.mean()
        cut = store.crop(index, 3, 4, 10, 12)
        assert np.array_equal(cut.clean, record.clean[3:13, 4:16])
        assert cut.masks.equals(record.masks.crop(3, 4, 10, 12))
        assert store.size(index) == main.size(index)
        assert len(main[index].masks) == 2
    assert store["3"].key == "3"


def test_a_set_holds_no_pictures(root: Path) -> None:
    names = {path.name for path in (root / "masks/blurred/shards/000000").iterdir()}
    assert names == {"zarr.json", "atoms", "extent", "members", "column.brightness"}


def test_the_store_itself_stays_as_it_was(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path / "alone", images_per_shard=2)
    alone, _ = digests_of(tmp_path / "alone")
    whole, _ = digests_of(root)
    assert {name: whole[name] for name in whole if not name.startswith("masks/")} == alone


def test_a_set_travels_to_other_processes(root: Path) -> None:
    store = MaskStore.open(root, masks="blurred")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.keys == store.keys
    assert copy[2].masks.equals(store[2].masks)
    assert np.array_equal(copy[2].clean, store[2].clean)


class FarFolder(LocalFolder):
    """A folder that is read as one in an object store: nothing of it is mapped."""

    @property
    def local(self) -> None:  # type: ignore[override]
        return None

    def below(self, folder: str) -> "FarFolder":
        return FarFolder(self.path / folder)


def test_a_set_is_read_from_afar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = MaskStore.open(root, masks="blurred")
    monkeypatch.setattr("samprior.storage.store.open_place", lambda url: FarFolder(Path(url)))
    far = MaskStore.open(root, masks="blurred")
    assert far.mask_sets == ["main", "blurred"]
    for ours, theirs in zip(far, near, strict=True):
        assert ours.masks.equals(theirs.masks)
        assert np.array_equal(ours.clean, theirs.clean)
        assert np.array_equal(ours.degraded, theirs.degraded)


def test_a_stopped_set_goes_on_with_the_same_bytes(
    root: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(dataset, root, 4, masks="four", stop_at="3")
    store = MaskStore.open(root, masks="four")
    assert store.missing_shards == [1, 2]
    assert store.keys == ("0", "1")
    with pytest.raises(StoreError, match=r"masks/four has 1 of 3 shards"):
        store.require_complete()
    assert not verify_store(root).ok
    run(dataset, root, 4, masks="four")
    run(dataset, root, 4, masks="unbroken")
    assert digests_of(root / "masks/four") == digests_of(root / "masks/unbroken")
    assert run(dataset, root, 4, masks="four").shards_written == 0


def test_an_image_has_to_be_in_both(root: Path, dataset: Dataset) -> None:
    """Quarantined in the set, or in the store: then it is not in the opened store."""
    run(dataset, root, masks="picky", fail_at="1")
    store = MaskStore.open(root, masks="picky").require_complete()
    assert store.keys == ("0", "2", "3", "4")
    assert store.quarantined == {"1": "RuntimeError: no convergence"}
    other = root.with_name("other")
    run(dataset, other, images_per_shard=2, fail_at="2")
    run(dataset, other, 3, masks="more")
    store = MaskStore.open(other, masks="more").require_complete()
    assert store.keys == ("0", "1", "3", "4")
    assert list(store.quarantined) == ["2"]
    for index, key in enumerate(store.keys):
        record = store[index]
        assert record.key == key
        assert np.array_equal(record.clean, read_rgb(dataset.pairs[int(key)].clean))
        assert record.masks.columns["brightness"][0] == record.clean.mean()
    copy = pickle.loads(pickle.dumps(store))
    assert [record.key for record in copy] == list(store.keys)
    assert verify_store(other).ok


def test_a_set_of_a_grown_store_grows_too(
    root: Path, dataset: Dataset, tmp_path: Path, rng: np.random.Generator
) -> None:
    for side in ("noisy", "clean"):
        picture = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        write_png(tmp_path / "data" / side / "00.png", picture)
    grown = found(tmp_path)
    with pytest.raises(StoreError, match=r"1 image that .* has not \(00\); .*without --masks"):
        run(grown, root, 3, masks="blurred", source="degraded", append=True)
    run(grown, root, append=True)
    with pytest.raises(StoreError, match="has 3 of 4 shards"):
        MaskStore.open(root, masks="blurred").require_complete()
    assert verify_store(root).mask_sets["blurred"].planned_shards == 4
    assert not verify_store(root).ok
    with pytest.raises(StoreError, match=r"lacks 1 image of the plan; .*--append"):
        run(grown, root, 3, masks="blurred", source="degraded")
    result = run(grown, root, 3, masks="blurred", source="degraded", append=True)
    assert result.shards_written == 1
    run(grown, root, 3, masks="late", source="degraded")
    for name in ("blurred", "late"):
        store = MaskStore.open(root, masks=name).require_complete()
        assert store.keys == ("0", "1", "2", "3", "4", "00")
        assert store["00"].masks.columns["brightness"][0] == store["00"].degraded.mean()
    assert digests_of(root / "masks/blurred") == digests_of(root / "masks/late")
    assert verify_store(root).ok


def test_what_a_set_is_refused_for(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    before = digests_of(root)

    def refused(error: type[Exception], message: str, **more: Any) -> None:  # noqa: ANN401
        with pytest.raises(error, match=message):
            run(more.pop("dataset", dataset), root, 3, **{"masks": "blurred", **more})

    refused(StoreError, r"source is degraded, wanted clean")
    refused(UsageError, "2 images per shard, and so have its mask sets", images_per_shard=3)
    refused(UsageError, "leave out --format", form="webdataset")
    refused(UsageError, "leave out --format and --images", images="reference")
    refused(StoreError, "is not of this dataset", dataset=replace(dataset, split="test"))
    refused(
        StoreError, "no longer has", dataset=replace(dataset, pairs=dataset.pairs[1:]), masks="b"
    )
    refused(UsageError, "can't name a mask set", masks="../x")
    write_png(dataset.pairs[1].clean, np.zeros((21, 24, 3), np.uint8))
    refused(StoreError, r"1 has changed since .*precompute. of the store again", masks="new")
    with pytest.raises(StoreError, match="no samprior store"):
        run(dataset, tmp_path / "nothing", masks="new")
    (root / "receipts/000001.json").rename(root / "spare")
    with pytest.raises(StoreError, match="2 of 3 shards"):
        run(dataset, root, masks="new")
    (root / "spare").rename(root / "receipts/000001.json")
    assert digests_of(root) == before


@pytest.mark.parametrize("name", ["", "main", "A", "a.b", "-a", "_a", "a/b", "é", "a" * 65, "a\n"])
def test_names_that_can_not_be(name: str) -> None:
    with pytest.raises(UsageError, match="can't name a mask set"):
        check_name(name)


def test_only_sets_that_are_there_are_opened(root: Path) -> None:
    (root / "masks/readme").touch()
    (root / "masks/empty").mkdir()
    (root / "masks/Upper").mkdir()
    assert MaskStore.open(root).mask_sets == ["main", "blurred"]
    for name in ("blurre", "empty", "readme", "../masks/blurred", "", "."):
        with pytest.raises(UsageError, match=r"unknown mask set .* Known: main, blurred"):
            MaskStore.open(root, masks=name)
    with pytest.raises(UsageError, match=r"is a mask set; open the store"):
        MaskStore.open(root / "masks/blurred")
    store = MaskStore.open(root, masks="blurred")
    write_header(root / "masks/odd", replace(store.header, images="stored"))
    with pytest.raises(StoreError, match="is no mask set of"):
        MaskStore.open(root, masks="odd")


def test_masks_of_other_pictures_are_not_joined(root: Path) -> None:
    """A picture that was replaced by a larger one, after the set was made."""
    receipt = read_receipt(root / "masks/blurred", 0)
    write_receipt(root / "masks/blurred", replace(receipt, sizes=((30, 24), (21, 24))))
    with pytest.raises(StoreError, match=r"masks of 0 for another picture.*--masks. again"):
        MaskStore.open(root, masks="blurred")
    found = verify_store(root)
    assert found.broken == {}
    assert list(found.mask_sets["blurred"].broken) == [0]
    assert "0 has masks of another picture than the store's" in found.mask_sets["blurred"].broken[0]


def test_masks_of_a_picture_that_was_replaced_at_equal_size_are_not_joined(root: Path) -> None:
    receipt = read_receipt(root, 0)
    changed = {key: (files[0] + 1, *files[1:]) for key, files in receipt.inputs.items()}
    write_receipt(root, replace(receipt, inputs=changed))
    with pytest.raises(StoreError, match=r"masks of 0 for another picture.*--masks. again"):
        MaskStore.open(root, masks="blurred")
    assert list(verify_store(root).mask_sets["blurred"].broken) == [0]


def test_a_mended_picture_is_segmented_anew(root: Path, dataset: Dataset) -> None:
    write_png(dataset.pairs[1].clean, np.zeros((21, 24, 3), np.uint8))
    run(dataset, root)
    assert run(dataset, root, 3, masks="blurred", source="degraded").shards_written == 1
    store = MaskStore.open(root, masks="blurred")
    assert not store["1"].clean.any()
    assert verify_store(root).ok


def test_verify_and_repair_cover_all_sets(root: Path, dataset: Dataset) -> None:
    whole, seen = digests_of(root), []
    found = verify_store(root, progress=lambda *done: seen.append(done))
    assert found.ok
    assert found.mask_sets["blurred"].num_masks == 15
    assert seen[-1] == (6, 6)
    file = root / "masks/blurred/shards/000002/atoms/c/0/0/0"
    content = bytearray(file.read_bytes())
    content[7] ^= 4
    file.write_bytes(content)
    found = verify_store(root)
    assert not found.ok
    assert not found.broken
    assert list(found.mask_sets["blurred"].broken) == [2]
    result = CliRunner().invoke(cli, ["verify", str(root)])
    assert result.exit_code == 1
    assert "masks blurred: 2 of 3 shards whole" in result.output
    with only_writer(root / "masks/blurred"), pytest.raises(BusyError):
        verify_store(root, repair=True)
    verify_store(root, repair=True)
    run(dataset, root, 3, masks="blurred", source="degraded")
    assert digests_of(root) == whole


def test_the_content_of_a_set_is_that_of_masks_and_pictures(
    root: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """What tells a training run whether it may go on."""
    digests = {content_digest(MaskStore.open(root, masks=name)) for name in ("main", "blurred")}
    assert len(digests) == 2
    write_png(dataset.pairs[1].clean, np.zeros((21, 24, 3), np.uint8))
    run(dataset, tmp_path / "other", images_per_shard=2)
    run(dataset, tmp_path / "other", 3, masks="blurred", source="degraded")
    assert content_digest(MaskStore.open(tmp_path / "other", masks="blurred")) not in digests


def test_sets_are_migrated_with_their_store(root: Path, tmp_path: Path) -> None:
    assert migrate_store(root, tmp_path / "copy").shards_copied == 6
    ours, theirs = digests_of(tmp_path / "copy")[0], digests_of(root)[0]
    assert ours == theirs
    with pytest.raises(UsageError, match="is a mask set"):
        migrate_store(root / "masks/blurred", tmp_path / "set")


def test_the_command(root: Path, tmp_path: Path) -> None:
    command = ["precompute", "--dataset", "folder", "--root", str(tmp_path / "data")]
    command += ["--degraded-pattern", "noisy/{key}.png", "--clean-pattern", "clean/{key}.png"]
    command += ["--segmenter", "superpixel", "--workers", "0", "--out", str(root)]
    result = CliRunner().invoke(cli, [*command, "--masks", "cells", "--dry-run"])
    assert "5 images in 3 shards" in result.output, result.output
    result = CliRunner().invoke(cli, [*command, "--masks", "cells"])
    assert result.exit_code == 0, result.output
    assert MaskStore.open(root).mask_sets == ["main", "blurred", "cells"]
    assert f"{root}, masks cells: 5 images in 3 shards" in result.output
    result = CliRunner().invoke(cli, [*command, "--masks", "No"])
    assert isinstance(result.exception, UsageError)


def test_training_names_a_set(tmp_path: Path, make_store: Make, make_record: Make) -> None:
    """It is part of what a run is, by its content."""
    main = make_store(tmp_path / "store", [(40, 40)] * 2)
    records = [make_record(key, shape=(40, 40), num_masks=4, seed=9) for key in main.keys]
    root = tmp_path / "store/masks/other"
    write_header(root, replace(main.header, images="parent"))
    write_shard(root, 0, records, paired=True, images="parent")

    def trained(masks: str) -> None:
        settings = (
            f"out={tmp_path / 'run'}",
            f"data.train={tmp_path / 'store'}",
            f"data.masks={masks}",
            "mode=plain",
            "device=cpu",
            "data.crop_px=32",
            "data.batch_size=1",
            "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
            "stages.base=1",
        )
        train(load_config(None, settings))

    trained("other")
    trained("other")
    with pytest.raises(CheckpointError, match="store_sha256"):
        trained("main")
    with pytest.raises(UsageError, match=r"unknown mask set .* Known: main, other"):
        trained("more")
