"""Write docs/cli.md, every command with its options, from the commands themselves.

python docs/cli_reference.py
"""

import inspect
import re
from pathlib import Path

import click

from samprior.cli.main import COMMANDS, VERBOSE, cli

PAGE = Path(__file__).with_name("cli.md")

_HEAD = """\
# Commands

`samprior COMMAND --help` says the same. Every command takes `-v` (say more on stderr, and where in
the code an error came from), and `--json` where it has something to report: stdout then holds one
JSON object, of `precompute` one event a line ([jobs.md](jobs.md)), and all else goes to stderr.
Colours and moving bars go to terminals only; `NO_COLOR=1` takes the colours away. `-o` is short for
`--out` everywhere.

Exit codes: 0 done; 1 it could not be done, or not all of it; 2 an argument or a setting that can't
be used; 130 and 143 ended by Ctrl-C and SIGTERM (0 if Ctrl-C ends `inspect --serve`, as it has no
other end).

Let your shell complete commands, options, data sets, networks and presets:

```sh
samprior completion bash > ~/.local/share/bash-completion/completions/samprior
samprior completion zsh > "${fpath[1]}/_samprior"
samprior completion fish > ~/.config/fish/completions/samprior.fish
```

This page is written by `python docs/cli_reference.py`.
"""


def reference() -> str:
    """The whole page."""
    root = click.Context(cli, info_name="samprior")
    return "\n".join([_HEAD, *(_command(root, name) for name in COMMANDS)])


def _command(root: click.Context, name: str) -> str:
    command = cli.get_command(root, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=root)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    rows = [
        record
        for option in command.get_params(context)
        if option is not VERBOSE and "--help" not in option.opts
        if (record := option.get_help_record(context)) is not None
    ]
    lines = [f"## {name}", "", "```text", usage, "```", "", *_text(command.help or "")]
    if rows:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| `{_cell(left)}` | {_cell(_prose(right))} |" for left, right in rows]
    return "\n".join([*lines, ""])


def _text(text: str) -> list[str]:
    """A help text as Markdown: blocks after \\b are commands."""
    lines: list[str] = []
    for block in inspect.cleandoc(text).split("\n\n"):
        if block.lstrip().startswith("\b"):
            lines += ["```sh", *block.strip("\b\n ").splitlines(), "```", ""]
        else:
            lines += [_prose(" ".join(block.split())), ""]
    return lines


def _prose(text: str) -> str:
    """Text in which Markdown sees no mark-up that isn't meant."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*<>\[\]_])", r"\\\1", part) for part in parts
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
