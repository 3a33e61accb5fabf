"""Masks read and written without samprior: SA-1B's JSON by pycocotools, atoms by NumPy.

What the peers of the benchmarks do with masks, each at its best.

K masks, H x W pixels, A atoms.
"""

import json
from collections.abc import Sequence
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco
from windows import Window

from samprior.storage import MaskSet

Bools = npt.NDArray[np.bool_]
Atoms = npt.NDArray[np.unsignedinteger]
Note = dict[str, Any]
"""An annotation of SA-1B."""


def sa1b_json(planes: Bools, masks: MaskSet) -> bytes:
    """Planes (K, H, W) with all fields of SA-1B; of `masks` only the columns are used."""
    codes = coco.encode(np.asfortranarray(planes.transpose(1, 2, 0).view(np.uint8)))
    areas, boxes = coco.area(codes), coco.toBbox(codes)
    height, width = planes.shape[1:]
    columns = masks.columns
    notes = [
        {
            "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
            # SAM measures from the first to the last pixel, pycocotools counts pixels.
            "bbox": [x, y, max(w - 1, 0), max(h - 1, 0)],
            "area": int(area),
            "predicted_iou": float(columns["predicted_iou"][k]),
            "stability_score": float(columns["stability"][k]),
            "point_coords": [columns["point"][k].tolist()],
            "crop_box": [0, 0, width, height],
            "id": k,
        }
        for k, (code, area, (x, y, w, h)) in enumerate(zip(codes, areas, boxes, strict=True))
    ]
    image = {"image_id": 0, "width": width, "height": height, "file_name": "0.png"}
    return json.dumps({"image": image, "annotations": notes}).encode()


def parsed(text: bytes) -> list[Note]:
    """The annotations of a file of SA-1B."""
    notes: list[Note] = json.loads(text)["annotations"]
    return notes


def all_planes(notes: Sequence[Note], shape: tuple[int, int]) -> Bools:
    """Every mask (K, H, W), decoded."""
    if not notes:
        return np.zeros((0, *shape), np.bool_)
    codes = [_code(note) for note in notes]
    return np.asarray(coco.decode(codes)).transpose(2, 0, 1).view(np.bool_)


def met_by_box(notes: Sequence[Note], window: Window) -> Bools:
    """Planes (K', side, side) of the masks that meet a window; only those near it are decoded."""
    _, top, left, side = window
    met = []
    for note in notes:
        x, y, width, height = note["bbox"]
        if x < left + side and y < top + side and x + width >= left and y + height >= top:
            cut = coco.decode(_code(note))[top : top + side, left : left + side]
            if cut.any():
                met.append(cut.view(np.bool_))
    return stacked(met, side)


def cut_planes(planes: Bools, window: Window) -> Bools:
    """Planes (K', side, side) of those of (K, H, W) that meet a window."""
    _, y, x, side = window
    cut = planes[:, y : y + side, x : x + side]
    return cut[cut.any(axis=(1, 2))]


def stacked(planes: Sequence[Bools], side: int) -> Bools:
    """Planes of a window as one array, which may be empty."""
    return np.stack(planes) if planes else np.zeros((0, side, side), np.bool_)


def planes_of_atoms(atoms: Atoms, members: Bools) -> Bools:
    """Every mask (K, h, w) of atoms (h, w) and members (A, K)."""
    index = atoms.astype(np.intp)
    planes = np.empty((members.shape[1], *atoms.shape), np.bool_)
    for plane, column in zip(planes, np.ascontiguousarray(members.T), strict=True):
        # "clip" skips the check of bounds for every pixel.
        np.take(column, index, out=plane, mode="clip")
    return planes


def met_by_atoms(atoms: Atoms, members: Bools) -> Bools:
    """Planes (K', h, w) of the masks that meet a crop of atoms (h, w)."""
    seen = np.zeros(len(members), np.bool_)
    seen[atoms] = True
    return planes_of_atoms(atoms, members[:, members[seen].any(axis=0)])


def boxes_of(planes: Bools) -> npt.NDArray[np.int32]:
    """(K, 4) x0, y0, x1, y1, half open; zeros for an empty mask."""
    boxes = np.zeros((len(planes), 4), np.int32)
    for box, plane in zip(boxes, planes, strict=True):
        rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def table_blob(planes: Bools, boxes: npt.NDArray[np.int32], masks: MaskSet) -> bytes:
    """Areas, boxes and the columns as numbers, end to end, under zstd of level 3."""
    areas = planes.sum(axis=(1, 2), dtype=np.int32)
    columns = (np.ascontiguousarray(masks.columns[name]) for name in sorted(masks.columns))
    raw = b"".join(table.tobytes() for table in (areas, boxes, *columns))
    return bytes(numcodecs.Zstd(3).encode(raw))


def _code(note: Note) -> dict[str, Any]:
    code = note["segmentation"]
    return {"size": code["size"], "counts": code["counts"].encode()}
