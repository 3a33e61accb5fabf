"""The corpus of bad input, continued: checkpoints, tars, and stores of strangers.

Each ends in one line of our errors: no code runs, nothing is written, memory is bounded.
"""

import hashlib
import io
import json
import os
import pickle
import resource
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samprior.pipeline.sam import load_sam
from samprior.storage import MaskStore
from samprior.storage import samples as samples_module
from samprior.storage.errors import CheckpointError, SampriorError
from samprior.storage.exports import export_folder
from samprior.storage.header import HEADER_COPY, Header, digest, store_files
from samprior.storage.manifest import (
    read_header,
    read_receipt,
    receipt_file,
    write_header,
    write_receipt,
)
from samprior.storage.samples import sample_of
from samprior.storage.shards import export_webdataset, read_webdataset
from samprior.storage.tars import TarEntry, write_index
from samprior.storage.verify import verify_store
from samprior.training.checkpoint import read_official

Make = Callable[..., Any]
GIB = 2**30


@pytest.fixture(autouse=True)
def memory_is_bounded() -> Iterator[None]:
    """Whatever a file says of its size: more than 8 GiB beyond what there is can't be had."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 8 * GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def told(work: Callable[[], object], kind: type[Exception] = SampriorError) -> str:
    """What the one line says that `work` ends in."""
    with pytest.raises(kind) as caught:
        work()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 2000
    return text


# Checkpoints


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


STATE = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}


def saved(content: object, **options: Any) -> bytes:  # noqa: ANN401
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def repacked(checkpoint: bytes, *, num_bytes: int | None = None, method: int) -> bytes:
    """A checkpoint of torch.save packed by zip, its tensors replaced by zeros if asked for."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(checkpoint)) as old,
        zipfile.ZipFile(stream, "w", method) as new,
    ):
        for entry in old.infolist():
            if num_bytes is not None and "/data/" in entry.filename:
                with new.open(entry.filename, "w", force_zip64=True) as file:
                    for _ in range(num_bytes >> 20):
                        file.write(bytes(1 << 20))
            else:
                new.writestr(entry.filename, old.read(entry))
    return stream.getvalue()


BAD_CHECKPOINTS: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda trace: b"",
    "text": lambda trace: b"<html>404</html>",
    "code": lambda trace: saved({"a": Evil(trace)}),
    "code, before 1.6": lambda trace: saved(
        {"a": Evil(trace)}, _use_new_zipfile_serialization=False
    ),
    "a plain pickle of code": lambda trace: pickle.dumps(Evil(trace)),
    "a pickle of protocol 0": lambda trace: b"cos\nmkdir\n(S'" + str(trace).encode() + b"'\ntR.",
    "a module": lambda trace: saved(torch.nn.Linear(2, 2)),
    "cut": lambda trace: saved(STATE)[:9000],
    "cut, before 1.6": lambda trace: saved(STATE, _use_new_zipfile_serialization=False)[:9000],
    "a zip of something else": lambda trace: repacked(saved(STATE), method=zipfile.ZIP_STORED)[40:],
    "compressed": lambda trace: repacked(saved(STATE), method=zipfile.ZIP_DEFLATED),
    "a bomb": lambda trace: repacked(
        saved({"a": torch.zeros(9)}), num_bytes=GIB >> 4, method=zipfile.ZIP_DEFLATED
    ),
    "a list": lambda trace: saved([torch.zeros(1)]),
    "no tensors": lambda trace: saved({"a": "text"}),
    "nested": lambda trace: saved({"model": {"a": torch.zeros(1)}}),
    "other keys": lambda trace: saved({"a": torch.zeros(1)}),
    "keys that are no text": lambda trace: saved({1: torch.zeros(1)}),
    "a view of one number": lambda trace: saved(
        {"image_encoder.pos_embed": torch.zeros(1).expand(10**6, 10**6)}
    ),
    "sparse": lambda trace: saved({"a": torch.zeros(2, 2).to_sparse()}),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 0:UserWarning")
