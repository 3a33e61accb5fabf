"""The pages tell the truth where a machine can check it: code, commands, links, settings."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from samprior.cli.main import COMMANDS, cli
from samprior.pipeline.segmenters import segmenter_settings
from samprior.storage.images import write_png
from samprior.training.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md")) + [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
]
NAMES = [page.name for page in PAGES]
SCRIPTS = {script.name for script in (ROOT / "docs").glob("*.py")}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def commands() -> list[Any]:
    """Every `samprior ...` line of the pages' shell blocks, as its arguments."""
    lines = [
        (page.name, line)
        for page in PAGES
        for text in blocks(page, "sh")
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("samprior ")
    ]
    return [pytest.param(_words(line), id=f"{page}: {line}") for page, line in dict.fromkeys(lines)]


def _words(line: str) -> list[str]:
    """The arguments of a command, up to where the shell sends its output."""
    words = shlex.split(line, comments=True)[1:]
    return words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_store: Callable[..., Any]
) -> None:
    """The blocks of a page run in order, in one namespace, beside a store `stores/gopro`."""
    monkeypatch.chdir(tmp_path)
    texts = blocks(page, "python")
    if texts:
        make_store(Path("stores/gopro"), [(400, 480)] * 2)
    namespace: dict[str, Any] = {"__name__": "page"}
    for number, text in enumerate(texts):
        exec(compile(text, f"{page.name}, python block {number + 1}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name} links to {target}"
            if not anchor:
                continue
            titles = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name} links to {target}"


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("arguments", commands())
def test_commands_are_accepted(arguments: list[str]) -> None:
    """Parsed, not run: commands, options and their values are known."""
    context = cli.make_context("samprior", list(arguments))
    command = cli.get_command(context, arguments[0])
    assert command is not None, f"there is no command {arguments[0]}"
    values = command.make_context(arguments[0], arguments[1:], parent=context).params
    if arguments[0] == "train":
        overrides = values["overrides"]
        needed = () if values["config"] is None else ("data.train=x", "out=x")
        short = {"network.name": values["network"], "network.init": values["init"]}
        named = [f"{key}={value}" for key, value in short.items() if value is not None]
        load_config(None, [*needed, *overrides, *named])
    if arguments[0] == "precompute":
        settings = tomllib.loads("\n".join(values["settings"]))
        segmenter_settings(values["segmenter"], **settings)


OTHERS = {"--shm-size", "--nproc-per-node", "--force-reinstall"}
"""Options of other programs that our messages name."""


def texts() -> Iterator[tuple[str, str]]:
    """Pages, and every string of the code: messages, help and docstrings; each with its file."""
    for page in PAGES:
        yield page.name, page.read_text("utf-8")
    for room in ("cli", "pipeline", "storage", "training", "docs"):
        for file in (ROOT / room).rglob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", None) for part in node.values)
                    yield file.name, "".join(p if isinstance(p, str) else "X" for p in parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield file.name, node.value


def test_no_text_names_a_command_or_option_that_does_not_exist() -> None:
    context = click.Context(cli)
    known = {name: {"--help"} for name in COMMANDS}
    for name, options in known.items():
        command = cli.get_command(context, name)
        assert command is not None
        options.update(flag for option in command.params for flag in option.opts)
    of_any = set().union(*known.values(), OTHERS, {"--version"})
    num_found = 0
    for where, text in texts():
        # In backticks, or a line of a block: elsewhere "samprior" is a word of a sentence.
        called = r"(?:`|^[ $]*)samprior ([a-z][a-z-]*)\b([^`\n]*)"
        for name, rest in re.findall(called, text.replace("\\\n", " "), re.MULTILINE):
            options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest))
            if not options and name not in known and not re.search(f"`samprior {name}", text):
                continue  # a line of prose that begins with the word
            assert name in known, f"{where}: samprior {name}"
            assert options <= known[name], f"{where}: samprior {name}{rest}"
            num_found += 1
        if where.endswith(".py") and where not in SCRIPTS:
            options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
            assert options <= of_any, f"{where}: {text}"
    assert num_found > 200


def test_the_toml_examples_are_valid(tmp_path: Path) -> None:
    for page in PAGES:
        for text in blocks(page, "toml"):
            file = tmp_path / "train.toml"
            file.write_text(text, "utf-8")
            load_config(file)


def test_the_table_of_settings_is_up_to_date() -> None:
    """If not: python docs/config_reference.py."""
    module = script("config_reference")
    assert (ROOT / "docs" / "config.md").read_text("utf-8") == module.reference()
    assert "None |" not in module.reference(), "a setting has no docstring"


@pytest.mark.parametrize("name", ["cli", "api"])
def test_generated_references_are_up_to_date(name: str) -> None:
    """If not: python docs/cli_reference.py, python docs/api_reference.py."""
    page = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    assert page == script(f"{name}_reference").reference()


def test_the_site_has_all_pages_and_no_dead_link(tmp_path: Path) -> None:
    """mkdocs in strict mode: links, anchors, pages that the navigation forgets."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip('mkdocs is not installed; pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "cli.html").exists()
    assert (tmp_path / "site" / "CONTRIBUTING.html").exists()


def test_the_notebook_runs() -> None:
    """From top to bottom, in a kernel of its own; it is committed without its outputs."""
    notebook = ROOT / "docs" / "explore.ipynb"
    assert all(not cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"])
    for library in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f'{library} is not installed; pip install -e ".[dev]"')
    code = "from nbclient.cli import main; main()"
    command = [sys.executable, "-c", code, "--timeout=250", str(notebook)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_picture_of_the_readme_is_made_of_the_demo(
    tmp_path: Path, make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a store of the demo's form; the picture that is committed is small."""
    store = make_store(tmp_path / "sensenoise" / "store-test", [(40, 56)] * 2)
    module = script("readme_picture")
    monkeypatch.setattr(module, "KEY", store.keys[1])
    write_png(tmp_path / "sensenoise" / "restored" / f"{store.keys[1]}.png", store[1].clean)
    shown = module.panels(tmp_path)
    assert [picture.shape for _, picture in shown] == [(40, 56, 3)] * 3
    assert module.composed(shown).width > 3 * module.HEIGHT_PX
    assert module.PICTURE.stat().st_size < 200_000


def test_the_tables_of_scale_are_those_of_their_results() -> None:
    """If not: python docs/scale_tables.py."""
    module = script("scale_tables")
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert [match[1] for match in module.PLACE.finditer(page)] == ["workers", "driver", "laws"]
    assert module.filled(page) == page


def test_the_tables_of_the_studies_are_those_of_their_results() -> None:
    """If not: python docs/distillation_tables.py."""
    page = (ROOT / "docs" / "distillation.md").read_text("utf-8")
    assert script("distillation_tables").filled(page) == page
    assert page.count("\n### ") == len(
        list(ROOT.glob("benchmarks/results/distillation_*_*_*.json"))
    )
