"""`samprior inspect`: draw a store's masks."""

from pathlib import Path

import click

from samprior.cli.options import PathOption, json_option, print_json
from samprior.cli.progress import progress


@click.command("inspect")
@click.argument("store", type=PathOption)
@click.option("-o", "--out", default="report.html", show_default=True, type=PathOption)
@click.option("--num-images", default=24, show_default=True, help="Images that are drawn.")
@json_option
def command(store: Path, out: Path, num_images: int, as_json: bool) -> None:
    """Draw a store as one self-contained HTML page, the strangest images first.

    \b
    samprior inspect stores/gopro -o report.html
    """
    from samprior.storage import MaskStore
    from samprior.storage.inspect import write_report

    opened = MaskStore.open(store)
    with progress("drawing", "image") as advance:
        write_report(opened, out, num_images=num_images, progress=advance)
    if as_json:
        print_json({"out": out, "num_drawn": min(num_images, len(opened))})
        return
    click.echo(f"{out}")
