"""What leaves the repository: wheel, sdist, container and workflow."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packed_sources() -> set[str]:
    """Files of the packages that must be in every distribution, by their path in the wheel."""
    rooms = SETUP["tool"]["setuptools"]["package-dir"].values()
    wanted = {".py", ".typed", ".j2", ".toml"}
    return {
        f"samprior/{file.relative_to(ROOT).as_posix()}"
        for room in rooms
        for file in (ROOT / room).rglob("*")
        if file.suffix in wanted and file.is_file()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, and an sdist from which a second wheel comes, made by setuptools alone."""
    out, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source") / "samprior"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in files.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    # setuptools changes sys.argv as it builds.
    code = (
        "import sys; from setuptools import build_meta as made; out = sys.argv[1]; "
        "made.build_wheel(out); made.build_sdist(out)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(out)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_the_wheel_has_all_of_the_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == packed_sources()


def test_the_sdist_can_be_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {name.removeprefix("samprior/") for name in packed_sources()} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_is_installed_and_runs(built: Path, kind: str, tmp_path: Path) -> None:
    """In an environment of its own, that borrows the libraries of this one."""
    venv = tmp_path / "venv"
    # Without pip, which would bring an old setuptools along that hides the borrowed one.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    import click

    borrowed = Path(click.__file__).parents[1]
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    (package,) = built.glob(kind)
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python"]
    install = [*pip, "install", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--ignore-installed", "--no-index", package]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*install, *options], check=True, env=clean)
    demo = ["demo", "--task", "sensenoise", "--out", tmp_path / "demo"]
    for arguments in (["doctor"], ["presets"], *([demo] if kind == "*.whl" else [])):
        command = [venv / "bin" / "samprior", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    where = "import samprior.cli.main as main; print(main.__file__)"
    done = subprocess.run(
        [venv / "bin" / "python", "-c", where], capture_output=True, text=True, env=clean
    )
    assert done.stdout.startswith(str(venv)), done.stdout


def test_the_container_copies_what_the_wheel_is_built_from() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    rooms = set(SETUP["tool"]["setuptools"]["package-dir"].values())
    assert kept == rooms | {"pyproject.toml", SETUP["project"]["readme"], "LICENSE"}
    text = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)[0].split(",")
    assert set(extras) <= SETUP["project"]["optional-dependencies"].keys()
    for library in ("torch", "torchvision"):
        wanted = next(
            each for each in SETUP["project"]["dependencies"] if re.match(rf"{library}\W", each)
        )
        assert f'"{wanted}"' in text


def test_the_workflow_runs_what_ci_runs() -> None:
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = flow["jobs"]["test"]["steps"]
    assert any(step.get("run") == ".ci/run" for step in steps)
    oldest = SETUP["project"]["requires-python"].removeprefix(">=")
    assert oldest in flow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert flow["permissions"] == {"contents": "read"}
