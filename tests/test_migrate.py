"""Stores of every format stay readable, and their copies in the present one hold the same."""

import operator
import runpy
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from samprior.cli.main import cli
from samprior.pipeline.datasets import Dataset, Pair
from samprior.pipeline.job import run_job
from samprior.pipeline.makers import Segmented
from samprior.pipeline.plan import plan_header, plan_shards
from samprior.pipeline.precompute import precompute
from samprior.pipeline.superpixel import SuperpixelSettings
from samprior.storage import MaskStore, Record, migrate
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.header import FORMAT_VERSION, HEADER_COPY, READABLE_VERSIONS
from samprior.storage.manifest import digests_of, read_header, read_receipts
from samprior.storage.migrate import migrate_store
from samprior.storage.verify import verify_store
from samprior.storage.writer import write_shard

GOLDEN = Path(__file__).with_name("golden")
golden_records, write_golden = operator.itemgetter("golden_records", "write_golden")(
    runpy.run_path(str(GOLDEN / "records.py"))
)

Make = Callable[..., Any]


def unpacked(folder: Path, version: int) -> Path:
    """The golden store of a format."""
    with tarfile.open(GOLDEN / f"store-v{version}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / f"v{version}"


def same(found: Record, wanted: Record) -> bool:
    return (
        found.key == wanted.key
        and np.array_equal(found.degraded, wanted.degraded)
        and np.array_equal(found.clean, wanted.clean)
        and found.masks.equals(wanted.masks)
        and found.masks.atoms.dtype == wanted.masks.atoms.dtype
    )


@pytest.mark.parametrize("version", READABLE_VERSIONS)
def test_the_store_of_every_format_is_read(tmp_path: Path, version: int) -> None:
    root = unpacked(tmp_path, version)
    store = MaskStore.open(root).require_complete()
    assert store.header.format_version == version
    records = golden_records()
    assert len(store) == len(records)
    assert store.quarantined == {"seq/3": "it was refused"}
    assert read_receipts(root)[1].inputs == {"seq/2": (10, 20)}
    for index, (found, wanted) in enumerate(zip(store, records, strict=True)):
        assert same(found, wanted)
        table, masks = store.table(index), wanted.masks
        for name in ("members", "atom_areas", "areas", "boxes", "intersections"):
            np.testing.assert_array_equal(getattr(table, name), getattr(masks, name))
        for name, column in masks.columns.items():
            np.testing.assert_array_equal(table.columns[name], column)
            assert table.columns[name].dtype == column.dtype
    assert verify_store(root).ok


@pytest.mark.parametrize("version", READABLE_VERSIONS)
def test_crops_of_every_format(tmp_path: Path, version: int, rng: np.random.Generator) -> None:
    store = MaskStore.open(unpacked(tmp_path, version))
    for index, record in enumerate(golden_records()):
        height, width = record.masks.shape
        for _ in range(20):
            y, x = int(rng.integers(height)), int(rng.integers(width))
            window = (y, x, int(rng.integers(height - y)) + 1, int(rng.integers(width - x)) + 1)
            keep = rng.random(len(record.masks)) < 0.5
            part = (slice(y, y + window[2]), slice(x, x + window[3]))
            cut = store.crop(index, *window)
            assert cut.masks.equals(record.masks.crop(*window))
            assert np.array_equal(cut.clean, record.clean[part])
            assert np.array_equal(cut.degraded, record.degraded[part])
            chosen = store.masks(index, *window, keep=keep)
            assert chosen.equals(record.masks.select(keep).crop(*window))


def test_what_is_written_today_is_the_golden_store_byte_for_byte(tmp_path: Path) -> None:
    """Other bytes for equal input are another format: raise FORMAT_VERSION, and keep this one.

    Only the compressed tables are zstd's to write, and may differ with its version.
    """
    golden = unpacked(tmp_path, FORMAT_VERSION)
    write_golden(tmp_path / "new")
    ours, theirs = (digests_of(root)[0] for root in (tmp_path / "new", golden))
    # A later samprior of this format keeps the header twice.
    assert ours.keys() - theirs.keys() == {HEADER_COPY}
    del ours[HEADER_COPY]
    pixels = [name for name in ours if name.split("/")[-3:-1] == ["0", "0"]]
    assert len(pixels) == 5  # atoms and both pictures; no mask in the second shard
    own = [*pixels, *(name for name in ours if name.endswith("zarr.json"))]
    assert {name: ours[name] for name in own} == {name: theirs[name] for name in own}
    assert read_header(tmp_path / "new").fingerprint == read_header(golden).fingerprint


@pytest.mark.parametrize("version", READABLE_VERSIONS)
def test_a_copy_holds_the_same(tmp_path: Path, version: int) -> None:
    old, new = unpacked(tmp_path, version), tmp_path / "new"
    before = digests_of(old)
    done = migrate_store(old, new)
    assert (done.old_version, done.num_images) == (version, 3)
    assert (done.num_shards, done.shards_copied) == (2, 2)
    assert digests_of(old) == before
    store = MaskStore.open(new).require_complete()
    assert store.header == replace(read_header(old), format_version=FORMAT_VERSION)
    assert all(map(same, store, golden_records()))
    for shard, receipt in read_receipts(old).items():
        copy = read_receipts(new)[shard]
        changed = replace(copy, digests=receipt.digests, stored_bytes=receipt.stored_bytes)
        assert changed == receipt
    assert verify_store(new).ok
    again = digests_of(new)
    assert migrate_store(old, new).shards_copied == 0
    assert digests_of(new) == again


def test_a_broken_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, real = unpacked(tmp_path, 1), tmp_path / "new", write_shard
    migrate_store(old, tmp_path / "unbroken")

    def killed(root: Path, shard: int, *rest: Any, **more: Any) -> Any:  # noqa: ANN401
        if shard == 1:
            raise KeyboardInterrupt
        return real(root, shard, *rest, **more)

    monkeypatch.setattr(migrate, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        migrate_store(old, new)
    monkeypatch.undo()
    assert MaskStore.open(new).missing_shards == [1]
    assert migrate_store(old, new).shards_copied == 1
    assert digests_of(new) == digests_of(tmp_path / "unbroken")


def test_only_a_copy_of_this_store_is_gone_on_with(tmp_path: Path, make_store: Make) -> None:
    old = unpacked(tmp_path, 1)
    make_store(tmp_path / "other")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "file").touch()
    for folder, message in (("other", "another store"), ("strange", "no copy of a store")):
        before = digests_of(tmp_path)
        with pytest.raises(StoreError, match=message):
            migrate_store(old, tmp_path / folder)
        assert digests_of(tmp_path) == before
    for inside in (old, old / "masks" / "copy", tmp_path):
        with pytest.raises(UsageError, match="lie inside each other"):
            migrate_store(old, inside)
    with pytest.raises(StoreError, match="no samprior store"):
        migrate_store(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damage_is_not_copied(tmp_path: Path) -> None:
    """Flipped bits of pictures have no checksum but the receipt's, which a copy has anew."""
    old = unpacked(tmp_path, 1)
    file = old / "shards/000000/clean/c/0/0/0/0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"clean/c/0/0/0/0 is damaged.*samprior verify"):
        migrate_store(old, tmp_path / "new")
    shutil.rmtree(old / "shards/000001/atoms")
    file.unlink()
    with pytest.raises(StoreError, match="is damaged"):
        migrate_store(old, tmp_path / "new")


def test_nothing_is_added_to_an_older_format(tmp_path: Path) -> None:
    old = unpacked(tmp_path, 1)
    plan = plan_shards([Pair("a", tmp_path, tmp_path)])
    about = {"dataset": "d", "layout": "l", "split": None, "segmenter": {}, "source": "clean"}
    before = digests_of(old)
    with pytest.raises(StoreError, match=r"has store format 1.*`samprior migrate .* NEW`"):
        run_job(old, plan, plan_header(plan, **about), Segmented(SuperpixelSettings()), workers=0)
    (old / ".lock").unlink()
    dataset = Dataset("d", tmp_path, None, (Pair("a", tmp_path, tmp_path),), "l")
    with pytest.raises(StoreError, match=r"has store format 1.*`samprior migrate .* NEW`"):
        precompute(dataset, old, Segmented(SuperpixelSettings()), masks="more", workers=0)
    assert digests_of(old) == before


def test_the_command(tmp_path: Path) -> None:
    old, new = unpacked(tmp_path, 1), tmp_path / "new"
    for words in ("2 shards copied now", "nothing to do"):
        run = CliRunner().invoke(cli, ["migrate", str(old), str(new)])
        assert run.exit_code == 0, run.output
        assert f"3 images, 2 shards, 0.5 MB, format {FORMAT_VERSION} (was 1); {words}" in run.output
