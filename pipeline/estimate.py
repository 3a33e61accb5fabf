"""What a job would cost, from a few probe images."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samprior.pipeline.forms import ZARR, Form
from samprior.pipeline.plan import ShardPlan, Source
from samprior.pipeline.worker import MaskMaker, ShardWorker
from samprior.storage.errors import ImageError


@dataclass(frozen=True)
class Estimate:
    """What a job would cost, from a few probe images."""

    num_probes: int
    seconds_per_image: float
    """On one worker, the loading of the segmenter left out."""
    bytes_per_image: float


def estimate(
    plan: Sequence[ShardPlan],
    maker: MaskMaker,
    *,
    source: Source,
    paired: bool,
    form: Form = ZARR,
    num_probes: int = 3,
) -> Estimate:
    """Segment and store evenly spaced images in a temporary folder, and measure.

    Raises:
        ImageError: none of the probes could be used.
    """
    pairs = [pair for shard in plan for pair in shard.pairs]
    places = np.linspace(0, len(pairs) - 1, min(num_probes, len(pairs))).round().astype(int)
    probes = ShardPlan(0, tuple(pairs[place] for place in places))
    with tempfile.TemporaryDirectory(prefix="samprior-probe-") as folder:
        worker = ShardWorker(
            Path(folder), maker, source=source, paired=paired, store_shard=form.write_shard
        )
        # A worker's first image also pays for libraries that load and programs that compile.
        worker.probe(probes.pairs[:1])
        started = time.monotonic()
        receipt = worker.write(probes)
        elapsed_s = time.monotonic() - started
    if not receipt.keys:
        raise ImageError("no probe image could be used: " + "; ".join(receipt.quarantined.values()))
    return Estimate(
        num_probes=len(receipt.keys),
        seconds_per_image=elapsed_s / len(probes.pairs),
        bytes_per_image=receipt.stored_bytes / len(receipt.keys),
    )
