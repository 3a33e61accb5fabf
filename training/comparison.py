"""Pictures for the report on an evaluation: an image degraded, restored and clean, side by side.

Each is shown as a whole and as a crop pixel by pixel, at the place where restoring changed the
error most. Wholes are JPEG; crops are lossless, since they are there to be judged by the pixel.

Letters: H x W pixels.
"""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from samprior.storage.drawing import data_uri, shrink_picture
from samprior.storage.images import Rgb, read_rgb
from samprior.training.evaluate import Evaluation, ImageScore
from samprior.training.metrics import Space, psnr

WHOLE_PX = 480
"""Longest side of a whole picture; 8 noisy images with their crops then stay below 8 MB."""

CROP_PX = 160
"""Side of a crop."""

_LUMA = np.array([0.299, 0.587, 0.114])  # BT.601, up to the factor that Y is scaled by


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels."""

    y: int
    x: int
    height: int
    width: int

    def cut(self, picture: Rgb) -> Rgb:
        """The part of a picture that lies inside."""
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class View:
    """One picture of a row."""

    name: str
    uri: str
    psnr_db: float | None
    """None for the clean picture, which the others are compared with."""


@dataclass(frozen=True)
class Comparison:
    """One image as the page shows it."""

    score: ImageScore
    shape: tuple[int, int]
    """Height and width of the image."""
    whole_shape: tuple[int, int]
    """Height and width at which it is drawn."""
    wholes: list[View]
    crop: Box
    reason: str
    """Why the crop lies where it does."""
    crops: list[View]
    """Empty for images that are no larger than a crop."""


def compare(
    score: ImageScore,
    files: tuple[Path, Path],
    *,
    restorer: Callable[[Rgb], Rgb],
    protocol: Evaluation,
    best: bool,
) -> Comparison:
    """Restore an image once more and draw it beside what it was and what it should be.

    Args:
        score: of this image.
        files: degraded and clean.
        restorer: what the image was scored with.
        protocol: gives the scored channels and border.
        best: crop where the squared error fell the most, instead of where it rose the most.

    Raises:
        ImageError: a file can't be read any more.
    """
    degraded, clean = map(read_rgb, files)
    pictures = {"degraded": degraded, "restored": restorer(degraded), "clean": clean}
    height, width = clean.shape[:2]
    whole_shape = _whole_shape(height, width)
    space = protocol.space
    change = _squared_error(pictures["restored"], clean, space)
    change -= _squared_error(degraded, clean, space)
    crop, rise = find_crop(change, border_px=protocol.border_px, falls=best)
    scores = {"degraded": score.psnr_before_db, "restored": score.psnr_after_db}
    wholes = {name: shrink_picture(picture, whole_shape) for name, picture in pictures.items()}
    crops = {name: crop.cut(picture) for name, picture in pictures.items()}
    crop_scores = {name: psnr(crops[name], crops["clean"], space=space) for name in scores}
    return Comparison(
        score=score,
        shape=(height, width),
        whole_shape=whole_shape,
        wholes=_views(wholes, scores, data_uri),
        crop=crop,
        reason=_reason(rise, falls=best),
        crops=_views(crops, crop_scores, _lossless_uri) if max(height, width) > CROP_PX else [],
    )


def find_crop(change: npt.NDArray[np.float64], *, border_px: int, falls: bool) -> tuple[Box, float]:
    """The square in which the sum of `change` (H, W) is smallest (`falls`) or largest, and the sum.

    It has CROP_PX a side, or what the image has within the border.
    """
    inner = change[border_px : len(change) - border_px, border_px : change.shape[1] - border_px]
    height, width = (min(CROP_PX, side) for side in inner.shape)
    totals = np.zeros((inner.shape[0] + 1, inner.shape[1] + 1))
    totals[1:, 1:] = inner.cumsum(axis=0).cumsum(axis=1)
    bands = totals[height:] - totals[:-height]
    sums = bands[:, width:] - bands[:, :-width]
    place = int(sums.argmin() if falls else sums.argmax())
    y, x = divmod(place, sums.shape[1])
    return Box(y + border_px, x + border_px, height, width), float(sums[y, x])


def _squared_error(picture: Rgb, clean: Rgb, space: Space) -> npt.NDArray[np.float64]:
    """(H, W) squared error in the scored channels, up to a constant factor."""
    difference = picture.astype(np.float64) - clean
    if space != "rgb":
        return np.asarray((difference @ _LUMA) ** 2)
    return np.asarray((difference**2).sum(axis=2))


def _reason(rise: float, *, falls: bool) -> str:
    if falls:
        return "fell the most" if rise < 0 else "rose the least"
    return "rose the most" if rise > 0 else "fell the least"


def _whole_shape(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, WHOLE_PX / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _views(
    pictures: Mapping[str, Rgb], scores: Mapping[str, float], uri: Callable[[Rgb], str]
) -> list[View]:
    return [View(name, uri(picture), scores.get(name)) for name, picture in pictures.items()]


def _lossless_uri(picture: Rgb) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
