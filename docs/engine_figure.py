"""Write docs/engine.svg: how a mask is counted and drawn without enlarging its logits.

python docs/engine_figure.py

The photograph ships with scikit-image, the cup is outlined by hand, and the logits are distances to
that outline; everything from the logits on is done by the engine's own code. The same libraries
write the same bytes.

Letters: h x w samples (low-resolution logits), H x W pixels of the photograph.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from drawing import rect, sheet
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter
from segment_anything.utils.transforms import ResizeLongestSide
from skimage import data
from skimage.measure import find_contours

from samprior.pipeline.everything import cells
from samprior.pipeline.everything.raster import mask_plane
from samprior.pipeline.everything.resampling import Resampling
from samprior.pipeline.everything.scoring import Scores, score_masks
from samprior.pipeline.everything.workspace import Thresholds, workspace

FIGURE = Path(__file__).with_name("engine.svg")

INPUT_SIDE = 1024
LOW_RES = 256
# x and y in pixels of `skimage.data.coffee()`: the cup with its handle, clockwise.
_CUP = (
    *((173, 112), (176, 88), (190, 62), (215, 38), (248, 23), (285, 18), (322, 23), (356, 39)),
    *((385, 67), (402, 94), (408, 122), (405, 146), (394, 178), (383, 207), (370, 226)),
    *((350, 238), (325, 242), (318, 252), (326, 262), (312, 276), (284, 284), (262, 281)),
    *((251, 284), (240, 297), (222, 306), (205, 302), (197, 288), (199, 272), (210, 251)),
    *((221, 234), (207, 224), (190, 199), (178, 165), (173, 138)),
)
_SLOPE, _STEEPEST = 3.0, 12.0  # logits per sample of distance, and where they level off

_PANEL = (300, 200)  # width and height in units of the view box
_GAP, _HEAD, _FOOT = 20, 40, 42
_ZOOM = (366, 168, 36, 24)  # x, y, width and height in pixels: the rim and part of the body
_BELOW, _ABOVE, _MIXED = "#c9d3e0", "#e9a15b", "#ffffff"
_PIXEL_BELOW, _PIXEL_ABOVE = "#dce1e8", "#8f4a12"
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222b36}.small{font-size:11.5px;fill:#4a5766}"
    "image{image-rendering:pixelated}"
)


Panel = tuple[str, tuple[str, str], list[str]]
"""Title, two lines of notes, and markup."""


@dataclass(frozen=True)
class Cup:
    """One mask on its way from logits to pixels."""

    photo: npt.NDArray[np.uint8]
    """(H, W, 3)"""
    logits: torch.Tensor
    """float32 (h, w), the part of the decoder's square that is no padding."""
    resampling: Resampling
    sides: npt.NDArray[np.int32]
    """(h - 2, w - 2) per cell: 0 below all thresholds, 3 above all, `cells._MIXED` unsettled."""
    scores: Scores
    plane: npt.NDArray[np.bool_]
    """(H, W) the mask."""

    @property
    def by_pixel(self) -> npt.NDArray[np.int32]:
        """(H, W): the side of each pixel's cell."""
        rows, columns = self.resampling.tables.rows, self.resampling.tables.columns
        return self.sides[rows.starts[:, None], columns.starts]


def segment_cup() -> Cup:
    """The cup's mask, with what the engine finds out on the way."""
    photo = data.coffee()
    height, width = photo.shape[:2]
    resampling = Resampling.of(
        LOW_RES,
        img_size=INPUT_SIDE,
        input_size=ResizeLongestSide.get_preprocess_shape(height, width, INPUT_SIDE),
        original_size=(height, width),
    )
    logits = torch.from_numpy(_logits(height, width, resampling))
    scores = score_masks(logits[None], resampling, mask_threshold=0.0, offset=1.0)
    x0, y0, x1, y1 = scores.boxes[0].tolist()
    plane = mask_plane(logits, resampling, (x0, y0, x1, y1), mask_threshold=0.0)
    return Cup(photo, logits, resampling, _sides(logits, resampling), scores, plane)


