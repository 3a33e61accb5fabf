"""Folders on disk and in object stores give the same answers, in any thread and process.

The object store is moto, a server on this machine that speaks S3; requests to it are counted, and
can be made to fail.
"""

import json
import multiprocessing
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import ObjectStore

from samprior.storage import MaskStore, clients, manifest, remote
from samprior.storage.errors import StoreError, UnreachableError, UsageError
from samprior.storage.manifest import read_header, read_receipt, read_receipts, receipt_file
from samprior.storage.places import LocalFolder, Place, open_place

CONTENT = bytes(range(256)) * 8192
"""2 MiB; the byte at i is i % 256."""

FILES = {"tiles": CONTENT, "zarr.json": b"{}", "below/a b#?%20.é": b"odd", "below/deep/x": b""}

Environ = dict[str, Any]
Respond = Callable[..., Any]
Answer = Callable[[Environ, Respond], Iterable[bytes]]


class Server:
    """moto's S3 on loopback, with a list of the requests it got and a way to let some fail."""

    def __init__(self) -> None:
        pytest.importorskip("obstore")
        flask_app = pytest.importorskip("moto.server")
        serving = pytest.importorskip("werkzeug.serving")

        class Quiet(serving.WSGIRequestHandler):  # type: ignore[misc, name-defined]
            protocol_version = "HTTP/1.1"  # connections stay open, as those of real servers

            def log(self, *_: object) -> None:
                pass

        self.requests: list[str] = []
        self.failures: list[Answer] = []
        """Each answers one request, in place of the store."""
        self._app = flask_app.DomainDispatcherApplication(flask_app.create_backend_app)
        self._server = serving.make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet
        )
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: Environ, start_response: Respond) -> Iterable[bytes]:
        byte_range = environ.get("HTTP_RANGE", "")
        self.requests.append(f"{environ['REQUEST_METHOD']} {byte_range}".strip())
        if self.failures:
            return self.failures.pop()(environ, start_response)
        return self._app(environ, start_response)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def upload(self, url: str, content: bytes) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        obstore = clients.load_obstore("s3")
        obstore.put(clients.Bucket("s3", bucket).client(obstore), key, content)


def dropped(environ: Environ, _: object) -> list[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return []


def unavailable(_: object, start_response: Respond) -> list[bytes]:
    start_response("503 Slow Down", [("Content-Length", "0")])
    return []


def forbidden(_: object, start_response: Respond) -> list[bytes]:
    body = b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    start_response("403 Forbidden", [("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    urlopen(Request(f"{server.url}/bucket", method="PUT")).close()
    yield server
    server.close()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, named by the environment as users name theirs."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    server.failures.clear()
    return server


@pytest.fixture
def remote_url(s3: Server, tmp_path: Path) -> str:
    """A remote folder that holds `FILES`."""
    url = f"s3://bucket/{tmp_path.name}"
    for name, content in FILES.items():
        s3.upload(f"{url}/{name}", content)
    s3.requests.clear()
    return url


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    for name, content in FILES.items():
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return str(tmp_path / "folder")


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest) -> Place:
    return open_place(request.getfixturevalue(f"{request.param}_url"))


# What a place gives


def test_files_come_back(place: Place) -> None:
    for name, content in FILES.items():
        assert place.read(name) == content
        assert place.size(name) == len(content)
    assert place.read_many(list(FILES)) == list(FILES.values())
    assert place.read_many([]) == []


def test_folders_are_listed(place: Place) -> None:
    assert place.names() == ["below", "tiles", "zarr.json"]
    assert place.names("below") == ["a b#?%20.é", "deep"]
    assert place.below("below").names("deep") == ["x"]
    assert place.sizes() == {name: len(FILES[name]) for name in sorted(FILES)}
    assert place.below("below").sizes() == {"a b#?%20.é": 3, "deep/x": 0}


def test_a_missing_folder_is_empty(place: Place) -> None:
    assert place.names("nothing") == []
    assert place.below("nothing").sizes() == {}
    assert place.below("tile").names() == [], "half a name is no folder"


def test_a_folder_below_is_a_place(place: Place) -> None:
    below = place.below("below").below("deep")
    assert below.url == f"{place.url}/below/deep"
    assert below.read("x") == b""
    assert (below.local is None) == (place.local is None)


def test_ranges_come_in_the_order_asked(place: Place) -> None:
    ranges = [(2_000_000, 2_000_010), (5, 9), (7, 30), (5, 5), (0, 300), (2_097_150, 2_097_152)]
    pieces = place.read_ranges("tiles", ranges)
    assert pieces == [CONTENT[start:stop] for start, stop in ranges]
    assert {type(piece) for piece in pieces} == {bytes}
    assert place.read_ranges("tiles", []) == []
    assert place.read_ranges("tiles", [(4, 4)]) == [b""]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.integers(0, len(CONTENT))] * 2).map(sorted), max_size=8))
