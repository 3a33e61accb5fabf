"""Masks in the store against the other forms masks are kept in: bytes, encoding, reading crops.

    python benchmarks/storage.py [--pictures 32] [--runs 3]
    python benchmarks/storage.py --amg sam_output/dog --amg sam_output/truck --name storage_sam

All masks, areas, boxes, predicted IoUs, stabilities and prompt points are in every form. Ours are
in a store on disk whose files the system has cached; the others are bytes in memory. The masks
imitate SAM's (pictures.py) unless --amg or --segmentations brings others.
"""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import mask_formats
import measure
import numpy as np
import ours
import picture_codecs
import pictures
import plain_masks
import rounds
import tile_sides
from mask_formats import MaskFormat
from numcodecs import blosc
from pictures import Subjects
from plain_masks import Bools
from windows import Window, draw_windows

from samprior.storage import MaskSet, MaskStore, Record

Item = TypeVar("Item")

PARTS = ("bytes", "forms", "sides", "encode", "crops", "pictures")
"""Bytes are counted whatever is asked for; `--only bytes` times nothing."""

FEW = 8
"""Pictures of the tables, which compare many forms; the rows take all, one shard of the job's."""


@click.command()
@pictures.options(count=32)
@click.option("--runs", default=3, show_default=True, help="Runs of each piece of work.")
@click.option("--crop-px", default=256, show_default=True)
@click.option("--crops-per-picture", default=8, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option("--name", default="storage", show_default=True, help="Of the results' file.")
@click.option("--quick", is_flag=True, help="Two small pictures, one run: does it work?")
def main(
    runs: int,
    crop_px: int,
    crops_per_picture: int,
    only: tuple[str, ...],
    name: str,
    quick: bool,
    **subjects: Any,  # noqa: ANN401
) -> None:
    """Measure, print, and write benchmarks/results/storage.json."""
    about = measure.machine("numpy", "zarr", "numcodecs", "pycocotools", "pillow")
    # pycocotools 2.0.11 handles arrays in ways that NumPy 2 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    # Everyone decodes with one thread; blosc would take what there is.
    blosc.use_threads = False
    if quick:
        runs, crop_px, crops_per_picture = 1, 128, 2
        subjects |= {"count": 2, "size": (384, 288)}
    records = Subjects(**subjects).load()
    rows: list[measure.Row] = []
    told: dict[str, Any] = {"masks": pictures.statistics(records)}
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir=memory_folder()) as memory,
    ):
        bench = Bench(records, root=Path(folder) / "store", scratch=Path(memory))
        windows = bench.windows(crop_px, crops_per_picture)
        bench.check(windows)
        told["bytes"] = bench.bytes()
        print_bytes(told["bytes"])
        if "encode" in only:
            rows += bench.encoding(runs=runs)
        if "crops" in only:
            rows += bench.cropping(windows, runs=runs)
        few = Bench(records[:FEW], root=Path(folder) / "few", scratch=Path(memory))
        some = few.windows(crop_px, crops_per_picture)
        if "forms" in only:
            told["forms"] = few.forms(some, runs=runs)
            rounds.print_table("Forms of masks, a picture or a crop:", told["forms"])
        if "sides" in only:
            told["sides"] = tile_sides.table(Path(folder), few.records, some, runs=runs)
            rounds.print_table("Sides of the atoms' tiles, nothing kept:", told["sides"])
    if "pictures" in only:
        shown = [picture for record in records for picture in (record.degraded, record.clean)]
        num_tiles = 2 if quick else 24
        told["picture_codecs"] = picture_codecs.table(shown, num_tiles=num_tiles, runs=runs)
        rounds.print_table("Lossless tiles of pictures:", told["picture_codecs"])
    measure.report(name, about, rows, crop_px=crop_px, crops=crops_per_picture, **told)


@dataclass(frozen=True)
class Form:
    """The masks of all pictures in one form."""

    name: str
    bytes_a_picture: float
    encode: Callable[[], object]
    """Every picture, from planes."""
    decode: Callable[[int], Bools]
    """All planes (K, H, W) of a picture."""
    crop: Callable[[Window], Bools]
    """Planes (K', side, side) of the masks that meet a window."""


