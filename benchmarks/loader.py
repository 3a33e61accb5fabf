"""Random crops with their masks: samples a second, ours against the readers people use.

    python benchmarks/loader.py [--pictures 32] [--runs 3] [--aligned]

Everyone gives the same, and is checked to: both pictures uint8 (256, 256, 3), and boolean planes of
the masks that meet the crop. Ours also as atoms and members, which is what training takes. Readers
that decode whole pictures read one crop of each picture, in order; the others crops all over, and
ours are timed on the same windows as whom they are compared with. Files are cached by the system,
but for the part `cold`. Workers are processes of a DataLoader for the peers, threads for ours; the
CPU seconds of rows leave out what other processes spend.

Peers that can't be imported are listed with the reason. For all of them:
pip install litdata tensorstore zarrs mosaicml-streaming
"""

import gc
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np
import ours
import page_cache
import peers
import pictures
import rounds
from delivery import Batch, Sample
from ours import StoreAtoms, StoreReader
from peers import Peer, Prepared
from pictures import Subjects
from windows import Window, draw_windows

from samprior.storage import MaskStore, Record
from samprior.training.loader import RawBatch

PARTS = ("one", "batches", "cold")
CHECKED = 8
"""Crops of each reader that are compared before anything is timed."""

PLANES = Peer("samprior, planes", StoreReader, "store")
ATOMS = Peer("samprior, atoms and members", StoreAtoms, "store")


