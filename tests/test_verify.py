"""`verify_store` finds any damage and names it; repair removes what is broken and nothing else."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samprior.storage import MaskStore
from samprior.storage.errors import BusyError, StoreError, UnreachableError
from samprior.storage.files import STAGED_SUFFIX
from samprior.storage.growth import listing_sha256
from samprior.storage.header import HEADER_COPY, JOB, digest, readable_json
from samprior.storage.holding import wait_for_holders
from samprior.storage.locks import LOCK, only_writer
from samprior.storage.manifest import (
    Header,
    digests_of,
    read_header,
    read_receipts,
    receipt_file,
    shard_folder,
    write_header,
    write_receipt,
)
from samprior.storage.places import LocalFolder
from samprior.storage.verify import verify_store
from samprior.storage.verify_checks import StoreCheck
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
    assert {root / name for name in found.leftovers} == leftovers
    assert not found.broken
    assert all(path.exists() for path in leftovers)
    assert len(list(MaskStore.open(root))) == 4

    verify_store(root, repair=True)
    assert not any(path.exists() for path in leftovers)
    assert len(list(MaskStore.open(root))) == 4
    assert not verify_store(root).leftovers


def finish_meanwhile(root: Path, away: Path, shard: int) -> Callable[[int, int], None]:
    """Move a shard away, for a writer that finishes it as soon as another one is checked."""
    away.mkdir()
    receipt, data = receipt_file(root, shard), shard_folder(root, shard)
    receipt.rename(away / "receipt")
    data.rename(away / "data")

    def finish(*_: int) -> None:
        if not receipt.exists():
            shutil.copytree(away / "data", data)
            shutil.copy(away / "receipt", receipt)

    return finish


def test_a_shard_that_is_finished_meanwhile_is_no_leftover(root: Path, tmp_path: Path) -> None:
    finish = finish_meanwhile(root, tmp_path / "away", 1)
    found = verify_store(root, repair=True, progress=finish)
    assert (found.unchecked, found.leftovers, found.strangers) == ([1], [], [])
    assert not found.ok
    assert not found.mendable
    assert "was not checked; run `samprior verify` again" in "".join(found.lines())
    assert verify_store(root).ok


def test_nor_is_one_that_is_finished_just_before_it_would_be_removed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = finish_meanwhile(root, tmp_path / "away", 1)
    shutil.copytree(tmp_path / "away" / "data", shard_folder(root, 1))  # not its receipt
    is_told = StoreCheck.repair

    def repair(check: StoreCheck) -> None:
        assert check.found.leftovers == ["shards/000001"]
        shutil.rmtree(shard_folder(root, 1))
        finish()
        is_told(check)

    monkeypatch.setattr(StoreCheck, "repair", repair)
    found = verify_store(root, repair=True)
    assert (found.unchecked, found.leftovers) == ([1], [])
    assert not found.ok
    assert verify_store(root).ok


def test_repair_waits_for_workers_without_a_job(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(root / "zarr.json", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    impatient = partial(wait_for_holders, patience_s=0.2)
    monkeypatch.setattr("samprior.storage.verify.wait_for_holders", impatient)
    receipt_file(root, 1).unlink()
    before = digests_of(shard_folder(root, 1))
    with pytest.raises(BusyError, match="workers of a job that was killed still write"):
        verify_store(root, repair=True)
    assert digests_of(shard_folder(root, 1)) == before
    assert verify_store(root).leftovers == ["shards/000001"]
    os.close(descriptor)
    verify_store(root, repair=True)
    assert not shard_folder(root, 1).exists()


def test_a_store_that_grew_before_it_was_locked_is_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(_: Path) -> None:
        header = read_header(root)
        write_header(root, replace(header, num_images=8, num_shards=4))

    monkeypatch.setattr("samprior.storage.verify.wait_for_holders", grow)
    with pytest.raises(BusyError, match="a job has just written"):
        verify_store(root, repair=True)
    assert read_header(root).num_shards == 4


def test_a_second_look_reads_what_was_not_whole(root: Path, rng: np.random.Generator) -> None:
    whole = shard_folder(root, 1)
    shutil.copytree(whole, root.parent / "spare")
    flip_bit(whole / "clean" / "c" / "0" / "0" / "0" / "0", rng)
    first = verify_store(root)
    assert (list(first.broken), first.sound) == ([1], {0, 2})
    assert list(verify_store(root, after=first).broken) == [1]
    shutil.rmtree(whole)
    (root.parent / "spare").rename(whole)
    flip_bit(shard_folder(root, 0) / "clean" / "c" / "0" / "0" / "0" / "0", rng)
    assert verify_store(root, after=first).ok  # shard 0 was whole
    assert list(verify_store(root).broken) == [0]


def test_drafts_of_a_job_that_runs_are_not_said_to_be_left(root: Path) -> None:
    draft = f".000001.0123abcd{STAGED_SUFFIX}"
    (root / "shards" / draft).mkdir()
    who = f"host {os.uname().nodename}, process {os.getpid()}"
    with only_writer(root):
        found = verify_store(root)
        assert list(found.lines()) == [
            f"a job writes to it ({who}); run `samprior verify` again when it has ended",
            f"leftover of that job, or of a killed one: shards/{draft}",
        ]
        said = (root / LOCK).read_bytes()
    (root / LOCK).write_bytes(said)  # as a job leaves it that is killed
    assert list(verify_store(root).lines()) == [f"leftover of a killed writer: shards/{draft}"]
    (root / LOCK).write_bytes(said.replace(os.uname().nodename.encode(), b"elsewhere"))
    told = list(verify_store(root).lines())
    assert told[0].startswith("a job of another machine may write to it (host elsewhere, process")


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


def shrink(file: Path) -> None:
    """Make a header say another number of shards."""
    content = file.read_bytes()
    assert b'"num_shards": 3' in content
    file.write_bytes(content.replace(b'"num_shards": 3', b'"num_shards": 1'))


def test_a_damaged_header_is_found_and_made_of_its_copy(root: Path) -> None:
    before = digests_of(root)
    for name in ("zarr.json", HEADER_COPY):
        shrink(root / name)
        found = verify_store(root)
        assert not found.ok
        assert found.metadata == [f"{root / name} has another content than was written"]
        assert (found.num_shards, found.broken) == (3, {})
        assert verify_store(root, repair=True).mendable
        (root / LOCK).unlink()
        assert digests_of(root) == before


def test_without_a_header_nothing_is_removed(root: Path) -> None:
    shrink(root / "zarr.json")
    (root / HEADER_COPY).write_bytes(b"{")
    before = digests_of(root)
    with pytest.raises(StoreError, match="altered"):
        verify_store(root, repair=True)
    assert digests_of(root) == before


def test_a_store_without_the_copy_is_whole_too(root: Path) -> None:
    """It was made before there was one."""
    (root / HEADER_COPY).unlink()
    assert verify_store(root, repair=True).ok
    (root / "shards" / "zarr.json").unlink()
    assert verify_store(root, repair=True).mendable
    assert verify_store(root).ok


def test_json_that_means_the_same_is_found(root: Path) -> None:
    """A flipped bit in an escape of a text, or white space: reading forgives them."""
    for name in ("zarr.json", "shards/zarr.json", HEADER_COPY, "receipts/000001.json"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content + b" ")
        found = verify_store(root)
        (line,) = found.lines()
        assert line.endswith(f"{root / name} has another content than was written")
        (root / name).write_bytes(content)


def test_strangers_are_told_and_left_alone(root: Path) -> None:
    strangers = ["notes.txt", "masks/Not A Name", "receipts/1.json", "shards/old/x"]
    for name in strangers:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    found = verify_store(root, repair=True)
    assert found.ok
    assert sorted(found.strangers) == [
        "masks/Not A Name",
        "notes.txt",
        "receipts/1.json",
        "shards/old",
    ]
    assert not found.leftovers
    assert all((root / name).exists() for name in strangers)
    assert "not of samprior, left alone: notes.txt" in list(verify_store(root).lines())


def test_images_other_than_the_header_was_written_for(tmp_path: Path, make_record: Make) -> None:
    """Every receipt is right in itself, but one is of another store."""
    root = tmp_path / "store"
    keys = ["a", "b"]
    made_of = {"dataset": {"listing_sha256": listing_sha256(keys)}}
    write_header(root, replace(plan(2), made_of=made_of))
    for shard, key in enumerate(keys):
        write_shard(root, shard, [make_record(key)], paired=True)
    assert verify_store(root).ok
    write_shard(root, 1, [], paired=True, quarantined={"b": "empty"})
    assert verify_store(root).ok
    write_shard(root, 1, [make_record("c")], paired=True)
    found = verify_store(root)
    assert found.metadata == [
        f"{root} has other images than its header was written for; run the same `samprior "
        "precompute` again"
    ]
    assert not found.mendable


@dataclass(frozen=True)
class Elsewhere:
    """A place that isn't of this machine, as far as anybody can see."""

    folder: LocalFolder
    broken: str | None = None
    """A file of which the server says nothing."""
    local: None = None

    @property
    def url(self) -> str:
        return f"s3://bucket/{self.folder.path.name}"

    def below(self, folder: str) -> "Elsewhere":
        return Elsewhere(self.folder.below(folder), self.broken)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.folder, name)

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self.broken and self.folder.url.endswith(self.broken):
            raise UnreachableError(f"{self.url}/{name} can't be read: no answer")
        return self.folder.read_ranges(name, ranges)


