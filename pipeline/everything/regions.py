"""Small holes filled and small islands dropped, as `min_mask_region_area` asks for.

Equal to `segment_anything.utils.amg.remove_small_regions`, first for holes and then for islands,
without OpenCV and without looking at the picture outside the mask's box.
"""

import numpy as np
import numpy.typing as npt

from samprior.storage.masks import Bools


def remove_small_regions(plane: Bools, min_area: int) -> tuple[Bools, bool]:
    """The mask (H, W) without regions of fewer than `min_area` pixels, and whether it changed.

    Regions are 8-connected; "hole" is any small region outside the mask, enclosed or not. If all
    islands are small, the largest stays.
    """
    plane, filled = _without_small_holes(plane, min_area)
    plane, dropped = _without_small_islands(plane, min_area)
    return plane, filled or dropped


def _without_small_holes(plane: Bools, min_area: int) -> tuple[Bools, bool]:
    (rows, row_weight), (columns, column_weight) = _frame(plane, 1), _frame(plane, 0)
    cut = plane[rows, columns]
    regions, sizes = _regions(~cut, np.outer(row_weight, column_weight))
    small = sizes < min_area
    small[0] = False
    if not small.any():
        return plane, False
    beyond = (
        (rows.start, plane.shape[0] - rows.stop),
        (columns.start, plane.shape[1] - columns.stop),
    )
    return plane | np.pad(small[regions], beyond, mode="edge"), True


def _without_small_islands(plane: Bools, min_area: int) -> tuple[Bools, bool]:
    (rows, _), (columns, _) = _frame(plane, 1), _frame(plane, 0)
    cut = plane[rows, columns]
    regions, sizes = _regions(cut, np.ones(cut.shape, np.int64))
    large = sizes >= min_area
    large[0] = False
    if large[1:].all():
        return plane, False
    if not large.any():
        large[_first_largest(regions, sizes, rows.start, columns.start)] = True
    changed = np.zeros_like(plane)
    changed[rows, columns] = large[regions]
    return changed, True


def _frame(plane: Bools, axis: int) -> tuple[slice, npt.NDArray[np.int64]]:
    """The mask's lines with one more on each side, and how many lines each of them stands for.

    The outermost lines, where they are empty, stand for all that lies beyond. All of that is
    empty as well, so regions of the cut-out are regions of the whole.
    """
    seen = np.flatnonzero(plane.any(axis=axis))
    length = plane.shape[1 - axis]
    if not len(seen):
        return slice(0, length), np.ones(length, np.int64)
    start, end = max(int(seen[0]) - 1, 0), min(int(seen[-1]) + 2, length)
    weight = np.ones(end - start, np.int64)
    weight[0] += start
    weight[-1] += length - end
    return slice(start, end), weight


def _regions(
    plane: Bools, weights: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Number of each pixel's region, 0 outside, and every region's pixels by number."""
    from skimage.measure import label

    regions = label(plane, connectivity=2).astype(np.intp)  # type: ignore[no-untyped-call]
    # Weights are pixel counts far below 2**53, which float64 sums exactly.
    sizes = np.bincount(regions.reshape(-1), weights.reshape(-1))
    return regions, sizes.astype(np.int64)


def _first_largest(
    regions: npt.NDArray[np.intp], sizes: npt.NDArray[np.int64], y0: int, x0: int
) -> int:
    """The largest region; of several, the one that OpenCV numbers first.

    OpenCV numbers regions as it meets them going through the picture by squares of 2 x 2 pixels.
    """
    largest = np.flatnonzero(sizes == sizes[1:].max())
    y, x = np.nonzero(np.isin(regions, largest[largest > 0]))
    first = np.lexsort(((x + x0) // 2, (y + y0) // 2))[0]
    return int(regions[y[first], x[first]])
