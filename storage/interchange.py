"""Write a store for other tools: COCO instances, SA-1B's JSON files, or folders of PNG masks.

    export_coco   OUT/images/KEY.png, OUT/annotations.json
    export_sa1b   OUT/KEY.png, OUT/KEY.json
    export_png    OUT/images/KEY.png, OUT/masks/KEY/{metadata.csv, 0.png, ...} as scripts/amg.py

Each format has one picture per image: the clean one, or the degraded one if that is asked for.
Masks are exact in all three. A broken-off export is gone on with by the same call; equal stores
give equal bytes.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np

from samprior.storage.annotations import column_types, mask_annotations, require_columns
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.exports import (
    Progress,
    Side,
    below,
    check_side,
    export_folder,
    png_bytes,
    write_picture,
)
from samprior.storage.files import staged_file, staged_folder, write_bytes
from samprior.storage.manifest import Json
from samprior.storage.masks import MaskSet
from samprior.storage.store import MaskStore

COCO_FILE = "annotations.json"
IMAGES, MASKS = "images", "masks"
"""Folders of the pictures, and of the PNG masks."""

AMG_HEADER = (
    "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,"
    "stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
)
"""First line of metadata.csv as scripts/amg.py writes it."""

SAM_COLUMNS = ("predicted_iou", "stability", "point")
"""Columns without which there is no SA-1B annotation and no row of metadata.csv."""


def export_coco(
    store: MaskStore, out: Path, *, side: Side = "clean", progress: Progress | None = None
) -> None:
    """Write the pictures, and at last one COCO instances file with compressed run-length codes.

    Category and crowd are those of masks that were imported from COCO, else one category
    "object". All columns are extra fields, and `info.columns` has their types. Annotations go
    through memory one image at a time.

    Raises:
        StoreError, UsageError, BusyError: see `export_folder`; also a column JSON can't hold, or
            columns that differ between images.
    """
    check_side(store.require_complete(), side)
    with export_folder(out, store, {"to": "coco", "side": side}):
        types = column_types(store[0].masks)
        with staged_file(out / COCO_FILE) as stream:
            info = {
                "description": "masks kept by samprior",
                "fingerprint": store.fingerprint,
                "columns": types,
            }
            stream.write(b'{"info":' + _json(info) + b',\n"licenses":[],\n"images":[')
            _write_items(stream, _coco_images(store))
            stream.write(b'],\n"categories":[')
            _write_items(stream, _categories(store))
            stream.write(b'],\n"annotations":[')
            _write_items(stream, _coco_annotations(store, out, side, types, progress))
            stream.write(b"]}\n")


def export_sa1b(
    store: MaskStore, out: Path, *, side: Side = "clean", progress: Progress | None = None
) -> None:
    """Write a picture per image and beside it the JSON file that SA-1B has of one.

    `crop_box` is the whole picture: a store doesn't keep the crop a mask was found in.

    Raises:
        UsageError: the store lacks a column of SAM's, which SA-1B needs.
        StoreError, BusyError: see `export_folder`.
    """
    check_side(store.require_complete(), side)
    require_columns(store[0].masks, SAM_COLUMNS, form="SA-1B's JSON")
    with export_folder(out, store, {"to": "sa1b", "side": side}):
        for place, first_id in enumerate(_first_ids(store)):
            note = below(out, store.keys[place], ".json")
            if not note.exists():  # written after the picture
                record = store[place]
                picture = below(out, record.key, ".png")
                write_picture(picture, record, side)
                write_bytes(note, _json(_sa1b(record.masks, picture.name, place, first_id)) + b"\n")
            if progress:
                progress(place + 1, len(store))


def export_png(
    store: MaskStore, out: Path, *, side: Side = "clean", progress: Progress | None = None
) -> None:
    """Write the pictures, and of each a folder of masks in the layout of scripts/amg.py.

    Raises:
        UsageError: the store lacks a column of SAM's, which metadata.csv needs; or a key that is
            also the folder of other keys.
        StoreError, BusyError: see `export_folder`.
    """
    check_side(store.require_complete(), side)
    require_columns(store[0].masks, SAM_COLUMNS, form="scripts/amg.py's layout")
    _refuse_nested(store.keys)
    with export_folder(out, store, {"to": "png", "side": side}):
        for place, key in enumerate(store.keys):
            folder = below(out / MASKS, key)
            if not folder.exists():
                record = store[place]
                picture = below(out / IMAGES, key, ".png")
                write_picture(picture, record, side)
                _write_amg(folder, record.masks)
            if progress:
                progress(place + 1, len(store))


def _coco_images(store: MaskStore) -> Iterator[Json]:
    for place, key in enumerate(store.keys):
        height, width = store.size(place)
        yield {"id": place + 1, "file_name": f"{key}.png", "width": width, "height": height}


def _categories(store: MaskStore) -> Iterator[Json]:
    """The categories that the masks were imported with, else the one of all masks."""
    segmenter = store.header.made_of.get("segmenter")
    named = segmenter.get("categories") if isinstance(segmenter, Mapping) else None
    yield from named or [{"id": 1, "name": "object"}]


def _coco_annotations(
    store: MaskStore, out: Path, side: Side, types: Json, progress: Progress | None
) -> Iterator[Json]:
    for place, first_id in enumerate(_first_ids(store)):
        record = store[place]
        if column_types(record.masks) != types:
            raise StoreError(f"{record.key} has other mask columns than {store.keys[0]}")
        picture = below(out / IMAGES, record.key, ".png")
        write_picture(picture, record, side)
        notes = mask_annotations(record.masks, first_id=first_id)
        for note, (x0, y0, x1, y1) in zip(notes, record.masks.boxes.tolist(), strict=True):
            yield (
                {"image_id": place + 1, "category_id": 1, "iscrowd": 0}
                | note
                | {"bbox": [x0, y0, x1 - x0, y1 - y0]}  # COCO counts pixels, SAM doesn't
            )
        if progress:
            progress(place + 1, len(store))


def _sa1b(masks: MaskSet, file_name: str, place: int, first_id: int) -> Json:
    height, width = masks.shape
    image = {"image_id": place + 1, "width": width, "height": height, "file_name": file_name}
    notes = mask_annotations(masks, first_id=first_id)
    for note in notes:
        note["crop_box"] = [0, 0, width, height]
    return {"image": image, "annotations": notes}


def _write_amg(folder: Path, masks: MaskSet) -> None:
    height, width = masks.shape
    lines = [AMG_HEADER]
    with staged_folder(folder) as draft:
        for k, note in enumerate(mask_annotations(masks, first_id=0)):
            plane = masks.mask(k).astype(np.uint8) * np.uint8(255)
            (draft / f"{k}.png").write_bytes(png_bytes(plane, level=6))
            place = (*note["bbox"], *note["point_coords"][0])
            scores = (note["predicted_iou"], note["stability_score"])
            row = (k, note["area"], *place, *scores, 0, 0, width, height)
            lines.append(",".join("nan" if cell is None else str(cell) for cell in row))
        (draft / "metadata.csv").write_text("\n".join(lines))


def _refuse_nested(keys: tuple[str, ...]) -> None:
    held = set(keys)
    for key in keys:
        parts = key.split("/")
        if above := [k for k in accumulate(parts[:-1], "{}/{}".format) if k in held]:
            raise UsageError(
                f"key {above[0]!r} is also the folder of {key!r}, so their masks would mix; "
                "export --to coco or sa1b"
            )


def _first_ids(store: MaskStore) -> list[int]:
    """The number of each image's first mask, when masks are counted from 1 through the store."""
    counts = [count for receipt in store.receipts.values() for count in receipt.num_masks]
    return list(accumulate(counts[:-1], initial=1))


def _write_items(stream: BinaryIO, items: Iterator[Json]) -> None:
    separator = b"\n"
    for item in items:
        stream.write(separator + _json(item))
        separator = b",\n"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
