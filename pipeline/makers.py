"""Where a job's masks come from when they are made: a segmenter, and the workers it gets."""

import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samprior.pipeline.checkpoints import fetch_checkpoint
from samprior.pipeline.checks import check_int
from samprior.pipeline.crew import Crew
from samprior.pipeline.datasets import Pair
from samprior.pipeline.sam_segmenter import SamSettings
from samprior.pipeline.segmenters import (
    BatchSegmenter,
    SegmenterSettings,
    segmenter_settings,
)
from samprior.pipeline.worker import MaskMaker, MasksOf
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb
from samprior.storage.manifest import Inputs
from samprior.storage.masks import MaskSet


@dataclass(frozen=True)
class Segmented:
    """Masks by a segmenter."""

    settings: SegmenterSettings

    def describe(self) -> dict[str, Any]:
        """The segmenter's own description."""
        return dict(self.settings.describe())

    def inputs(self, pair: Pair) -> Inputs:
        """Nothing beside the pictures."""
        return ()

    def build(self) -> MasksOf:
        """Load the segmenter."""
        segment = self.settings.build()
        if isinstance(segment, BatchSegmenter):
            return _InBatches(segment)
        return lambda _, image: segment(image)


@dataclass(frozen=True)
class _InBatches:
    """A batch segmenter as a `ManyMasksOf`."""

    segment: BatchSegmenter

    @property
    def images_at_once(self) -> int:
        return self.segment.images_at_once

    def __call__(self, pair: Pair, image: Rgb) -> MaskSet:
        return self.segment(image)

    def many(self, pairs: Sequence[Pair], images: Sequence[Rgb]) -> Iterator[MaskSet]:
        return self.segment.many(images)

    def take_notes(self) -> tuple[str, ...]:
        return self.segment.take_notes()


def segmenter_maker(
    name: str,
    *,
    settings: Sequence[str] = (),
    model: str = "vit_h",
    checkpoint: Path | None = None,
    device: str | None = None,
    engine: str = "fast",
    precision: str = "float32",
    progress: Callable[[int, int | None], None] | None = None,
) -> Segmented:
    """The maker for a segmenter's name and `key=value` settings (values are TOML).

    SAM's official checkpoint is downloaded here, once, and not by every worker.

    Raises:
        UsageError: an unknown segmenter or setting, or one that the device can't do.
        CheckpointError: the checkpoint can't be had.
    """
    values = dict(_parsed(setting) for setting in settings)
    if name != "sam":
        return Segmented(segmenter_settings(name, **values))
    own = {
        "model": model,
        "checkpoint": checkpoint,
        "device": device,
        "engine": engine,
        "precision": precision,
    }
    if doubled := values.keys() & own.keys():
        option = sorted(doubled)[0]
        raise UsageError(f"--set {option}=... has an option of its own: use --{option}")
    wanted = segmenter_settings(name, **own, **values)
    if precision == "float16":
        _refuse_on_cpu(device)
    if checkpoint is None:
        fetch_checkpoint(model, progress=progress)
    return Segmented(wanted)


def _refuse_on_cpu(device: str | None) -> None:
    from samprior.pipeline.sam import pick_device

    if pick_device(device) == "cpu":
        raise UsageError("--precision float16 is for GPUs; on a CPU use bfloat16 or float32")


def worker_pool(maker: MaskMaker, workers: int | None = None) -> tuple[int, float]:
    """How many Ray workers a job gets, and how many GPUs each.

    By default one per GPU for SAM; one for SAM on the CPU, whose matrix products use every core;
    else one per core but one, which is the driver's. SAM on a GPU of a certain number runs in this
    process (0 workers), because Ray numbers the GPUs of each worker anew.

    Raises:
        UsageError: a negative number of workers, or several for one GPU by its number; a device
            that can't be used.
    """
    if workers is not None:
        check_int("--workers", workers, 0)
    if isinstance(maker, Segmented) and isinstance(maker.settings, SamSettings):
        import torch

        from samprior.pipeline.sam import pick_device

        device = pick_device(maker.settings.device)
        if device.startswith("cuda:"):
            if workers is not None and workers > 1:
                raise UsageError(
                    f"--device {device} is one GPU, so it goes with one worker, got {workers}; use "
                    "--device cuda, or choose among the GPUs with CUDA_VISIBLE_DEVICES"
                )
            return 0, 0.0
        if device.startswith("cuda"):
            num_gpus = torch.cuda.device_count()
            count = num_gpus if workers is None else workers
            return count, min(1.0, num_gpus / max(1, count))
        return (1 if workers is None else workers), 0.0
    spare = max(1, (os.cpu_count() or 1) - 1)
    return (spare if workers is None else workers), 0.0


def crew_for(maker: MaskMaker, wanted: Crew) -> Crew:
    """The crew that is wanted, with what was left open filled in for the maker: see `worker_pool`.

    On a cluster the number of workers, and whether they get GPUs, is left open until it is joined.

    Raises:
        UsageError: see `worker_pool`.
    """
    if wanted.cluster is not None and wanted.workers != 0:
        if wanted.workers is not None:
            check_int("--workers", wanted.workers, 0)
        is_for_cpus = not isinstance(maker, Segmented) or not _may_use_gpus(maker)
        gpus = 0.0 if is_for_cpus and wanted.gpus_per_worker is None else wanted.gpus_per_worker
        return replace(wanted, gpus_per_worker=gpus)
    count, gpus_each = worker_pool(maker, wanted.workers)
    gpus = gpus_each if wanted.gpus_per_worker is None else wanted.gpus_per_worker
    if wanted.workers is None and count:
        if wanted.gpus_per_worker and gpus_each:
            # As many as `worker_pool` has GPUs for, which are `count` times `gpus_each`.
            count = max(1, int(count * gpus_each / wanted.gpus_per_worker))
        elif wanted.cpus_per_worker:
            count = max(1, int((os.cpu_count() or 1) / wanted.cpus_per_worker))
    return replace(wanted, workers=count, gpus_per_worker=gpus)


def _may_use_gpus(maker: Segmented) -> bool:
    return isinstance(maker.settings, SamSettings) and maker.settings.device != "cpu"


def _parsed(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not equals:
        raise UsageError(f"--set takes key=value, got {setting!r}; such as points_per_side=16")
    try:
        return name.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), text
