"""`samprior restore`: restore pictures."""

from pathlib import Path

import click

from samprior.cli.options import (
    NETWORKS,
    PathOption,
    completes,
    json_option,
    print_json,
    tlc_options,
    tlc_window,
)
from samprior.cli.progress import progress


@click.command("restore")
@click.argument("checkpoint", type=PathOption)
@click.argument("source", metavar="INPUT", type=PathOption)
@click.argument("target", metavar="OUTPUT", type=PathOption)
@click.option("--tile-px", type=int, help="Restore in tiles of this side; default: whole images.")
@click.option("--overlap-px", default=32, show_default=True, help="Overlap of tiles.")
@tlc_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option(
    "--network",
    help="Architecture of an official .pth file, or your own factory.",
    shell_complete=completes(*NETWORKS),
)
@click.option("--preset", help="Shape of an official .pth checkpoint, such as gopro_w32.")
@json_option
def command(
    checkpoint: Path,
    source: Path,
    target: Path,
    tile_px: int | None,
    overlap_px: int,
    tlc: bool,
    tlc_px: int | None,
    device: str,
    network: str | None,
    preset: str | None,
    as_json: bool,
) -> None:
    """Restore a picture, or all pictures below a folder; names are kept, the results are PNG.

    \b
    samprior restore runs/gopro blurred.jpg restored.png
    samprior restore runs/gopro photos/ restored/
    """
    from samprior.training.checkpoint import load_network
    from samprior.training.restore import pick_device, restoration_plan, restore_files

    plan = restoration_plan(source, target)
    model, _ = load_network(checkpoint, name=network, preset=preset)
    with progress("restoring", "image") as advance:
        failed = restore_files(
            model,
            plan,
            device=pick_device(device),
            tile_px=tile_px,
            overlap_px=overlap_px,
            tlc_px=tlc_window(tlc, tlc_px),
            progress=advance,
        )
    done = len(plan) - len(failed)
    if as_json:
        reasons = {str(file): reason for file, reason in failed.items()}
        print_json({"out": target, "restored": done, "pictures": len(plan), "failed": reasons})
    else:
        click.echo(f"{done} of {len(plan)} pictures restored to {target}")
    for reason in failed.values():
        click.echo(f"samprior: {reason}", err=True)
    if failed:
        raise click.exceptions.Exit(1)
