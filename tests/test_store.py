"""A store gives back what was written, to us and to plain zarr, and appears whole or not at all."""

import errno
import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from samprior.storage import MaskSet, MaskStore, Record, writer
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.header import digest
from samprior.storage.manifest import (
    Header,
    Receipt,
    digests_of,
    read_header,
    read_receipts,
    receipt_file,
    shard_folder,
    write_header,
    write_receipt,
)
from samprior.storage.writer import write_shard

Make = Callable[..., Any]

SHAPES = ((40, 56), (56, 40), (33, 70), (140, 150), (16, 16))
"""Of `make_store`; the largest needs four tiles, the others padding."""


@pytest.fixture
def records(make_record: Make) -> list[Record]:
    """The records of `make_store`."""
    return [
        make_record(f"images/{i:03d}", shape=shape, num_masks=i % 5, seed=i)
        for i, shape in enumerate(SHAPES)
    ]


def same(found: Record, wanted: Record) -> bool:
    return (
        found.key == wanted.key
        and np.array_equal(found.degraded, wanted.degraded)
        and np.array_equal(found.clean, wanted.clean)
        and found.masks.equals(wanted.masks)
        and found.masks.atoms.dtype == wanted.masks.atoms.dtype
    )


def header(num_images: int, **changes: object) -> Header:
    settings: dict[str, Any] = {
        "num_images": num_images,
        "num_shards": min(1, num_images),
        "images_per_shard": max(1, num_images),
        "paired": True,
        "made_of": {"segmenter": {"model": "vit_h", "points": 32}},
    }
    return Header(**(settings | changes))


def write_store(root: Path, records: list[Record], **changes: object) -> MaskStore:
    """A store of one shard."""
    made = header(len(records), **changes)
    write_header(root, made)
    write_shard(root, 0, records, paired=made.paired)
    return MaskStore.open(root)


# Reading back


def test_records_come_back(tmp_path: Path, make_store: Make, records: list[Record]) -> None:
    store = make_store(tmp_path / "store")
    assert len(store) == 5
    assert store.keys == tuple(record.key for record in records)
    assert all(map(same, store, records))
    assert all(same(store[record.key], record) for record in records)
    assert all(same(store[i - 5], record) for i, record in enumerate(records))
    assert [store.size(i) for i in range(5)] == list(SHAPES)
    assert store.require_complete() is store


def test_tables_are_those_of_the_masks(
    tmp_path: Path, make_store: Make, records: list[Record]
) -> None:
    store = make_store(tmp_path / "store")
    for index, record in enumerate(records):
        table, masks = store.table(index), record.masks
        np.testing.assert_array_equal(table.members, masks.members)
        np.testing.assert_array_equal(table.atom_areas, masks.atom_areas)
        np.testing.assert_array_equal(table.areas, masks.areas)
        np.testing.assert_array_equal(table.boxes, masks.boxes)
        np.testing.assert_array_equal(table.intersections, masks.intersections)
        assert table.columns.keys() == masks.columns.keys()
        for name, column in masks.columns.items():
            np.testing.assert_array_equal(table.columns[name], column)


def test_crops_are_slices_of_the_whole(
    tmp_path: Path, make_store: Make, rng: np.random.Generator
) -> None:
    store = make_store(tmp_path / "store")
    for index in [0, 2, 3, 3, 3, 4]:
        whole, (height, width) = store[index], store.size(index)
        y, x = int(rng.integers(height)), int(rng.integers(width))
        window = (y, x, int(rng.integers(height - y)) + 1, int(rng.integers(width - x)) + 1)
        cut = (slice(y, y + window[2]), slice(x, x + window[3]))
        crop = store.crop(index, *window)
        assert same(
            crop,
            Record(whole.key, whole.degraded[cut], whole.clean[cut], whole.masks.crop(*window)),
        )


def test_a_crop_may_leave_out_masks(tmp_path: Path, make_store: Make) -> None:
    store = make_store(tmp_path / "store")
    keep = np.array([False, True, False])
    crop = store.masks(3, 10, 20, 100, 90, keep=keep)
    assert crop.equals(store[3].masks.select(keep).crop(10, 20, 100, 90))
    whole = store.masks(3, 0, 0, 140, 150, keep=keep)
    assert whole.equals(store[3].masks.select(keep))


