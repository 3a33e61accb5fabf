"""What a precompute job costs beside its segmenter: workers side by side, and the driver.

    python benchmarks/job_scale.py [--only workers] [--only driver] [--quick]

Workers: a segmenter that waits, over 1, 2, 4 and 8 workers, with work in proportion to the workers,
so that all would take equally long if workers cost each other nothing. The clock starts when the
last worker has loaded, and stops when the last shard is told to be written.

Driver: a segmenter that finds nothing, up to a million images. Of each shard only the receipt is
written, as large as that of a real shard. Seconds are those of all threads of the driver's process;
memory is the peak of its resident set above its start. Each part runs in a fresh process. The laws
are fitted to what was measured, with relative errors as weights. Linux only.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import click
import laws
import measure
import null_jobs
import numpy as np
import rounds

from samprior.pipeline.crew import Crew
from samprior.pipeline.datasets import find_dataset
from samprior.pipeline.events import Event, ShardWritten
from samprior.pipeline.forms import ZARR
from samprior.pipeline.job import run_job
from samprior.storage import MaskStore
from samprior.storage.manifest import read_receipt
from samprior.storage.status import store_status

T = TypeVar("T")

Row = laws.Row


QUICK_SIZES = ((16, 4), (64, 4), (64, 8))
SIZES = ((10**3, 32), (10**4, 32), (10**5, 32), (10**5, 8), (10**6, 32))
"""Images, and images per shard."""


@click.command()
@click.option("--only", "parts", multiple=True, type=click.Choice(["workers", "driver"]))
@click.option("--image-s", default=0.25, show_default=True, help="Seconds of an image.")
@click.option("--shards", default=4, show_default=True, help="Shards for each worker.")
@click.option("--images-per-shard", default=32, show_default=True, help="With --only workers.")
@click.option("--runs", default=3, show_default=True, help="Runs with each number of workers.")
@click.option("--folder", type=click.Path(path_type=Path), help="For stores; default: temporary.")
@click.option("--quick", is_flag=True, help="Try everything with little work.")
def main(
    parts: tuple[str, ...],
    image_s: float,
    shards: int,
    images_per_shard: int,
    runs: int,
    folder: Path | None,
    *,
    quick: bool,
) -> None:
    """Measure, print, and write benchmarks/results/job_workers.json and job_driver.json."""
    about = measure.machine("ray")
    print(f"{about['device']}, {about['cores']} cores, load average {about['load_average'][0]:.2f}")
    # Ray's workers give way to whatever else the machine does; here they are what is measured.
    os.environ.setdefault("RAY_worker_niceness", "0")
    counts, sizes = (1, 2, 4, 8), SIZES
    if quick:
        counts, sizes = (1, 2), QUICK_SIZES
        image_s, shards, images_per_shard, runs = 0.01, 2, 2, 1
    if not parts or "workers" in parts:
        work = {"image_s": image_s, "shards": shards, "images_per_shard": images_per_shard}
        rows = measure_workers(counts, runs=runs, folder=folder, **work)
        rounds.print_table("Workers side by side", rows)
        _write("job_workers", {"machine": about, **work, "runs": runs, "rows": rows})
    if not parts or "driver" in parts:
        rows = [row for size in sizes for row in measure_driver(*size, folder)]
        laws.print_measured("The driver", rows)
        found = laws.laws_of(rows)
        far = laws.by_laws(found, images_per_shard=sizes[0][1])
        laws.print_laws(found, far)
        _write("job_driver", {"machine": about, "rows": rows, "laws": found, "by_laws": far})


def measure_workers(
    counts: Sequence[int],
    *,
    image_s: float,
    shards: int,
    images_per_shard: int,
    runs: int,
    folder: Path | None,
) -> list[Row]:
    """A row for each number of workers; the numbers take turns, run by run."""
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(runs):
        for count in counts:
            taken = _in_fresh_process(
                seconds_of, count, image_s, shards * count, images_per_shard, folder
            )
            seconds[count].append(taken)
            print(f"{count} workers: {taken:.2f} s", flush=True)
    ideal_s = image_s * images_per_shard * shards
    alone_s = float(np.median(seconds[counts[0]]))
    rows = []
    for count, taken in seconds.items():
        middle_s = float(np.median(taken))
        rows.append(
            {
                "workers": count,
                "images": count * shards * images_per_shard,
                "seconds": round(middle_s, 3),
                "least and most": f"{min(taken):.2f} to {max(taken):.2f}",
                "images/s": count * shards * images_per_shard / middle_s,
                "efficiency": round(alone_s / middle_s, 4),
                "share of waiting": round(ideal_s / middle_s, 4),
            }
        )
    return rows


def seconds_of(
    workers: int, image_s: float, num_shards: int, images_per_shard: int, folder: Path | None
) -> float:
    """Seconds from when the last worker had loaded to when the last shard was written."""
    null_jobs.travel_by_value()
    with _pictures(num_shards * images_per_shard, folder) as root:
        maker = null_jobs.Waiting(image_s, workers, root / "loaded")
        plan, header = null_jobs.plan_of(
            root, num_shards * images_per_shard, maker, images_per_shard
        )
        written: list[float] = []

        def listen(event: Event) -> None:
            if isinstance(event, ShardWritten):
                written.append(time.monotonic())

        run_job(root / "store", plan, header, maker, workers=workers, listen=listen)
        assert len(written) == num_shards
        return written[-1] - maker.all_loaded_s()


def measure_driver(count: int, images_per_shard: int, folder: Path | None) -> list[Row]:
    """What a job over so many images costs, and what reading its receipts costs then."""
    rows = []
    about = {"images": count, "shards": -(-count // images_per_shard)}
    with _pictures(count, folder) as root:
        _in_fresh_process(null_jobs.real_digests, root / "real-shard")
        for name, phase in PHASES.items():
            spent = _in_fresh_process(spent_in, phase, root, count, images_per_shard)
            rows.append({**about, "phase": name, **spent})
        stored = sum(entry.stat().st_size for entry in os.scandir(root / "store/receipts"))
        rows.append({**about, "phase": "receipts on disk", "bytes": stored})
    print(f"{count:,} images, {images_per_shard} per shard: measured", flush=True)
    return rows


def spent_in(
    phase: Callable[[Path, int, int], object], root: Path, count: int, images_per_shard: int
) -> Row:
    """CPU seconds of all threads, seconds by the clock, and memory above the start."""
    null_jobs.travel_by_value()
    started, cpu_started = time.perf_counter(), time.process_time()
    start, peak = measure.peak_memory(lambda: phase(root, count, images_per_shard))
    return {
        "CPU s": time.process_time() - cpu_started,
        "s by the clock": time.perf_counter() - started,
        "bytes": peak - start,
    }


def find_pictures(root: Path, count: int, _: int) -> None:
    """What each command does first: the dataset's folders are walked, and files made to pairs."""
    patterns = dict(zip(("degraded_pattern", "clean_pattern"), null_jobs.SIDES, strict=True))
    assert len(find_dataset("folder", root, **patterns).pairs) == count


