"""`verify_store` finds any damage and names it; repair removes what is broken and nothing else."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samprior.storage import MaskStore
from samprior.storage.errors import StoreError
from samprior.storage.files import STAGED_SUFFIX
from samprior.storage.manifest import (
    Header,
    digests_of,
    receipt_file,
    shard_folder,
    write_header,
    write_receipt,
)
from samprior.storage.verify import verify_store
from samprior.storage.writer import write_shard

Make = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path, make_store: Make) -> Path:
    """A store of three small shards."""
    shapes = [(20, 24), (24, 20), (16, 16), (30, 10), (12, 12), (9, 40)]
    store: MaskStore = make_store(tmp_path / "store", shapes)
    return store.root


def plan(num_images: int) -> Header:
    """Of one image per shard."""
    return Header(
        num_images=num_images, num_shards=num_images, images_per_shard=1, paired=True, made_of={}
    )


def files_of_shard(root: Path, shard: int) -> list[Path]:
    files = [path for path in shard_folder(root, shard).rglob("*") if path.is_file()]
    return [*sorted(files), receipt_file(root, shard)]


def flip_bit(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    bit = int(rng.integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_whole_store_is_whole_and_stays_as_it_is(root: Path) -> None:
    before, calls = digests_of(root), []
    found = verify_store(root, repair=True, progress=lambda *done: calls.append(done))
    assert found.ok
    assert not found.broken
    assert not found.leftovers
    assert (found.num_shards, found.planned_shards) == (3, 3)
    assert found.num_images == 6
    assert found.num_masks == sum(len(record.masks) for record in MaskStore.open(root))
    receipts = MaskStore.open(root).receipts.values()
    assert found.stored_bytes == sum(receipt.stored_bytes for receipt in receipts)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    (root / ".lock").unlink()  # an empty file of every writer
    assert digests_of(root) == before


def test_a_flipped_bit_is_found_in_every_file(root: Path, rng: np.random.Generator) -> None:
    """Also in the uncompressed pictures, in tables, in zarr's metadata and in the receipt."""
    for file in files_of_shard(root, 1):
        content = file.read_bytes()
        flip_bit(file, rng)
        found = verify_store(root)
        assert not found.ok
        assert list(found.broken) == [1]
        assert any(str(file) in problem for problem in found.broken[1])
        assert found.num_shards == 2
        file.write_bytes(content)
    assert verify_store(root).ok


def test_every_bit_of_a_receipt_counts(root: Path, rng: np.random.Generator) -> None:
    file = receipt_file(root, 2)
    content = file.read_bytes()
    for _ in range(200):
        flip_bit(file, rng)
        with pytest.raises(StoreError, match=r"000002\.json"):
            MaskStore.open(root)
        file.write_bytes(content)


def test_files_missing_and_files_too_many(root: Path) -> None:
    missing = shard_folder(root, 0) / "atoms" / "zarr.json"
    missing.unlink()
    extra = shard_folder(root, 2) / "clean" / "notes.txt"
    extra.touch()
    found = verify_store(root)
    assert found.broken == {
        0: [f"{missing} is missing"],
        2: [f"{extra} is not in the receipt"],
    }


