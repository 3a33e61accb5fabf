"""Masks as the annotations of SA-1B's JSON, and columns of a mask table read back from them.

    {"id": 1, "segmentation": {"size": [H, W], "counts": "..."}, "bbox": [x, y, w, h],
     "area": 4711, "predicted_iou": 0.97, "stability_score": 0.96, "point_coords": [[x, y]]}

Every column of a `MaskSet` becomes a field; `stability` and `point` have SA-1B's names. JSON has no
NaN: it is written as null. Numbers are written in full, so each comes back bit for bit if its type
is known (`column_types`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from samprior.storage.errors import StoreError, UsageError
from samprior.storage.manifest import Json
from samprior.storage.masks import MaskSet
from samprior.storage.rle import encode_masks

FIELD_OF = {"stability": "stability_score", "point": "point_coords"}
"""Field of those columns that are called otherwise in SA-1B."""

_OWN_FIELDS = {"id", "image_id", "segmentation", "bbox", "area", "crop_box", *FIELD_OF.values()}
_DTYPES = {np.dtype(name).name for name in ("?", *"bhiqBHIQ", *"efd")}
_MAX_NUMBERS = 64
"""Numbers of one mask in one column; a column is a score, a point, a box."""


def mask_annotations(masks: MaskSet, *, first_id: int = 1) -> list[Json]:
    """One annotation per mask, in order; `bbox` is SAM's, from the first to the last pixel.

    Raises:
        StoreError: a column that JSON can't hold.
    """
    height, width = masks.shape
    x0, y0, x1, y1 = masks.boxes.astype(np.int64).T
    last_x, last_y = np.maximum(x1 - 1, 0), np.maximum(y1 - 1, 0)
    boxes = np.stack([x0, y0, last_x - x0, last_y - y0], axis=1)
    notes = [
        {
            "id": first_id + k,
            "segmentation": {"size": [height, width], "counts": code},
            "bbox": box,
            "area": area,
        }
        for k, (code, box, area) in enumerate(
            zip(encode_masks(masks), boxes.tolist(), masks.areas.tolist(), strict=True)
        )
    ]
    for name, column in masks.columns.items():
        field = FIELD_OF.get(name, name)
        if name in _OWN_FIELDS:
            raise StoreError(f"a column {name!r} can't be exported: annotations have another such")
        for note, value in zip(notes, _values(name, column), strict=True):
            note[field] = [value] if name == "point" else value
    return notes


def column_types(masks: MaskSet) -> Json:
    """The type of each column by name: `dtype`, and the `shape` of one mask's entry."""
    return {
        name: {"dtype": column.dtype.name, "shape": list(column.shape[1:])}
        for name, column in masks.columns.items()
    }


def read_columns(
    notes: Sequence[Mapping[str, Any]], types: Mapping[str, Any]
) -> dict[str, npt.NDArray[np.generic]]:
    """The columns that `types` (as from `column_types`) names, from annotations of any origin.

    Raises:
        ValueError: a type that is none, or a field that is missing or not of it.
    """
    columns = {}
    for name, kind in types.items():
        dtype, shape = _checked_type(name, kind)
        field = FIELD_OF.get(name, name)
        numbers: list[bool | int | float | None] = []
        for i, note in enumerate(notes):
            if field not in note:
                raise ValueError(f"annotations.{i} has no {field}")
            given = note[field]
            if name == "point":
                given = given[0] if isinstance(given, list) and len(given) == 1 else None
            numbers += _flat(given, shape, f"annotations.{i}.{field}", dtype)
        columns[name] = _array(numbers, dtype, field).reshape(len(notes), *shape)
    return columns


def require_columns(masks: MaskSet, names: Sequence[str], *, form: str) -> None:
    """Raise UsageError if the masks lack a column that a format can't do without."""
    if missing := [name for name in names if name not in masks.columns]:
        held = ", ".join(sorted(masks.columns)) or "none"
        raise UsageError(
            f"{form} needs SAM's column {missing[0]!r}, and the store's columns are: {held}; "
            "export --to coco or webdataset, which take any store"
        )


def _values(name: str, column: npt.NDArray[np.generic]) -> list[Any]:
    """The entries of a column as JSON has them."""
    if column.dtype.name not in _DTYPES:
        raise StoreError(f"column {name!r} is {column.dtype}, which JSON can't hold exactly")
    entries = column.astype(object)
    if column.dtype.kind == "f":
        numbers = column.astype(np.float64)
        if np.isinf(numbers).any():
            raise StoreError(f"column {name!r} has infinite numbers, which JSON can't hold")
        entries[np.isnan(numbers)] = None
    return list(entries.tolist())


def _checked_type(name: str, kind: object) -> tuple[np.dtype[Any], tuple[int, ...]]:
    wrong = ValueError(f"column {name!r} has no type that is known: {str(kind)[:80]}")
    if not isinstance(kind, Mapping) or kind.keys() != {"dtype", "shape"}:
        raise wrong
    shape = kind["shape"]
    if kind["dtype"] not in _DTYPES or not isinstance(shape, list) or len(shape) > 4:
        raise wrong
    if not all(type(side) is int and 0 < side <= _MAX_NUMBERS for side in shape):
        raise wrong
    if math.prod(shape) > _MAX_NUMBERS:
        raise wrong
    return np.dtype(kind["dtype"]), tuple(shape)


def _flat(given: object, shape: tuple[int, ...], place: str, dtype: np.dtype[Any]) -> list[Any]:
    """The numbers of one entry in reading order, each checked to be one."""
    if shape:
        if not isinstance(given, list) or len(given) != shape[0]:
            raise ValueError(f"{place} should be a list of {shape[0]}")
        return [number for part in given for number in _flat(part, shape[1:], place, dtype)]
    wanted: tuple[type, ...] = (bool,) if dtype.kind == "b" else (int,)
    if dtype.kind == "f":
        wanted = (int, float, type(None))
    if type(given) not in wanted:
        raise ValueError(f"{place} should hold {dtype.name}, got {str(given)[:40]!r}")
    return [given]


def _array(numbers: list[Any], dtype: np.dtype[Any], field: str) -> npt.NDArray[np.generic]:
    try:
        with np.errstate(over="ignore"):
            array = np.array(numbers, dtype)
    except OverflowError as error:
        raise ValueError(f"{field} has numbers beyond {dtype.name}") from error
    if dtype.kind == "f" and np.isinf(array).any():
        raise ValueError(f"{field} has numbers beyond {dtype.name}")
    return array