def _logits(height: int, width: int, resampling: Resampling) -> npt.NDArray[np.float32]:
    """(h, w): blurred distances to the outline, in samples, positive inside."""
    drawing = Image.new("1", (width, height))
    ImageDraw.Draw(drawing).polygon(_CUP, fill=1)
    inside = np.asarray(drawing)
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    pixels = max(height, width) / LOW_RES  # per sample
    rows, columns = (
        np.minimum((np.arange(count) + 0.5) * pixels, side - 1).astype(int)
        for count, side in zip(
            (resampling.rows_needed, resampling.columns_needed), (height, width), strict=True
        )
    )
    sampled = np.clip(distance[np.ix_(rows, columns)] * (_SLOPE / pixels), -_STEEPEST, _STEEPEST)
    return gaussian_filter(sampled, 1.0).astype(np.float32)


def _sides(logits: torch.Tensor, resampling: Resampling) -> npt.NDArray[np.int32]:
    """(h - 2, w - 2): what the engine's kernel says of each cell."""
    samples, work = logits.numpy(), workspace(resampling)
    at = Thresholds(np.float32(-1), np.float32(0), np.float32(1))
    count = resampling.columns_needed - 2
    margin = cells._survey(samples, at, np.empty(len(samples), np.int32))
    sides = np.empty((resampling.rows_needed - 2, count), np.int32)
    for t, row in enumerate(sides):
        cells._classify(samples, at, margin, work, t, 0, count)
        row[:] = work.sides[:count]
    return sides


def figure(cup: Cup) -> str:
    """The whole SVG."""
    width, height = 3 * _GAP + 2 * _PANEL[0], 2 * (_HEAD + _PANEL[1] + _FOOT) + 6
    parts: list[str] = []
    panels = (_logits_panel, _cells_panel, _zoom_panel, _mask_panel)
    for number, panel in enumerate(panels):
        down, across = divmod(number, 2)
        x = _GAP + across * (_PANEL[0] + _GAP)
        y = _HEAD + down * (_HEAD + _PANEL[1] + _FOOT)
        title, notes, drawing = panel(cup)
        parts += [
            f'<g transform="translate({x} {y})">',
            f'<text y="-10">{"abcd"[number]}. {title}</text>',
            *drawing,
            *(
                f'<text class="small" y="{_PANEL[1] + 17 + 16 * line}">{note}</text>'
                for line, note in enumerate(notes)
            ),
            "</g>",
        ]
    label = (
        "One mask: its logits, the cells that they settle, the pixels that are computed, "
        "and the mask"
    )
    return sheet((width, height), label, style=_STYLE, fill="#f4f6f8", parts=parts)


def _logits_panel(cup: Cup) -> Panel:
    levels = np.rint((cup.logits.numpy() / _STEEPEST + 1) * 20).astype(np.uint8)  # 0 to 40
    share = np.linspace(-1, 1, 41)[:, None]
    ends = np.where(share < 0, [[66, 102, 150]], [[190, 95, 20]])
    colours = np.rint(245 + np.abs(share) ** 0.7 * (ends - 245)).astype(np.uint8)
    rows, columns = levels.shape
    notes = (
        "blue below 0, orange above;",
        f"{4 * levels.size:,} bytes, the most that is kept of a mask",
    )
    return f"What the decoder gives: {columns} x {rows} logits", notes, [_image(levels, colours)]


def _cells_panel(cup: Cup) -> Panel:
    pixels = cup.by_pixel
    kinds = np.full(pixels.shape, 2, np.uint8)
    kinds[pixels == 0], kinds[pixels == cells._ALL] = 0, 1
    outside, inside, evaluated = 100 * np.bincount(kinds.reshape(-1), minlength=3) / kinds.size
    colours = np.array([_rgb(_BELOW), _rgb(_ABOVE), _rgb("#222b36")], np.uint8)
    x, y, width, height = _ZOOM
    scale = _PANEL[0] / pixels.shape[1]
    zoomed = (
        f'<rect x="{x * scale:.1f}" y="{y * scale:.1f}" width="{width * scale:.1f}" '
        f'height="{height * scale:.1f}" fill="none" stroke="#c0223b" stroke-width="1.5"/>'
    )
    notes = (
        f"settled: outside {outside:.1f} %, inside {inside:.1f} % of the pixels;",
        f"to be computed (dark): {evaluated:.1f} %",
    )
    return "Cells, by the bounds of 3 x 3 logits", notes, [_image(kinds, colours), zoomed]


