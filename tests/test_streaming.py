"""Reading tars: every image once per epoch over all readers, in an order that seeds decide."""

import json
import pickle
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from samprior.storage.errors import StoreError, UsageError
from samprior.storage.files import sha256_of
from samprior.storage.samples import UNREADABLE, record_of, sample_of
from samprior.storage.shards import export_webdataset, read_webdataset

Make = Callable[..., Any]
NUM_IMAGES = 17


@pytest.fixture
def tars(tmp_path: Path, make_store: Make) -> Path:
    """17 images in 9 tars."""
    out = tmp_path / "tars"
    export_webdataset(make_store(tmp_path / "store", [(16, 20)] * NUM_IMAGES), out)
    return out


def keys(folder: Path, **options: Any) -> list[str]:  # noqa: ANN401  # of read_webdataset
    return [record.key for record in read_webdataset(folder, **options)]


ALL = [f"images/{place:03d}" for place in range(NUM_IMAGES)]


@pytest.mark.parametrize("shuffle_buffer", [0, 1, 5, 100])
@pytest.mark.parametrize(("num_ranks", "num_workers"), [(1, 1), (2, 3), (4, 5)])
def test_each_image_comes_once_over_ranks_and_workers(
    tars: Path, shuffle_buffer: int, num_ranks: int, num_workers: int
) -> None:
    found = [
        key
        for rank in range(num_ranks)
        for worker in range(num_workers)
        for key in keys(
            tars,
            shuffle_buffer=shuffle_buffer,
            node=(rank, num_ranks),
            worker=(worker, num_workers),
        )
    ]
    assert sorted(found) == ALL


def test_the_place_comes_from_the_environment(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert keys(tars) == keys(tars, node=(rank, 2))
        monkeypatch.setenv("NUM_WORKERS", "3")
        for worker in range(3):
            monkeypatch.setenv("WORKER", str(worker))
            assert keys(tars) == keys(tars, node=(rank, 2), worker=(worker, 3))
        monkeypatch.delenv("WORKER")


# Three workers on a machine of two cores, in a test.
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_of_a_data_loader_share_the_tars(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        reader: Any = read_webdataset(tars, shuffle_buffer=4)
        found += [record.key for record in DataLoader(reader, batch_size=None, num_workers=3)]
    assert sorted(found) == ALL


def test_order_is_that_of_seed_and_epoch(tars: Path) -> None:
    assert keys(tars) == ALL
    orders = {
        (seed, epoch): tuple(keys(tars, shuffle_buffer=6, seed=seed, epoch=epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    for (seed, epoch), order in orders.items():
        reader = read_webdataset(tars, shuffle_buffer=6, seed=seed, epoch=epoch)
        for again in (reader, reader, pickle.loads(pickle.dumps(reader))):
            assert tuple(record.key for record in again) == order


def test_the_order_of_a_seed_stays(tars: Path) -> None:
    # May change with webdataset's shuffle or NumPy's permutation; then tell it in CHANGELOG.md.
    found = keys(tars, shuffle_buffer=6, seed=3, epoch=2)
    assert [int(key[-3:]) for key in found[:8]] == [9, 3, 16, 2, 5, 13, 12, 8]


def test_resampling_has_no_end_and_takes_every_image(tars: Path) -> None:
    def drawn(**options: Any) -> list[str]:  # noqa: ANN401
        stream = iter(read_webdataset(tars, resample=True, **options))
        return [record.key for record in islice(stream, 600)]

    found = drawn()
    assert set(found) == set(ALL)
    assert max(Counter(found).values()) < 3 * 600 / NUM_IMAGES
    assert found == drawn()
    assert found != drawn(epoch=1)
    assert found != drawn(worker=(1, 2))
    assert set(drawn(shuffle_buffer=8)) == set(ALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"epoch": -1},
        {"shuffle_buffer": -1},
        {"node": (2, 2)},
        {"worker": (-1, 2)},
        {"worker": (0, 0)},
    ],
)
def test_numbers_that_can_not_be_are_refused(tars: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        read_webdataset(tars, **wrong)


def rewrite(folder: Path, name: str, keep: Callable[[str], bool]) -> None:
    """Leave only some members in a tar, and make the index agree but for the number of samples."""
    tar, stream = folder / name, BytesIO()
    with tarfile.open(tar) as old, tarfile.open(fileobj=stream, mode="w") as new:
        for member in old:
            if keep(member.name):
                new.addfile(member, old.extractfile(member))
    tar.write_bytes(stream.getvalue())
    index = json.loads((folder / "index.json").read_bytes())
    (entry,) = (entry for entry in index["shards"] if entry["name"] == name)
    entry |= {"bytes": tar.stat().st_size, "sha256": sha256_of(tar)}
    (folder / "index.json").write_text(json.dumps(index))


def test_a_tar_of_fewer_samples_than_the_index_says_is_named(tars: Path) -> None:
    rewrite(tars, "000003.tar", lambda name: "006" in name)
    with pytest.raises(StoreError, match=r"000003\.tar has 1 samples where the index says 2"):
        keys(tars)
    with pytest.raises(StoreError, match=r"000003\.tar"):
        for _ in islice(read_webdataset(tars, resample=True), 200):
            pass


def test_a_sample_that_lacks_a_member_is_named(tars: Path) -> None:
    rewrite(tars, "000003.tar", lambda name: name != "images/006.masks.npz")
    with pytest.raises(StoreError, match=r"000003\.tar: images/006 can't be read \(KeyError"):
        keys(tars)


@given(st.sampled_from(["clean.png", "masks.npz", "masks.json"]), st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_member_is_survived(
    make_record: Make, name: str, data: st.DataObject
) -> None:
    record = make_record(shape=(6, 9), num_masks=3)
    form: Any = "rle" if name == "masks.json" else "atoms"
    sample: dict[str, Any] = sample_of(record, paired=True, masks=form)
    content = bytearray(sample[name])
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 8)))
    content[start:stop] = data.draw(st.binary(max_size=8))
    sample[name] = bytes(content)
    try:
        found = record_of(sample)
    except UNREADABLE:
        return
    assert found.masks.shape == found.clean.shape[:2]


def huge_array() -> bytes:
    stream = BytesIO()
    header = {"descr": "<u2", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def test_sizes_are_bounded_before_memory_is_taken(
    make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample: dict[str, Any] = sample_of(make_record(), paired=False)
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("atoms.npy", huge_array())
        archive.writestr("members.npy", huge_array())
    with pytest.raises(ValueError, match="has 0 bytes"):
        record_of(sample | {"masks.npz": stream.getvalue()})
    stream = BytesIO()
    np.savez(stream, atoms=np.array([{}], object), members=np.zeros((1, 0), bool))
    with pytest.raises(ValueError, match="an array of object"):
        record_of(sample | {"masks.npz": stream.getvalue()})
    monkeypatch.setattr("samprior.storage.samples.MAX_ARRAY_BYTES", 100)
    with pytest.raises(ValueError, match="too large"):
        record_of(sample)
    monkeypatch.setattr("samprior.storage.samples.MAX_MASK_PIXELS", 100)
    with pytest.raises(ValueError, match="too many"):
        record_of(sample_of(make_record(), paired=False, masks="rle"))


def test_an_empty_folder_of_tars_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished export"):
        read_webdataset(tmp_path)
    (tmp_path / "index.json").write_text('{"shards": []}')
    with pytest.raises(StoreError, match="holds no image"):
        read_webdataset(tmp_path)