class Bench:
    """The masks of some pictures in all forms, ours the first."""

    def __init__(self, records: Sequence[Record], *, root: Path, scratch: Path) -> None:
        self.records = records
        self.sets = [record.masks for record in records]
        self.planes = [masks.to_masks() for masks in self.sets]
        self.store = ours.write_store(root, records)
        self.scratch = scratch
        """Where shards are written again and again."""
        self.all_forms = [self._our_form(), *map(self._form, mask_formats.formats())]

    def windows(self, side: int, per_picture: int) -> dict[str, list[Window]]:
        """Random crops: at multiples of their side, where tiles begin, and anywhere."""
        shapes = [masks.shape for masks in self.sets]
        rng = np.random.default_rng(0)
        return {
            kind: list(draw_windows(shapes, side, per_picture, rng, multiple=multiple))
            for kind, multiple in (("aligned", side), ("unaligned", 1))
        }

    def check(self, windows: Mapping[str, Sequence[Window]]) -> None:
        """Assert that every form gives the same planes, of whole pictures and of crops."""
        for form in self.all_forms:
            for image, planes in enumerate(self.planes):
                np.testing.assert_array_equal(form.decode(image), planes, err_msg=form.name)
            for window in (window for drawn in windows.values() for window in drawn):
                wanted = plain_masks.cut_planes(self.planes[window.image], window)
                np.testing.assert_array_equal(form.crop(window), wanted, err_msg=form.name)

    def bytes(self) -> dict[str, Any]:
        """Bytes a picture in each form, ours by array too, and of a thumbnail."""
        num = len(self.records)
        by_array = ours.mask_bytes(self.store.root)
        thumbnails = [picture_codecs.thumbnail_bytes(record.clean) for record in self.records]
        return {
            "by_form": {form.name: form.bytes_a_picture for form in self.all_forms},
            "ours_by_array": {name: held / num for name, held in sorted(by_array.items())},
            "jpeg_thumbnail_160_px_quality_75": sum(thumbnails) / num,
        }

    def encoding(self, *, runs: int) -> list[measure.Row]:
        """Planes to stored bytes, and the same from what the mask engine gives, a MaskSet."""
        theirs = (
            "planes to SA-1B JSON in memory (pycocotools)",
            lambda: list(map(plain_masks.sa1b_json, self.planes, self.sets)),
        )
        return [
            measure.compare("planes to a shard of masks (samprior)", self._keep_planes,
                            *theirs, runs=runs),
            measure.compare("MaskSets, as the mask engine gives them, to a shard (samprior)",
                            lambda: ours.keep_masks(self.scratch, self.sets),
                            *theirs, runs=runs),
        ]  # fmt: skip

    def cropping(self, windows: Mapping[str, Sequence[Window]], *, runs: int) -> list[measure.Row]:
        """Planes of the masks that meet a crop: from the store and from run lengths."""
        texts = [plain_masks.sa1b_json(*each) for each in zip(self.planes, self.sets, strict=True)]
        parsed = [plain_masks.parsed(text) for text in texts]

        def read_parsed(window: Window) -> Bools:
            return plain_masks.met_by_box(parsed[window.image], window)

        def read_text(window: Window) -> Bools:
            return plain_masks.met_by_box(plain_masks.parsed(texts[window.image]), window)

        def read_opened(window: Window) -> Bools:
            return ours.planes_of(MaskStore.open(self.store.root), window)

        def read_open(window: Window) -> Bools:
            return ours.planes_of(self.store, window)

        def read_atoms(window: Window) -> MaskSet:
            return ours.masks_of(self.store, window)

        sides = (
            ("an open store, as atoms and members (samprior)", read_atoms,
             "parsed JSON (pycocotools, planes)", read_parsed),
            ("an open store (samprior)", read_open, "parsed JSON (pycocotools)", read_parsed),
            ("an open store (samprior)", read_open, "JSON text (pycocotools)", read_text),
            ("a store opened for each (samprior)", read_opened,
             "JSON text (pycocotools)", read_text),
        )  # fmt: skip
        return [
            measure.compare(
                f"masks of {len(drawn)} {kind} {drawn[0].side} px crops from {a}",
                _each(read_a, drawn),
                f"the same from {b}, only masks whose box meets the crop",
                _each(read_b, drawn),
                runs=runs,
            )
            for kind, drawn in windows.items()
            for a, read_a, b, read_b in sides
        ]

    def forms(
        self, windows: Mapping[str, Sequence[Window]], *, runs: int
    ) -> list[dict[str, object]]:
        """A row for each form: bytes, ms of a picture to encode and decode, ms of a crop."""
        num = len(self.records)
        columns = {
            "encode ms": ({form.name: form.encode for form in self.all_forms}, num),
            "decode all ms": (
                {form.name: _each(form.decode, range(num)) for form in self.all_forms},
                num,
            ),
        }
        for kind, drawn in windows.items():
            works = {form.name: _each(form.crop, drawn) for form in self.all_forms}
            columns[f"{kind} crop ms"] = works, len(drawn)
        rows = {form.name: {"bytes": form.bytes_a_picture} for form in self.all_forms}
        for column, (works, count) in columns.items():
            for name, timing in rounds.time_in_turn(works, runs=runs).items():
                rows[name][column] = timing.median_s / count * 1e3
        return [
            {"form": name, **costs, "on the Pareto front": _is_best(name, rows)}
            for name, costs in rows.items()
        ]

    def _our_form(self) -> Form:
        held = sum(ours.mask_bytes(self.store.root).values())
        return Form(
            "samprior's store",
            held / len(self.records),
            self._keep_planes,
            lambda image: ours.all_planes(self.store, image),
            lambda window: ours.planes_of(self.store, window),
        )

    def _form(self, form: MaskFormat) -> Form:
        def encode() -> list[mask_formats.Encoded]:
            return list(map(form.encode, self.planes, self.sets))

        held = encode()
        return Form(
            form.name,
            sum(each.num_bytes for each in held) / len(held),
            encode,
            lambda image: form.decode(held[image]),
            lambda window: form.crop(held[window.image], window),
        )

    def _keep_planes(self) -> None:
        """Planes and columns to stored bytes, with a MaskSet in between."""
        made = [
            MaskSet.from_masks(planes, **masks.columns)
            for planes, masks in zip(self.planes, self.sets, strict=True)
        ]
        ours.keep_masks(self.scratch, made)