def test_any_ranges(remote_url: str, ranges: list[list[int]]) -> None:
    wanted = [(start, stop) for start, stop in ranges]
    pieces = open_place(remote_url).read_ranges("tiles", wanted)
    assert pieces == [CONTENT[start:stop] for start, stop in wanted]


def test_the_end_of_a_file(place: Place) -> None:
    assert place.read_end("tiles", 20) == CONTENT[-20:]
    assert place.read_end("zarr.json", 2) == b"{}"


# What it refuses


def test_a_file_that_is_not_there(place: Place) -> None:
    for reading in (
        lambda: place.read("nothing"),
        lambda: place.read_many(["tiles", "nothing"]),
        lambda: place.read_ranges("nothing", [(0, 1)]),
        lambda: place.read_end("nothing", 1),
        lambda: place.size("nothing"),
    ):
        with pytest.raises(FileNotFoundError, match=f"{place.url}/nothing"):
            reading()


@pytest.mark.parametrize(
    "span", [(len(CONTENT) - 1, len(CONTENT) + 1), (3_000_000, 3_000_001), (-1, 5), (6, 5)]
)
def test_bytes_that_are_not_there(place: Place, span: tuple[int, int]) -> None:
    with pytest.raises(StoreError, match=f"{place.url}/tiles") as caught:
        place.read_ranges("tiles", [(0, 1), span, (2_000_000, 2_000_001)])
    assert not isinstance(caught.value, UnreachableError)


def test_an_end_longer_than_the_file(place: Place) -> None:
    with pytest.raises(StoreError, match="has 2 bytes, fewer than the 3"):
        place.read_end("zarr.json", 3)


@pytest.mark.parametrize("name", ["../secret", "below/../../x", "/etc/passwd", "a//b", ".", "a\0"])
def test_names_stay_inside(place: Place, name: str) -> None:
    for reading in (place.read, place.size, place.below, place.names):
        with pytest.raises(StoreError, match="does not lie below"):
            reading(name)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("ftp://server/store", "s3://, gs://, az:// or file://"),
        ("file://server/store", "s3://, gs://, az:// or file://"),
        ("s3://", "needs a bucket"),
        ("s3:///store", "needs a bucket"),
        ("gs://no such bucket/store", "needs a bucket"),
        ("az://", "needs a container and a folder, as in az://container/folder"),
        ("abfss://container@account/store", "not abfss://account; mount"),
    ],
)
def test_urls_that_name_no_place(url: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        open_place(url)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(UsageError, match="environment") as caught:
        open_place("s3://key:secret@bucket/store")
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="az:// or file://") as caught:
        open_place("hdfs://key:secret@server/store")
    assert "secret" not in str(caught.value)


