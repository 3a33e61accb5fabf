"""`samprior status`: how far a store is, and whether its job runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from samprior.cli.options import PathOrUrlOption, json_option, print_json

if TYPE_CHECKING:
    from samprior.storage.status import Status, Writer

REASONS_SHOWN = 20
"""Quarantined images that are told one by one, unless as JSON."""


@click.command("status")
@click.argument("store", type=PathOrUrlOption)
@json_option
def command(store: Path | str, as_json: bool) -> None:
    """Say how far the job of a store is, whether it runs, and how long it will take.

    Header, receipts and lock are read, and no shard: it may be asked at any time, also of a job
    that was killed, and of tars that a job writes.

    \b
    samprior status stores/gopro
    samprior status stores/gopro --json
    """
    from samprior.storage.status import store_status

    status = store_status(store)
    if as_json:
        print_json({"store": str(store), **status.to_record()})
        return
    _print(status, str(store))
    for name, of_set in status.mask_sets.items():
        _print(of_set, f"{store}, masks {name}")


def _print(status: "Status", where: str) -> None:
    click.echo(_told_store(status, where))
    click.echo(f"  {_told_job(status)}")
    for problem in status.unreadable[:REASONS_SHOWN]:
        click.echo(f"  {problem}", err=True)
    for key, reason in list(status.quarantined.items())[:REASONS_SHOWN]:
        click.echo(f"  quarantined {key}: {reason}")
    if (more := len(status.quarantined) - REASONS_SHOWN) > 0:
        click.echo(f"  and {more} more; --json has all")


def _told_store(status: "Status", where: str) -> str:
    share = status.images_done / status.num_images if status.num_images else 1.0
    masks = status.masks_per_image
    return (
        f"{where}: {status.shards_done:,} of {status.num_shards:,} shards, "
        f"{status.images_done:,} of {status.num_images:,} images ({share:.0%}), "
        + (f"{masks:.1f} masks/image, " if masks is not None else "")
        + f"{status.stored_bytes / 1e6:.1f} MB, {len(status.quarantined):,} quarantined"
    )


def _told_job(status: "Status") -> str:
    """Whether a job runs, and how fast it is, or was."""
    pace = f"{status.images_per_s:.3g} images/s" if status.images_per_s else ""
    writer = status.writer
    if writer is not None and writer.is_alive is not False:
        runs = "a job runs" if writer.is_alive else "a job of another machine runs or has died"
        who = ", ".join(_told_writer(writer))
        left = f"about {_duration(status.eta_s)} left" if status.eta_s is not None else ""
        return ", ".join(part for part in (f"{runs} ({who})" if who else runs, pace, left) if part)
    if status.shards_done == status.num_shards:
        return "finished"
    why = "the job was killed" if writer else "no job runs"
    return f"{why}{f' ({pace} when it ran)' if pace else ''}; run the same command again to go on"


def _told_writer(writer: "Writer") -> Iterator[str]:
    if writer.host is not None:
        yield f"host {writer.host}"
    if writer.pid is not None:
        yield f"process {writer.pid}"
    if writer.held_s is not None:
        yield f"since {_duration(writer.held_s)}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