def _zoom_panel(cup: Cup) -> Panel:
    x0, y0, width, height = _ZOOM
    scale = _PANEL[0] / width
    rows, columns = cup.resampling.tables.rows, cup.resampling.tables.columns
    parts = [f'<svg width="{_PANEL[0]}" height="{_PANEL[1]}">']
    for t in range(rows.starts[y0], rows.starts[y0 + height - 1] + 1):
        for u in range(columns.starts[x0], columns.starts[x0 + width - 1] + 1):
            y, x = rows.edges[t], columns.edges[u]
            tall, wide = rows.edges[t + 1] - y, columns.edges[u + 1] - x
            fill = {0: _BELOW, cells._ALL: _ABOVE}.get(int(cup.sides[t, u]), _MIXED)
            place = (scale * (x - x0), scale * (y - y0), scale * wide, scale * tall)
            parts.append(rect(place, f'fill="{fill}" stroke="#7b8794" stroke-width=".7"'))
    computed = (cup.by_pixel != 0) & (cup.by_pixel != cells._ALL)
    for y, x in np.argwhere(computed[y0 : y0 + height, x0 : x0 + width]):
        place = (scale * x + 1, scale * y + 1, scale - 2, scale - 2)
        fill = _PIXEL_ABOVE if cup.plane[y0 + y, x0 + x] else _PIXEL_BELOW
        parts.append(rect(place, f'fill="{fill}"'))
    parts += _samples(cup, scale)
    notes = (
        "dots: logits, filled above 0; plain cells: settled;",
        "small squares: computed pixels, brown in the mask",
    )
    return "The red frame of b: cells between grey lines", notes, [*parts, "</svg>"]


def _samples(cup: Cup, scale: float) -> list[str]:
    """The logits that lie in the zoomed part, as dots."""
    x0, y0, width, height = _ZOOM
    pixels = cup.plane.shape[1] / LOW_RES  # per sample
    dots = []
    for t, u in np.ndindex(*cup.logits.shape):
        x, y = (u + 0.5) * pixels - x0, (t + 0.5) * pixels - y0
        if 0 <= x <= width and 0 <= y <= height:
            fill = "#222b36" if cup.logits[t, u] > 0 else "#ffffff"
            dots.append(
                f'<circle cx="{scale * x:.1f}" cy="{scale * y:.1f}" r="2" fill="{fill}" '
                'stroke="#222b36" stroke-width=".8"/>'
            )
    return dots


def _mask_panel(cup: Cup) -> Panel:
    height, width = cup.plane.shape
    grey = Image.fromarray(cup.photo).convert("L").resize((width * 3 // 4, height * 3 // 4))
    levels = np.asarray(grey) // 4
    shades = np.repeat(np.arange(64, dtype=np.uint8)[:, None] * 4, 3, axis=1)
    # One pixel of padding, so that an outline at the border would close.
    outlines = find_contours(np.pad(cup.plane, 1).astype(np.uint8), 0.5)
    scale = _PANEL[0] / width
    lines = "".join(
        "M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in (outline - 0.5) * scale) + "Z"
        for outline in outlines
    )
    mask = f'<path d="{lines}" fill="{_ABOVE}" fill-opacity=".45" stroke="#ffd9a8"/>'
    area, stability = int(cup.scores.areas[0]), float(cup.scores.stability[0])
    notes = (
        f"{area:,} pixels, stability {stability:.3f}: exactly those",
        "of the logits enlarged by the official code",
    )
    return f"The mask on {width} x {height} pixels", notes, [_image(levels, shades), mask]


def _image(indices: npt.NDArray[np.uint8], colours: npt.NDArray[np.uint8]) -> str:
    """Pixels (rows, columns) by number of colour (n, 3), as wide as a panel."""
    picture = Image.fromarray(indices)
    picture.putpalette(colours.tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    encoded = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<image width="{_PANEL[0]}" height="{_PANEL[1]}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{encoded}"/>'
    )


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


if __name__ == "__main__":
    FIGURE.write_text(figure(segment_cup()), "utf-8")