def make_plan(root: Path, count: int, per_shard: int) -> object:
    """Pairs and plan alone; job and job again have both too."""
    return null_jobs.plan_of(root, count, null_jobs.Nothing(), per_shard)


def drive(root: Path, count: int, per_shard: int) -> None:
    """The whole job, with two workers."""
    digests = read_receipt(root / "real-shard", 0).digests
    form = replace(ZARR, write_shard=null_jobs.ReceiptsOnly(digests))
    maker = null_jobs.Nothing()
    made, header = null_jobs.plan_of(root, count, maker, per_shard)
    crew = Crew(workers=2)
    result = run_job(root / "store", made, header, maker, form=form, workers=crew)
    assert (result.num_images, result.shards_written) == (count, len(made))


def drive_again(root: Path, count: int, per_shard: int) -> None:
    """The same job again: everything is there."""
    maker = null_jobs.Nothing()
    made, header = null_jobs.plan_of(root, count, maker, per_shard)
    assert run_job(root / "store", made, header, maker, workers=2).shards_written == 0


def ask_status(root: Path, count: int, _: int) -> None:
    """What `samprior status` asks."""
    assert store_status(root / "store").images_done == count


def open_store(root: Path, count: int, _: int) -> None:
    """What every reader of a store does first; it keeps the receipts."""
    assert len(MaskStore.open(root / "store")) == count


PHASES = {
    "find the dataset": find_pictures,
    "plan": make_plan,
    "job": drive,
    "the job again": drive_again,
    "status": ask_status,
    "open": open_store,
}


def _in_fresh_process(work: Callable[..., T], *arguments: object) -> T:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


@contextmanager
def _pictures(count: int, folder: Path | None) -> Iterator[Path]:
    """A folder with the pictures of a job, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="samprior-scale-", dir=folder) as root:
        null_jobs.write_pictures(Path(root), count)
        yield Path(root)


def _write(name: str, record: Row) -> None:
    measure.RESULTS.mkdir(parents=True, exist_ok=True)
    (measure.RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
