"""Kernels: compiled where numba is there, never stale, and off Python's lock."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from samprior.storage import compiled
from samprior.storage.compiled import kernel

ROOM = Path(compiled.__file__).parent

MODULES = sorted(
    ".".join(("samprior.storage", *file.relative_to(ROOM).with_suffix("").parts))
    for file in ROOM.rglob("*.py")
    if "import kernel\n" in file.read_text()
)

CALLEE = """
from samprior.storage.compiled import kernel

FACTOR = {factor}

@kernel
def times(value):
    return FACTOR * value
"""

CALLER = """
import callee
from samprior.storage.compiled import kernel

@kernel
def ten_times(value):
    return callee.times(value) + callee.times(0)

print(ten_times(10), *ten_times.stats.cache_hits.values())
"""


def run(code: str, folder: Path, **environment: str) -> str:
    """What a fresh process in a folder prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("where", ["beside the modules", "in a folder of its own"])
def test_a_change_of_a_callee_compiles_its_callers_anew(tmp_path: Path, where: str) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "caller.py").write_text(CALLER)
    (modules / "callee.py").write_text(CALLEE.format(factor=3))
    folder = tmp_path / "cache" if where == "in a folder of its own" else None
    environment = {"NUMBA_CACHE_DIR": str(folder)} if folder else {}
    # Python compares files by second and size, so it must not keep code of its own here.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    assert run("import caller", modules, **environment) == "30"
    assert run("import caller", modules, **environment) == "30 1", "taken from the disk"
    (modules / "callee.py").write_text(CALLEE.format(factor=4))
    assert run("import caller", modules, **environment) == "40"
    assert list((folder or modules).rglob("*.nbc"))


@pytest.mark.parametrize("name", MODULES)
def test_kernels_release_the_lock_and_are_kept_on_disk(name: str) -> None:
    module = importlib.import_module(name)
    kernels = [value for value in vars(module).values() if hasattr(value, "py_func")]
    assert kernels
    for one in kernels:
        assert one.targetoptions["nogil"], one
        assert one._cache.cache_path


def test_without_numba_a_kernel_is_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(value: int) -> int:
        return 2 * value

    monkeypatch.setattr(compiled, "numba", None)
    assert kernel(double) is double


ROUND_TRIP = """
import numpy as np
from samprior.storage.crossings.chunk import decode_image, encode_image
from samprior.storage.crossings.decode import decode_tile
from samprior.storage.memory import copy_window
atoms = np.arange(12, dtype=np.uint16).reshape(3, 4)
code = encode_image(atoms, tile_px=256)
picture, window = np.arange(48, dtype=np.uint8), np.zeros((2, 6), np.uint8)
copy_window(picture, np.array([[[0, 48]]]), 4, 1, 2, window)
assert (window == picture.reshape(4, 12)[1:3, 6:]).all()
assert (decode_image(code, atoms.shape, atoms.dtype, tile_px=256) == atoms).all()
print(code.hex(), type(decode_tile).__name__)
"""


def test_kernels_run_with_compilation_switched_off(tmp_path: Path) -> None:
    compiled_code, kind = run(ROUND_TRIP, tmp_path).split()
    assert kind == "CPUDispatcher"
    assert run(ROUND_TRIP, tmp_path, NUMBA_DISABLE_JIT="1").split() == [compiled_code, "function"]


def test_numba_is_imported_only_when_it_is_needed(tmp_path: Path) -> None:
    """It costs half a second."""
    code = (
        "import sys, samprior.storage, samprior.storage.shard_reader; print('numba' in sys.modules)"
    )
    assert run(code, tmp_path) == "False"