def test_a_whole_shard_missing(root: Path) -> None:
    shutil.rmtree(shard_folder(root, 1))
    assert verify_store(root).broken == {1: [f"{shard_folder(root, 1)} is missing"]}
    receipt_file(root, 1).unlink()
    found = verify_store(root)
    assert not found.ok  # nothing is broken, but the store isn't finished
    assert (found.num_shards, found.broken) == (2, {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null"])
def test_a_broken_receipt(root: Path, content: bytes) -> None:
    receipt_file(root, 1).write_bytes(content)
    found = verify_store(root)
    assert list(found.broken) == [1]
    assert "000001.json is no receipt" in found.broken[1][0]


def test_the_receipt_of_another_shard(tmp_path: Path) -> None:
    """Even of one with the same files: shards of quarantined images alone are all alike."""
    store = tmp_path / "store"
    write_header(store, plan(2))
    for shard in range(2):
        write_shard(store, shard, [], paired=True, quarantined={str(shard): "empty"})
    assert verify_store(store).ok
    shutil.copy(receipt_file(store, 0), receipt_file(store, 1))
    found = verify_store(store)
    assert list(found.broken) == [1]
    assert "receipt of shard 0" in found.broken[1][0]


def test_shards_that_changed_places(root: Path) -> None:
    spare = root / "spare"
    shard_folder(root, 0).rename(spare)
    shard_folder(root, 2).rename(shard_folder(root, 0))
    spare.rename(shard_folder(root, 2))
    assert sorted(verify_store(root).broken) == [0, 2]


@pytest.mark.parametrize("change", [{"num_masks": (4,)}, {"sizes": ((56, 40),)}])
def test_masks_that_were_written_wrong(
    tmp_path: Path, make_record: Make, change: dict[str, Any]
) -> None:
    """Digests fit, but the receipt and the tables don't: found by opening."""
    root = tmp_path / "store"
    write_header(root, plan(1))
    receipt = write_shard(root, 0, [make_record()], paired=True)
    write_receipt(root, replace(receipt, **change))
    found = verify_store(root)
    assert list(found.broken) == [0]
    assert "its tables don't fit the receipt" in found.broken[0][0]


def test_repair_removes_exactly_the_broken_shard(root: Path, rng: np.random.Generator) -> None:
    healthy = {shard: digests_of(shard_folder(root, shard)) for shard in (0, 2)}
    flip_bit(shard_folder(root, 1) / "degraded" / "c" / "0" / "0" / "0" / "0", rng)
    assert list(verify_store(root, repair=True).broken) == [1]
    assert not shard_folder(root, 1).exists()
    assert not receipt_file(root, 1).exists()
    assert {shard: digests_of(shard_folder(root, shard)) for shard in (0, 2)} == healthy
    store = MaskStore.open(root)
    assert store.missing_shards == [1]
    assert len(list(store)) == 4
    found = verify_store(root)
    assert not found.broken
    assert not found.leftovers


def test_repair_removes_a_broken_receipt_with_its_shard(root: Path) -> None:
    receipt_file(root, 0).write_bytes(b"{")
    verify_store(root, repair=True)
    assert MaskStore.open(root).missing_shards == [0]
    assert not shard_folder(root, 0).exists()


def test_leftovers_do_no_harm_and_are_removed(root: Path) -> None:
    drafts = [
        root / f".zarr.json.0123abcd{STAGED_SUFFIX}",
        root / "receipts" / f".000001.json.0123abcd{STAGED_SUFFIX}",
    ]
    for draft in drafts:
        draft.write_bytes(b"half")
    folder = root / "shards" / f".000001.0123abcd{STAGED_SUFFIX}"
    shutil.copytree(shard_folder(root, 1), folder)
    receipt_file(root, 2).unlink()  # its shard counts no more
    beyond = shard_folder(root, 7)
    shutil.copytree(shard_folder(root, 1), beyond)
    leftovers = {*drafts, folder, beyond, shard_folder(root, 2)}

    found = verify_store(root)
    assert set(found.leftovers) == leftovers
    assert not found.broken
    assert all(path.exists() for path in leftovers)
    assert len(list(MaskStore.open(root))) == 4

    verify_store(root, repair=True)
    assert not any(path.exists() for path in leftovers)
    assert len(list(MaskStore.open(root))) == 4
    assert not verify_store(root).leftovers


def test_a_receipt_beyond_the_plan(root: Path, make_record: Make) -> None:
    write_shard(root, 3, [make_record("stranger")], paired=True)
    found = verify_store(root, repair=True)
    assert not found.ok
    assert found.broken == {3: [f"{receipt_file(root, 3)} is no shard of the plan"]}
    assert verify_store(root).ok
    assert not shard_folder(root, 3).exists()


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no samprior store"):
        verify_store(tmp_path, repair=True)
    assert not list(tmp_path.iterdir())


def test_a_damaged_header_is_an_error_and_nothing_is_removed(root: Path) -> None:
    file = root / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b'"num_shards": 3', b'"num_shards": 1'))
    before = digests_of(root)
    with pytest.raises(StoreError, match="altered"):
        verify_store(root, repair=True)
    assert digests_of(root) == before
