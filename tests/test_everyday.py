"""What all commands have in common: -v, --json, colours, completion, help with spelling."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from samprior.cli import options
from samprior.cli.main import COMMANDS, VERBOSE, cli
from samprior.pipeline.layouts import LAYOUTS
from samprior.training.networks import NETWORKS

Samprior = Callable[..., tuple[int, str, str]]
MakeStore = Callable[..., object]


def all_commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


def flags(command: click.Command) -> dict[str, click.Option]:
    return {
        flag: option
        for option in command.params
        if isinstance(option, click.Option)
        for flag in option.opts
    }


def test_every_command_has_verbose_and_every_report_json() -> None:
    for name, command in all_commands().items():
        assert command.params.count(VERBOSE) == 1, name
        assert ("--json" in flags(command)) == (name != "completion"), name


def test_one_option_means_one_thing_in_all_commands() -> None:
    """The same words take the same kind of value; --out can be shortened everywhere."""
    kinds: dict[str, dict[str, str]] = {}
    for name, command in all_commands().items():
        for flag, option in flags(command).items():
            kind = "flag" if option.is_flag else type(option.type).__name__
            kinds.setdefault(flag, {})[name] = kind
        if "--out" in flags(command):
            assert "-o" in flags(command), name
    differing = {flag for flag, by in kinds.items() if len(set(by.values())) > 1}
    # --out is a path or also a URL, counts have bounds here and there; --images is the one word
    # that precompute (stored or referred to) and import-masks (a folder) take differently.
    assert differing == {"-o", "--out", "--images", "--workers", "--gpus-per-worker"}


def test_names_for_completion_are_those_that_are_known() -> None:
    assert set(options.NETWORKS) == set(NETWORKS)
    assert set(options.DATASETS) == set(LAYOUTS)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samprior.cli", *arguments]
    whole = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=whole)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(samprior: Samprior, shell: str) -> None:
    code, script, _ = samprior("completion", shell)
    assert code == 0
    assert "_SAMPRIOR_COMPLETE" in script


def test_commands_options_and_names_are_completed() -> None:
    def complete(*words: str) -> list[str]:
        code = "from samprior.cli.main import main; main()"
        whole = {
            **os.environ,
            "_SAMPRIOR_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        program = f"import sys; sys.argv = ['samprior']; {code}"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=whole
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("samprior", "ver") == ["verify"]
    assert "--repair" in complete("samprior", "verify", "--re")
    assert complete("samprior", "precompute", "--dataset", "go") == ["gopro"]
    assert "gopro_nafnet_w32" in complete("samprior", "train", "--config", "gopro_n")


def test_commands_are_spelled_for_the_user(samprior: Samprior) -> None:
    code, _, err = samprior("verfy", "x")
    assert code == 2
    assert "unknown command 'verfy'; did you mean 'verify'?" in err
    code, _, err = samprior("verify", "x", "--repare")
    assert code == 2
    assert "--repair" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("verfy",), "unknown command"),
        (("verify",), "Missing argument 'STORE' (see samprior verify --help)"),
        (("completion", "tcsh"), "'bash', 'zsh', 'fish'"),
        (("export", "x", "y", "--to", "cocoa"), "'coco'"),
        (("inspect", "s3://x/y"), "works on folders"),
        (("import-checkpoint", "x", "y"), "--network"),
        (("train",), "`samprior init`"),
        (("train", "--launcher", "ray"), "--workers N"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(
    samprior: Samprior, arguments: tuple[str, ...], told: str
) -> None:
    code, out, err = samprior(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("samprior: ")
    assert told in line


def test_verbose_says_where_an_error_came_from(samprior: Samprior, tmp_path: Path) -> None:
    code, _, err = samprior("verify", tmp_path, "-v")
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("samprior: ")
    code, _, err = samprior("verify", tmp_path)
    assert code == 1
    assert len(err.splitlines()) == 1


def test_colours_are_for_terminals_and_not_against_the_users_will(
    samprior: Samprior, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = samprior("doctor", "--quick")
    assert "\x1b[" not in out
    colours = []
    monkeypatch.setattr(
        click, "echo", lambda *a, **k: colours.append(click.get_current_context().color)
    )
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        samprior("doctor", "--quick")
    assert set(colours) == {None, False}


def test_reports_as_json_are_one_object(
    samprior: Samprior, make_store: MakeStore, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    make_store(store, [(40, 56)] * 3)

    def told(*arguments: object) -> dict[str, object]:
        code, out, err = samprior(*arguments, "--json")
        assert code == 0, err
        record: dict[str, object] = json.loads(out)
        return record

    assert told("verify", store)["whole"] is True
    status = told("status", store)
    assert (status["store"], status["images_done"]) == (str(store), 3)
    assert told("inspect", store, "-o", tmp_path / "page.html")["num_drawn"] == 3
    assert told("export", store, tmp_path / "tars")["num_images"] == 3
    assert told("migrate", store, tmp_path / "copy")["num_images"] == 3
    assert told("init", store, "-o", tmp_path / "t.toml")["out"] == str(tmp_path / "t.toml")
    presets = told("presets")["presets"]
    assert isinstance(presets, list)
    assert {"name", "task", "steps"} <= presets[0].keys()
    (store / "receipts" / "000001.json").unlink()
    code, out, _ = samprior("verify", store, "--json")
    assert code == 1
    assert json.loads(out)["whole"] is False