def test_bad_checkpoints_end_in_one_line(tmp_path: Path, name: str) -> None:
    file, trace = tmp_path / "some.pth", tmp_path / "trace"
    file.write_bytes(BAD_CHECKPOINTS[name](trace))
    assert str(file) in told(lambda: load_sam("vit_b", checkpoint=file), CheckpointError)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["code", "a bomb", "compressed", "a plain pickle of code"])
def test_published_weights_are_read_as_carefully(tmp_path: Path, name: str) -> None:
    file, trace = tmp_path / "some.pth", tmp_path / "trace"
    file.write_bytes(BAD_CHECKPOINTS[name](trace))
    assert str(file) in told(lambda: read_official(file), CheckpointError)
    assert not trace.exists()


# Tars


def member(name: str, content: bytes = b"", **about: Any) -> tuple[tarfile.TarInfo, bytes]:  # noqa: ANN401
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in about.items():
        setattr(info, field, value)
    return info, content


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def with_size(tar: bytes, field: bytes) -> bytes:
    """The first member's header with another size, and the checksum that fits it."""
    head = tar[:124] + field.ljust(12, b"\0") + b" " * 8
    head = head[:136] + tar[136:148] + b" " * 8 + tar[156:512]
    check = sum(head[:512])
    return head[:148] + b"%06o\0 " % check + head[156:512] + tar[512:]


