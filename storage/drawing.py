"""Draw masks over a picture, and pictures as data URIs, for the report.

All of it is pure: arrays and masks in, arrays and text out; equal input gives equal output.

Letters: H x W pixels, K masks, A atoms, h x w pixels of the drawing.
"""

import base64
import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from samprior.storage.masks import MaskSet

Rgb = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

MAX_SIDE_PX = 640
MAX_PIXELS = 640 * 400
"""Bounds of a drawing; 24 noisy pairs with their masks then stay below 8 MB."""

FILL = 0.55
"""Opacity of the masks over the picture."""

_JPEG_QUALITY = 85
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_GREY = np.array([0.299, 0.587, 0.114])  # luma of Rec. 601, as JPEG has it
_HATCH_PX = 9


def mask_colours(num_masks: int) -> Floats:
    """(K, 3) sRGB colours, 0 to 255; those of consecutive numbers differ most.

    Hues turn by the golden angle in OKLCH (Ottosson 2020), so that all are about equally
    colourful, and three lightnesses alternate.
    """
    number = np.arange(num_masks)
    lightness = np.array([0.70, 0.84, 0.58])[number % 3]
    a, b = (0.16 * turn(0.5 + _GOLDEN_ANGLE * number) for turn in (np.cos, np.sin))
    lms = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(lms**3 @ to_rgb.T, 0, 1)
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.asarray(255 * np.where(linear <= 0.0031308, 12.92 * linear, curved))


def drawn_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a picture of (H, W) is drawn; never larger than it is."""
    height, width = shape
    factor = min(1.0, MAX_SIDE_PX / max(shape), math.sqrt(MAX_PIXELS / (height * width)))
    return max(1, round(height * factor)), max(1, round(width * factor))


def shrink_picture(picture: Rgb, shape: tuple[int, int]) -> Rgb:
    """Picture (H, W, 3) averaged down to (h, w, 3)."""
    if picture.shape[:2] == shape:
        return picture
    resized = Image.fromarray(picture).resize(shape[::-1], Image.Resampling.BOX)
    return np.asarray(resized, np.uint8)


def shrink_masks(masks: MaskSet, shape: tuple[int, int]) -> MaskSet:
    """Masks at (h, w): each pixel has the masks of the nearest one. Columns are left out."""
    rows, columns = (
        ((np.arange(small) + 0.5) * large / small).astype(np.intp)
        for small, large in zip(shape, masks.shape, strict=True)
    )
    return MaskSet(masks.atoms[rows[:, None], columns], masks.members, {})


def draw_masks(picture: Rgb, masks: MaskSet) -> Rgb:
    """All masks over a picture (H, W, 3) of their size, each in a colour, with contours.

    Masks are laid on from large to small, so that nested ones stay visible. The picture is grey
    beneath, and dark with hatching where there is no mask.
    """
    # Of equal areas the first given lies below.
    members = masks.members[:, np.argsort(-masks.areas, kind="stable")]
    colours = mask_colours(len(masks))
    grey = (picture @ _GREY)[:, :, None]
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    hatch = ((y + x) % _HATCH_PX == 0)[:, :, None]
    bare = 0.55 * grey + np.where(hatch, 70.0, 0.0)
    filled = (1 - FILL) * grey + FILL * _mixed(members, colours)[masks.atoms]
    canvas = np.where((masks.atoms > 0)[:, :, None], filled, bare)
    lines = _contours(masks, members)
    canvas[lines >= 0] = colours[lines[lines >= 0]]
    drawn: Rgb = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return drawn


def _mixed(members: npt.NDArray[np.bool_], colours: Floats) -> Floats:
    """(A, 3) colour of each atom: its masks' colours, each laid half over those before."""
    mixed = np.zeros((len(members), 3))
    held = np.zeros(len(members), np.bool_)
    for inside, colour in zip(members.T, colours, strict=True):
        mixed[inside & held] = 0.4 * mixed[inside & held] + 0.6 * colour
        mixed[inside & ~held] = colour
        held |= inside
    return mixed


def _contours(masks: MaskSet, members: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(H, W) the smallest mask whose outermost pixels include this one, -1 where there is none.

    `members` (A, K) has the masks from large to small. The picture's border makes no contour.
    """
    lines = np.full(masks.shape, -1, np.int64)
    if not len(masks):
        return lines
    atoms = masks.atoms.astype(np.int64)
    for down, right in ((1, 0), (0, 1)):
        height, width = atoms.shape[0] - down, atoms.shape[1] - right
        y, x = np.nonzero(atoms[:height, :width] != atoms[down:, right:])
        edges = atoms[y, x] * len(members) + atoms[y + down, x + right]
        kinds, kind = np.unique(edges, return_inverse=True)
        one, other = np.divmod(kinds, len(members))
        divided = members[one] ^ members[other]  # (edges of a kind, K)
        mask = members.shape[1] - 1 - divided[:, ::-1].argmax(axis=1)
        step = (~members[one, mask]).astype(np.int64)[kind]
        np.maximum.at(lines, (y + down * step, x + right * step), mask[kind])
    return lines


def data_uri(picture: Rgb) -> str:
    """A picture as a JPEG inside a data URI."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