def print_bytes(told: Mapping[str, Any]) -> None:
    """Bytes of the masks of a picture, and a thumbnail's for a sense of them."""
    parts = ", ".join(f"{name} {held:,.0f}" for name, held in told["ours_by_array"].items())
    print(f"bytes of a picture's masks in the store: {parts}")
    print("not counted: receipts, the header, and the arrays of the pictures with their metadata")
    thumbnail = told["jpeg_thumbnail_160_px_quality_75"]
    mine = next(iter(told["by_form"].values()))
    for name, held in told["by_form"].items():
        print(f"{held:10,.0f}  {name} ({held / mine:.2f})")
    print(f"{thumbnail:10,.0f}  a thumbnail of 160 px, JPEG of quality 75 ({thumbnail / mine:.2f})")


def memory_folder() -> Path | None:
    """Where files never meet a disk, if the system has it: a disk's speed is not the question."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None


def _each(work: Callable[[Item], object], items: Sequence[Item]) -> Callable[[], None]:
    """Work on all items; what comes of one is let go before the next, as a reader's crops are."""

    def run() -> None:
        for item in items:
            work(item)

    return run


def _is_best(name: str, rows: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether no other form needs less of something and no more of anything."""
    mine = rows[name]
    return not any(
        all(costs[column] <= mine[column] for column in mine) and costs != mine
        for costs in rows.values()
    )


if __name__ == "__main__":
    main()