@click.command()
@pictures.options(count=32)
@click.option("--runs", default=3, show_default=True, help="Pairs of runs for each row.")
@click.option("--crop-px", default=256, show_default=True)
@click.option("--crops", default=512, show_default=True, help="Of readers that are not slow.")
@click.option("--aligned", is_flag=True, help="Crops begin at multiples of their side.")
@click.option("--batch-size", default=16, show_default=True)
@click.option("--workers", multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to put files for the time.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option("--name", default="loader", show_default=True, help="Of the results' file.")
@click.option("--quick", is_flag=True, help="Two small pictures, one run: does it work?")
def main(
    runs: int,
    crop_px: int,
    crops: int,
    aligned: bool,
    batch_size: int,
    workers: tuple[int, ...],
    folder: Path | None,
    only: tuple[str, ...],
    name: str,
    quick: bool,
    **subjects: Any,  # noqa: ANN401
) -> None:
    """Measure, print, and write benchmarks/results/loader.json."""
    if "cold" in only and sys.platform != "linux":
        raise click.UsageError("the part `cold` asks Linux; use --only one --only batches")
    about = measure.machine("numpy", "torch", "zarr", "pycocotools", "pillow", "webdataset")
    # pycocotools 2.0.11 handles arrays in ways that NumPy 2 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    if quick:
        runs, crop_px, crops, batch_size = 1, 128, 8, 2
        subjects |= {"count": 2, "size": (384, 288)}
    records = Subjects(**subjects).load()
    with tempfile.TemporaryDirectory(dir=folder) as root:
        bench = Bench(Path(root), records, batch_size=batch_size, runs=runs)
        bench.draw_windows(crop_px, crops, aligned=aligned)
        bench.check()
        if "one" in only:
            bench.measure_one_process()
        if "batches" in only:
            for count in workers:
                bench.measure_batches(count)
        if "cold" in only:
            bench.measure_cold()
        memcpy_s = 2 * crop_px * crop_px * 3 / memcpy_bandwidth()
        table = bench.table(memcpy_s)
        rounds.print_table("Samples a second; `cold` in ms and MB a crop:", table)
        print(f"\ncopying both pictures of a crop in memory takes {memcpy_s * 1e6:.1f} us")
        for missing, reason in bench.missing.items():
            print(f"not measured: {missing} ({reason})")
        measure.report(
            name,
            about,
            bench.rows,
            crop_px=crop_px,
            aligned=aligned,
            batch_size=batch_size,
            masks=pictures.statistics(records),
            versions={name: version for each in bench.ready for name, version in each.version()},
            table=table,
            memcpy_s_a_crop=memcpy_s,
            not_measured=bench.missing,
        )


class Bench:
    """All readers over the same pictures, and what was found of them."""

    def __init__(
        self, root: Path, records: Sequence[Record], *, batch_size: int, runs: int
    ) -> None:
        self.records = records
        self.batch_size, self.runs = batch_size, runs
        _say("writing the files of all readers")
        ours.write_store(root / "store", records)
        self.ready, self.missing = peers.prepare(root, records, peers.PEERS)
        self.planes, self.atoms = (Prepared(peer, root / peer.folder) for peer in (PLANES, ATOMS))
        self.rows: list[measure.Row] = []
        self.found: dict[str, dict[str, float | str]] = {PLANES.name: {}}
        """Numbers by reader and column."""

    def draw_windows(self, side: int, count: int, *, aligned: bool) -> None:
        """Windows for slow readers, one of each picture in order, and for the others."""
        shapes = [record.masks.shape for record in self.records]
        rng = np.random.default_rng(0)
        per_picture = -(-count // len(shapes))
        multiple = side if aligned else 1
        drawn = list(draw_windows(shapes, side, per_picture, rng, multiple=multiple))
        self.in_order = drawn[::per_picture]
        self.anywhere = [drawn[i] for i in rng.permutation(len(drawn))]

    def windows(self, peer: Peer) -> list[Window]:
        """The windows that a reader is timed on."""
        return self.in_order if peer.is_slow else self.anywhere

    def check(self) -> None:
        """Assert that all readers give the same crops."""
        for each in (*self.ready, self.planes, self.atoms):
            _say(f"checking {each.peer.name}")
            some = self.windows(each.peer)[:CHECKED]
            wanted = [peers.cut(self.records, window) for window in some]
            peers.check(each.peer.name, list(map(as_sample, each.reader().stream(some))), wanted)

    def measure_one_process(self) -> None:
        """Crops read one after the other by a plain loop."""
        for each in (self.atoms, *self.ready):
            windows = self.windows(each.peer)
            mine, theirs = (_reading(side.reader(), windows) for side in (self.planes, each))
            self._compare(each.peer.name, mine, theirs, windows, "one process", "")

    def measure_batches(self, workers: int) -> None:
        """Batches delivered to this process."""
        column = f"batches, workers: {workers}"
        for each in (self.atoms, self.planes, *self.ready):
            if each is self.planes and not workers:
                continue  # what it is compared with
            windows = self.windows(each.peer)
            mine = self._our_batches(windows, workers, planes=True)
            if each is self.atoms:
                theirs = self._our_batches(windows, workers, planes=False)
            else:
                theirs = self._their_batches(each, windows, workers)
            name = each.peer.name if each is not self.planes else f"{PLANES.name}, by DataLoader"
            self._compare(name, mine, theirs, windows, column, f", {column}")
            # Workers of this row must not run beside the next.
            del theirs
            gc.collect()

    def measure_cold(self) -> None:
        """One crop of each picture from the disk, by readers that open their files for it."""
        ours.release()
        sides = (self.planes, *self.ready)
        taken: dict[str, list[page_cache.Cold]] = {each.peer.name: [] for each in sides}
        for _ in range(self.runs):
            for each in sides:
                gc.collect()  # files that are still mapped are not dropped
                page_cache.drop(each.root)
                if page_cache.cached_share(each.root) > 0.02:
                    self._note(each.peer.name, "cold ms", "files stay in memory")
                    continue
                taken[each.peer.name].append(
                    page_cache.cold_run(_reading_afresh(each, self.in_order))
                )
        for name, runs in taken.items():
            if runs:
                elapsed_s = statistics.median(run.elapsed_s for run in runs)
                num_bytes = statistics.median(run.num_bytes for run in runs)
                self._note(name, "cold ms", elapsed_s / len(self.in_order) * 1e3)
                self._note(name, "cold MB", num_bytes / len(self.in_order) / 1e6)

    def table(self, memcpy_s: float) -> list[dict[str, object]]:
        """A row for each reader, the missing too; copying a crop's pictures takes `memcpy_s`."""
        for cells in self.found.values():
            if isinstance(rate := cells.get("one process"), float):
                cells["times memcpy"] = 1 / rate / memcpy_s
        columns = dict.fromkeys(column for cells in self.found.values() for column in cells)
        found = self.found | {f"{name}: not measured": {} for name in self.missing}
        return [
            {"reader": name, **{column: cells.get(column, "") for column in columns}}
            for name, cells in found.items()
        ]

    def _compare(
        self,
        name: str,
        mine: Callable[[], int],
        theirs: Callable[[], int],
        windows: Sequence[Window],
        column: str,
        how: str,
    ) -> None:
        _say(f"{name}: {column}")
        what = f"{len(windows)} crops"
        a = f"{what}, {PLANES.name}{how}"
        row = measure.compare(a, mine, f"{what}, {name}{how}", theirs, runs=self.runs)
        self.rows.append(row)
        self._note(name, column, len(windows) / row.b_s)
        if name == ATOMS.name:
            self._note(PLANES.name, column, len(windows) / row.a_s)

    def _note(self, name: str, column: str, value: float | str) -> None:
        self.found.setdefault(name, {})[column] = value

    def _our_batches(
        self, windows: Sequence[Window], threads: int, *, planes: bool
    ) -> Callable[[], int]:
        store = MaskStore.open(self.planes.root)

        def run() -> int:
            made = ours.batches(
                store, windows, batch_size=self.batch_size, threads=threads, planes=planes
            )
            return _all_there(sum(map(_num_crops, made)), windows)

        return run

    def _their_batches(
        self, each: Prepared, windows: Sequence[Window], workers: int
    ) -> Callable[[], int]:
        loader = each.batches(windows, batch_size=self.batch_size, workers=workers)
        return lambda: _all_there(sum(map(_num_crops, loader)), windows)


def as_sample(read: Sample | Record) -> Sample:
    """What was read with planes, if it has atoms."""
    return (
        read
        if isinstance(read, Sample)
        else Sample(read.degraded, read.clean, read.masks.to_masks())
    )


def memcpy_bandwidth() -> float:
    """Bytes a second that this machine copies in memory, of arrays that no cache holds."""
    source = np.ones(2**28, np.uint8)
    target = np.zeros_like(source)
    times = rounds.time_in_turn({"copy": lambda: np.copyto(target, source)}, runs=5)
    return source.nbytes / times["copy"].median_s


def _reading(reader: Any, windows: Sequence[Window]) -> Callable[[], int]:  # noqa: ANN401
    return lambda: _all_there(sum(1 for _ in reader.stream(windows)), windows)


def _reading_afresh(each: Prepared, windows: Sequence[Window]) -> Callable[[], int]:
    """By a reader that opens its files for it."""
    return lambda: _reading(each.reader(), windows)()


def _num_crops(batch: Batch | RawBatch) -> int:
    return len(batch.counts) if isinstance(batch, Batch) else len(batch.keys)


def _all_there(count: int, windows: Sequence[Window]) -> int:
    assert count == len(windows), f"{count} of {len(windows)} crops were delivered"
    return count


def _say(what: str) -> None:
    click.echo(what, err=True)


if __name__ == "__main__":
    main()