def test_ways_to_name_a_place(local_url: str, remote_url: str) -> None:
    for where in (local_url, Path(local_url), f"file://{local_url}", LocalFolder(Path(local_url))):
        place = open_place(where)
        assert place.local == Path(local_url)
        assert place.url == local_url
    far = open_place(f"{remote_url}/")
    assert far.url == remote_url
    assert far.local is None
    assert open_place(far) is far
    assert open_place("s3://bucket").read(f"{remote_url.removeprefix('s3://bucket/')}/zarr.json")


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    place = open_place("s3://bucket/store")
    with pytest.raises(UsageError, match=r"pip install 'samprior\[remote\]'"):
        place.read("zarr.json")


# Requests


def test_near_ranges_share_a_request(remote_url: str, s3: Server) -> None:
    place = open_place(remote_url)
    near = [(i * 100_000, i * 100_000 + 1000) for i in range(10)]
    place.read_ranges("tiles", near)
    assert s3.requests == ["GET bytes=0-900999"]
    s3.requests.clear()
    far = 1000 + remote.NEAR_BYTES
    pieces = place.read_ranges("tiles", [(far, far + 1), (0, 1000), (5, 6)])
    assert sorted(s3.requests) == ["GET bytes=0-999", f"GET bytes={far}-{far}"]
    assert pieces == [CONTENT[far : far + 1], CONTENT[:1000], CONTENT[5:6]]


def test_what_needs_one_request_or_none(remote_url: str, s3: Server) -> None:
    place = open_place(remote_url)
    place.below("below")
    place.read_ranges("tiles", [(4, 4)])
    assert s3.requests == []
    place.read_end("tiles", 20)
    place.sizes()
    place.names()
    place.size("tiles")
    assert s3.requests == ["GET bytes=-20", "GET", "GET", "HEAD"]


def test_many_files_are_fetched_together(remote_url: str, s3: Server) -> None:
    """Four requests that are answered only once all four are there."""
    together = threading.Barrier(4)

    def wait(environ: Environ, start_response: Respond) -> Iterable[bytes]:
        together.wait(timeout=60)
        return s3._app(environ, start_response)

    s3.failures.extend([wait] * 4)
    assert open_place(remote_url).read_many(["zarr.json"] * 4) == [b"{}"] * 4
    assert not together.broken


# Failures of the network


@pytest.mark.parametrize("failure", [dropped, unavailable])
def test_what_passes_is_tried_again(remote_url: str, s3: Server, failure: Answer) -> None:
    place = open_place(remote_url)
    s3.failures.append(failure)
    assert place.read_ranges("tiles", [(3, 7)]) == [CONTENT[3:7]]
    assert len(s3.requests) == 2
    s3.failures.append(failure)
    assert place.names("below/deep") == ["x"]


def test_half_an_answer_is_no_answer(remote_url: str, s3: Server) -> None:
    def half(environ: Environ, start_response: Respond) -> Iterator[bytes]:
        body = b"".join(s3._app(environ, start_response))
        yield body[: len(body) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

    place = open_place(remote_url)
    s3.failures.append(half)
    assert place.read("tiles") == CONTENT
    s3.failures.append(half)
    assert place.read_ranges("tiles", [(0, 1000)]) == [CONTENT[:1000]]


def test_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch, s3: Server) -> None:
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))  # so that nobody else listens there
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setattr(clients, "MAX_RETRIES", 1)
    place = open_place("s3://bucket/store")
    for reading in (place.read, place.names, place.size):
        with pytest.raises(UnreachableError, match=r"bucket/store/zarr\.json") as caught:
            reading("zarr.json")
        assert isinstance(caught.value, OSError)
        assert "\n" not in str(caught.value)
    silent.close()


def test_a_refusal_is_told_in_one_line(remote_url: str, s3: Server) -> None:
    s3.failures.append(forbidden)
    with pytest.raises(UnreachableError, match=r"403 Forbidden \(AccessDenied\)") as caught:
        open_place(remote_url).read("tiles")
    assert "\n" not in str(caught.value)
    assert "<" not in str(caught.value)


def test_missing_credentials_are_told(remote_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UnreachableError, match="Missing AccessKeyId"):
        open_place(remote_url).read("tiles")


