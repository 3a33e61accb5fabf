"""Make again what is missing in a store, by the command that it was made with."""

from pathlib import Path
from typing import Any

from samprior.pipeline.crew import Crew
from samprior.pipeline.datasets import find_dataset
from samprior.pipeline.events import Listener
from samprior.pipeline.job import JobResult
from samprior.pipeline.job_record import JobRecord
from samprior.pipeline.makers import segmenter_maker
from samprior.pipeline.precompute import precompute
from samprior.pipeline.source_folder import maker_of_source


def recompute(
    store: Path | str,
    record: JobRecord,
    *,
    workers: int | Crew | None = None,
    listen: Listener | None = None,
) -> JobResult:
    """Bring the store, or the mask set that the record is of, to its end.

    Args:
        store: folder or URL of the store; of a mask set, that of the store it belongs to.
        record: from `read_record`.
        workers: as for `precompute`.
        listen: called with everything that happens.

    Raises:
        LayoutError: the dataset is no longer where it was.
        StoreError, BusyError, CheckpointError, UsageError: see `precompute`.
    """
    dataset = find_dataset(
        record.dataset,
        record.root,
        split=record.split,
        variant=record.variant,
        degraded_pattern=record.degraded_pattern,
        clean_pattern=record.clean_pattern,
    )
    sam: dict[str, Any] = {
        "model": record.model,
        "checkpoint": record.checkpoint and Path(record.checkpoint),
        "device": record.device,
        "engine": record.engine,
        "precision": record.precision,
    }
    given = {name: value for name, value in sam.items() if value is not None}
    maker = segmenter_maker(record.segmenter, settings=record.settings, **given)
    maker, source = maker_of_source(maker, dataset, record.source)
    return precompute(
        dataset,
        store,
        maker,
        form=record.form,
        source=source,
        images=record.images,
        masks=record.masks,
        images_per_shard=record.images_per_shard,
        workers=workers,
        record=record,
        listen=listen,
    )
