"""Carry a plan out: Ray actors write shards, receipts come back, nothing finished is done again.

Paths go in and receipts come out; no pixel enters Ray's object store. The same worker class runs
in this process with `workers=0`, for debugging and for machines without Ray.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from samprior.pipeline.crew import Crew
from samprior.pipeline.events import (
    Event,
    Listener,
    Progressed,
    Quarantined,
    ShardWritten,
    Started,
)
from samprior.pipeline.folders import counted
from samprior.pipeline.forms import ZARR, Form
from samprior.pipeline.job_record import JobRecord
from samprior.pipeline.plan import ShardPlan, Source, keys_of, pending
from samprior.pipeline.shortages import told_plainly
from samprior.pipeline.worker import MaskMaker, MasksOf, ShardWorker, inputs_of
from samprior.storage.errors import StoreError
from samprior.storage.files import STAGED_SUFFIX, remove_drafts
from samprior.storage.growth import cut, is_grown, write_listing
from samprior.storage.header import JOB
from samprior.storage.holding import wait_for_holders
from samprior.storage.locks import LOCK, Hold, only_writer_of
from samprior.storage.manifest import Header, Receipt
from samprior.storage.places import LocalFolder, Place, is_file, open_place

__all__ = [
    "JobResult",
    "MaskMaker",
    "MasksOf",
    "Progress",
    "run_job",
]

Progress = Callable[[int, int], None]
"""Called with (images finished by this run, images this run has to do)."""


@dataclass
class JobResult:
    """What a finished job did."""

    num_images: int
    """Images stored, this run and before."""
    shards_written: int
    """Shards this run wrote."""
    num_shards: int
    quarantined: dict[str, str] = field(default_factory=dict)
    """Reason for each image that could not be used, this run and before."""
    stored_bytes: int = 0


def run_job(
    out: Path | str | Place,
    plan: Sequence[ShardPlan],
    header: Header,
    maker: MaskMaker,
    *,
    form: Form = ZARR,
    source: Source = "clean",
    append: bool = False,
    workers: int | Crew = 1,
    retry_quarantined: bool = False,
    record: JobRecord | None = None,
    progress: Progress | None = None,
    listen: Listener | None = None,
) -> JobResult:
    """Bring the store at `out` to the state the plan describes; finished shards are kept.

    Args:
        out: the folder of the store or of its tars, made if missing; or its s3://, gs:// or az://
            URL.
        plan: all shards of the store.
        header: what the store is made of; must be that of an existing store at `out`, or with
            `append` add parts to it.
        maker: where the masks come from.
        form: how the shards are kept.
        source: the picture of each pair that is segmented.
        append: whether the plan may have parts that an existing store has not.
        workers: Ray actors, 0 runs in this process; a `Crew` says more of them.
        retry_quarantined: make shards with quarantined images again.
        record: what is left in the store of the command; None: what is there stays.
        progress: called as images are finished.
        listen: called with everything that happens.

    Raises:
        StoreError: `out` holds something else, or shards were given up.
        BusyError: another job writes to it, or took it over while this one stood still.
        MachineError: the disk is full, can't be written to, or fails; whole shards are kept.
        UnreachableError: an object store didn't answer, or refused.
    """
    form.check_keys(keys_of(plan))
    crew = Crew(workers=workers) if isinstance(workers, int) else workers
    place = open_place(out)
    with told_plainly(place.url):
        _refuse_strangers(place, form)
        with only_writer_of(place) as hold:
            if place.local is not None:
                wait_for_holders(place.local / form.header_files[0])
            _claim(place, header, keys_of(plan), form, append=append)
            if record is not None:
                record.leave_in(place)
            _remove_drafts(place)
            todo = pending(
                plan,
                form.each_receipt(place),
                partial(inputs_of, maker),
                retry_quarantined=retry_quarantined,
            )
            tell = _teller(hold, progress, listen)
            tell(_started(plan, todo))
            arguments: dict[str, Any] = {
                "source": source,
                "paired": header.paired,
                "store_shard": form.write_shard,
            }
            if todo and crew.workers != 0:
                from samprior.pipeline.cluster import run_on_ray

                # Workers may have another working folder.
                root = place if place.local is None else LocalFolder(place.local.resolve())
                held = form.header_files[0]
                run_on_ray(todo, (root, maker), {**arguments, "held": held}, crew, tell)
            elif todo:
                _run_here(todo, ShardWorker(place, maker, **arguments), tell)
            hold.check()
            _remove_drafts(place)  # of workers that were lost meanwhile
            result = _result(plan, form.each_receipt(place), place.url, shards_written=len(todo))
            form.finish(place, header)
    return result


def _teller(hold: Hold[Any], progress: Progress | None, listen: Listener | None) -> Listener:
    """One listener for both, that also raises BusyError when the lock was taken over."""

    def tell(event: Event) -> None:
        hold.check()
        if listen:
            listen(event)
        if progress and isinstance(event, Progressed):
            progress(event.images_done, event.images_to_do)

    return tell


def _remove_drafts(place: Place) -> None:
    """Remove what killed writers left in a folder; an object store has no drafts."""
    if place.local is not None:
        for folder in (place.local, place.local / "shards", place.local / "receipts"):
            remove_drafts(folder)


def _started(plan: Sequence[ShardPlan], todo: Sequence[ShardPlan]) -> Started:
    num_images = sum(len(shard.pairs) for shard in plan)
    return Started(
        num_shards=len(plan),
        num_images=num_images,
        shards_done=len(plan) - len(todo),
        images_done=num_images - sum(len(shard.pairs) for shard in todo),
    )


def _run_here(todo: Sequence[ShardPlan], worker: ShardWorker, tell: Listener) -> None:
    images_to_do = sum(len(shard.pairs) for shard in todo)
    images = masks = quarantined = 0

    def on_image() -> None:
        look = worker.look()
        tell(
            Progressed(
                images_done=images + look.images,
                images_to_do=images_to_do,
                num_masks=masks + look.masks,
                num_quarantined=quarantined + look.quarantined,
                workers=1,
            )
        )

    worker.on_image = on_image
    for shard in todo:
        receipt = worker.write(shard)
        images += len(shard.pairs)
        masks += sum(receipt.num_masks)
        quarantined += len(receipt.quarantined)
        for key, reason in receipt.quarantined.items():
            tell(Quarantined(key, reason))
        tell(
            ShardWritten(
                shard.shard, len(shard.pairs), sum(receipt.num_masks), receipt.stored_bytes
            )
        )


def _result(
    plan: Sequence[ShardPlan], receipts: Iterable[Receipt], out: str, *, shards_written: int
) -> JobResult:
    """What the store holds now; no receipt is kept.

    Raises:
        StoreError: a shard that was written is gone, as when something else wrote too.
    """
    result = JobResult(num_images=0, shards_written=shards_written, num_shards=len(plan))
    there = set()
    for receipt in receipts:
        there.add(receipt.shard)
        result.num_images += len(receipt.keys)
        result.quarantined |= receipt.quarantined
        result.stored_bytes += receipt.stored_bytes
    gone = [shard.shard for shard in plan if shard.shard not in there]
    if gone:
        raise StoreError(
            f"{out} has lost {counted(len(gone), 'shard')} while this job ran ({gone[0]}, ...); "
            "see that nothing else writes to it, and run the same command again"
        )
    return result


def _claim(place: Place, header: Header, keys: Sequence[str], form: Form, *, append: bool) -> None:
    """Make the store, or make sure that the one at `place` is the plan's.

    A store in which no shard was ever finished holds nothing that could be of another kind.
    """
    is_there = [is_file(place, name) for name in form.header_files]
    if is_there[0] and any(name.endswith(".json") for name in place.names("receipts")):
        _require_same(place.url, form.read_header(place), header, keys, append=append)
    if not all(is_there) or form.read_header(place) != header:
        if header.appended and header.images != "parent":
            write_listing(place, cut(keys, header.parts))
        form.write_header(place, header)


def _require_same(
    out: str, found: Header, header: Header, keys: Sequence[str], *, append: bool
) -> None:
    """Raise StoreError unless the header found is the wanted one, or may become it."""
    if found.fingerprint == header.fingerprint:
        return
    if found.format_version != header.format_version:
        raise StoreError(
            f"{out} has store format {found.format_version}, which is only read; copy it to the "
            f"present one with `samprior migrate {out} NEW`, then go on with --out NEW"
        )
    if not is_grown(found, header, keys):
        other = "--masks" if header.images == "parent" else "--out"
        raise StoreError(
            f"{out} was made with other settings "
            f"({'; '.join(found.difference(header)[:3])}); choose another {other}, or remove it "
            "first"
        )
    if not append:
        new = header.num_images - found.num_images
        raise StoreError(f"{out} lacks {counted(new, 'image')} of the plan; add them by --append")


def _refuse_strangers(place: Place, form: Form) -> None:
    """Raise StoreError if it holds anything but a store or what a killed job may have left."""
    try:
        names = place.names()
    except NotADirectoryError:
        names = [""]
    if form.header_files[0] in names:
        form.read_header(place)  # refuses what others wrote
    elif any(
        PurePosixPath(name).suffix != STAGED_SUFFIX and name not in (LOCK, JOB) for name in names
    ):
        raise StoreError(f"{place.url} exists and is no samprior {form.noun}; choose another --out")
