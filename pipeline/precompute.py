"""The whole job in one call: from a dataset and a maker of masks to a store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from samprior.pipeline.crew import Crew
from samprior.pipeline.datasets import Dataset, Pair
from samprior.pipeline.events import Listener
from samprior.pipeline.job import JobResult, MaskMaker, Progress, run_job
from samprior.pipeline.job_record import JobRecord
from samprior.pipeline.makers import crew_for
from samprior.pipeline.plan import Source, plan_header, plan_shards
from samprior.pipeline.source_folder import SegmentedFolder
from samprior.pipeline.targets import Target, mask_set_target, store_target
from samprior.storage.errors import UsageError
from samprior.storage.mask_sets import MAIN


def precompute(
    dataset: Dataset,
    out: Path | str,
    maker: MaskMaker,
    *,
    form: str = "zarr",
    source: Source = "clean",
    images: Literal["stored", "reference"] = "stored",
    masks: str = MAIN,
    append: bool = False,
    images_per_shard: int | None = None,
    workers: int | Crew | None = None,
    retry_quarantined: bool = False,
    record: JobRecord | None = None,
    progress: Progress | None = None,
    listen: Listener | None = None,
) -> JobResult:
    """Bring the store of a dataset at `out` to its end; what is finished is kept.

    Args:
        dataset: from `find_dataset`.
        out: the store's folder, made if missing; or its s3://, gs:// or az:// URL.
        maker: from `segmenter_maker`, or an importer.
        form: "zarr", the store; or "webdataset", the tars that an export of it would write.
        source: the picture of each pair that is segmented; "folder" goes with a maker of
            `folder_maker`.
        images: "reference" keeps only where the pictures lie.
        masks: name of a further mask set, for the pictures of the complete store at `out`.
        append: take images that the dataset has got since the store was made.
        images_per_shard: images of a shard; None takes the number of the store that is there, or
            32.
        workers: Ray workers; 0 runs in this process, None chooses by the maker. A `Crew` says what
            each needs, and which cluster they run on.
        retry_quarantined: make shards with quarantined images again.
        record: what is left in the store of the command.
        progress: called with images finished and images to do.
        listen: called with everything that happens.

    Raises:
        StoreError, BusyError: see `run_job`; also for a dataset that isn't the store's.
        UsageError: a form that isn't known; options that don't go together; a number of workers
            or images that can't be; a worker that there is no room for.
        MachineError: the disk is full, can't be written to, or fails; whole shards are kept.
    """
    target = plan_target(
        dataset,
        out,
        maker,
        form=form,
        source=source,
        images=images,
        masks=masks,
        append=append,
        images_per_shard=images_per_shard,
    )
    crew = workers if isinstance(workers, Crew) else Crew(workers=workers, gpus_per_worker=None)
    return run_job(
        target.out,
        target.plan,
        target.header,
        maker,
        form=target.form,
        source=source,
        append=append,
        workers=crew_for(maker, crew),
        retry_quarantined=retry_quarantined,
        record=record,
        progress=progress,
        listen=listen,
    )


def plan_target(
    dataset: Dataset,
    out: Path | str,
    maker: MaskMaker,
    *,
    form: str,
    source: Source,
    images: Literal["stored", "reference"],
    masks: str,
    append: bool,
    images_per_shard: int | None,
) -> Target:
    """What `precompute` with these arguments would write.

    Raises:
        StoreError, UsageError: see `precompute`.
    """
    if (source == "folder") != isinstance(maker, SegmentedFolder):
        raise UsageError(
            f"source {source!r} doesn't go with this maker; a folder's pictures are segmented by "
            "folder_maker with source 'folder'"
        )
    if masks == MAIN:
        return store_target(
            dataset,
            out,
            maker,
            form=form,
            source=source,
            images=images,
            append=append,
            images_per_shard=images_per_shard,
        )
    if form != "zarr" or images != "stored":
        raise UsageError(
            "--masks adds to a store that is there, whose pictures it takes; leave out --format "
            "and --images"
        )
    return mask_set_target(
        dataset, out, masks, maker, source=source, images_per_shard=images_per_shard
    )


def import_pictures(
    pairs: Sequence[Pair], maker: MaskMaker, *, out: Path, progress: Progress | None = None
) -> JobResult:
    """Store single pictures with ready masks, in this process; the store is not paired.

    Raises:
        StoreError, BusyError: see `run_job`.
    """
    plan = plan_shards(pairs)
    header = plan_header(
        plan,
        dataset="pictures",
        layout="pictures",
        split=None,
        segmenter=maker.describe(),
        source="clean",
        paired=False,
    )
    return run_job(out, plan, header, maker, workers=0, progress=progress)
