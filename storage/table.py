"""The masks of an image, or of a whole store, without their pixels.

K masks, A atoms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samprior.storage.masks import atom_intersections


@dataclass(frozen=True)
class MaskTable:
    """The masks of one image without their pixels."""

    members: npt.NDArray[np.bool_]
    """(A, K), as in `MaskSet`."""
    atom_areas: npt.NDArray[np.int64]
    """(A,) pixels of each atom."""
    areas: npt.NDArray[np.int64]
    """(K,) pixels of each mask."""
    boxes: npt.NDArray[np.int32]
    """(K, 4), as in `MaskSet`."""
    columns: dict[str, npt.NDArray[np.generic]]
    """One row per mask."""

    @property
    def intersections(self) -> npt.NDArray[np.int64]:
        """(K, K) pixels that each two masks share."""
        return atom_intersections(self.atom_areas, self.members)

    @property
    def records(self) -> npt.NDArray[Any]:
        """(K,) a structured array: `area`, `box` (4), and the columns by name."""
        return _structured({"area": self.areas, "box": self.boxes, **self.columns})


def records_of(tables: Mapping[int, MaskTable]) -> npt.NDArray[Any]:
    """The records of several images in one array, with fields `image` and `mask` before them."""
    parts = []
    for image, table in tables.items():
        count = len(table.areas)
        places = {"image": np.full(count, image), "mask": np.arange(count)}
        parts.append(
            _structured({**places, "area": table.areas, "box": table.boxes, **table.columns})
        )
    return np.concatenate(parts) if parts else _structured({"image": np.zeros(0, np.int64)})


def boxes_of(
    atom_boxes: npt.NDArray[np.int64], members: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32]:
    """(K, 4) boxes of masks from those of their atoms (A, 4); zeros for a mask without pixels."""
    boxes = np.zeros((members.shape[1], 4), np.int32)
    for box, held in zip(boxes, members.T, strict=True):
        if held.any():
            inside = atom_boxes[held]
            box[:2], box[2:] = inside[:, :2].min(axis=0), inside[:, 2:].max(axis=0)
    return boxes


def _structured(fields: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    count = len(next(iter(fields.values())))
    dtype = np.dtype([(name, values.dtype, values.shape[1:]) for name, values in fields.items()])
    records = np.zeros(count, dtype)
    for name, values in fields.items():
        records[name] = values
    return records
