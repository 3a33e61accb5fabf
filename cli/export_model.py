"""`samprior export-model`: write a trained network for other programs."""

import re
from pathlib import Path

import click

from samprior.cli.options import NETWORKS, PathOption, completes, json_option, print_json

_DYNAMIC = "dynamic"


@click.command("export-model")
@click.argument("checkpoint", type=PathOption)
@click.argument("out", type=PathOption)
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(["torch", "onnx", "safetensors"]),
    help="A program of torch.export (.pt2), ONNX, or the weights alone.",
)
@click.option(
    "--size",
    default=_DYNAMIC,
    show_default=True,
    metavar="HxW",
    help="Height and width of all images, or any.",
)
@click.option(
    "--network",
    help="Architecture of an official .pth file, or your own factory.",
    shell_complete=completes(*NETWORKS),
)
@click.option("--preset", help="Shape of an official .pth checkpoint, such as gopro_w32.")
@json_option
def command(
    checkpoint: Path,
    out: Path,
    form: str,
    size: str,
    network: str | None,
    preset: str | None,
    as_json: bool,
) -> None:
    """Write the network that restores, and nothing of what trained it, to the file OUT.

    Before OUT appears, it is run beside the network; the largest difference is printed. One above
    1e-4 (a fortieth of an 8-bit level) is an error.

    \b
    samprior export-model runs/gopro student.pt2 --to torch
    samprior export-model runs/gopro student.onnx --to onnx --size 720x1280
    """
    from samprior.training.checkpoint import load_network
    from samprior.training.export import export_network

    fixed = _parsed(size)
    model, record = load_network(checkpoint, name=network, preset=preset)
    result = export_network(model, out, to=form, record=record, size=fixed)
    if as_json:
        record = vars(result).copy()
        print_json({"out": record.pop("file"), **record})
        return
    if fixed is not None:
        taken = f"images of {fixed[0]}x{fixed[1]} (HxW), one at a time"
    else:
        taken = f"images from {result.smallest_px}x{result.smallest_px} px, any number at a time"
    shapes = ", ".join(dict.fromkeys("x".join(map(str, shape)) for shape in result.compared))
    click.echo(f"{out}: takes {taken}")
    click.echo(f"largest difference to the network {result.largest_difference:.2g} ({shapes})")


def _parsed(size: str) -> tuple[int, int] | None:
    """Height and width; None for any."""
    if size == _DYNAMIC:
        return None
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", size)
    if found is None:
        raise click.BadParameter(
            f"{size!r} is no size; give HxW, such as 720x1280, or {_DYNAMIC}", param_hint="--size"
        )
    return int(found[1]), int(found[2])
