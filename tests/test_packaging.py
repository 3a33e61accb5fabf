"""What the installed package promises: its folders, its light imports, its command."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_folder_is_listed_and_typed() -> None:
    rooms = SETUP["tool"]["setuptools"]["package-dir"]
    listed = SETUP["tool"]["setuptools"]["packages"]
    found = [
        ".".join(("samprior", *file.parent.relative_to(ROOT).parts))
        for room in rooms.values()
        for file in (ROOT / room).rglob("__init__.py")
    ]
    assert sorted(found) == sorted(listed)
    for package in listed:
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert (folder / "py.typed").exists(), f"{package} has no py.typed"


def test_presets_are_packed() -> None:
    patterns = SETUP["tool"]["setuptools"]["package-data"]["samprior.training"]
    packed = {file for pattern in patterns for file in (ROOT / "training").glob(pattern)}
    assert packed == set((ROOT / "training" / "presets").iterdir())
    assert packed


def test_bare_folder_names_can_not_be_imported_by_users(tmp_path: Path) -> None:
    code = "import pipeline"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert b"ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "import samprior.storage",
            {"torch", "ray", "zarr", "PIL", "pydantic", "skimage", "webdataset", "numba"},
        ),
        ("import samprior.pipeline", {"torch", "ray", "skimage", "segment_anything"}),
        ("import samprior.cli.main", {"torch", "ray", "numpy", "zarr", "PIL", "pydantic", "rich"}),
    ],
)
def test_imports_stay_light(statement: str, heavy: set[str]) -> None:
    code = f"{statement}, sys; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_of_everything_imports_no_heavy_library() -> None:
    """What makes `--help` quick, without timing it."""
    code = """
import sys
from samprior.cli.main import COMMANDS, cli
for arguments in [[], *([name] for name in COMMANDS)]:
    try:
        cli.main([*arguments, "--help"], standalone_mode=True)
    except SystemExit as end:
        assert end.code == 0, arguments
print("HEAVY", *({"torch", "ray", "numpy", "zarr", "PIL", "pydantic", "rich"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "HEAVY"


def test_the_command_is_installed_and_knows_its_version() -> None:
    command = Path(sys.executable).with_name("samprior")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert version("samprior") in done.stdout