@pytest.fixture
def samples(make_record: Make) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of one sample."""
    sample = dict(sample_of(make_record("k"), paired=True))
    del sample["__key__"]
    return [member(f"k.{name}", bytes(content)) for name, content in sample.items()]


def huge(tar: bytes) -> bytes:
    return with_size(tar, b"\x80" + (10**13).to_bytes(11, "big"))


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**13)}
SPARSE |= {"GNU.sparse.name": "k.clean.png"}
Members = list[tuple[tarfile.TarInfo, bytes]]

BAD_TARS: dict[str, Callable[[Members], bytes]] = {
    "nothing": lambda of: b"",
    "text": lambda of: b"404 " * 500,
    "cut": lambda of: tar_of(*of)[:3000],
    "compressed": lambda of: tar_of(*of, mode="w:gz"),
    "a bomb": lambda of: tar_of(member("k.clean.png", bytes(2**24)), mode="w:gz"),
    "links only": lambda of: tar_of(
        member("k.clean.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("k.degraded.png", type=tarfile.LNKTYPE, linkname="../outside"),
    ),
    "devices": lambda of: tar_of(member("k.clean.png", type=tarfile.CHRTYPE, devmajor=1)),
    "a pipe": lambda of: tar_of(member("k.clean.png", type=tarfile.FIFOTYPE)),
    "a huge size": lambda of: huge(tar_of(*of)),
    "a negative size": lambda of: with_size(tar_of(*of), b"\xff" * 12),
    "a size that is no number": lambda of: with_size(tar_of(*of), b"9x9"),
    "holes": lambda of: tar_of(member("k.clean.png", b"0\n" + bytes(510), pax_headers=SPARSE)),
    "a name twice": lambda of: tar_of(*of, *of),
    "two samples": lambda of: tar_of(*of, member("l.clean.png", b"")),
    "no masks": lambda of: tar_of(*of[:2]),
    "other pictures": lambda of: tar_of(
        *[member(info.name, b"\x89PNG\r\n\x1a\n") for info, _ in of[:2]], of[2]
    ),
    "a picture of another size": lambda of: tar_of(of[0], *small(of)),
    "code for masks": lambda of: tar_of(*of[:2], member("k.masks.npz", evil_arrays())),
    "arrays without end": lambda of: tar_of(*of[:2], member("k.masks.npz", bomb_arrays())),
}


def small(of: Members) -> Members:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (3, 3)).save(stream, format="PNG")
    return [member("k.clean.png", stream.getvalue()), of[2]]


def evil_arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, atoms=np.array([Evil(Path("sentinel"))]), members=np.zeros((1, 0), bool))
    return stream.getvalue()


def bomb_arrays() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, atoms=np.zeros(1 << 24, np.uint8))
    return stream.getvalue()


def offer(folder: Path, tar: bytes, *, name: str = "000000.tar") -> None:
    """Put a tar there with the index that fits it: a stranger has made both."""
    folder.mkdir()
    (folder / Path(name).name).write_bytes(tar)
    sha256 = hashlib.sha256(tar).hexdigest()
    entry = TarEntry(name=name, num_samples=1, num_bytes=len(tar), sha256=sha256)
    write_index(folder, [entry], fingerprint="0" * 64)


@pytest.mark.parametrize("name", BAD_TARS)
def test_bad_tars_end_in_one_line(
    tmp_path: Path, samples: Members, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples_module, "MAX_ARRAY_BYTES", 1 << 20)
    offer(tmp_path / "tars", BAD_TARS[name](samples))
    before = sorted(tmp_path.rglob("*"))
    assert "000000.tar" in told(lambda: list(read_webdataset(tmp_path / "tars")))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil", "a/../../evil", "C:\\evil"])
def test_names_in_tars_lead_nowhere(tmp_path: Path, samples: Members, key: str) -> None:
    """They are keys of records, and no files."""
    for info, _ in samples:
        info.name = key + info.name.removeprefix("k")
    offer(tmp_path / "tars", tar_of(*samples))
    before = sorted(tmp_path.rglob("*"))
    (record,) = read_webdataset(tmp_path / "tars")
    assert record.key == key
    assert sorted(tmp_path.rglob("*")) == before


def test_an_index_names_no_file_elsewhere(tmp_path: Path, samples: Members) -> None:
    (tmp_path / "000000.tar").write_bytes(tar_of(*samples))
    offer(tmp_path / "tars", b"", name="../000000.tar")
    told(lambda: list(read_webdataset(tmp_path / "tars")))


# Stores


HEADER = Header(num_images=1, num_shards=1, images_per_shard=1, paired=True, made_of={})
WILD = {
    "num_images": [-1, 10**30, 1.0, "1", None, True, [], {}, float("nan"), float("inf")],
    "num_shards": [-1, 0, 10**30, "1", None, False],
    "images_per_shard": [-1, 0, 10**30 + 0.5, "1", None, True],
    "paired": [1, "true", None],
    "made_of": [None, [], "x", 1],
    "appended": [None, 1, [-1], [0], ["1"], [10**30], [True], {}, [[1]]],
    "images": [None, "elsewhere", 1, ["stored"], {}],
    "pictures_root": [1, None, ["/"]],
    "format_version": [None, 0, -1, 3, 10**30, 2.0, "2", True, []],
    "fingerprint": [None, "", 1, "0" * 64],
    "unknown": [1],
}


@pytest.mark.parametrize("field", WILD)
@pytest.mark.parametrize("signed", [False, True])
def test_headers_of_wild_values_are_refused(tmp_path: Path, field: str, signed: bool) -> None:
    """Also where the fingerprint fits: strangers can compute one."""
    for value in WILD[field]:
        record = HEADER.to_record() | {field: value}
        if signed and field != "fingerprint":
            del record["fingerprint"]
            record["fingerprint"] = digest(record)
        content = {"attributes": {"samprior": record}, "zarr_format": 3, "node_type": "group"}
        (tmp_path / "zarr.json").write_text(json.dumps(content))
        for work in (read_header, MaskStore.open, verify_store):
            assert "zarr.json" in told(lambda work=work: work(tmp_path))


@pytest.mark.parametrize("depth", [980, 985, 988, 990, 992, 995, 1000, 10**5])
def test_headers_of_any_depth_are_refused(tmp_path: Path, depth: int) -> None:
    content = store_files(replace(HEADER, made_of={"a": 1}))["zarr.json"]
    (tmp_path / "zarr.json").write_bytes(content.replace(b"1\n", b"[" * depth + b"]" * depth, 1))
    (tmp_path / HEADER_COPY).write_bytes(b"[" * depth)
    for work in (read_header, MaskStore.open, verify_store):
        assert "zarr.json" in told(lambda work=work: work(tmp_path))


@pytest.fixture
def root(tmp_path: Path, make_store: Make) -> Path:
    make_store(tmp_path / "store", ((20, 24), (16, 16)))
    return tmp_path / "store"


WILD_RECEIPTS: dict[str, list[Any]] = {
    "shard": [-1, 1, 10**30, "0", None],
    "keys": [None, "ab", [1, 2], ["a"], ["a", "a"], {}, [["a"], ["b"]]],
    "sizes": [None, [[20, 24]], [[-20, 24], [16, 16]], [[10**30, 1], [1, 1]], [[0, 0], [16, 16]]],
    "num_masks": [None, [-1, 1], [10**30, 1], ["1", 1], [1]],
    "stored_bytes": [-1, 10**30, "many", None],
    "digests": [None, {}, [], {"../../../outside": "0" * 64}, {"/etc/passwd": "0" * 64}, {"": ""}],
    "inputs": [None, [], {"a": None}, {"a": [None]}],
    "quarantined": [None, [], {"a": ["b"]}, {"c": "one more"}],
    "pictures": [[], {"a": "b"}, {"a": ["../x", "/etc/passwd", "c"]}],
    "sha256": ["", None, "0" * 64],
}


@pytest.mark.parametrize("field", WILD_RECEIPTS)
def test_receipts_of_wild_values_do_no_harm(root: Path, field: str) -> None:
    """Their own digest fits. `verify` finds what doesn't, and reading ends in an error of ours."""
    file = receipt_file(root, 0)
    right = json.loads(file.read_bytes())
    for value in WILD_RECEIPTS[field]:
        record = deepcopy(right) | {field: value}
        if field != "sha256":
            del record["sha256"]
            record["sha256"] = digest(record)
        file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        found = verify_store(root)
        assert list(found.broken) == [0], (value, found)
        assert all(line.isprintable() for line in found.lines())
        with suppress(SampriorError):
            store = MaskStore.open(root)
            assert len([store[index] for index in range(len(store))]) <= 2


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil", "a/../b", "", "a\0b", "..", "a\\b"])
def test_keys_that_leave_the_folder_are_not_exported(root: Path, key: str) -> None:
    receipt = read_receipt(root, 0)
    write_receipt(root, replace(receipt, keys=(key, receipt.keys[1])))
    store, out = MaskStore.open(root), root.parent / "out"
    before = sorted(root.parent.rglob("*"))
    told(lambda: export_webdataset(store, out))
    told(lambda: export_folder(out, store, {}).__enter__())
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["zarr.json", "receipts/000000.json", "shards/000000/zarr.json"])
def test_pipes_in_a_store_are_not_waited_for(root: Path, name: str) -> None:
    content = (root / name).read_bytes()
    (root / name).unlink()
    os.mkfifo(root / name)
    found = verify_store(root)
    assert not found.ok
    (root / name).unlink()
    (root / name).write_bytes(content)
    assert verify_store(root).ok


def test_a_header_that_is_a_folder(root: Path) -> None:
    (root / "zarr.json").unlink()
    (root / "zarr.json").mkdir()
    told(lambda: MaskStore.open(root))
    assert not verify_store(root).ok


def test_a_repair_removes_nothing_outside(root: Path, make_record: Make) -> None:
    """Links in a store may lead anywhere; what they lead to is left alone."""
    outside = root.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").write_text("precious")
    (root / "shards" / "000007").symlink_to(outside)
    (root / "receipts" / ".x.part").symlink_to(outside / "deep" / "file")
    (root / "shards" / "000000").rename(outside / "shard")
    (root / "shards" / "000000").symlink_to(outside / "shard")
    receipt_file(root, 0).write_bytes(b"{")
    found = verify_store(root, repair=True)
    assert (list(found.broken), len(found.leftovers)) == ([0], 2)
    assert (outside / "deep" / "file").read_text() == "precious"
    assert (outside / "shard" / "zarr.json").exists()
    assert not any(path.is_symlink() for path in root.rglob("*"))
    write_header(root, read_header(root))
    assert not verify_store(root).leftovers
