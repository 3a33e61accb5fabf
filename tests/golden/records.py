"""The records that every golden store holds, whatever its format version."""

import numpy as np

from samprior.storage import MaskSet, Record


def golden_records() -> list[Record]:
    """Three small pictures: overlapping masks, one pixel of mask, and no mask at all."""
    overlapping = np.zeros((3, 20, 150), bool)
    overlapping[0, 2:18, 3:140] = True
    overlapping[1, 5:12, 100:150] = True
    overlapping[2, 6:7, :] = True
    pixel = np.zeros((1, 9, 7), bool)
    pixel[0, 4, 3] = True
    return [
        _record("seq/0", overlapping),
        _record("seq/1", pixel),
        _record("seq/2", np.zeros((0, 130, 5), bool)),
    ]


def _record(key: str, planes: np.ndarray) -> Record:
    num_masks, height, width = planes.shape
    y, x = np.mgrid[:height, :width]
    clean = np.stack([y + x, 2 * y, 255 - x], axis=-1).astype(np.uint8)
    masks = MaskSet.from_masks(
        planes,
        predicted_iou=np.linspace(1, 0.5, num_masks, dtype=np.float32),
        point=np.arange(2 * num_masks, dtype=np.float64).reshape(-1, 2),
    )
    return Record(key=key, degraded=clean[::-1].copy(), clean=clean, masks=masks)
