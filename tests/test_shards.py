"""An export holds the store's records in order, in equal bytes, or is not an export."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from pycocotools import mask as coco

from samprior.storage import MaskSet, MaskStore, Record, tars
from samprior.storage.errors import BusyError, StoreError, UsageError
from samprior.storage.files import STAGED_SUFFIX
from samprior.storage.locks import only_writer
from samprior.storage.manifest import Header, digests_of, write_header
from samprior.storage.samples import sample_of
from samprior.storage.shards import export_webdataset, exported_tars, read_webdataset
from samprior.storage.writer import write_shard

Make = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path, make_store: Make) -> MaskStore:
    """Five images, the first without masks, in three shards."""
    opened: MaskStore = make_store(tmp_path / "store")
    return opened


def same(found: Record, wanted: Record) -> bool:
    return (
        found.key == wanted.key
        and np.array_equal(found.degraded, wanted.degraded)
        and np.array_equal(found.clean, wanted.clean)
        and found.masks.equals(wanted.masks)
    )


def store_of(root: Path, records: list[Record]) -> MaskStore:
    """A store of one shard."""
    header = Header(
        num_images=len(records),
        num_shards=1,
        images_per_shard=len(records),
        paired=True,
        made_of={},
    )
    write_header(root, header)
    write_shard(root, 0, records, paired=True)
    return MaskStore.open(root)


def test_records_come_back_in_order(tmp_path: Path, store: MaskStore) -> None:
    calls: list[tuple[int, int]] = []
    files = export_webdataset(store, tmp_path / "out", progress=lambda *done: calls.append(done))
    assert files == exported_tars(tmp_path / "out")
    assert [file.name for file in files] == ["000000.tar", "000001.tar", "000002.tar"]
    assert calls == [(2, 5), (4, 5), (5, 5)]
    records = list(read_webdataset(tmp_path / "out"))
    assert len(records) == 5
    assert all(map(same, records, store))


# webdataset closes no tar that it opens; ours does, see `read_webdataset`.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_alone_reads_the_export(tmp_path: Path, store: MaskStore) -> None:
    files = export_webdataset(store, tmp_path / "out")
    samples = list(wds.WebDataset([str(file) for file in files], shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == list(store.keys)
    for sample, record in zip(samples, store, strict=True):
        np.testing.assert_array_equal(sample["degraded.png"], record.degraded)
        np.testing.assert_array_equal(sample["clean.png"], record.clean)
        arrays = sample["masks.npz"]
        masks = arrays["members"][arrays["atoms"]].transpose(2, 0, 1)
        np.testing.assert_array_equal(masks, record.masks.to_masks())
        np.testing.assert_array_equal(arrays["column.point"], record.masks.columns["point"])


def test_plain_tar_and_png_read_the_export(tmp_path: Path, store: MaskStore) -> None:
    tar, *_ = export_webdataset(store, tmp_path / "out")
    with tarfile.open(tar) as archive:
        assert archive.getnames() == [
            f"images/{i}.{part}"
            for i in ("000", "001")
            for part in ("clean.png", "degraded.png", "masks.npz")
        ]
        content = archive.extractfile("images/001.clean.png")
        assert content is not None
        with Image.open(io.BytesIO(content.read())) as image:
            np.testing.assert_array_equal(np.asarray(image), store[1].clean)


def test_equal_stores_give_equal_bytes(tmp_path: Path, store: MaskStore, make_store: Make) -> None:
    export_webdataset(store, tmp_path / "out")
    export_webdataset(make_store(tmp_path / "twin"), tmp_path / "twin-out")
    assert digests_of(tmp_path / "out") == digests_of(tmp_path / "twin-out")
    before = digests_of(tmp_path / "out")
    export_webdataset(store, tmp_path / "out")
    assert digests_of(tmp_path / "out") == before


def test_an_unpaired_store_gives_one_picture(tmp_path: Path, make_store: Make) -> None:
    store = make_store(tmp_path / "store", paired=False)
    export_webdataset(store, tmp_path / "out")
    records = list(read_webdataset(tmp_path / "out"))
    assert all(record.degraded is record.clean for record in records)
    assert all(map(same, records, store))


def test_the_index_counts(tmp_path: Path, store: MaskStore) -> None:
    export_webdataset(store, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_bytes())
    assert index["fingerprint"] == store.fingerprint
    assert index["num_samples"] == 5
    assert [entry["num_samples"] for entry in index["shards"]] == [2, 2, 1]
    digests, _ = digests_of(tmp_path / "out")
    for entry in index["shards"]:
        assert digests[entry["name"]] == entry["sha256"]
        assert (tmp_path / "out" / entry["name"]).stat().st_size == entry["bytes"]
    assert [key for entry in index["shards"] for key in entry["keys"]] == list(store.keys)
    sizes = [tuple(size) for entry in index["shards"] for size in entry["sizes"]]
    assert sizes == [store.size(place) for place in range(5)]


@pytest.mark.parametrize(
    "key", ["GOPR0372_07_00/000047", "a/b/c/d", "Zürich/straße", "dot.in.folder/name", "n" * 180]
)
def test_keys_are_kept(tmp_path: Path, make_record: Make, key: str) -> None:
    store = store_of(tmp_path / "store", [make_record(key), make_record("z", seed=1)])
    export_webdataset(store, tmp_path / "out")
    assert [record.key for record in read_webdataset(tmp_path / "out")] == [key, "z"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("folder/frame.v2", r"'folder/frame\.v2'.*first dot"),
        ("__notes__/frame", "passes over __notes__/"),
        ("../frame", "no path below"),
        ("/etc/frame", "no path below"),
    ],
)
def test_keys_that_would_not_come_back_are_refused(
    tmp_path: Path, make_record: Make, key: str, message: str
) -> None:
    store = store_of(tmp_path / "store", [make_record(key)])
    with pytest.raises(UsageError, match=message):
        export_webdataset(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_killed_export_is_no_export_and_resumes(
    tmp_path: Path, store: MaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_webdataset(store, tmp_path / "unbroken")
    out = tmp_path / "out"
    written = []

    def sample(record: Record, **settings: Any) -> dict[str, str | bytes]:  # noqa: ANN401
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(record.key)
        return sample_of(record, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(tars, "sample_of", sample)
        with pytest.raises(KeyboardInterrupt):
            export_webdataset(store, out)
    assert sorted(path.name for path in out.iterdir()) == [".fingerprint", ".lock", "000000.tar"]
    with pytest.raises(StoreError, match=r"no finished export .*samprior export"):
        exported_tars(out)

    # A kill that nothing can catch leaves its draft too.
    draft = out / f".000001.tar.0123abcd{STAGED_SUFFIX}"
    draft.write_bytes(b"half a tar")
    kept = (out / "000000.tar").stat().st_mtime_ns
    export_webdataset(store, out)
    assert digests_of(out) == digests_of(tmp_path / "unbroken")
    assert (out / "000000.tar").stat().st_mtime_ns == kept


def test_an_unfinished_store_is_refused(tmp_path: Path, make_record: Make) -> None:
    root = tmp_path / "store"
    header = Header(num_images=2, num_shards=2, images_per_shard=1, paired=True, made_of={})
    write_header(root, header)
    write_shard(root, 1, [make_record()], paired=True)
    with pytest.raises(StoreError, match="1 of 2 shards"):
        export_webdataset(MaskStore.open(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_of_quarantined_images_have_no_tar(tmp_path: Path, make_record: Make) -> None:
    root = tmp_path / "store"
    header = Header(num_images=2, num_shards=2, images_per_shard=1, paired=True, made_of={})
    write_header(root, header)
    write_shard(root, 0, [], paired=True, quarantined={"bad": "empty"})
    write_shard(root, 1, [make_record("good")], paired=True)
    (tar,) = export_webdataset(MaskStore.open(root), tmp_path / "out")
    assert tar.name == "000001.tar"
    assert [record.key for record in read_webdataset(tmp_path / "out")] == ["good"]


def test_the_folder_of_another_export_is_refused(
    tmp_path: Path, store: MaskStore, make_store: Make, make_record: Make
) -> None:
    out = tmp_path / "out"
    export_webdataset(store, out)
    before = digests_of(out)
    other = make_store(tmp_path / "other", made_of={"segmenter": "another"})
    with pytest.raises(StoreError, match="another store"):
        export_webdataset(other, out)

    # The same plan, one image of which was mended since.
    write_shard(store.root, 2, [make_record("images/004", shape=(16, 16), seed=9)], paired=True)
    with pytest.raises(StoreError, match="before it was changed"):
        export_webdataset(MaskStore.open(store.root), out)
    assert digests_of(out) == before

    strangers = tmp_path / "strangers"
    strangers.mkdir()
    (strangers / "photos.tar").touch()
    with pytest.raises(StoreError, match="no export of samprior"):
        export_webdataset(store, strangers)


def test_a_damaged_tar_is_refused_and_made_anew(
    tmp_path: Path, store: MaskStore, rng: np.random.Generator
) -> None:
    out = tmp_path / "out"
    tar = export_webdataset(store, out)[1]
    before, content = digests_of(out), tar.read_bytes()

    tar.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"000001\.tar is missing or not \d+ bytes"):
        exported_tars(out)
    export_webdataset(store, out)
    assert digests_of(out) == before

    tar.unlink()
    with pytest.raises(StoreError, match=r"000001\.tar is missing"):
        list(read_webdataset(out))
    export_webdataset(store, out)
    assert digests_of(out) == before

    flipped = bytearray(content)
    flipped[int(rng.integers(len(content)))] ^= 1
    tar.write_bytes(flipped)
    with pytest.raises(StoreError, match=r"000001\.tar has another content"):
        list(read_webdataset(out))
    export_webdataset(store, out)
    assert digests_of(out) == before


@pytest.mark.parametrize("content", [b"", b"{}", b'{"shards": [{"name": "x"}]}', b'{"shards": 3}'])
def test_a_broken_index_is_refused(tmp_path: Path, store: MaskStore, content: bytes) -> None:
    out = tmp_path / "out"
    export_webdataset(store, out)
    before = digests_of(out)
    (out / "index.json").write_bytes(content)
    with pytest.raises(StoreError, match="no finished export"):
        exported_tars(out)
    export_webdataset(store, out)
    assert digests_of(out) == before


def test_masks_without_columns_come_back(tmp_path: Path, make_record: Make) -> None:
    record = make_record("bare")
    masks = MaskSet.from_masks(record.masks.to_masks())
    bare = Record("bare", record.degraded, record.clean, masks)
    export_webdataset(store_of(tmp_path / "store", [bare]), tmp_path / "out")
    (found,) = read_webdataset(tmp_path / "out")
    assert same(found, bare)


def test_masks_as_run_lengths_are_for_others_and_come_back(
    tmp_path: Path, store: MaskStore
) -> None:
    files = export_webdataset(store, tmp_path / "out", masks="rle")
    assert all(map(same, read_webdataset(tmp_path / "out"), store))
    with tarfile.open(files[0]) as archive:
        content = archive.extractfile("images/001.masks.json")
        assert content is not None
        (note,) = json.loads(content.read())["annotations"]
    (plane,) = store[1].masks.to_masks()
    code = note["segmentation"]
    assert code["size"] == list(plane.shape)
    assert note["area"] == plane.sum()
    wanted = coco.encode(np.asfortranarray(plane.astype(np.uint8)))["counts"]
    assert code["counts"] == wanted.decode()
    masks = store[1].masks
    assert note["stability_score"] == masks.columns["stability"][0]
    assert note["point_coords"] == masks.columns["point"].tolist()


def test_tars_of_any_number_of_images_hold_the_same(tmp_path: Path, store: MaskStore) -> None:
    for number, lengths in ((1, [1] * 5), (3, [3, 2]), (9, [5])):
        out = tmp_path / str(number)
        export_webdataset(store, out, images_per_tar=number)
        index = json.loads((out / "index.json").read_bytes())
        assert [entry["num_samples"] for entry in index["shards"]] == lengths
        assert all(map(same, read_webdataset(out), store))
    with pytest.raises(UsageError, match="at least 1, got 0"):
        export_webdataset(store, tmp_path / "none", images_per_tar=0)


def test_the_same_folder_with_other_options_is_refused(tmp_path: Path, store: MaskStore) -> None:
    export_webdataset(store, tmp_path / "out")
    with pytest.raises(StoreError, match="other options"):
        export_webdataset(store, tmp_path / "out", masks="rle")
    with pytest.raises(StoreError, match="other options"):
        export_webdataset(store, tmp_path / "out", images_per_tar=2)


def test_only_one_export_writes_to_a_folder(tmp_path: Path, store: MaskStore) -> None:
    with only_writer(tmp_path / "out"), pytest.raises(BusyError, match="another process"):
        export_webdataset(store, tmp_path / "out")
