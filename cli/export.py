"""`samprior export`: write a store in another form."""

from pathlib import Path

import click

from samprior.cli.options import PathOption
from samprior.cli.progress import progress


@click.command("export")
@click.argument("store", type=PathOption)
@click.option("--to", type=click.Choice(["webdataset"]), default="webdataset", show_default=True)
@click.argument("out", type=PathOption)
def command(store: Path, to: str, out: Path) -> None:
    """Write a store as webdataset tars, one per shard, with an index of digests and counts.

    \b
    samprior export stores/gopro --to webdataset exports/gopro
    """
    from samprior.storage import MaskStore
    from samprior.storage.shards import export_webdataset
    from samprior.storage.survey import counted

    opened = MaskStore.open(store)
    with progress("exporting", "image") as advance:
        tars = export_webdataset(opened, out, progress=advance)
    num_bytes = sum(tar.stat().st_size for tar in tars)
    images, shards = counted(len(opened), "image"), counted(len(tars), "tar")
    click.echo(f"{out}: {images} in {shards}, {num_bytes / 1e6:.1f} MB")
