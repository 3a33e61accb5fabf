"""`samprior verify`: check a store."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from samprior.cli.job_view import job_view
from samprior.cli.options import PathOrUrlOption, json_option, print_json
from samprior.cli.progress import progress

if TYPE_CHECKING:
    from samprior.storage.places import Place
    from samprior.storage.verify import Verification


@click.command("verify")
@click.argument("store", type=PathOrUrlOption)
@click.option("--repair", is_flag=True, help="Remove what is broken, and make it again.")
@click.option("--no-recompute", is_flag=True, help="With --repair: only remove.")
@click.option("--workers", type=int, help="Ray workers of the repair, as for precompute.")
@click.option("--seed", default=0, show_default=True, help="Chooses the images to decode.")
@json_option
def command(
    store: Path | str,
    repair: bool,
    no_recompute: bool,
    workers: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Check every byte of a store against its receipts and decode an image of each shard.

    --repair removes what is broken and runs the command again that the store was made with, which
    makes just that.

    \b
    samprior verify stores/gopro
    samprior verify stores/gopro --repair
    samprior verify stores/gopro --repair --no-recompute    # then run the same precompute again
    """
    from samprior.pipeline.shortages import told_plainly
    from samprior.storage.verify import verify_store

    with told_plainly(str(store), is_job=False), progress("verifying", "shard") as advance:
        found = verify_store(store, repair=repair, seed=seed, progress=advance)
    if not as_json:
        _print(str(store), found)
        for name, of_set in found.mask_sets.items():
            _print(f"{store}, masks {name}", of_set)
    is_whole = found.ok
    if not is_whole and repair and (found.mendable or not no_recompute):
        if not found.mendable:
            _recompute(store, found, workers, say=not as_json)
        is_whole = _is_whole_again(store, found, seed)
    if as_json:
        print_json({"store": str(store), "whole": is_whole, **found.to_record()})
    elif is_whole and not found.ok:
        click.echo(f"{store}: whole again")
    if is_whole:
        return
    if found.writer is not None:
        todo = "a job writes to it, so run it again when that has ended"
    elif found.pictures:
        todo = "put back the pictures that it refers to"
    elif repair:
        todo = "what was broken is removed; run the same `samprior precompute` again"
    else:
        todo = "run it with --repair, or the same `samprior precompute` if shards are only missing"
    click.echo(f"samprior: the store is not whole; {todo}", err=True)
    raise click.exceptions.Exit(1)


def _is_whole_again(store: Path | str, found: "Verification", seed: int) -> bool:
    """Look at what was made or written again; say what is still wrong."""
    from samprior.pipeline.shortages import told_plainly
    from samprior.storage.verify import verify_store

    told, shown = told_plainly(str(store), is_job=False), progress("verifying what is new", "shard")
    with told, shown as advance:
        now = verify_store(store, seed=seed, progress=advance, after=found)
    _print_lines(now)
    for of_set in now.mask_sets.values():
        _print_lines(of_set)
    return now.ok and not found.pictures


def _recompute(store: Path | str, found: "Verification", workers: int | None, *, say: bool) -> None:
    """Make again what was removed or missing, in the store and then in its mask sets."""
    from samprior.storage.mask_sets import set_name
    from samprior.storage.places import open_place

    place = open_place(store)
    if found.needs_job:
        _run_again(store, place, workers, say=say)
    for name, of_set in found.mask_sets.items():
        if of_set.needs_job:
            _run_again(store, place.below(set_name(name)), workers, say=say)


def _run_again(store: Path | str, part: "Place", workers: int | None, *, say: bool) -> None:
    """Run the command of the store, or of the mask set at `part`, again."""
    from samprior.pipeline.job_record import read_record
    from samprior.pipeline.recompute import recompute
    from samprior.storage.errors import LayoutError, StoreError
    from samprior.storage.survey import counted

    record = read_record(part)
    if record is None:
        raise StoreError(
            f"{part.url} is not whole and has no job.json that says how it was made; what was "
            "broken is removed. Run the same command as then again"
        )
    again = record.shell_command(store)
    click.echo(f"making again what is missing: {again}", err=True)
    try:
        with job_view("repairing", as_json=False) as view:
            result = recompute(store, record, workers=workers, listen=view)
    except LayoutError as error:
        raise StoreError(
            f"{part.url}: what was broken is removed, and can't be made again, as its dataset is "
            f"not where it was ({error}). When it is there, run: {again}"
        ) from error
    if say:
        click.echo(f"{part.url}: {counted(result.shards_written, 'shard')} made again")


def _print(name: str, found: "Verification") -> None:
    from samprior.storage.survey import counted

    click.echo(
        f"{name}: {found.num_shards} of {counted(found.planned_shards, 'shard')} whole, "
        f"{counted(found.num_images, 'image')}, {counted(found.num_masks, 'mask')}, "
        f"{found.stored_bytes / 1e6:.1f} MB, {len(found.quarantined)} quarantined"
    )
    _print_lines(found)


def _print_lines(found: "Verification") -> None:
    for line in found.lines():
        click.echo(f"  {line}", err=True)
