"""az:// by a stand-in that answers as Azure's Blob storage does, in what is needed here."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from samprior.storage.errors import UnreachableError
from samprior.storage.places import Place, open_place
from samprior.storage.remote import RemoteFolder

pytest.importorskip("obstore")

DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


class Blobs(BaseHTTPRequestHandler):
    """Requests for `/account/container/blob`; any other container isn't there."""

    protocol_version = "HTTP/1.1"
    held: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked = parse_qs(parts.query)
        if asked.get("comp") == ["list"]:
            self.answer(200, self.listing(asked.get("prefix", [""])[0], "delimiter" in asked))
        elif (content := self.held.get(self.key)) is None:
            self.answer(404, b"", {"x-ms-error-code": "BlobNotFound"})
        else:
            self.answer(200, content, self.about(content))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        held = self.held.get(self.key)
        if not self.path.startswith("/account/box/"):
            self.answer(404, b"", {"x-ms-error-code": "ContainerNotFound"})
        elif self.headers["If-None-Match"] == "*" and held is not None:
            self.answer(409, b"", {"x-ms-error-code": "BlobAlreadyExists"})
        elif (tag := self.headers["If-Match"]) and (held is None or tag != etag(held)):
            self.answer(412, b"", {"x-ms-error-code": "ConditionNotMet"})
        else:
            self.held[self.key] = content
            self.answer(201, b"", {"ETag": etag(content)})

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path.removeprefix("/account/box/"))

    def about(self, content: bytes) -> dict[str, str]:
        return {"ETag": etag(content), "Last-Modified": DATE, "x-ms-blob-type": "BlockBlob"}

    def listing(self, prefix: str, is_flat: bool) -> bytes:
        inside = {key: key.removeprefix(prefix) for key in sorted(self.held)}
        inside = {key: rest for key, rest in inside.items() if rest != key or not prefix}
        folders = {rest.partition("/")[0] for rest in inside.values() if "/" in rest and is_flat}
        blobs = [key for key, rest in inside.items() if "/" not in rest or not is_flat]
        told = "".join(
            f"<Blob><Name>{key}</Name><Properties><Last-Modified>{DATE}</Last-Modified>"
            f"<Content-Length>{len(self.held[key])}</Content-Length>"
            f"<Content-Type>x/y</Content-Type><Etag>{etag(self.held[key])}</Etag></Properties></Blob>"
            for key in blobs
        )
        told += "".join(
            f"<BlobPrefix><Name>{prefix}{name}/</Name></BlobPrefix>" for name in sorted(folders)
        )
        return f"<EnumerationResults><Blobs>{told}</Blobs></EnumerationResults>".encode()

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:16]}"'


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Blobs)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(Blobs, "held", {})
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{server.server_port}/account")
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    yield open_place("az://box/stores/one")
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_are_written_read_and_listed(azure: Place, tmp_path: Path) -> None:
    azure.write("zarr.json", b"{}")
    (tmp_path / "file").write_bytes(b"0123456789")
    azure.write_file("shards/0/c", tmp_path / "file")
    assert azure.url == "az://box/stores/one"
    assert azure.read("zarr.json") == b"{}"
    assert azure.below("shards").read("0/c") == b"0123456789"
    assert azure.size("shards/0/c") == 10
    assert azure.names() == ["shards", "zarr.json"]
    assert azure.sizes() == {"shards/0/c": 10, "zarr.json": 2}


def test_an_object_is_swapped_only_from_what_it_is_known_to_be(azure: Place) -> None:
    assert isinstance(azure, RemoteFolder)
    first = azure.swap(".lock", b"one", None)
    assert first
    assert azure.swap(".lock", b"two", None) is None
    assert azure.read_version(".lock") == (b"one", first)
    second = azure.swap(".lock", b"two", first)
    assert second
    assert azure.swap(".lock", b"three", first) is None
    assert azure.read(".lock") == b"two"


def test_errors_name_the_object(azure: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="az://box/stores/one/none"):
        azure.read("none")
    with pytest.raises(UnreachableError, match="az://other/x/a can't be written: there is no"):
        open_place("az://other/x").write("a", b"")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(UnreachableError, match="Account must be specified"):
        open_place("az://box/x").read("a")
