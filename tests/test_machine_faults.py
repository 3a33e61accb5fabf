"""A full disk, a read-only store, too many open files: one line, exit code 1, whole shards kept."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from samprior.pipeline.shortages import told_plainly
from samprior.storage.errors import BusyError, MachineError
from samprior.storage.manifest import read_receipts
from samprior.storage.verify import verify_store

Samprior = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rain(make_rain: Callable[[int, int], Path]) -> Path:
    """Six rainy pairs."""
    return make_rain(6, 64)


def superpixel(root: Path, out: Path, *more: object) -> list[str]:
    of = ["precompute", "--dataset", "rain", "--root", root, "--segmenter", "superpixel"]
    return [*map(str, [*of, "--images-per-shard", 1, "--workers", 0, "--out", out, *more])]


def only_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("samprior: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(samprior: Samprior, rain: Path, tmp_path: Path, disk: Path) -> None:
    out = disk / "store"
    filler = disk / "filler"
    filler.write_bytes(bytes(600 * 1024))
    code, _, err = samprior(*superpixel(rain, out))
    assert code == 1
    told = only_line(err)
    assert "No space left on device" in told
    assert "free some space, then run the same command again: finished shards are kept" in told
    num_kept = len(read_receipts(out))
    assert 0 < num_kept < 6
    assert verify_store(out).leftovers == []
    filler.unlink()
    code, told, _ = samprior(*superpixel(rain, out))
    assert code == 0
    assert f"{6 - num_kept} shards written now" in told
    assert verify_store(out).ok


def test_a_read_only_disk(samprior: Samprior, rain: Path, disk: Path) -> None:
    out = disk / "store"
    samprior(*superpixel(rain, out))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, _, err = samprior(*superpixel(rain, out))
    assert code == 1
    assert "Read-only file system" in only_line(err)
    assert "choose another --out" in only_line(err)
    # Reading goes on.
    assert samprior("verify", out)[0] == 0
    assert samprior("status", out)[0] == 0


def test_too_many_open_files(rain: Path, tmp_path: Path) -> None:
    program = (
        "import os, resource\n"
        "from samprior.cli import main\n"
        "from samprior.pipeline import worker\n"
        "real = worker.read_rgb\n"
        "def scarce(path):\n"
        "    if path.stem == '003':\n"
        "        lowest = os.open(os.devnull, os.O_RDONLY)\n"
        "        os.close(lowest)\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))\n"
        "    return real(path)\n"
        "worker.read_rgb = scarce\n"
        "main.main()\n"
    )
    out = tmp_path / "store"
    ended = subprocess.run(
        [sys.executable, "-c", program, *superpixel(rain, out)], capture_output=True, text=True
    )
    assert ended.returncode == 1, ended.stderr
    assert "Too many open files" in only_line(ended.stderr)
    assert sorted(read_receipts(out)) == [0, 1, 2]
    assert verify_store(out).broken == {}


def test_a_folder_of_pictures_that_vanishes_is_no_quarantine(
    samprior: Samprior, rain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samprior.pipeline import worker

    out = tmp_path / "store"
    real = worker.read_rgb

    def unmounted(path: Path) -> np.ndarray:
        if path.stem == "003" and rain.is_dir():
            rain.rename(tmp_path / "away")
        return real(path)

    monkeypatch.setattr(worker, "read_rgb", unmounted)
    code, _, err = samprior(*superpixel(rain, out))
    assert code == 1
    assert "is gone or empty; put it back (is it mounted?)" in only_line(err)
    assert sorted(read_receipts(out)) == [0, 1, 2]
    monkeypatch.undo()
    code, _, err = samprior(*superpixel(rain, out))
    assert code == 2
    (tmp_path / "away").rename(rain)
    assert samprior(*superpixel(rain, out))[0] == 0
    assert verify_store(out).quarantined == {}


def test_one_picture_that_vanishes_is_quarantined(
    samprior: Samprior, rain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samprior.pipeline import worker

    real = worker.read_rgb

    def removed(path: Path) -> np.ndarray:
        if path.stem == "003":
            path.unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(worker, "read_rgb", removed)
    code, _, err = samprior(*superpixel(rain, tmp_path / "store"))
    assert code == 1
    assert "003: " in err
    assert "does not exist" in err


def test_a_cache_that_can_not_be_written_is_told(
    samprior: Samprior, rain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAMPRIOR_CACHE", str(tmp_path / "file" / "cache"))
    of = ["precompute", "--dataset", "rain", "--root", rain, "--out", tmp_path / "store"]
    code, _, err = samprior(*of, "--model", "vit_b")
    assert code == 1
    assert str(tmp_path / "file") in only_line(err)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "choose another --out"),
        (errno.EACCES, "choose another --out"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "whether the disk fails"),
        (errno.ESTALE, "is mounted"),
    ],
)
def test_errors_of_the_system_say_what_to_do(number: int, way_out: str) -> None:
    with pytest.raises(MachineError) as told, told_plainly(Path("/out")):
        raise OSError(number, os.strerror(number))
    assert str(told.value).startswith(f"{os.strerror(number)}: /out; ")
    assert way_out in str(told.value)
    assert str(told.value).endswith("run the same command again: finished shards are kept")


def test_other_errors_come_through_as_they_are() -> None:
    for error in (BusyError("held"), FileNotFoundError(2, "gone", "x"), ValueError("other")):
        with pytest.raises(type(error)) as told, told_plainly(Path("/out")):
            raise error
        assert told.value is error
