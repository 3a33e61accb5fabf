"""A store may keep only where its pictures are; it says so when they aren't there any more."""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samprior.pipeline.datasets import Dataset, Pair, find_dataset
from samprior.pipeline.job import JobResult
from samprior.pipeline.precompute import precompute
from samprior.pipeline.worker import MasksOf
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.images import Rgb, write_png
from samprior.storage.manifest import (
    digests_of,
    read_header,
    read_receipt,
    write_header,
    write_receipt,
)
from samprior.storage.migrate import migrate_store
from samprior.storage.shards import export_webdataset
from samprior.storage.verify import verify_store

Make = Callable[..., Any]


@dataclass(frozen=True)
class Rows:
    """Two masks, every second row."""

    def describe(self) -> dict[str, Any]:
        return {"segmenter": "rows"}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self._masks_of

    def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        masks = np.zeros((2, *image.shape[:2]), bool)
        masks[0, ::2] = masks[1, 1::2] = True
        return MaskSet.from_masks(masks)


def run(dataset: Dataset, out: Path, **more: Any) -> JobResult:  # noqa: ANN401
    return precompute(dataset, out, Rows(), workers=0, **{"images": "reference", **more})


def found(folder: Path) -> Dataset:
    return find_dataset(
        "folder", folder, degraded_pattern="noisy/{key}.png", clean_pattern="clean/{key}.png"
    )


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Path:
    for number in range(3):
        for side in ("noisy", "clean"):
            picture = rng.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
            write_png(tmp_path / f"data/{side}/seq/{number}.png", picture)
    return tmp_path / "data"


@pytest.fixture
def root(tmp_path: Path, data: Path) -> Path:
    run(found(data), tmp_path / "store", images_per_shard=2)
    return tmp_path / "store"


def test_it_reads_as_a_store_that_holds_its_pictures(
    root: Path, data: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    run(found(data), tmp_path / "whole", images="stored", images_per_shard=2)
    assert not list(root.rglob("clean")) + list(root.rglob("degraded"))
    store, whole = MaskStore.open(root).require_complete(), MaskStore.open(tmp_path / "whole")
    assert store.keys == whole.keys
    assert store.fingerprint != whole.fingerprint
    for index, (record, wanted) in enumerate(zip(store, whole, strict=True)):
        assert np.array_equal(record.clean, wanted.clean)
        assert np.array_equal(record.degraded, wanted.degraded)
        assert record.masks.equals(wanted.masks)
        height, width = store.size(index)
        y, x = int(rng.integers(height)), int(rng.integers(width))
        window = (y, x, int(rng.integers(height - y)) + 1, int(rng.integers(width - x)) + 1)
        for ours, theirs in zip(
            store.pictures(index, *window), whole.pictures(index, *window), strict=True
        ):
            assert np.array_equal(ours, theirs)
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy[1].clean, whole[1].clean)


def test_receipts_name_the_files_below_the_dataset_s_folder(root: Path, data: Path) -> None:
    assert read_header(root).pictures_root == str(data)
    assert read_receipt(root, 0).pictures == {
        "seq/0": ("noisy/seq/0.png", "clean/seq/0.png"),
        "seq/1": ("noisy/seq/1.png", "clean/seq/1.png"),
    }


def test_a_moved_dataset_is_named_when_the_store_is_opened(
    root: Path, data: Path, tmp_path: Path
) -> None:
    wanted = MaskStore.open(root)[0].clean
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"clean/seq/0\.png, a picture of seq/0, can't be read"):
        MaskStore.open(root)[0]
    store = MaskStore.open(root, pictures_root=tmp_path / "elsewhere")
    assert np.array_equal(store[0].clean, wanted)
    assert np.array_equal(pickle.loads(pickle.dumps(store))[0].clean, wanted)


def test_the_same_job_takes_a_moved_dataset_up(root: Path, data: Path, tmp_path: Path) -> None:
    wanted, before = MaskStore.open(root)[0].clean, read_header(root)
    data.rename(tmp_path / "elsewhere")
    assert run(found(tmp_path / "elsewhere"), root).shards_written == 0
    assert read_header(root).fingerprint == before.fingerprint
    assert np.array_equal(MaskStore.open(root)[0].clean, wanted)
    assert verify_store(root).ok


def test_a_picture_that_vanished_is_named(root: Path, data: Path) -> None:
    (data / "noisy/seq/1.png").unlink()
    store = MaskStore.open(root)
    assert store[0].key == "seq/0"
    with pytest.raises(StoreError, match=r"noisy/seq/1\.png, a picture of seq/1, can't be read"):
        store[1]
    assert len(store.masks(1, 0, 0, 21, 24)) == 2


