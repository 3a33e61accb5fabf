"""The whole job in one call: from a dataset and a maker of masks to a store."""

from collections.abc import Sequence
from pathlib import Path

from samprior.pipeline.datasets import Dataset, Pair
from samprior.pipeline.forms import FORMS
from samprior.pipeline.job import JobResult, MaskMaker, Progress, run_job
from samprior.pipeline.makers import worker_pool
from samprior.pipeline.plan import IMAGES_PER_SHARD, Source, plan_header, plan_shards
from samprior.storage.choices import check_choice


def precompute(
    dataset: Dataset,
    out: Path,
    maker: MaskMaker,
    *,
    form: str = "zarr",
    source: Source = "clean",
    images_per_shard: int = IMAGES_PER_SHARD,
    workers: int | None = None,
    progress: Progress | None = None,
) -> JobResult:
    """Bring the store of a dataset at `out` to its end; what is finished is kept.

    Args:
        dataset: from `find_dataset`.
        out: the store's folder, made if missing.
        maker: from `segmenter_maker`, or an importer.
        form: "zarr", the store; or "webdataset", the tars that an export of it would write.
        source: the picture of each pair that is segmented.
        images_per_shard: images of a shard.
        workers: Ray workers; 0 runs in this process, None chooses by the maker.
        progress: called with images finished and images to do.

    Raises:
        StoreError, BusyError: see `run_job`.
        UsageError: a form that isn't known; a number of workers or images that can't be.
    """
    check_choice("--format", form, FORMS)
    plan = plan_shards(dataset.pairs, images_per_shard=images_per_shard)
    header = plan_header(
        plan,
        dataset=dataset.name,
        layout=dataset.layout,
        split=dataset.split,
        segmenter=maker.describe(),
        source=source,
        images_per_shard=images_per_shard,
    )
    count, gpus_per_worker = worker_pool(maker, workers)
    return run_job(
        out,
        plan,
        header,
        maker,
        form=FORMS[form],
        source=source,
        workers=count,
        gpus_per_worker=gpus_per_worker,
        progress=progress,
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