# Threads and processes


def read_tail(place: Place) -> bytes:
    return place.read_ranges("tiles", [(10, 20)])[0] + place.read("zarr.json")


WANTED = CONTENT[10:20] + b"{}"


def set_environment(environment: dict[str, str]) -> None:
    """A fork server has the environment of its start, which may lie before this test."""
    os.environ.update(environment)


def test_threads_share_a_place(place: Place) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read_tail, [place] * 64)) == {WANTED}


def test_a_place_can_be_pickled(place: Place) -> None:
    before = pickle.dumps(place)
    assert read_tail(place) == WANTED
    assert len(pickle.dumps(place)) == len(before), "clients don't travel"
    copy = pickle.loads(before)
    assert copy.url == place.url
    assert read_tail(copy) == WANTED


# Python 3.12 and later warn of any fork in a process that has threads.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes_read(place: Place, method: str) -> None:
    """Also those forked from a process that has read before, as data loaders do."""
    assert read_tail(place) == WANTED
    context = multiprocessing.get_context(method)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with ProcessPoolExecutor(
        2, mp_context=context, initializer=set_environment, initargs=(environment,)
    ) as workers:
        assert set(workers.map(read_tail, [place] * 4, timeout=120)) == {WANTED}
    assert read_tail(place) == WANTED


def forked(work: Callable[[], bytes]) -> bytes:
    """What `work` returns in a forked process; what it raises, as text."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            sender.send_bytes(work())
        except BaseException as error:
            sender.send_bytes(repr(error).encode())
        os._exit(0)
    assert receiver.poll(120), "the forked process hangs"
    answer = receiver.recv_bytes()
    os.waitpid(child, 0)
    return answer


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_of_a_fork_reads(remote_url: str, s3: Server) -> None:
    """By the very place of its grandparent, whose connections stay open and whole."""
    place = open_place(remote_url)
    assert read_tail(place) == WANTED
    assert forked(lambda: read_tail(place) + forked(lambda: read_tail(place))) == WANTED * 2
    s3.requests.clear()
    assert read_tail(place) == WANTED
    assert len(s3.requests) == 2, "the parent's reads go through at the first try"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_threads_read(remote_url: str) -> None:
    place = open_place(remote_url)
    done = threading.Event()

    def read_on() -> None:
        while not done.is_set():
            assert read_tail(place) == WANTED

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read_on) for _ in range(4)]
        try:
            assert [forked(lambda: read_tail(place)) for _ in range(5)] == [WANTED] * 5
        finally:
            done.set()
        for reader in readers:
            reader.result()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_that_can_not_load_the_library_again_says_so(
    remote_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_place(remote_url)
    assert read_tail(place) == WANTED

    def refuse(*_: object) -> str:
        raise OSError("no room")

    monkeypatch.setattr(clients.shutil, "copy", refuse)
    told = forked(lambda: read_tail(place))
    assert b"UsageError" in told
    assert b"spawn" in told


# Google's store


def test_gs_urls_are_read(remote_url: str, s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its protocol is S3's in all that is needed here, but for slashes in keys, and the login."""

    def answer(environ: Environ, start_response: Respond) -> Iterable[bytes]:
        environ["RAW_URI"] = environ["REQUEST_URI"] = environ["RAW_URI"].replace("%2F", "/")
        environ["HTTP_AUTHORIZATION"] = "AWS anyone:anything"
        return s3._app(environ, start_response)

    login = {"gcs_base_url": s3.url, "disable_oauth": True}
    login |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(login))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    s3.failures.extend([answer] * 10)
    place = open_place(remote_url.replace("s3://", "gs://"))
    assert place.url.startswith("gs://bucket/")
    assert place.names() == ["below", "tiles", "zarr.json"]
    assert read_tail(place) == WANTED
    assert place.read_end("tiles", 3) == CONTENT[-3:]
    assert place.size("tiles") == len(CONTENT)


