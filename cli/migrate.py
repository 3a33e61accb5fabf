"""`samprior migrate`: copy a store of an older format to the present one."""

from pathlib import Path

import click

from samprior.cli.options import PathOption, json_option, print_json
from samprior.cli.progress import progress


@click.command("migrate")
@click.argument("old")
@click.argument("new", type=PathOption)
@json_option
def command(old: str, new: Path, as_json: bool) -> None:
    """Copy the store OLD, a folder or URL, to the present format in the folder NEW.

    Older formats are read as they are; only to add to a store it must be of the present one. Run
    the same command again after an interruption.

    \b
    samprior migrate stores/gopro stores/gopro-2
    """
    from samprior.storage.header import FORMAT_VERSION
    from samprior.storage.migrate import migrate_store
    from samprior.storage.survey import counted

    with progress("migrating", "shard") as advance:
        done = migrate_store(old, new, progress=advance)
    if as_json:
        print_json({"out": new, "version": FORMAT_VERSION, **vars(done)})
        return
    copied = done.shards_copied
    click.echo(
        f"{new}: {counted(done.num_images, 'image')}, {counted(done.num_shards, 'shard')}, "
        f"{done.stored_bytes / 1e6:.1f} MB, format {FORMAT_VERSION} (was {done.old_version}); "
        + (f"{counted(copied, 'shard')} copied now" if copied else "nothing to do")
    )
