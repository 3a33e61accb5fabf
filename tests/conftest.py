"""Fixtures for all tests: real data where it is there, small stores, and `--run-slow`."""

import importlib
import importlib.util
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from hypothesis import settings

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.images import write_png
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard

# A deadline would be an assertion about time. The parent is the profile chosen by hypothesis,
# which draws the same examples in every run on CI.
settings.register_profile("samprior", parent=settings(), deadline=None)
settings.load_profile("samprior")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --run-slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT as in a terminal; where the tests run in the background it is ignored, also by those
    that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real pictures and masks; tests that need it are skipped without it."""
    beside_the_repository = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SAMPRIOR_TEST_DATA", beside_the_repository))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; point SAMPRIOR_TEST_DATA to it")
    return folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """At least two threads: with one, PyTorch's resize rounds differently in the last place."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine, two threads on networks this small mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    """The scripts of benchmarks/ as modules; results and photographs are small and apart."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    names = sorted(file.stem for file in folder.glob("*.py"))
    monkeypatch.syspath_prepend(folder)
    modules = {name: importlib.import_module(name) for name in names}
    whole = modules["measure"].photographs()
    monkeypatch.setattr(modules["measure"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        modules["measure"], "photographs", lambda: [photo[80:160, 100:196] for photo in whole]
    )
    yield modules
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="session")
def docs_script() -> Iterator[Callable[[str], ModuleType]]:
    """The scripts of docs/ as modules, by name; they find each other."""
    folder = Path(__file__).resolve().parents[1] / "docs"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module
    for file in folder.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture(scope="session")
def chaos() -> Iterator[ModuleType]:
    """tests/chaos.py as a module."""
    spec = importlib.util.spec_from_file_location("chaos", Path(__file__).with_name("chaos.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["chaos"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def samprior(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command; returns its exit code, stdout and stderr."""

    from samprior.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samprior", *map(str, arguments)])
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


class MakeRecord(Protocol):
    def __call__(
        self,
        key: str = ...,
        *,
        shape: tuple[int, int] = ...,
        num_masks: int = ...,
        paired: bool = ...,
        seed: int = ...,
    ) -> Record: ...


class MakeStore(Protocol):
    def __call__(
        self,
        root: Path,
        shapes: Sequence[tuple[int, int]] = ...,
        *,
        images_per_shard: int = ...,
        paired: bool = ...,
        made_of: dict[str, Any] = ...,
        seed: int = ...,
    ) -> MaskStore: ...


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of moto on loopback, a server that speaks S3; it has the bucket `bucket`."""
    pytest.importorskip("obstore")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/bucket", method="PUT")).close()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new folder in that bucket; the environment names the server, as users name theirs."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    return f"s3://bucket/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def make_record() -> MakeRecord:
    """Make one record of random pixels and overlapping rectangles as masks."""
    return _make_record


@pytest.fixture
def make_store() -> MakeStore:
    """Write a whole store of random records `images/000`, `images/001`, ...; image i of the store
    is `make_record(key, shape=shapes[i], num_masks=i % 5, paired=paired, seed=seed + i)`.
    """
    return _make_store


def _make_record(
    key: str = "image",
    *,
    shape: tuple[int, int] = (40, 56),
    num_masks: int = 5,
    paired: bool = True,
    seed: int = 0,
) -> Record:
    rng = np.random.default_rng(seed)
    masks = np.zeros((num_masks, *shape), bool)
    for mask in masks:
        (y0, y1), (x0, x1) = (sorted(rng.integers(0, side + 1, 2)) for side in shape)
        mask[y0:y1, x0:x1] = True
    clean = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return Record(
        key=key,
        degraded=rng.integers(0, 256, (*shape, 3), dtype=np.uint8) if paired else clean,
        clean=clean,
        masks=MaskSet.from_masks(
            masks,
            predicted_iou=rng.random(num_masks, dtype=np.float32),
            stability=rng.random(num_masks, dtype=np.float32),
            point=rng.random((num_masks, 2)),
        ),
    )


def _make_store(
    root: Path,
    shapes: Sequence[tuple[int, int]] = ((40, 56), (56, 40), (33, 70), (140, 150), (16, 16)),
    *,
    images_per_shard: int = 2,
    paired: bool = True,
    made_of: dict[str, Any] | None = None,
    seed: int = 0,
) -> MaskStore:
    records = [
        _make_record(
            f"images/{place:03d}",
            shape=shape,
            num_masks=place % 5,
            paired=paired,
            seed=seed + place,
        )
        for place, shape in enumerate(shapes)
    ]
    num_shards = -(-len(records) // images_per_shard)
    header = Header(
        num_images=len(records),
        num_shards=num_shards,
        images_per_shard=images_per_shard,
        paired=paired,
        made_of=made_of or {"segmenter": "rectangles", "seed": seed},
    )
    write_header(root, header)
    for shard in range(num_shards):
        held = slice(shard * images_per_shard, (shard + 1) * images_per_shard)
        write_shard(root, shard, records[held], paired=paired)
    return MaskStore.open(root)


@pytest.fixture
def make_rain(tmp_path: Path) -> Callable[[int, int], Path]:
    """Makes a dataset of so many rainy pairs of random pixels, of a side in px."""

    def make(num_pairs: int, px: int) -> Path:
        rng = np.random.default_rng(0)
        for number in range(num_pairs):
            for side in ("target", "input"):
                picture = rng.integers(0, 256, (px, px, 3), dtype=np.uint8)
                write_png(tmp_path / "rain" / side / f"{number:03d}.png", picture)
        return tmp_path / "rain"

    return make
