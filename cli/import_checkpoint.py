"""`samprior import-checkpoint`: take in weights that a network's authors published."""

import tomllib
from pathlib import Path
from typing import Any

import click

from samprior.cli.options import NETWORKS, PathOption, completes, json_option, print_json


@click.command("import-checkpoint")
@click.argument("official", type=PathOption)
@click.argument("out", type=PathOption)
@click.option(
    "--network",
    required=True,
    help="Architecture, such as uformer.",
    shell_complete=completes(*NETWORKS),
)
@click.option("--preset", help="Shape, such as b; default: the architecture's own settings.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Setting of the network over the preset, such as width=32.",
)
@json_option
def command(
    official: Path,
    out: Path,
    network: str,
    preset: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the weights in OFFICIAL (.pth) to OUT (.safetensors), which says what network it is.

    All commands then take OUT without --network and --preset, and so does network.init. No code in
    OFFICIAL is run.

    \b
    samprior import-checkpoint Uformer_B.pth uformer-b.safetensors --network uformer --preset b
    """
    from samprior.training.official import import_official

    made = import_official(
        official, out, name=network, preset=preset, settings=dict(map(_parsed, settings))
    )
    total = sum(parameter.numel() for parameter in made.parameters())
    if as_json:
        print_json({"out": out, "network": network, "preset": preset, "num_parameters": total})
        return
    click.echo(f"{out}: {network}, {total:,} parameters, from {official}")


def _parsed(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not equals:
        raise click.BadParameter(f"takes KEY=VALUE, got {setting!r}", param_hint="--set")
    try:
        return name.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), text
