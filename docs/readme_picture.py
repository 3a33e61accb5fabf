"""Make docs/picture.webp for the README from what `samprior demo` left: before, masks, after.

make demo && python docs/readme_picture.py demo-output

The photograph ships with scikit-image and was not trained on. Its noise is the demo's, its masks
are superpixels, not SAM's, and the network is the demo's tiny one.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from samprior.storage import MaskStore
from samprior.storage.drawing import draw_masks
from samprior.storage.images import read_rgb

PICTURE = Path(__file__).with_name("picture.webp")
KEY = "chelsea_1"
HEIGHT_PX = 340
_GAP_PX = 6
_LABEL_PX = 52
_QUALITY = 82

Rgb = npt.NDArray[np.uint8]


def panels(demo: Path) -> list[tuple[str, Rgb]]:
    """What is shown from left to right: a title and a picture (H, W, 3)."""
    record = MaskStore.open(demo / "sensenoise" / "store-test")[KEY]
    restored = read_rgb(demo / "sensenoise" / "restored" / f"{KEY}.png")
    return [
        ("before: noisy", record.degraded),
        (f"its {len(record.masks)} masks", draw_masks(record.clean, record.masks)),
        ("after: restored", restored),
    ]


def composed(shown: list[tuple[str, Rgb]]) -> Image.Image:
    """The panels side by side, with their titles above."""
    font = ImageFont.load_default(32)  # the page shows it at less than half its size
    images = []
    for _, picture in shown:
        width = round(picture.shape[1] * HEIGHT_PX / picture.shape[0])
        images.append(Image.fromarray(picture).resize((width, HEIGHT_PX), Image.Resampling.LANCZOS))
    total = sum(image.width for image in images) + _GAP_PX * (len(images) - 1)
    sheet = Image.new("RGB", (total, HEIGHT_PX + _LABEL_PX), "white")
    pen, left = ImageDraw.Draw(sheet), 0
    for (title, _), image in zip(shown, images, strict=True):
        pen.text((left + 2, 4), title, fill="#24292f", font=font)
        sheet.paste(image, (left, _LABEL_PX))
        left += image.width + _GAP_PX
    return sheet


if __name__ == "__main__":
    composed(panels(Path(sys.argv[1]))).save(PICTURE, quality=_QUALITY, method=6)
