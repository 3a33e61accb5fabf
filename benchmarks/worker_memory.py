"""Memory of what reads crops ahead, epoch by epoch: our threads against DataLoader's workers.

    python benchmarks/worker_memory.py [--pictures 32] [--epochs 10]

An epoch is one crop of each picture. Ours is the loader that training uses. The peer is a
DataLoader whose dataset keeps all annotations as Python objects, as torchvision's CocoDetection
does, and whose forked workers share them until they touch them: reference counts are written, pages
copied.
Its items are cut from whole PNG files, with the planes of the masks whose box meets the crop.

Memory is that of the process and its workers together, each shared page counted once (PSS of
anonymous and shared memory; files that are mapped belong to the system's cache). The start is after
a first crop, when libraries are loaded. Each side runs in a fresh process, in turn. Linux only.
"""

import json
import multiprocessing
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np
import ours
import pictures
import plain_masks
import readers
from delivery import Sample, collated
from pictures import Subjects
from PIL import Image
from readers import Files
from torch.utils.data import DataLoader, Dataset
from windows import draw_windows

from samprior.storage import MaskStore
from samprior.training.data import Crops
from samprior.training.loader import CropLoader

COUNTED = ("Pss_Anon", "Pss_Shmem")
"""Lines of /proc/PID/smaps_rollup."""


@click.command()
@pictures.options(count=32)
@click.option("--epochs", default=10, show_default=True)
@click.option("--crop-px", default=256, show_default=True)
@click.option("--batch-size", default=4, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Threads of ours, processes.")
@click.option("--runs", default=3, show_default=True, help="Fresh processes for each side.")
def main(
    epochs: int,
    crop_px: int,
    batch_size: int,
    workers: int,
    runs: int,
    **subjects: Any,  # noqa: ANN401
) -> None:
    """Measure, print, and write benchmarks/results/worker_memory.json."""
    if sys.platform != "linux":
        raise click.UsageError("memory of processes is read from Linux's /proc")
    about = measure.machine("numpy", "torch", "pycocotools", "pillow")
    # pycocotools 2.0.11 handles arrays in ways that NumPy 2 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    records = Subjects(**subjects).load()
    settings = {"epochs": epochs, "crop_px": crop_px, "batch_size": batch_size, "workers": workers}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        ours.write_store(root / "store", records)
        readers.write_folder(root / "png", Files.of(records))
        taken: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(runs):
            for side in SIDES:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    told = process.submit(memory_of, side, root, **settings).result()
                taken[side].append(told)
                print(f"{side}: {json.dumps(told)}", flush=True)
    loaders = [{"loader": side, "runs": told} for side, told in taken.items()]
    measure.report("worker_memory", about, [], **settings, pictures=len(records), loaders=loaders)


def memory_of(
    side: str, root: Path, *, epochs: int, crop_px: int, batch_size: int, workers: int
) -> dict[str, Any]:
    """Bytes before a side is made, and after each epoch."""
    warnings.simplefilter("ignore", DeprecationWarning)
    start, *after = islice(SIDES[side](root, crop_px, batch_size, workers), epochs + 1)
    return {"start_bytes": start, "epoch_bytes": after}


def our_epochs(root: Path, crop_px: int, batch_size: int, workers: int) -> Iterator[int]:
    """Memory before, and after each epoch of the loader that training uses."""
    store = MaskStore.open(root / "store")
    crops = Crops(store=store, crop_px=crop_px, seed=0)
    # Libraries and compiled code that reading needs are there from here on.
    deque(CropLoader(crops=crops, batch_size=1, threads=0, num_batches=1), maxlen=0)
    yield resident_bytes()
    batches = iter(CropLoader(crops=crops, batch_size=batch_size, threads=workers))
    while True:
        for _ in range(-(-len(store) // batch_size)):
            next(batches)
        yield resident_bytes()


def their_epochs(root: Path, crop_px: int, batch_size: int, workers: int) -> Iterator[int]:
    """Memory before, and after each epoch of a DataLoader, its workers' too."""
    files = sorted((root / "png").glob("*.json"))
    collated([Annotated(files[:1], crop_px)[0]])
    yield resident_bytes()
    loader = DataLoader(
        Annotated(files, crop_px),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=collated,
        multiprocessing_context=get_context("fork"),
        persistent_workers=True,
    )
    while True:
        deque(loader, maxlen=0)
        yield resident_bytes()


SIDES: dict[str, Callable[[Path, int, int, int], Iterator[int]]] = {
    "samprior, threads": our_epochs,
    "DataLoader, annotations in a list": their_epochs,
}


class Annotated(Dataset[Sample]):
    """Pictures as PNG files, annotations in memory."""

    def __init__(self, files: Sequence[Path], crop_px: int) -> None:
        self._files, self._crop_px = files, crop_px
        self._annotations = [plain_masks.parsed(file.read_bytes()) for file in files]
        self._sizes = [Image.open(file.with_suffix(".clean.png")).size for file in files]

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> Sample:
        """A crop anywhere."""
        (width, height), side = self._sizes[index], self._crop_px
        (window,) = draw_windows([(height, width)], side, 1, np.random.default_rng())
        file = self._files[index]
        parts = {part: file.with_suffix(f".{part}").read_bytes() for part in readers.PARTS[:2]}
        return readers.cut(parts, self._annotations[index], window)


def resident_bytes() -> int:
    """Memory of this process and its children, pages that they share counted once."""
    pids: Sequence[int | None] = [process.pid for process in multiprocessing.active_children()]
    return sum(_pss("self" if pid is None else str(pid)) for pid in (None, *pids))


def _pss(pid: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(COUNTED))


if __name__ == "__main__":
    main()