@pytest.mark.parametrize("window", [(0, 0, 41, 56), (-1, 0, 4, 4), (0, 0, 0, 4), (0, 50, 4, 7)])
def test_padding_is_never_read(
    tmp_path: Path, make_store: Make, window: tuple[int, int, int, int]
) -> None:
    """The other image of the shard is 56 high, so there are pixels below this one."""
    with pytest.raises(UsageError, match="does not lie inside 56x40"):
        make_store(tmp_path / "store").crop(0, *window)


def test_what_is_not_there(tmp_path: Path, make_store: Make) -> None:
    store = make_store(tmp_path / "store")
    for index in (5, -6):
        with pytest.raises(IndexError, match="of 5"):
            store[index]
    with pytest.raises(KeyError, match="images/005"):
        store["images/005"]


def test_an_unpaired_store_holds_one_picture(tmp_path: Path, make_store: Make) -> None:
    store = make_store(tmp_path / "store", paired=False)
    assert not store.paired
    assert all(record.degraded is record.clean for record in store)
    assert not list((tmp_path / "store").rglob("degraded"))


def test_images_without_masks(tmp_path: Path, make_record: Make) -> None:
    """Also a whole shard of them, whose atoms are all zero."""
    records = [make_record(str(i), num_masks=0, seed=i) for i in range(3)]
    assert all(map(same, write_store(tmp_path / "store", records), records))


def test_masks_without_pixels_are_kept(tmp_path: Path, make_record: Make) -> None:
    record = make_record()
    planes = np.zeros((3, *record.masks.shape), bool)
    planes[1, 3:9, 2:5] = True
    record = Record("a", record.degraded, record.clean, MaskSet.from_masks(planes))
    (found,) = write_store(tmp_path / "store", [record])
    np.testing.assert_array_equal(found.masks.to_masks(), planes)


def test_one_image_of_very_many_atoms(tmp_path: Path, make_record: Make) -> None:
    plain = make_record("plain", shape=(260, 260), seed=1)
    numbers = np.arange(260 * 260).reshape(260, 260)
    planes = (numbers >> np.arange(17)[:, None, None] & 1).astype(bool)
    columns = {name: np.resize(c, (17, *c.shape[1:])) for name, c in plain.masks.columns.items()}
    many = Record("many", plain.clean, plain.clean, MaskSet.from_masks(planes, **columns))
    assert many.masks.atoms.dtype == np.uint32
    store = write_store(tmp_path / "store", [plain, many])
    assert same(store[0], plain)
    assert same(store[1], many)


def test_a_shard_of_quarantined_images_alone(tmp_path: Path, make_record: Make) -> None:
    root, record = tmp_path / "store", make_record("good")
    write_header(root, header(3, num_shards=3, images_per_shard=1))
    write_shard(root, 0, [], paired=True, quarantined={"bad": "it is empty"})
    store = MaskStore.open(root)
    assert len(store) == 0
    assert store.missing_shards == [1, 2]
    with pytest.raises(StoreError, match=r"1 of 3 shards.*precompute"):
        store.require_complete()
    with pytest.raises(IndexError):
        store[0]
    write_shard(root, 1, [record], paired=True)
    write_shard(root, 2, [], paired=True, quarantined={"worse": "it is not there"})
    store = MaskStore.open(root).require_complete()
    assert store.quarantined == {"bad": "it is empty", "worse": "it is not there"}
    assert [found.key for found in store] == ["good"]


def test_a_store_without_any_image_is_not_complete(tmp_path: Path) -> None:
    root = tmp_path / "store"
    write_header(root, header(1))
    write_shard(root, 0, [], paired=True, quarantined={"bad": "it is empty"})
    store = MaskStore.open(root)
    with pytest.raises(StoreError, match="all were quarantined"):
        store.require_complete()