# The manifest of a remote store


def upload_folder(s3: Server, folder: Path, url: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            s3.upload(f"{url}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    s3.requests.clear()


@pytest.fixture
def far_store(s3: Server, tmp_path: Path, make_store: Callable[..., Any]) -> tuple[Path, str]:
    """A store of three shards, on disk and in the bucket."""
    make_store(tmp_path / "store")
    url = f"s3://bucket/{tmp_path.name}/store"
    upload_folder(s3, tmp_path / "store", url)
    return tmp_path / "store", url


def test_manifest_is_read_from_afar(
    far_store: tuple[Path, str], s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, url = far_store
    place = open_place(url)
    assert read_header(place) == read_header(root)
    assert read_receipts(place) == read_receipts(root)
    assert len(s3.requests) == 1 + 1 + 3, "header, list, receipts"
    monkeypatch.setattr(manifest, "RECEIPTS_AT_ONCE", 2)
    assert read_receipts(place) == read_receipts(root)
    assert read_receipt(place, 1) == read_receipt(root, 1)


def test_a_store_is_read_from_afar(far_store: tuple[Path, str], s3: Server) -> None:
    root, url = far_store
    near, far = MaskStore.open(root), MaskStore.open(url)
    assert far.keys == near.keys
    for index, record in enumerate(near):
        other = far[index]
        assert np.array_equal(other.clean, record.clean)
        assert np.array_equal(other.degraded, record.degraded)
        assert other.masks.equals(record.masks)
    before = len(s3.requests)
    crop, wanted = far.crop(0, 3, 5, 20, 30), near.crop(0, 3, 5, 20, 30)
    assert crop.masks.equals(wanted.masks)
    assert len(s3.requests) - before == 2, "a piece of each picture; the atoms were kept"
    with pytest.raises(UsageError, match="is in an object store"):
        _ = far.root


def test_plain_zarr_reads_from_afar(far_store: tuple[Path, str], s3: Server) -> None:
    root, url = far_store
    obstore = clients.load_obstore("s3")
    bucket = obstore.store.S3Store(
        "bucket",
        prefix=f"{url.removeprefix('s3://bucket/')}/shards/000001",
        client_options={"allow_http": True},
    )
    far = zarr.open_group(ObjectStore(bucket, read_only=True), mode="r")
    near = zarr.open_group(root / "shards" / "000001", mode="r")
    assert sorted(far.array_keys()) == sorted(near.array_keys())
    for name, array in near.arrays():
        assert np.array_equal(np.asarray(far[name]), np.asarray(array[...]))


def test_strange_files_among_receipts_are_passed_over(
    far_store: tuple[Path, str], s3: Server
) -> None:
    root, url = far_store
    for name in (
        "notes.txt",
        "1.json",
        "\u0660\u0660\u0660\u0660\u0660\u0667.json",
        ".000000.json.1234.part",
        "old/000009.json",
    ):
        s3.upload(f"{url}/receipts/{name}", b"{}")
    assert read_receipts(open_place(url)) == read_receipts(root)


def test_damage_names_the_remote_file(far_store: tuple[Path, str], s3: Server) -> None:
    root, url = far_store
    s3.upload(f"{url}/receipts/000001.json", receipt_file(root, 0).read_bytes())
    with pytest.raises(StoreError, match=f"{url}/receipts/000001.json is the receipt of shard 0"):
        read_receipts(open_place(url))
    with pytest.raises(StoreError, match=f"{url}/elsewhere is no samprior store"):
        read_header(open_place(f"{url}/elsewhere"))
    with pytest.raises(StoreError, match=r"000007\.json"):
        read_receipt(open_place(url), 7)


def test_a_silent_server_is_no_damaged_store(far_store: tuple[Path, str], s3: Server) -> None:
    place = open_place(far_store[1])
    for reading in (read_header, read_receipts):
        s3.failures.append(forbidden)
        with pytest.raises(UnreachableError, match="403"):
            reading(place)
