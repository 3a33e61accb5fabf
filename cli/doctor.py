"""`samprior doctor`: say what this machine has, what is missing, and what to do about it."""

from typing import TYPE_CHECKING

import click

from samprior.cli.options import json_option, print_json

if TYPE_CHECKING:
    from samprior.pipeline.health import Finding

_MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("NO  ", "red")}


@click.command("doctor")
@click.option("--quick", is_flag=True, help="Don't start Ray, and don't read checkpoints.")
@json_option
def command(quick: bool, as_json: bool) -> None:
    """Say what this machine has, what is missing, and what to do about it.

    Exit code 1 means that something has to be mended; a note is about what will be slow, or isn't
    there for a command that you may not need.

    \b
    samprior doctor
    samprior doctor --quick --json
    """
    from samprior.pipeline.health import examine

    findings = []
    for finding in examine(quick=quick):
        findings.append(finding)
        if not as_json:
            _print(finding)
    num_bad = sum(finding.level == "bad" for finding in findings)
    if as_json:
        print_json({"ok": not num_bad, "findings": [vars(finding) for finding in findings]})
    if num_bad:
        raise click.exceptions.Exit(1)


def _print(finding: "Finding") -> None:
    mark, colour = _MARKS[finding.level]
    name = "" if finding.name in ("library", "python", "samprior") else f"{finding.name}: "
    click.echo(f"{click.style(mark, fg=colour)} {name}{finding.text}")
    if finding.remedy is not None:
        click.echo(f"       -> {finding.remedy}")