def test_stores_elsewhere_are_checked_too(root: Path, rng: np.random.Generator) -> None:
    assert verify_store(Elsewhere(LocalFolder(root))).ok
    flip_bit(shard_folder(root, 1) / "clean" / "c" / "0" / "0" / "0" / "0", rng)
    found = verify_store(Elsewhere(LocalFolder(root)))
    assert list(found.broken) == [1]
    assert found.broken[1][0].startswith("s3://bucket/000001/clean/c/0/0/0/0 has another content")


def test_an_answer_that_does_not_come_says_nothing_of_the_data(root: Path) -> None:
    with pytest.raises(UnreachableError, match="no answer"):
        verify_store(Elsewhere(LocalFolder(root), broken="000002"))


def test_what_the_machine_lacks_is_no_damage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        def read(*_: object) -> list[bytes]:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(LocalFolder, "read_ranges", read)

    fail(errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        verify_store(root, repair=True)
    assert len(read_receipts(root)) == 3
    fail(errno.EIO)  # a sector that can't be read any more is damage
    assert list(verify_store(root).broken) == [0, 1, 2]


def test_the_record_of_the_command_is_checked(root: Path) -> None:
    """Only the same command can write it again."""
    record = {"command": "precompute", "root": "/data", "settings": ["a=1e-05"]}
    content = readable_json({**record, "sha256": digest(record)})
    (root / JOB).write_bytes(content)
    assert verify_store(root).ok
    for damaged in (content.replace(b"/data", b"/dat`"), content.replace(b": ", b":  ", 1), b"{"):
        (root / JOB).write_bytes(damaged)
        found = verify_store(root, repair=True)
        assert not found.ok
        assert not found.mendable
        assert f"{root / JOB} has another content" in found.metadata[0]
