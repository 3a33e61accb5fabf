"""The pages of `inspect --serve`: true, for this machine alone, and working in a browser."""

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from samprior.storage import MaskStore
from samprior.storage.errors import UsageError
from samprior.storage.serving import page_server, url_of
from samprior.storage.viewer import IMAGES_PER_LIST, Viewer, image_name, list_name, write_pages

MakeStore = Callable[..., MaskStore]
Samprior = Callable[..., tuple[int, str, str]]


@pytest.fixture
def viewer(make_store: MakeStore, tmp_path: Path) -> Viewer:
    shapes = [(64, 96), (40, 56), (56, 40), (64, 64), (90, 120)]
    return Viewer(
        make_store(tmp_path / "one", shapes), make_store(tmp_path / "two", shapes[:3], seed=9)
    )


@pytest.fixture
def address(viewer: Viewer) -> Iterator[tuple[str, int]]:
    with page_server(viewer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield "127.0.0.1", server.server_port
        server.shutdown()
        thread.join()


def ask(
    address: tuple[str, int], path: str, *, method: str = "GET", host: str | None = None
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{address[1]}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, answer.headers


def test_every_page_that_is_named_is_there_and_no_other(viewer: Viewer) -> None:
    names = list(viewer.names())
    assert names[0] == "index.html"
    assert len(names) == len(set(names)) == 6
    for name in names:
        page = viewer.page(name)
        assert page is not None
        text = page.decode()
        # Links lead to pages of the viewer, and nothing is loaded from elsewhere.
        for link in re.findall(r'href="([^"]*)"', text):
            assert link in names
    for name in ("image-1.html", "image-000009.html", "index-2.html", "index-1.html", "../one", ""):
        assert viewer.page(name) is None, name


def test_what_the_page_draws_are_the_masks(viewer: Viewer) -> None:
    """Runs and members, put together again, give every mask back."""
    page = viewer.page(image_name(3))
    assert page is not None
    texts = [part.partition("</script>")[0] for part in page.decode().split('application/json">')]
    data = json.loads(texts[1])
    masks = viewer.store[3].masks
    atoms = np.repeat(data["atoms"], data["lengths"]).reshape(masks.shape)
    for number in range(len(masks)):
        inside = [number in members for members in data["members"]]
        assert np.array_equal(np.array(inside)[atoms], masks.mask(number))
    assert f"{int(masks.areas[0]):,}" in page.decode()
    assert f"{float(masks.columns['predicted_iou'][0]):.3f}" in page.decode()


def test_keys_are_escaped_and_long_lists_have_pages(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samprior.storage import viewer as module

    monkeypatch.setattr(module, "IMAGES_PER_LIST", 2)
    store = make_store(tmp_path / "<b>store", [(16, 16)] * 5)
    viewer = Viewer(store)
    assert [list_name(number) for number in range(viewer.num_lists)] == [
        "index.html", "index-2.html", "index-3.html",
    ]  # fmt: skip
    page = viewer.page("index-3.html")
    assert page is not None
    assert b"<b>store" not in page
    assert b"images/004" in page
    assert b"images/003" not in page
    assert IMAGES_PER_LIST == 200


def test_a_long_list_links_to_its_ends_and_neighbours(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the pages of a store would grow with the square of its images; all can be reached."""
    from samprior.storage import viewer as module

    monkeypatch.setattr(module, "IMAGES_PER_LIST", 1)
    monkeypatch.setattr(module, "_LISTS_NEAR", 1)
    viewer = Viewer(make_store(tmp_path / "store", [(16, 16)] * 9))
    page = viewer.page("index-5.html")
    assert page is not None
    nav = re.sub(r"<[^>]*>", "", page.decode().partition("<nav")[2].partition("</nav>")[0])
    assert nav.partition(">")[2].split() == ["1", "…", "4", "5", "6", "…", "9"]


def test_pages_are_written_whole_to_a_new_folder(viewer: Viewer, tmp_path: Path) -> None:
    index = write_pages(viewer, tmp_path / "pages")
    assert sorted(file.name for file in index.parent.iterdir()) == sorted(viewer.names())
    for file in index.parent.iterdir():
        assert file.read_bytes() == viewer.page(file.name)
    with pytest.raises(UsageError, match="there already"):
        write_pages(viewer, tmp_path / "pages")


def test_stores_without_a_common_image_are_refused(make_store: MakeStore, tmp_path: Path) -> None:
    one = make_store(tmp_path / "one")
    with pytest.raises(UsageError, match="none of the images"):
        Viewer(one, MaskStore.open(make_empty(tmp_path / "none", make_store)))


def make_empty(root: Path, make_store: MakeStore) -> Path:
    make_store(root, [(16, 16)])
    (root / "receipts" / "000000.json").unlink()
    return root


def test_the_server_answers_with_the_pages(viewer: Viewer, address: tuple[str, int]) -> None:
    for path, name in (("/", "index.html"), ("/image-000002.html?x=1", "image-000002.html")):
        status, body, headers = ask(address, path)
        assert status == 200
        assert body.encode() == viewer.page(name)
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
    status, body, headers = ask(address, "/", method="HEAD")
    assert (status, body) == (200, "")

    # No client may read the body of an answer to HEAD, of errors neither: see it on the wire.
    with socket.create_connection(address) as wire:
        wire.sendall(b"HEAD /none.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: wire.recv(4096), b""))
    assert b" 404 " in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_browser_that_hangs_up_is_no_news(
    viewer: Viewer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Leafing on before a page is there breaks the connection off; the terminal stays quiet."""

    class Slow(Viewer):
        def page(self, name: str) -> bytes:
            assert gone.wait(60)
            return b"x" * 20_000_000

    gone = threading.Event()
    with page_server(Slow(viewer.store)) as server:
        # Answers in this thread, so that all is told when it returns.
        wire = socket.create_connection(("127.0.0.1", server.server_port))
        wire.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()
        gone.set()
        server.process_request_thread(*server.get_request())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_requests_for_another_host_are_refused(address: tuple[str, int], host: str) -> None:
    status, body, _ = ask(address, "/", host=host)
    assert status == 403
    assert "images/" not in body


@pytest.mark.parametrize(
    "path",
    [
        "/../one/zarr.json",
        "/zarr.json",
        "/%2e%2e/one/zarr.json",
        "//etc/passwd",
        "/image-000001.html/../../one/zarr.json",
        "http://127.0.0.1/zarr.json",
    ],
)
def test_nothing_but_pages_is_served(address: tuple[str, int], path: str) -> None:
    assert ask(address, path)[0] == 404
    assert ask(address, "/", method="POST")[0] == 501


def test_it_listens_on_this_machine_alone(viewer: Viewer) -> None:
    with page_server(viewer) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert url_of(server).startswith("http://127.0.0.1:")
        with (
            pytest.raises(UsageError, match="--port"),
            page_server(viewer, port=server.server_port),
        ):
            pass


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(signal.SIGINT, 0, ""), (signal.SIGTERM, 143, "samprior: ended by SIGTERM\n")],
)
def test_the_command_serves_until_it_is_ended(
    viewer: Viewer, number: signal.Signals, code: int, told: str
) -> None:
    command = [sys.executable, "-m", "samprior.cli", "inspect", viewer.store.url, "--serve"]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port = int(json.loads(process.stdout.readline())["url"].rstrip("/").rpartition(":")[2])
    assert ask(("127.0.0.1", port), "/")[0] == 200
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == code
    assert err == told


def test_options_that_do_not_go_together_are_refused(
    samprior: Samprior, viewer: Viewer, tmp_path: Path
) -> None:
    store = viewer.store.url
    for options in (
        ("--serve", "--out", tmp_path / "x"),
        ("--port", "8000"),
        ("--against", store),
        ("--pages", "--num-images", 3),
    ):
        code, _, err = samprior("inspect", store, *options)
        assert code == 2, options
        assert "goes with" in err or "without it" in err or "is for" in err
    code, out, err = samprior(
        "inspect", store, "--pages", "--against", store, "-o", tmp_path / "pages"
    )
    assert code == 0, err
    assert out.strip() == str(tmp_path / "pages" / "index.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    module = load_browser()
    program = module.find_chromium()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(module.NAMES)} is installed")
    with module.open_browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def load_browser() -> ModuleType:
    file = Path(__file__).with_name("browser.py")
    spec = importlib.util.spec_from_file_location("browser", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_masks_are_switched_in_a_browser(
    browser: Any,  # noqa: ANN401  # of a module without a name
    address: tuple[str, int],
    viewer: Viewer,
) -> None:
    """A real Chromium: masks off and on, by their list and by a click, and on to the next image."""
    tab, value = browser, browser.evaluate
    tab.resize(1280, 1600)
    at = f"http://127.0.0.1:{address[1]}/"
    tab.open(f"{at}image-000003.html")
    count = len(viewer.store[2].masks)
    assert count == 2
    shown = "[...document.querySelectorAll('.side')].map((side) => Number(side.dataset.shown))"
    assert value(shown) == [count, 2]
    painted = (
        "(() => { const c = document.querySelector('canvas'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
    )
    masks = viewer.store[2].masks
    assert value(painted) == int(masks.to_masks().any(axis=0).sum())
    value("document.querySelector('.side .all').click()")
    assert value(shown) == [0, 2]
    assert value(painted) == 0
    value("document.querySelector('.side .all').click()")
    # The list is from large to small, so its first box is the largest mask.
    value("document.querySelector('.side tr[data-mask] input').click()")
    smallest = int(np.argsort(-masks.areas, kind="stable")[-1])
    assert value(painted) == int(masks.mask(smallest).sum())
    value("document.querySelector('.side tr[data-mask] input').click()")
    y, x = (int(each.mean()) for each in np.nonzero(masks.mask(smallest)))
    place = value(
        "(() => { const b = document.querySelector('canvas').getBoundingClientRect();"
        f" return [b.x + b.width * ({x} + .5) / {masks.shape[1]},"
        f" b.y + b.height * ({y} + .5) / {masks.shape[0]}]; }})()"
    )
    tab.click(*place)
    assert value(shown) == [count - 1, 2]
    value("document.querySelector('.swap').click()")
    assert value("document.querySelector('.frame img:not([hidden])').dataset.name") == "degraded"
    assert tab.problems() == []
    if folder := os.environ.get("SAMPRIOR_SCREENSHOTS"):
        tab.screenshot(Path(folder) / "image.png")
    tab.open(f"{at}image-000005.html")
    assert "has no such image" in value("document.body.textContent")
    tab.open(at)
    assert value("document.querySelectorAll('tbody tr').length") == 5
    if folder:
        tab.screenshot(Path(folder) / "list.png")


def test_pages_of_a_folder_work_in_a_browser(
    browser: Any,  # noqa: ANN401  # of a module without a name
    viewer: Viewer,
    tmp_path: Path,
) -> None:
    index = write_pages(viewer, tmp_path / "pages")
    browser.open(f"{index.as_uri()}")
    value = browser.evaluate
    assert value("document.querySelectorAll('tbody tr').length") == 5
    browser.open((index.parent / image_name(1)).as_uri())
    assert value("document.querySelector('.side').dataset.shown") == "1"
    assert browser.problems() == []
