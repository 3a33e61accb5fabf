"""Jobs that write to object stores: the bytes of a local store, whatever the network does.

The object store is moto, an S3 server on this machine; the network is a proxy that cuts or holds
connections.
"""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from ray import cloudpickle

from samprior.pipeline.datasets import Dataset, Pair, find_dataset
from samprior.pipeline.forms import WEBDATASET, ZARR, Form
from samprior.pipeline.job import JobResult, MasksOf, run_job
from samprior.pipeline.plan import plan_header, plan_shards
from samprior.pipeline.precompute import precompute
from samprior.pipeline.ray_session import ray_session
from samprior.storage import MaskSet, MaskStore, clients, locks, uploads
from samprior.storage.errors import BusyError, StoreError, UnreachableError
from samprior.storage.holders import Holder
from samprior.storage.images import Rgb, write_png
from samprior.storage.locks import LOCK
from samprior.storage.manifest import read_receipts, receipt_name
from samprior.storage.places import Place, open_place
from samprior.storage.remote import PART_BYTES, RemoteFolder
from samprior.storage.verify import verify_store

# The workers can't import this file, so its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Halves:
    """Two masks, the left and the right half."""

    name: str = "halves"
    fail_at: tuple[str, ...] = ()
    """Keys that can't be used."""

    def describe(self) -> dict[str, Any]:
        return {"segmenter": self.name}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self.masks_of

    def masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        if pair.key in self.fail_at:
            raise ValueError("no use")
        masks = np.zeros((2, *image.shape[:2]), bool)
        middle = image.shape[1] // 2
        masks[0, :, :middle] = masks[1, :, middle:] = True
        return MaskSet.from_masks(masks, brightness=[float(image.mean()), 0.0])


class Acts(Halves):
    """Calls a function before each image."""

    def __init__(self, act: Callable[[str], None]) -> None:
        super().__init__()
        object.__setattr__(self, "act", act)

    def masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        self.act(pair.key)  # type: ignore[attr-defined]
        return super().masks_of(pair, image)


class Network:
    """A proxy on loopback that passes bytes on to a server, and can break."""

    def __init__(self, server: str) -> None:
        self._server = ("127.0.0.1", int(urlsplit(server).port or 0))
        self.cuts: list[int] = []
        """After so many bytes sent through in all, the connection that sends is cut; one by one."""
        self.is_held = False
        """Nothing is passed on while this is set."""
        self.num_cut = 0
        self._sent = 0
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=[client], daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            while True:
                ready, _, _ = select.select([client, server], [], [], 0.05)
                if self.is_held:
                    time.sleep(0.01)
                    continue
                for source in ready:
                    try:
                        content = source.recv(16384)
                        if not content or (source is client and self._is_cut(len(content))):
                            return
                        (server if source is client else client).sendall(content)
                    except OSError:
                        return

    def _is_cut(self, num_bytes: int) -> bool:
        with self._lock:
            self._sent += num_bytes
            if self.cuts and self._sent >= self.cuts[0]:
                self.cuts.pop(0)
                self._sent = 0
                self.num_cut += 1
                return True
        return False


