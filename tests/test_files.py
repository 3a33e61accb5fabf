"""Files and folders appear whole or not at all."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from samprior.storage.files import (
    STAGED_SUFFIX,
    remove_drafts,
    sha256_of,
    staged_file,
    staged_folder,
    write_bytes,
)


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    with staged_file(path) as stream:
        stream.write(b"first ")
        assert not path.exists()
        (draft,) = path.parent.iterdir()
        assert draft.name.startswith(".")
        assert draft.name.endswith(STAGED_SUFFIX)
        stream.write(b"second")
    assert path.read_bytes() == b"first second"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def fail_half_way() -> None:
        with staged_file(path) as stream:
            stream.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "shards" / "000000"
    with staged_folder(path) as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "file").write_bytes(b"content")
        assert not path.exists()
        assert list(path.parent.iterdir()) == [draft]
    assert (path / "deep" / "file").read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with staged_folder(path) as draft:
        (draft / "old").touch()
    with staged_folder(path) as draft:
        (draft / "new").touch()
    assert list(path.iterdir()) == [path / "new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with staged_folder(path) as draft:
        (draft / "old").touch()

    def fail_half_way() -> None:
        with staged_folder(path) as draft:
            (draft / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert list(path.iterdir()) == [path / "old"]
    assert list(tmp_path.iterdir()) == [path]


def test_drafts_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "file", tmp_path / f"shown{STAGED_SUFFIX}", tmp_path / ".lock"]
    for path in kept:
        path.touch()
    draft_file = tmp_path / f".file.0123abcd{STAGED_SUFFIX}"
    draft_file.touch()
    draft_folder = tmp_path / f".folder.0123abcd{STAGED_SUFFIX}"
    (draft_folder / "deep").mkdir(parents=True)
    assert remove_drafts(tmp_path) == [draft_file, draft_folder]
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("num_bytes", [0, 1, 1 << 20])
def test_digest_is_that_of_hashlib(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(num_bytes))
    assert sha256_of(path) == hashlib.sha256(bytes(num_bytes)).hexdigest()


def _no_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
