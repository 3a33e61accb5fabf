"""`samprior status`: counts, pace and the holder of a store's lock, without a shard read."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samprior.storage.holders import Holder
from samprior.storage.locks import LOCK, only_writer
from samprior.storage.status import pace, store_status

Samprior = Callable[..., tuple[int, str, str]]
MakeStore = Callable[..., Any]


def test_a_finished_store(samprior: Samprior, make_store: MakeStore, tmp_path: Path) -> None:
    store = tmp_path / "store"
    make_store(store)
    shutil.rmtree(store / "shards" / "000000")  # nothing of it is read
    status = store_status(store)
    assert (status.shards_done, status.num_shards) == (3, 3)
    assert (status.images_done, status.num_images) == (5, 5)
    assert status.num_masks == 0 + 1 + 2 + 3 + 4
    assert status.masks_per_image == 2
    assert (status.eta_s, status.writer) == (None, None)
    code, out, _ = samprior("status", store)
    assert code == 0
    assert "3 of 3 shards, 5 of 5 images (100%), 2.0 masks/image" in out
    assert out.splitlines()[1].strip() == "finished"


def test_an_unfinished_store_says_how_long_it_will_take(
    samprior: Samprior,
    make_store: MakeStore,
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    make_store(store, [(16, 16)] * 10, images_per_shard=1)
    receipts = sorted((store / "receipts").iterdir())
    for receipt in receipts[6:]:
        receipt.unlink()
    for number, receipt in enumerate(receipts[:6]):
        os.utime(receipt, (10**9, 10**9 + 4 * number))
    status = store_status(store)
    assert status.images_per_s == 0.25
    assert status.eta_s == 16
    code, out, _ = samprior("status", store)
    assert code == 0
    assert "no job runs (0.25 images/s when it ran); run the same command again" in out
    with only_writer(store):
        said = (store / LOCK).read_bytes()
        code, out, _ = samprior("status", store)
        who = f"host {os.uname().nodename}, process {os.getpid()}, since 0 s"
        assert f"a job runs ({who}), 0.25 images/s" in out
        assert "about 16 s left" in out
    (store / LOCK).write_bytes(said)  # as a job leaves it that is killed
    code, out, _ = samprior("status", store)
    assert "the job was killed (0.25 images/s when it ran)" in out
    code, out, _ = samprior("status", store, "--json")
    record = json.loads(out)
    writer = record["writer"]
    assert (writer["host"], writer["pid"]) == (os.uname().nodename, os.getpid())
    assert writer["is_alive"] is False
    assert (record["images_done"], record["eta_s"]) == (6, 16)


@pytest.mark.parametrize("said", [b"", b"nonsense", b"[1]", b'{"host": 7, "pid": "x"}'])
def test_a_lock_may_say_anything(make_store: MakeStore, tmp_path: Path, said: bytes) -> None:
    store = tmp_path / "store"
    make_store(store)
    with (store / LOCK).open("wb") as stream:
        stream.write(said)
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        writer = store_status(store).writer
    assert writer is not None
    assert writer.is_alive
    assert (writer.host, writer.pid) == (None, None)


def test_a_holder_of_another_machine_can_not_be_judged(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    make_store(store)
    (store / LOCK).write_bytes(replace(Holder.this(), host="elsewhere").to_json())
    writer = store_status(store).writer
    assert writer is not None
    assert writer.is_alive is None


def test_quarantine_damage_and_mask_sets_are_told(
    samprior: Samprior,
    make_store: MakeStore,
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    make_store(store)
    make_store(store / "masks" / "other", [(16, 16)] * 2)
    receipt = store / "receipts" / "000001.json"
    record = json.loads(receipt.read_bytes())
    key = record["keys"].pop()
    receipt.write_text(json.dumps({**record, "quarantined": {key: "it is empty"}}))
    (store / "receipts" / "000002.json").write_bytes(b'{"keys": [')
    status = store_status(store)
    assert (status.shards_done, status.images_done) == (2, 4)
    assert status.quarantined == {key: "it is empty"}
    assert len(status.unreadable) == 1
    assert status.mask_sets["other"].images_done == 2
    _, out, err = samprior("status", store)
    assert f"quarantined {key}: it is empty" in out
    assert "masks other: 1 of 1 shards" in out
    assert "000002.json is no receipt" in err


def test_what_is_no_store_is_told(samprior: Samprior, tmp_path: Path) -> None:
    code, _, err = samprior("status", tmp_path)
    assert code == 1
    assert "no samprior store" in err


def test_a_pause_and_a_clock_that_was_set_do_not_change_the_pace() -> None:
    steady = [100.0 + 2 * step for step in range(20)]
    after_a_night = [time_s + 40_000 for time_s in steady]
    before_the_epoch = [time_s - 10**9 for time_s in steady]
    for times in (steady, steady + after_a_night, before_the_epoch + steady):
        assert pace(times, [32] * len(times)) == pytest.approx(16)
    assert pace([], []) is None
    assert pace([5.0], [32]) is None
    assert pace([5.0, 5.0], [32, 32]) is None


@given(st.lists(st.tuples(st.floats(-1e9, 1e10), st.integers(1, 32)), max_size=50))
def test_the_pace_is_positive_whatever_the_times(files: list[tuple[float, int]]) -> None:
    found = pace([time_s for time_s, _ in files], [images for _, images in files])
    assert found is None or found > 0
