"""`samprior verify`: check a store."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from samprior.cli.options import PathOrUrlOption
from samprior.cli.progress import progress

if TYPE_CHECKING:
    from samprior.storage.verify import Verification


@click.command("verify")
@click.argument("store", type=PathOrUrlOption)
@click.option("--repair", is_flag=True, help="Remove what is broken, so that it can be made anew.")
@click.option("--seed", default=0, show_default=True, help="Chooses the images to decode.")
def command(store: Path | str, repair: bool, seed: int) -> None:
    """Check every byte of a store against its receipts and decode an image of each shard.

    \b
    samprior verify stores/gopro
    samprior verify stores/gopro --repair    # then run the same precompute again
    """
    from samprior.storage.verify import verify_store

    with progress("verifying", "shard") as advance:
        found = verify_store(store, repair=repair, seed=seed, progress=advance)
    _print(str(store), found)
    for name, of_set in found.mask_sets.items():
        _print(f"{store}, masks {name}", of_set)
    if found.ok:
        return
    if repair and found.mendable:
        click.echo("the store is whole again")
        return
    done = "removed what was broken; now run" if repair else "run it with --repair, then"
    click.echo(
        f"samprior: the store is not whole; {done} the same `samprior precompute` again", err=True
    )
    raise click.exceptions.Exit(1)


def _print(name: str, found: "Verification") -> None:
    from samprior.storage.survey import counted

    click.echo(
        f"{name}: {found.num_shards} of {counted(found.planned_shards, 'shard')} whole, "
        f"{counted(found.num_images, 'image')}, {counted(found.num_masks, 'mask')}, "
        f"{found.stored_bytes / 1e6:.1f} MB, {len(found.quarantined)} quarantined"
    )
    for line in found.lines():
        click.echo(f"  {line}", err=True)
