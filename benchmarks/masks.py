"""Masks as atoms against COCO run lengths: bytes on disk, encoding, reading crops.

    python benchmarks/masks.py [--runs 7]

The masks are superpixel regions of photographs that ship with scikit-image (not SAM's). The peer
is pycocotools with SA-1B style JSON, one file per image: the form in which SA-1B and amg.py keep
masks. Crops are read from disk by both, the same seeded windows; only masks are read, no pictures,
and both give the same planes. What the system caches of the files stays cached.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import measure
import numpy as np
from pycocotools import mask as coco

from samprior.pipeline import build_segmenter
from samprior.storage import MaskSet, MaskStore


class Window(NamedTuple):
    """A square crop of an image, pixels."""

    image: int
    y: int
    x: int
    side: int


@click.command()
@click.option("--runs", default=7, show_default=True, help="Pairs of runs for each row.")
@click.option("--crop-px", default=256, show_default=True)
@click.option("--crops-per-image", default=4, show_default=True)
def main(runs: int, crop_px: int, crops_per_image: int) -> None:
    """Measure, print, and write benchmarks/results/masks.json."""
    about = measure.machine("numpy", "zarr", "pycocotools")
    # pycocotools 2.0.11 handles arrays in ways that NumPy 2 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    photos = measure.photographs()
    segment = build_segmenter("superpixel")
    sets = [segment(photo) for photo in photos]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        store = measure.write_store(root, [(photo, photo) for photo in photos], sets)
        files = write_json(Path(folder), sets)
        rng = np.random.default_rng(0)
        windows = list(draw_windows([masks.shape for masks in sets], crop_px, crops_per_image, rng))
        store_bytes, json_bytes = mask_bytes(root), sum(file.stat().st_size for file in files)
        rows = [
            encoding([masks.to_masks() for masks in sets], runs=runs),
            *reading(store, files, windows, runs=runs),
        ]
    print(
        f"masks on disk: {store_bytes} bytes in the store, {json_bytes} bytes of JSON "
        f"({json_bytes / store_bytes:.2f} times as many)"
    )
    num_masks = [len(masks) for masks in sets]
    measure.report(
        "masks", about, rows, num_masks=num_masks, store_bytes=store_bytes, json_bytes=json_bytes
    )


def encoding(stacks: Sequence[np.ndarray], *, runs: int) -> measure.Row:
    """Planes (K, H, W) of each image to either form, in memory."""

    def to_atoms() -> None:
        for planes in stacks:
            masks = MaskSet.from_masks(planes)
            _ = masks.areas, masks.boxes

    return measure.compare(
        "encoding planes as atoms with areas and boxes (samprior)",
        to_atoms,
        "encoding planes as run lengths with areas and boxes (pycocotools)",
        lambda: [run_lengths(planes) for planes in stacks],
        runs=runs,
    )


def reading(
    store: MaskStore, files: Sequence[Path], windows: Sequence[Window], *, runs: int
) -> list[measure.Row]:
    """Planes of crops from disk: from a store that stays open, and from one opened each time."""
    what = f"reading masks of {len(windows)} random {windows[0].side} px crops"
    json_side = (
        f"{what} from JSON files, parsed for each (pycocotools)",
        lambda: [read_json(files, window) for window in windows],
    )
    return [
        measure.compare(
            f"{what} from an open store (samprior, warm)",
            lambda: [read_store(store, window) for window in windows],
            *json_side,
            runs=runs,
        ),
        measure.compare(
            f"{what} from a store opened for each (samprior, cold tables)",
            lambda: [read_store(MaskStore.open(store.root), window) for window in windows],
            *json_side,
            runs=runs,
        ),
    ]


def draw_windows(
    shapes: Sequence[tuple[int, int]], side: int, per_image: int, rng: np.random.Generator
) -> Iterator[Window]:
    """Windows at random places that lie inside their images."""
    for image, (height, width) in enumerate(shapes):
        for _ in range(per_image):
            y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
            yield Window(image, int(y), int(x), side)


def read_store(store: MaskStore, window: Window) -> np.ndarray:
    """Planes (K, side, side) of the masks that meet the window."""
    return store.masks(window.image, window.y, window.x, window.side, window.side).to_masks()


def read_json(files: Sequence[Path], window: Window) -> np.ndarray:
    """The same from JSON: choose by box, decode, cut, and leave out what is empty there."""
    _, top, left, side = window
    met = []
    for note in json.loads(files[window.image].read_bytes()):
        x, y, width, height = note["bbox"]
        if x < left + side and y < top + side and x + width > left and y + height > top:
            code = note["segmentation"]
            plane = coco.decode({"size": code["size"], "counts": code["counts"].encode()})
            cut = plane[top : top + side, left : left + side].astype(bool)
            if cut.any():
                met.append(cut)
    return np.stack(met) if met else np.zeros((0, side, side), bool)


def write_json(folder: Path, sets: Sequence[MaskSet]) -> list[Path]:
    """The masks of each image as SA-1B keeps them, one file per image."""
    files = []
    for number, masks in enumerate(sets):
        notes = run_lengths(masks.to_masks())
        for note in notes:
            note["segmentation"]["counts"] = note["segmentation"]["counts"].decode()
        files.append(folder / f"{number}.json")
        files[-1].write_text(json.dumps(notes))
    return files


def run_lengths(planes: np.ndarray) -> list[dict[str, Any]]:
    """Masks (K, H, W) as COCO's compressed run lengths, with area and box."""
    codes = coco.encode(np.asfortranarray(planes.transpose(1, 2, 0).astype(np.uint8)))
    areas, boxes = coco.area(codes), coco.toBbox(codes)
    return [
        {"segmentation": code, "area": int(area), "bbox": box.tolist()}
        for code, area, box in zip(codes, areas, boxes, strict=True)
    ]


def mask_bytes(root: Path) -> int:
    """Bytes of everything in the store's shards but the pictures."""
    files = (file for file in (root / "shards").rglob("*") if file.is_file())
    return sum(f.stat().st_size for f in files if not {"clean", "degraded"} & set(f.parts))


if __name__ == "__main__":
    main()
