"""Stores that lie: digests and receipts fit, but what they cover can't be. Errors, never harm."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value as crc32c

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.manifest import (
    Header,
    digests_of,
    read_header,
    read_receipt,
    shard_folder,
    write_header,
    write_receipt,
)
from samprior.storage.writer import write_shard

MakeStore = Callable[..., MaskStore]


def resign(root: Path) -> MaskStore:
    """Make the receipt of shard 0 fit its files again."""
    digests, stored_bytes = digests_of(shard_folder(root, 0))
    receipt = replace(read_receipt(root, 0), digests=digests, stored_bytes=stored_bytes)
    write_receipt(root, receipt)
    return MaskStore.open(root)


@pytest.fixture
def root(tmp_path: Path, make_store: MakeStore) -> Path:
    make_store(tmp_path / "store", ((140, 150), (30, 40)))
    return tmp_path / "store"


def refused(store: MaskStore) -> None:
    with pytest.raises(StoreError, match="can't be read"):
        store[0]


@pytest.mark.parametrize("offset", [2**63 - 1, 2**62, 10**9])
@pytest.mark.parametrize("array", ["clean", "atoms"])
def test_an_index_that_points_anywhere(root: Path, array: str, offset: int) -> None:
    (file,) = (path for path in (shard_folder(root, 0) / array / "c").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    held = 2 if array == "atoms" else 8  # inner chunks
    index = np.frombuffer(content[-16 * held - 4 : -4], "<u8").reshape(-1, 2).copy()
    index[index[:, 0] != 2**64 - 1, 0] = offset
    content[-16 * held - 4 :] = index.tobytes() + int(crc32c(index.tobytes())).to_bytes(4, "little")
    file.write_bytes(content)
    refused(resign(root))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chunk_shape", [1, 512, 32, 3]),
        ("chunk_shape", [1, 128, 64, 3]),
        ("chunk_shape", [1, 0, 0, 3]),
        ("chunk_shape", [2, 128, 128, 3]),
        ("chunk_shape", "all"),
        ("codecs", [None]),
    ],
)
def test_metadata_of_another_tiling(root: Path, key: str, value: object) -> None:
    edit(root, "clean", lambda about: about["codecs"][0]["configuration"].update({key: value}))
    refused(resign(root))


@pytest.mark.parametrize(
    ("array", "changes"),
    [
        ("clean", {"data_type": "uint16"}),
        ("clean", {"data_type": "object"}),
        ("clean", {"shape": [2, 2**60, 2**60, 3]}),
        ("extent", {"shape": [2**50, 4]}),
        ("extent", {"shape": [1, 4]}),
        ("members", {"shape": [7]}),
        ("atoms", {"codecs": []}),
    ],
)
def test_metadata_of_another_array(root: Path, array: str, changes: dict[str, Any]) -> None:
    edit(root, array, lambda about: about.update(changes))
    refused(resign(root))


def edit(root: Path, array: str, change: Callable[[dict[str, Any]], None]) -> None:
    file = shard_folder(root, 0) / array / "zarr.json"
    about = json.loads(file.read_bytes())
    change(about)
    file.write_text(json.dumps(about))


def test_a_header_of_more_shards_than_there_can_be(tmp_path: Path) -> None:
    many = Header(num_images=10**15, num_shards=10**15, images_per_shard=1, paired=True, made_of={})
    write_header(tmp_path, many)
    with pytest.raises(StoreError, match="holds no samprior header"):
        read_header(tmp_path)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
def test_small_integers_of_numpy_are_windows_like_any(root: Path, kind: type) -> None:
    store = MaskStore.open(root)
    with pytest.raises(UsageError, match="does not lie inside"):
        store.crop(0, kind(120), kind(140), kind(100), kind(120))
    plain, other = store.crop(0, 100, 90, 20, 30), store.crop(0, *map(kind, (100, 90, 20, 30)))
    assert np.array_equal(plain.clean, other.clean)
    assert plain.masks.equals(other.masks)


def test_pictures_are_read_into_arrays_that_fit(root: Path) -> None:
    store = MaskStore.open(root)
    right = np.empty((8, 8, 3), np.uint8)
    for wrong in (
        np.empty((9, 8, 3), np.uint8),
        np.empty((8, 8, 3)),
        np.empty((8, 8, 4), np.uint8),
    ):
        for pair in ((wrong, right), (right, wrong)):
            with pytest.raises(UsageError, match="pictures are read into uint8"):
                store.read_pictures(0, 0, 0, *pair)


def test_a_shard_that_was_replaced_under_an_open_store(root: Path, make_record: Any) -> None:  # noqa: ANN401
    store = MaskStore.open(root)
    store.masks(0, 0, 0, 20, 20)  # the index is read, the pictures are not mapped yet
    records = [
        make_record(f"images/00{k}", shape=shape, seed=9)
        for k, shape in enumerate(((140, 150), (30, 40)))
    ]
    write_shard(root, 0, records, paired=True)
    with pytest.raises(StoreError, match="was replaced; open the store again"):
        store.pictures(0, 0, 0, 20, 20)
    assert np.array_equal(MaskStore.open(root)[0].clean, records[0].clean)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("a/b", np.zeros(1)),
        ("..", np.zeros(1)),
        ("", np.zeros(1)),
        ("name", np.array(["text"])),
        ("when", np.array(["2026-01-01"], "datetime64[D]")),
        ("order", np.zeros(1, ">f4")),
        ("wide", np.zeros(1, np.longdouble)),
        ("thing", np.array([None])),
    ],
)
def test_columns_that_could_not_be_read_again_are_not_written(
    tmp_path: Path, name: str, column: np.ndarray
) -> None:
    masks = MaskSet.from_masks(np.ones((1, 4, 4), bool), **{name: column})
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(StoreError, match="has a mask column"):
        write_shard(tmp_path, 0, [Record("k", picture, picture, masks)], paired=False)
    assert not (tmp_path / "receipts").exists()


def test_a_cache_of_less_than_nothing(root: Path) -> None:
    with pytest.raises(UsageError, match="cache_bytes must be 0 or more"):
        MaskStore.open(root, cache_bytes=-1)
