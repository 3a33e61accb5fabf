"""Random windows of pictures, the same for all who read them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """A square crop of a picture, pixels."""

    image: int
    y: int
    x: int
    side: int


def draw_windows(
    shapes: Sequence[tuple[int, int]],
    side: int,
    per_image: int,
    rng: np.random.Generator,
    *,
    multiple: int = 1,
) -> Iterator[Window]:
    """Windows at random multiples of `multiple` that lie inside their images, image by image."""
    for image, shape in enumerate(shapes):
        for _ in range(per_image):
            y, x = (int(rng.integers((extent - side) // multiple + 1)) for extent in shape)
            yield Window(image, y * multiple, x * multiple, side)
