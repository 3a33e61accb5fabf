"""Fetching checkpoints: whatever the server does, the cache holds the right file or none."""

import hashlib
import http.server
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from samprior.pipeline.checkpoints import (
    CHECKPOINTS,
    OfficialCheckpoint,
    checkpoint_digest,
    default_cache,
    fetch_checkpoint,
)
from samprior.storage.errors import CheckpointError, UsageError

CONTENT = bytes(range(256)) * 12_000  # three pieces of 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
RIGHT = {"tiny": OfficialCheckpoint("tiny.pth", DIGEST[:6])}
WRONG = {"tiny": OfficialCheckpoint("tiny.pth", "000000")}


@dataclass
class Server:
    """What the loopback server does, and what it was asked."""

    url: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes sent by each of the next answers
    length: bool = True
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    plan = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            plan.asked.append(asked)
            if self.path != "/files/tiny.pth":
                self.send_error(404)
                return
            start = int(asked[6:-1]) if asked and plan.ranges else 0
            if start and start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
                self.send_header("Content-Range", span)
            if plan.length:
                self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            stop = start + plan.cuts.pop(0) if plan.cuts else len(CONTENT)
            self.wfile.write(CONTENT[start:stop])

        def log_message(self, *args: object) -> None:
            pass

    class Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    with Threads(("127.0.0.1", 0), Handler) as httpd:
        plan.url = f"http://127.0.0.1:{httpd.server_address[1]}/files/"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield plan
        httpd.shutdown()
        thread.join()


def fetch(server: Server, cache: Path, **options: object) -> Path:
    return fetch_checkpoint(
        "tiny",
        cache=cache,
        base_url=server.url,
        **({"checkpoints": RIGHT} | options),  # type: ignore[arg-type]
    )


def parts(cache: Path) -> list[str]:
    return [file.name for file in cache.glob("*.part")]


def test_official_names_carry_the_digits_they_are_checked_against() -> None:
    for model, official in CHECKPOINTS.items():
        assert official.file == f"sam_{model}_{official.sha256_prefix}.pth"


def test_downloads_once_and_tells_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(server, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert fetch(server, tmp_path / "new") == path
    assert server.asked == [None]
    assert checkpoint_digest(path) == DIGEST


def test_goes_on_where_the_connection_was_cut(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]
    assert parts(tmp_path) == []


def test_a_later_call_goes_on_with_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0]
    with pytest.raises(CheckpointError, match="cut off"):
        fetch(server, tmp_path)
    assert (tmp_path / "tiny.pth.part").stat().st_size == 1_000_000
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000000-"


def test_starts_over_with_a_server_that_ignores_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1_000_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_gives_up_when_no_attempt_gets_farther(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1_000_000] * 9
    with pytest.raises(CheckpointError, match="cut off"):
        fetch(server, tmp_path)
    assert len(server.asked) == 2


def test_a_server_that_tells_no_length_is_judged_by_the_digest(
    server: Server, tmp_path: Path
) -> None:
    server.length = False
    assert fetch(server, tmp_path / "whole").read_bytes() == CONTENT
    server.cuts = [1000]
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch(server, tmp_path / "cut")
    assert parts(tmp_path / "cut") == []


def test_a_complete_part_file_needs_no_byte_more(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_digest_deletes_what_arrived(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        fetch(server, tmp_path, checkpoints=WRONG)
    assert DIGEST[:12] in str(caught.value)
    assert "000000" in str(caught.value)
    assert not (tmp_path / "tiny.pth").exists()
    assert parts(tmp_path) == []


@pytest.mark.parametrize("junk", [CONTENT + b"more", b"\0" * 1000])
def test_a_part_file_of_something_else_is_found_out(
    server: Server, tmp_path: Path, junk: bytes
) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(junk)
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_checked(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    path.write_bytes(CONTENT)
    assert fetch(server, tmp_path) == path
    path.write_bytes(b"damaged later")
    with pytest.raises(CheckpointError, match="delete it"):
        fetch(server, tmp_path)
    assert path.read_bytes() == b"damaged later"
    assert server.asked == []


def test_without_a_server_the_message_says_what_else_there_is(tmp_path: Path) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as free:
        port = free.server_address[1]
    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint(
            "tiny", cache=tmp_path, base_url=f"http://127.0.0.1:{port}", checkpoints=RIGHT
        )
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"127.0.0.1:{port}/tiny.pth", str(tmp_path / "tiny.pth"), "superpixel"):
        assert part in message


def test_not_found_names_the_status(server: Server, tmp_path: Path) -> None:
    lost = {"tiny": OfficialCheckpoint("lost.pth", "000000")}
    with pytest.raises(CheckpointError, match="HTTP 404"):
        fetch(server, tmp_path, checkpoints=lost)


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(server, tmp_path), range(2)))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_cache_that_can_not_be_written_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"can't keep tiny\.pth"):
        fetch(server, tmp_path / "file")


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(UsageError, match="vit_h, vit_l, vit_b"):
        fetch_checkpoint("vit_x")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPRIOR_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_cache() == Path("/a")
    monkeypatch.delenv("SAMPRIOR_CACHE")
    assert default_cache() == Path("/b/samprior")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "samprior"
