"""Which parts of a picture SAM looks at, and where it is asked: the official generator's crops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from segment_anything.utils.amg import build_all_layer_point_grids, generate_crop_boxes
from segment_anything.utils.transforms import ResizeLongestSide

from samprior.pipeline.amg_settings import AmgSettings
from samprior.storage.errors import ImageError

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the picture; x1 and y1 are one past the last pixel."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A part of a picture that goes through the encoder once."""

    box: Box
    input_size: tuple[int, int]
    """Height and width to which the crop is scaled; the rest of SAM's square input is padding."""
    points: npt.NDArray[np.float64]
    """(P, 2) prompts, x and y in pixels of the crop."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the picture."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0

    @property
    def input_points(self) -> npt.NDArray[np.float64]:
        """(P, 2) the prompts in pixels of the scaled crop, scaled as officially."""
        (height, width), (input_height, input_width) = self.size, self.input_size
        scale = np.array([input_width / width, input_height / height])
        scaled: npt.NDArray[np.float64] = self.points * scale
        return scaled


def plan_crops(shape: tuple[int, int], amg: AmgSettings, *, input_side: int) -> list[Crop]:
    """The crops of a picture of (H, W) pixels for a SAM with a square input of `input_side`.

    Raises:
        ImageError: the picture, or a crop of it, is too thin to be scaled to SAM's input.
    """
    boxes, layers = generate_crop_boxes(shape, amg.crop_n_layers, amg.crop_overlap_ratio)
    grids = _grids(amg)
    crops = []
    for (x0, y0, x1, y1), layer in zip(boxes, layers, strict=True):
        height, width = y1 - y0, x1 - x0
        size = _input_size(height, width, input_side)
        if size is None:
            raise ImageError(
                f"an image of {shape[1]}x{shape[0]} pixels leaves a crop of {width}x{height}, too "
                f"thin for SAM's input of {input_side}x{input_side}"
            )
        crops.append(Crop((x0, y0, x1, y1), size, grids[layer] * np.array([width, height])))
    return crops


def _grids(amg: AmgSettings) -> Sequence[npt.NDArray[np.float64]]:
    """Prompts (P, 2) of each layer of crops, from 0 to 1 of a crop's width and height."""
    own = amg.grid_arrays()
    if own is not None:
        return own
    grids: list[npt.NDArray[np.float64]] = build_all_layer_point_grids(
        amg.points_per_side, amg.crop_n_layers, amg.crop_n_points_downscale_factor
    )
    return grids


def _input_size(height: int, width: int, side: int) -> tuple[int, int] | None:
    """Height and width with the longer side scaled to `side`; None if the shorter comes to 0."""
    if min(height, width) < 1:
        return None
    rows, columns = ResizeLongestSide.get_preprocess_shape(height, width, side)
    return (rows, columns) if min(rows, columns) >= 1 else None