@pytest.fixture
def network(bucket_url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """The way to the server, from here on."""
    network = Network(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.url)
    yield network
    network.close()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return open_place(tmp_path / "place")
    return open_place(request.getfixturevalue("bucket_url"))


@pytest.fixture
def pairs(tmp_path: Path, rng: np.random.Generator) -> list[Pair]:
    """Seven pairs of 48x40 pictures."""
    return make_pairs(tmp_path / "data", rng, range(7))


def make_pairs(root: Path, rng: np.random.Generator, numbers: Sequence[int]) -> list[Pair]:
    found = []
    for number in numbers:
        files = [root / side / f"{number}.png" for side in ("degraded", "clean")]
        for file in files:
            write_png(file, rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        found.append(Pair(f"{number}", *files))
    return found


def run(
    out: Path | str,
    pairs: Sequence[Pair],
    maker: Halves | None = None,
    *,
    form: Form = ZARR,
    workers: int = 0,
) -> JobResult:
    maker = maker or Halves()
    plan = plan_shards(pairs, images_per_shard=3)
    header = plan_header(
        plan,
        dataset="folder",
        layout="folders",
        split=None,
        segmenter=maker.describe(),
        source="clean",
        images_per_shard=3,
    )
    return run_job(out, plan, header, maker, form=form, workers=workers)


def content_of(where: Path | str) -> dict[str, bytes]:
    """Every file but the lock."""
    place = open_place(where)
    names = [name for name in place.sizes() if name.rpartition("/")[2] != LOCK]
    return dict(zip(names, place.read_many(names), strict=True))


def drop(*, kept: Callable[[str], bool]) -> Callable[..., None]:
    """Of `write_file`: stop the job like a kill would at the first name that isn't kept."""
    write_file = RemoteFolder.write_file

    def writing(self: RemoteFolder, name: str, path: Path) -> None:
        if not kept(name):
            raise KeyboardInterrupt
        write_file(self, name, path)

    return writing


# Places are written


def test_files_are_written_whole(place: Place, tmp_path: Path) -> None:
    place.write("a/b c#?%20.é", b"first")
    place.write("a/b c#?%20.é", b"second")
    place.write("empty", b"")
    large = bytes(range(256)) * (2 * PART_BYTES // 256) + b"and one part more"
    (tmp_path / "large").write_bytes(large)
    place.write_file("a/large", tmp_path / "large")
    (tmp_path / "large").write_bytes(b"")
    place.write_file("a/nothing", tmp_path / "large")
    sizes = {"a/b c#?%20.é": 6, "a/large": len(large), "a/nothing": 0, "empty": 0}
    assert place.sizes() == sizes
    assert place.read("a/b c#?%20.é") == b"second"
    assert place.read("a/large") == large


def test_files_and_folders_are_removed(place: Place) -> None:
    for name in ("a", "ab/c", "ab/d/e", "abc"):
        place.write(name, b"x")
    place.remove("a")
    place.remove("a")
    place.remove("nothing/at/all")
    assert list(place.sizes()) == ["ab/c", "ab/d/e", "abc"]
    place.remove_folder("ab")
    place.remove_folder("ab")
    assert list(place.sizes()) == ["abc"]


def test_nothing_outside_is_touched(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for name in ("../x", "/etc/x", "a//b", "."):
        for change in (
            lambda name: place.write(name, b""),
            lambda name: place.write_file(name, tmp_path / "file"),
            place.remove,
            place.remove_folder,
        ):
            with pytest.raises(StoreError, match="does not lie below"):
                change(name)
    for removal in (place.remove, place.remove_folder):
        with pytest.raises(StoreError, match="itself is not removed"):
            removal("")


def test_a_bucket_that_is_not_there(bucket_url: str, pairs: list[Pair]) -> None:
    with pytest.raises(UnreachableError, match=r"there is no bucket s3://nowhere; make it"):
        open_place("s3://nowhere/store").write("a", b"")
    with pytest.raises(UnreachableError, match="s3://nowhere"):
        run("s3://nowhere/store", pairs)


def test_a_server_that_is_gone(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
    silent.close()
    monkeypatch.setattr(clients, "MAX_WRITE_RETRIES", 1)
    place = open_place(bucket_url)
    for change in (lambda name: place.write(name, b""), place.remove):
        with pytest.raises(UnreachableError, match=f"{bucket_url}.* can't be written") as caught:
            change("a")
        assert "run the same command again" in str(caught.value)
        assert "\n" not in str(caught.value)


# A job


@pytest.mark.parametrize("form", [ZARR, WEBDATASET], ids=["zarr", "tars"])
def test_a_bucket_holds_what_a_folder_would(
    tmp_path: Path, bucket_url: str, pairs: list[Pair], form: Form
) -> None:
    wanted = run(tmp_path / "out", pairs, Halves(fail_at=("1", "6")), form=form)
    result = run(bucket_url, pairs, Halves(fail_at=("1", "6")), form=form)
    assert result == wanted
    assert content_of(bucket_url) == content_of(tmp_path / "out")
    assert LOCK not in open_place(bucket_url).names()
    found = verify_store(bucket_url)
    assert (found.ok, list(found.lines())) == (True, [])


def test_the_store_in_the_bucket_is_read(bucket_url: str, pairs: list[Pair]) -> None:
    run(bucket_url, pairs)
    store = MaskStore.open(bucket_url).require_complete()
    assert [record.key for record in store] == [pair.key for pair in pairs]


def test_the_second_run_does_nothing(bucket_url: str, pairs: list[Pair]) -> None:
    run(bucket_url, pairs)
    before = content_of(bucket_url)
    assert run(bucket_url, pairs, Acts(lambda _: pytest.fail("again"))).shards_written == 0
    assert content_of(bucket_url) == before


def test_workers_write_to_a_bucket(tmp_path: Path, bucket_url: str, pairs: list[Pair]) -> None:
    run(tmp_path / "out", pairs)
    with ray_session():
        run(bucket_url, pairs, workers=2)
    assert content_of(bucket_url) == content_of(tmp_path / "out")


def test_what_others_wrote_is_left_alone(bucket_url: str, pairs: list[Pair]) -> None:
    place = open_place(bucket_url)
    place.write("thesis.tex", b"five years")
    with pytest.raises(StoreError, match=rf"{bucket_url} exists and is no samprior store"):
        run(bucket_url, pairs)
    assert place.sizes() == {"thesis.tex": 10}


def test_another_job_is_refused(bucket_url: str, pairs: list[Pair]) -> None:
    run(bucket_url, pairs)
    before = content_of(bucket_url)
    with pytest.raises(StoreError, match="was made with other settings"):
        run(bucket_url, pairs, Halves(name="thirds"))
    assert content_of(bucket_url) == before


def test_a_shard_that_changed_leaves_nothing_of_the_old(
    tmp_path: Path, bucket_url: str, pairs: list[Pair], rng: np.random.Generator
) -> None:
    run(bucket_url, pairs)
    place = open_place(bucket_url)
    place.write("shards/000001/degraded/c/0/0/0/1", b"of another version")
    for side in (pairs[3].degraded, pairs[3].clean):
        write_png(side, rng.integers(0, 256, (64, 40, 3), dtype=np.uint8))
    assert run(bucket_url, pairs).shards_written == 1
    run(tmp_path / "out", pairs)
    assert content_of(bucket_url) == content_of(tmp_path / "out")


def grow(root: Path, rng: np.random.Generator, numbers: Sequence[int]) -> Dataset:
    make_pairs(root, rng, numbers)
    return find_dataset(
        "folder",
        root,
        degraded_pattern="degraded/{key}.png",
        clean_pattern="clean/{key}.png",
    )


def test_parts_and_mask_sets_in_a_bucket(
    tmp_path: Path, bucket_url: str, rng: np.random.Generator
) -> None:
    few = grow(tmp_path / "data", rng, range(4))
    sizes = {"images_per_shard": 3, "workers": 0}
    for out in (tmp_path / "out", bucket_url):
        precompute(few, out, Halves(), **sizes)
        precompute(few, out, Halves("dark"), masks="dark", source="degraded", **sizes)
    many = grow(tmp_path / "data", rng, range(4, 8))
    for out in (tmp_path / "out", bucket_url):
        with pytest.raises(StoreError, match=rf"that {out} has not"):
            precompute(many, out, Halves(), **sizes)
        precompute(many, out, Halves(), append=True, **sizes)
        precompute(many, out, Halves("dark"), masks="dark", source="degraded", append=True, **sizes)
    assert content_of(bucket_url) == content_of(tmp_path / "out")
    assert len(MaskStore.open(bucket_url, masks="dark")) == 8


def test_pictures_by_reference(tmp_path: Path, bucket_url: str, rng: np.random.Generator) -> None:
    dataset = grow(tmp_path / "data", rng, range(4))
    for out in (tmp_path / "out", bucket_url):
        precompute(dataset, out, Halves(), images="reference", workers=0)
    assert content_of(bucket_url) == content_of(tmp_path / "out")


def test_the_command_takes_a_url(
    tmp_path: Path,
    bucket_url: str,
    pairs: list[Pair],
    samprior: Callable[..., tuple[int, str, str]],
) -> None:
    arguments = [*command(tmp_path), "--workers", 0, "--out"]
    code, out, _ = samprior(*arguments, bucket_url, "--dry-run")
    assert code == 0
    assert "7 images in 3 shards" in out
    code, out, err = samprior(*arguments, bucket_url)
    assert code == 0, err
    assert out.startswith(f"{bucket_url}: 7 images in 3 shards")
    assert len(read_receipts(open_place(bucket_url))) == 3
    code, _, err = samprior(*arguments, "ftp://server/store")
    assert code == 2
    assert "s3://, gs://, az:// or file://" in err


def test_a_repair_makes_again_what_is_broken(
    tmp_path: Path,
    bucket_url: str,
    pairs: list[Pair],
    samprior: Callable[..., tuple[int, str, str]],
) -> None:
    """Of the store and of a mask set, by the commands that they were made with."""
    of_set = ("--masks", "dark", "--source", "degraded")
    for more in ((), of_set):
        code, _, err = samprior(*command(tmp_path), "--workers", 0, "--out", bucket_url, *more)
        assert code == 0, err
    whole = content_of(bucket_url)
    place = open_place(bucket_url)
    place.remove("shards/000002/clean/c/0/0/0/0")
    place.remove(receipt_name(1))
    place.write("masks/dark/shards/000000/extent/c/0/0", b"something else")
    place.write("shards/000009/zarr.json", b"of a writer that was killed")
    code, _, err = samprior("verify", bucket_url)
    assert code == 1
    assert "leftover of a killed writer: shards/000009" in err
    code, out, err = samprior("verify", bucket_url, "--repair", "--workers", 0)
    assert code == 0, err
    assert f"{bucket_url}: 2 shards made again" in out
    assert f"{bucket_url}/masks/dark: 1 shard made again" in out
    assert f"{bucket_url}: whole again" in out
    assert content_of(bucket_url) == whole
    assert LOCK not in place.names()


def test_the_status_of_a_job(
    tmp_path: Path,
    bucket_url: str,
    pairs: list[Pair],
    samprior: Callable[..., tuple[int, str, str]],
) -> None:
    """Of one that runs, of one that was killed, and of one that has ended."""
    seen = []

    def ask(key: str) -> None:
        if key == "4":
            seen.append(json.loads(samprior("status", bucket_url, "--json")[1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bucket_url, pairs, Acts(ask))
    [running] = seen
    assert (running["shards_done"], running["num_shards"], running["images_done"]) == (1, 3, 3)
    assert running["writer"]["pid"] == os.getpid()
    assert running["writer"]["is_alive"]
    place = open_place(bucket_url)
    place.write(LOCK, replace(Holder.this(), process="1").to_json())
    _, out, _ = samprior("status", bucket_url)
    assert "1 of 3 shards, 3 of 7 images (43%)" in out
    assert "the job was killed; run the same command again" in out
    run(bucket_url, pairs)
    _, out, _ = samprior("status", bucket_url)
    assert "3 of 3 shards" in out
    assert "finished" in out
    code, _, err = samprior("status", f"{bucket_url}/nothing")
    assert code == 1
    assert f"{bucket_url}/nothing is no samprior store" in err


def command(tmp_path: Path) -> list[object]:
    return [
        *("precompute", "--dataset", "folder", "--root", tmp_path / "data"),
        *("--degraded-pattern", "degraded/{key}.png", "--clean-pattern", "clean/{key}.png"),
        *("--segmenter", "superpixel", "--images-per-shard", 3),
    ]


# The network, and kills


def test_cut_connections_change_nothing(
    tmp_path: Path, bucket_url: str, pairs: list[Pair], network: Network
) -> None:
    run(tmp_path / "out", pairs)
    network.cuts = [300, 2_000, 5_000, 100, 20_000, 9_000, 1_000, 15_000]
    run(bucket_url, pairs)
    assert network.num_cut == 8
    assert content_of(bucket_url) == content_of(tmp_path / "out")
    assert LOCK not in open_place(bucket_url).names()


def test_parts_of_a_large_file_are_sent_again(
    tmp_path: Path, bucket_url: str, network: Network
) -> None:
    content = bytes(range(256)) * (3 * PART_BYTES // 256)
    (tmp_path / "file").write_bytes(content)
    network.cuts = [PART_BYTES // 2, PART_BYTES, PART_BYTES]
    place = open_place(bucket_url)
    place.write_file("file", tmp_path / "file")
    assert network.num_cut == 3
    assert place.read("file") == content


def test_a_network_that_is_gone_ends_the_job_and_not_the_store(
    tmp_path: Path,
    bucket_url: str,
    pairs: list[Pair],
    network: Network,
    monkeypatch: Any,  # noqa: ANN401
) -> None:
    monkeypatch.setattr(clients, "MAX_WRITE_RETRIES", 2)
    monkeypatch.setattr(clients, "MAX_RETRIES", 2)

    def break_down(key: str) -> None:
        if key == "4":
            network.cuts = [1] * 10_000

    with pytest.raises(UnreachableError, match=f"{bucket_url}.*run the same command again"):
        run(bucket_url, pairs, Acts(break_down))
    network.cuts = []
    assert list(read_receipts(open_place(bucket_url))) == [0]
    assert run(bucket_url, pairs).shards_written == 2, "the lock it couldn't give back is free"
    run(tmp_path / "out", pairs)
    assert content_of(bucket_url) == content_of(tmp_path / "out")


def shard_names(place: Place) -> list[str]:
    return [f"shards/{name}" for name in place.names("shards")]


@pytest.mark.parametrize("is_repaired", [False, True], ids=["left", "repaired"])
@pytest.mark.parametrize("stage", ["files", "receipt"])
@pytest.mark.parametrize("form", [ZARR, WEBDATASET], ids=["zarr", "tars"])
def test_a_shard_without_its_receipt_does_not_count(
    tmp_path: Path,
    bucket_url: str,
    pairs: list[Pair],
    form: Form,
    stage: str,
    is_repaired: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = receipt_name(1)
    kept = {
        "files": lambda name: name not in ("shards/000001/extent/zarr.json", "000001.tar"),
        "receipt": lambda name: name != second,
    }[stage]
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "write_file", drop(kept=kept))
        with pytest.raises(KeyboardInterrupt):
            run(bucket_url, pairs, form=form)
    place = open_place(bucket_url)
    assert list(read_receipts(place)) == [0]
    left = {"shards/000001", "000001.tar"} & {*place.names(), *shard_names(place)}
    assert bool(left) == (form is ZARR or stage == "receipt")
    if is_repaired:
        assert set(verify_store(bucket_url, repair=True).leftovers) == left
        assert not left & {*place.names(), *shard_names(place)}
        assert list(read_receipts(place)) == [0], "the shard that counts is left alone"
    assert run(bucket_url, pairs, form=form).shards_written == 2
    assert verify_store(bucket_url).leftovers == []
    run(tmp_path / "out", pairs, form=form)
    assert content_of(bucket_url) == content_of(tmp_path / "out")


def test_a_killed_job_goes_on(
    tmp_path: Path,
    bucket_url: str,
    pairs: list[Pair],
    network: Network,
    samprior: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the middle of the upload of its second shard."""
    arguments = [*command(tmp_path), "--workers", 0, "--out"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    write = [sys.executable, "-m", "samprior.cli", *map(str, arguments), bucket_url]
    process = subprocess.Popen(write, env={**os.environ, "TMPDIR": str(scratch)})
    place = open_place(bucket_url)

    def is_in_second() -> bool:
        return any(name.startswith("shards/000001/") for name in place.sizes())

    try:
        while not is_in_second():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        network.is_held = True
    finally:
        process.kill()
        process.wait()
    network.is_held = False
    there = len(read_receipts(place))
    assert there < 3
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert list(scratch.iterdir()), "what it had written, and not sent"
    code, out, err = samprior(*arguments, bucket_url)
    assert code == 0, err
    assert f"{3 - there} shard" in out
    assert list(scratch.iterdir()) == []
    samprior(*arguments, tmp_path / "out")
    assert content_of(bucket_url) == content_of(tmp_path / "out")


def test_scratch_of_a_writer_at_work_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{uploads.SCRATCH}dead").mkdir()
    (tmp_path / f"{uploads.SCRATCH}file").write_bytes(b"somebody's")
    with uploads._scratch_folder() as first:
        assert not (tmp_path / f"{uploads.SCRATCH}dead").exists()
        with uploads._scratch_folder() as second:
            assert first != second
            assert first.is_dir()
        assert first.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [f"{uploads.SCRATCH}file"]


# Two jobs


def test_the_second_of_two_jobs_is_refused(
    tmp_path: Path, bucket_url: str, pairs: list[Pair]
) -> None:
    refused = []

    def run_another(key: str) -> None:
        if key == "3":
            with pytest.raises(BusyError, match=f"process {os.getpid()}, since") as caught:
                run(bucket_url, pairs)
            refused.append(caught)

    run(bucket_url, pairs, Acts(run_another))
    assert len(refused) == 1
    run(tmp_path / "out", pairs)
    assert content_of(bucket_url) == content_of(tmp_path / "out")


def test_a_job_whose_lock_was_taken_over_stops(
    bucket_url: str, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.02)
    place = open_place(bucket_url)
    hold: list[locks.Hold[Any]] = []
    taken = locks._taken

    def keep(*arguments: Any) -> locks.Hold[Any]:  # noqa: ANN401
        hold.append(taken(*arguments))
        return hold[-1]

    monkeypatch.setattr(locks, "_taken", keep)

    def take_over(key: str) -> None:
        if key != "3":
            return
        other = Holder.this()
        place.write(LOCK, other.to_json())
        for _ in range(3000):
            if hold[0]._new_holder is not None:
                return
            time.sleep(0.01)

    with pytest.raises(BusyError, match="taken over"):
        run(bucket_url, pairs, Acts(take_over))
    assert list(read_receipts(place)) == [0]