def test_a_picture_that_changed_is_named(root: Path, data: Path) -> None:
    """By the bytes of its file, or by its size; what has neither changed is taken as it was."""
    file = data / "clean/seq/2.png"
    content = file.read_bytes()
    file.write_bytes(content + b"\n")
    with pytest.raises(StoreError, match=r"clean/seq/2\.png, .* is not the one"):
        MaskStore.open(root)[2]
    file.write_bytes(content[:40] + bytes(len(content) - 40))
    with pytest.raises(StoreError, match=r"clean/seq/2\.png"):
        MaskStore.open(root)[2]
    receipt = read_receipt(root, 1)
    write_receipt(root, replace(receipt, inputs={}))
    write_png(file, np.zeros((24, 22, 3), np.uint8))
    with pytest.raises(StoreError, match=r"clean/seq/2\.png, .* is not the one"):
        MaskStore.open(root)[2]


def test_a_mended_picture_is_segmented_anew(root: Path, data: Path) -> None:
    write_png(data / "clean/seq/2.png", np.zeros((22, 24, 3), np.uint8))
    assert run(found(data), root).shards_written == 1
    assert not MaskStore.open(root)[2].clean.any()


def test_verify_looks_for_the_pictures_and_repair_leaves_the_masks(root: Path, data: Path) -> None:
    before = digests_of(root)
    assert verify_store(root).ok
    (data / "clean/seq/0.png").unlink()
    (data / "noisy/seq/2.png").write_bytes(b"x")
    result = verify_store(root, repair=True)
    assert not result.ok
    assert not result.broken
    assert [problem.split(",")[0] for problem in result.pictures] == [
        str(data / "clean/seq/0.png"),
        str(data / "noisy/seq/2.png"),
    ]
    assert digests_of(root) == before


def test_nothing_outside_the_dataset_is_read(root: Path, tmp_path: Path, data: Path) -> None:
    write_png(tmp_path / "secret.png", np.zeros((20, 24, 3), np.uint8))
    receipt = read_receipt(root, 0)
    away = (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "clean/../../secret.png",
        "",
        "a\0b",
        "\ud800",
    )
    for name in away:
        pictures = {**receipt.pictures, "seq/0": ("noisy/seq/0.png", name)}
        write_receipt(root, replace(receipt, pictures=pictures, inputs={}))
        with pytest.raises(StoreError):
            MaskStore.open(root)[0]
    write_receipt(root, replace(receipt, pictures={}))
    with pytest.raises(StoreError, match="doesn't name the pictures of seq/0"):
        MaskStore.open(root)[0]
    assert data.exists()


def test_a_store_without_a_root_needs_to_be_told(root: Path, data: Path) -> None:
    write_header(root, replace(read_header(root), pictures_root=None))
    with pytest.raises(UsageError, match="open it with pictures_root"):
        MaskStore.open(root)
    assert len(list(MaskStore.open(root, pictures_root=data))) == 3


def test_a_root_is_only_for_stores_that_refer(tmp_path: Path, make_store: Make) -> None:
    make_store(tmp_path / "whole")
    with pytest.raises(UsageError, match="holds its pictures"):
        MaskStore.open(tmp_path / "whole", pictures_root=tmp_path)


def test_it_grows_and_has_mask_sets_and_is_copied(root: Path, data: Path, tmp_path: Path) -> None:
    for side in ("noisy", "clean"):
        shutil.copy(data / side / "seq/0.png", data / side / "seq/3.png")
    dataset = found(data)
    run(dataset, root, append=True)
    run(dataset, root, images="stored", masks="again", source="degraded")
    store = MaskStore.open(root, masks="again").require_complete()
    assert store.keys == ("seq/0", "seq/1", "seq/2", "seq/3")
    assert np.array_equal(store[3].clean, MaskStore.open(root)[0].clean)
    migrate_store(root, tmp_path / "copy")
    assert digests_of(tmp_path / "copy")[0] == digests_of(root)[0]
    assert verify_store(tmp_path / "copy").ok


def test_an_export_holds_the_pictures(root: Path, data: Path, tmp_path: Path) -> None:
    run(found(data), tmp_path / "whole", images="stored", images_per_shard=2)
    tars = [
        [tar.read_bytes() for tar in export_webdataset(MaskStore.open(store), tmp_path / name)]
        for store, name in ((root, "a"), (tmp_path / "whole", "b"))
    ]
    assert tars[0] == tars[1]


def test_one_kind_of_store_is_not_gone_on_with_as_the_other(root: Path, data: Path) -> None:
    with pytest.raises(StoreError, match="images is reference, wanted stored"):
        run(found(data), root, images="stored")
    with pytest.raises(UsageError, match="--images reference"):
        run(found(data), root.with_name("tars"), form="webdataset")


def test_masks_alone_need_no_pillow(root: Path) -> None:
    program = f"""
import sys
from samprior.storage import MaskStore
store = MaskStore.open({str(root)!r})
assert len(store.masks(0, 0, 0, 20, 24)) == 2
assert "PIL" not in sys.modules
assert store[0].clean.any()
assert "PIL" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