def test_columns_come_in_one_order(tmp_path: Path, make_record: Make) -> None:
    record = make_record("a")
    shuffled = {
        name: record.masks.columns[name] for name in ("stability", "point", "predicted_iou")
    }
    masks = MaskSet(record.masks.atoms, record.masks.members, shuffled)
    store = write_store(tmp_path / "store", [Record("a", record.degraded, record.clean, masks)])
    assert list(store[0].masks.columns) == ["point", "predicted_iou", "stability"]


def test_a_pickled_store_reads_on(tmp_path: Path, make_store: Make, records: list[Record]) -> None:
    store = make_store(tmp_path / "store")
    assert store[0].key == "images/000"  # opens arrays and takes the lock
    copy = pickle.loads(pickle.dumps(store))
    assert all(map(same, copy, records))
    assert copy["images/003"].key == "images/003"


def test_threads_read_at_once(tmp_path: Path, make_store: Make, records: list[Record]) -> None:
    store = make_store(tmp_path / "store")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda sample: store[sample % 5], range(80)))
    assert all(same(record, records[i % 5]) for i, record in enumerate(found))


def test_plain_zarr_reads_the_store(
    tmp_path: Path, make_store: Make, records: list[Record]
) -> None:
    """Everything of an image, by the documented format and without samprior."""
    make_store(tmp_path / "store")
    group = zarr.open_group(tmp_path / "store", mode="r")
    assert group.attrs["samprior"]["num_images"] == 5
    shard = group["shards/000001"]
    first_mask = first_byte = 0
    for (height, width, num_masks, num_atoms), record, row in zip(
        shard["extent"][:], records[2:4], range(2), strict=True
    ):
        num_bytes = num_atoms * -(-num_masks // 8)
        packed = shard["members"][first_byte : first_byte + num_bytes]
        members = np.unpackbits(packed.reshape(num_atoms, -1), axis=1, count=num_masks).astype(bool)
        atoms = shard["atoms"][row, :height, :width]
        np.testing.assert_array_equal(members[atoms].transpose(2, 0, 1), record.masks.to_masks())
        np.testing.assert_array_equal(shard["clean"][row, :height, :width], record.clean)
        np.testing.assert_array_equal(shard["degraded"][row, :height, :width], record.degraded)
        for name, column in record.masks.columns.items():
            stored = shard[f"column.{name}"][first_mask : first_mask + num_masks]
            np.testing.assert_array_equal(stored, column)
        first_mask, first_byte = first_mask + num_masks, first_byte + num_bytes


# Writing


def test_the_same_records_give_the_same_bytes(tmp_path: Path, make_store: Make) -> None:
    first, second = (make_store(tmp_path / name) for name in ("first", "second"))
    assert digests_of(first.root) == digests_of(second.root)
    assert first.fingerprint == second.fingerprint


def test_a_receipt_says_what_the_shard_holds(tmp_path: Path, make_record: Make) -> None:
    records = [make_record("a", num_masks=2), make_record("b/c", shape=(20, 30), num_masks=0)]
    written = write_shard(
        tmp_path,
        7,
        records,
        paired=True,
        inputs={"a": (10, 20), "b/c": (30, 40), "bad": (0, 1)},
        quarantined={"bad": "trüncated \N{SNOWMAN}"},
    )
    assert written.keys == ("a", "b/c")
    assert written.sizes == ((40, 56), (20, 30))
    assert written.num_masks == (2, 0)
    assert (written.digests, written.stored_bytes) == digests_of(shard_folder(tmp_path, 7))
    assert read_receipts(tmp_path) == {7: written}
    assert Receipt.from_json(written.to_json(), tmp_path) == written


def test_an_altered_receipt_is_refused(tmp_path: Path, make_store: Make) -> None:
    make_store(tmp_path)
    file = receipt_file(tmp_path, 1)
    content = file.read_bytes()
    for altered in (
        content.replace(b"images/002", b"images/009"),
        content.replace(b'"shard": 1', b'"shard": 2'),
        content[: len(content) // 2],
        b"[]",
        b"",
    ):
        assert altered != content
        file.write_bytes(altered)
        with pytest.raises(StoreError, match=r"000001\.json is no receipt.*verify --repair"):
            MaskStore.open(tmp_path)


def test_the_receipt_of_another_shard_is_refused(tmp_path: Path, make_store: Make) -> None:
    make_store(tmp_path)
    receipt_file(tmp_path, 0).replace(receipt_file(tmp_path, 1))
    with pytest.raises(StoreError, match=r"000001\.json is the receipt of shard 0"):
        MaskStore.open(tmp_path)


def test_an_altered_header_is_refused(tmp_path: Path, make_store: Make) -> None:
    fingerprint = make_store(tmp_path).fingerprint
    file = tmp_path / "zarr.json"
    record = json.loads(file.read_bytes())
    assert record["attributes"]["samprior"]["fingerprint"] == fingerprint

    def refused(message: str, **changes: object) -> None:
        altered = {**record["attributes"]["samprior"], **changes}
        file.write_text(json.dumps({**record, "attributes": {"samprior": altered}}))
        with pytest.raises(StoreError, match=message):
            MaskStore.open(tmp_path)

    refused("altered", num_images=6)
    refused("altered", made_of={"segmenter": "rectangles", "seed": 1})
    refused(r"made by a newer samprior.*color", color="red")
    refused(r"store format 99.*new --out", format_version=99)
    for field, odd in {
        "num_images": -1,
        "images_per_shard": 0,
        "paired": 1,
        "made_of": [],
        "appended": [0],
        "images": "elsewhere",
        "format_version": True,
        "pictures_root": 3,
    }.items():
        refused("no samprior header", **{field: odd})
    file.write_text("{}")
    with pytest.raises(StoreError, match="no samprior header"):
        MaskStore.open(tmp_path)
    file.unlink()
    with pytest.raises(StoreError, match="no samprior store"):
        MaskStore.open(tmp_path)


@pytest.mark.parametrize("odd", [{"num_shards": 2}, {"num_shards": 10**9}, {"appended": (6,)}])
def test_a_header_that_does_not_add_up_is_refused(tmp_path: Path, odd: dict[str, Any]) -> None:
    write_header(tmp_path, header(5, **odd))
    with pytest.raises(StoreError, match=r"5 images don't fit"):
        MaskStore.open(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@given(st.data())
def test_any_header_is_read_or_refused(data: st.DataObject) -> None:
    """Also one whose fingerprint fits: anybody can compute it."""
    record = header(5).to_record()
    name = data.draw(st.sampled_from([*record, "appended", "images", "pictures_root", "more"]))
    record[name] = data.draw(JSON)
    fields = {key: value for key, value in record.items() if key != "pictures_root"}
    fields.pop("fingerprint")
    record["fingerprint"] = digest(fields)
    with suppress(StoreError):
        assert Header.from_record(record, origin="here").to_record() == record


@given(st.data())
def test_any_receipt_is_read_or_refused(data: st.DataObject) -> None:
    receipt = Receipt(
        shard=0, keys=("a",), sizes=((1, 2),), num_masks=(1,), stored_bytes=1, digests={"a": "b"}
    )
    record = json.loads(receipt.to_json())
    name = data.draw(st.sampled_from([*record, "pictures", "more"]))
    record[name] = data.draw(JSON)
    del record["sha256"]
    content = json.dumps({**record, "sha256": digest(record)}).encode()
    with suppress(StoreError):
        Receipt.from_json(content, "here")


def test_headers_tell_their_difference(tmp_path: Path) -> None:
    ours = header(5)
    write_header(tmp_path, ours)
    assert read_header(tmp_path) == ours
    assert read_header(tmp_path).fingerprint == ours.fingerprint
    theirs = header(5, paired=False, made_of={"segmenter": {"model": "vit_b", "points": 32}})
    assert theirs.fingerprint != ours.fingerprint
    assert ours.difference(ours) == []
    assert ours.difference(theirs) == [
        "made_of.segmenter.model is vit_h, wanted vit_b",
        "paired is True, wanted False",
    ]


@pytest.mark.parametrize("url", ["https://host/store", "ftp://host/store", "zip://store.zip"])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"a store is a folder of this machine, or a URL of s3://"):
        MaskStore.open(url)


@pytest.mark.parametrize("change", ["degraded", "clean", "masks"])
def test_sizes_that_differ_are_refused(tmp_path: Path, make_record: Make, change: str) -> None:
    record, other = make_record("this"), make_record(shape=(41, 56))
    parts = {name: getattr(record, name) for name in ("degraded", "clean", "masks")}
    odd = Record("odd", **(parts | {change: getattr(other, change)}))
    with pytest.raises(StoreError, match=r"odd: .* of one size"):
        write_shard(tmp_path, 0, [record, odd], paired=True)
    assert not list(tmp_path.iterdir())


def test_columns_that_differ_are_refused(tmp_path: Path, make_record: Make) -> None:
    record = make_record("this")
    bare = MaskSet(record.masks.atoms, record.masks.members, {})
    odd = Record("odd", record.degraded, record.clean, bare)
    with pytest.raises(StoreError, match=r"odd has mask columns \[\]"):
        write_shard(tmp_path, 0, [record, odd], paired=True)


# Breaking off


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def remains(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("0*"))


@pytest.mark.parametrize(("fail", "error"), [(_no_space, OSError), (_killed, KeyboardInterrupt)])
@pytest.mark.parametrize("step", ["_write_images", "_write_atoms", "_write_masks"])
def test_a_broken_write_leaves_nothing(
    tmp_path: Path,
    make_record: Make,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    fail: Callable[..., None],
    error: type[BaseException],
) -> None:
    write_header(tmp_path, header(1))
    before = digests_of(tmp_path)
    monkeypatch.setattr(writer, step, fail)
    with pytest.raises(error):
        write_shard(tmp_path, 0, [make_record()], paired=True)
    assert digests_of(tmp_path) == before
    assert not list(tmp_path.rglob("*.part"))
    assert MaskStore.open(tmp_path).missing_shards == [0]


def test_a_disk_that_fills_up_while_flushing(
    tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_header(tmp_path, header(1))
    before = digests_of(tmp_path)
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path, 0, [make_record()], paired=True)
    assert digests_of(tmp_path) == before


def test_a_shard_without_its_receipt_does_not_count(
    tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing broke off between the two; the next try replaces the shard."""
    record = make_record()
    write_header(tmp_path, header(1))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_receipt", _killed)
        with pytest.raises(KeyboardInterrupt):
            write_shard(tmp_path, 0, [make_record(seed=1)], paired=True)
    assert MaskStore.open(tmp_path).missing_shards == [0]
    write_shard(tmp_path, 0, [record], paired=True)
    assert same(MaskStore.open(tmp_path).require_complete()[0], record)


def test_a_shard_being_replaced_does_not_count(
    tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make_record(), make_record(seed=1)
    write_store(tmp_path, [old])
    seen = []

    def watch(root: Path, receipt: Receipt) -> None:
        seen.append(receipt_file(root, 0).exists())
        write_receipt(root, receipt)

    monkeypatch.setattr(writer, "write_receipt", watch)
    write_shard(tmp_path, 0, [new], paired=True)
    assert seen == [False]
    assert same(MaskStore.open(tmp_path)[0], new)


# Damage found without `samprior verify`


def test_a_damaged_shard_is_not_read(
    tmp_path: Path, make_store: Make, rng: np.random.Generator
) -> None:
    """Zarr reads a missing object as zeros; a store says that it is damaged.

    Bits flipped in the uncompressed pictures are left to `samprior verify`.
    """
    make_store(tmp_path, [(20, 20), (24, 30)])
    folder = shard_folder(tmp_path, 0)

    def refused() -> None:
        with pytest.raises(StoreError, match=r"shards/000000 can't be read .*samprior verify"):
            list(MaskStore.open(tmp_path))

    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        file.unlink()
        refused()
        file.write_bytes(content[:-1])
        refused()
        if "clean" not in file.parts and "degraded" not in file.parts:
            bit = int(rng.integers(8 * len(content)))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            refused()
        file.write_bytes(content)
    assert len(list(MaskStore.open(tmp_path))) == 2
