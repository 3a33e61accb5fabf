"""Serve the pages of a viewer to a browser on this machine, and to nobody else.

It listens on 127.0.0.1 alone. Requests must name this machine as their host, or a page of some
other site could read the answers by pointing its own name here (DNS rebinding). Only the viewer's
pages are served: no path leads to a file.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from samprior.storage.errors import SampriorError, UsageError
from samprior.storage.viewer import Viewer

ADDRESS = "127.0.0.1"
_HOSTS = {"127.0.0.1", "localhost"}
_TIMEOUT_S = 30.0


@contextmanager
def page_server(viewer: Viewer, *, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server that is bound; `serve_forever` answers. Port 0 takes any that is free.

    Raises:
        UsageError: the port is taken, or not for everybody.
    """

    class Handler(_Handler):
        pages = viewer

    try:
        server = _Server((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(f"port {port} can't be used ({error}); leave --port out") from error
    try:
        yield server
    finally:
        server.server_close()


def url_of(server: ThreadingHTTPServer) -> str:
    """The address to open."""
    return f"http://{ADDRESS}:{server.server_port}/"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  # its types
        """Tell what went wrong, unless the browser hung up: who leafs on quickly does that."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    pages: Viewer
    timeout = _TIMEOUT_S
    server_version = "samprior"
    sys_version = ""

    def do_GET(self) -> None:  # http.server's name
        """Answer with a page."""
        self._answer()

    def do_HEAD(self) -> None:  # http.server's name
        """Answer with the headers of a page."""
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        if not self._is_for_us():
            self._send(HTTPStatus.FORBIDDEN, b"this server answers its own machine alone\n")
            return
        name = self.path.partition("?")[0].removeprefix("/") or "index.html"
        try:
            page = self.pages.page(name)
        except (SampriorError, OSError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode("utf-8", "replace"))
            return
        if page is None:
            self._send(HTTPStatus.NOT_FOUND, b"no such page\n")
            return
        self._send(HTTPStatus.OK, page, kind="text/html")

    def _is_for_us(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        return len(hosts) == 1 and hosts[0].partition(":")[0].lower() in _HOSTS

    def _send(self, status: HTTPStatus, body: bytes, *, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
