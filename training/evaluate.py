"""Score a network on the pairs of a dataset: before and after, image by image."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from samprior.storage.errors import ImageError
from samprior.storage.files import write_bytes
from samprior.storage.images import read_rgb
from samprior.training.metrics import Space, psnr, ssim
from samprior.training.restore import restore


@dataclass(frozen=True)
class ImageScore:
    """One image, before and after restoration."""

    key: str
    psnr_before_db: float
    psnr_after_db: float
    ssim_before: float
    ssim_after: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a dataset, with the protocol they were taken under."""

    images: tuple[ImageScore, ...]
    space: Space
    border_px: int
    tile_px: int | None
    overlap_px: int
    """Of tiles; whole images have none."""

    @property
    def protocol(self) -> str:
        """How the numbers were taken, in words."""
        channel = "RGB" if self.space == "rgb" else "Y of BT.601 YCbCr"
        tiles = "whole images"
        if self.tile_px is not None:
            tiles = f"tiles of {self.tile_px} px that overlap by {self.overlap_px} px"
        return (
            f"{len(self.images)} images, {channel}, 8 bit, {self.border_px} px border left out, "
            f"{tiles}; SSIM with an 11x11 Gaussian window; means over images"
        )

    def mean(self) -> ImageScore:
        """Means over the images."""
        values = np.array([list(asdict(image).values())[1:] for image in self.images], float)
        return ImageScore("mean", *(float(value) for value in values.mean(axis=0)))

    def to_csv(self) -> str:
        """One line per image, then the mean."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(asdict(self.mean())), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(image) for image in (*self.images, self.mean()))
        return stream.getvalue()

    def to_json(self, **more: Any) -> str:  # noqa: ANN401  # any JSON
        """Scores, means and protocol as one JSON object; JSON has no infinity, so it is null."""
        images, mean = [_finite(image) for image in self.images], _finite(self.mean())
        record = {"protocol": self.protocol, "mean": mean, "images": images}
        if any(None in image.values() for image in images):
            record["remark"] = "a PSNR of null is infinite: the picture equals the clean one"
        return json.dumps({**more, **record}, indent=1, allow_nan=False) + "\n"


def evaluate(
    network: nn.Module,
    pairs: Sequence[tuple[str, Path, Path]],
    *,
    device: torch.device,
    space: Space = "rgb",
    border_px: int = 0,
    tile_px: int | None = None,
    overlap_px: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Restore and score every pair of (key, degraded file, clean file).

    Raises:
        ImageError: a file can't be read, or the two sides differ in size.
    """
    network = network.eval().to(device)
    scores = []
    for number, (key, degraded_file, clean_file) in enumerate(pairs, start=1):
        degraded, clean = read_rgb(degraded_file), read_rgb(clean_file)
        if degraded.shape != clean.shape:
            raise ImageError(
                f"{degraded_file} is {degraded.shape[1]}x{degraded.shape[0]}, {clean_file} is "
                f"{clean.shape[1]}x{clean.shape[0]}; a pair must be of one size"
            )
        restored = restore(network, degraded, device=device, tile_px=tile_px, overlap_px=overlap_px)
        scores.append(
            ImageScore(
                key,
                psnr(degraded, clean, space=space, border_px=border_px),
                psnr(restored, clean, space=space, border_px=border_px),
                ssim(degraded, clean, space=space, border_px=border_px),
                ssim(restored, clean, space=space, border_px=border_px),
            )
        )
        if progress:
            progress(number, len(pairs))
    return Evaluation(tuple(scores), space, border_px, tile_px, overlap_px)


def write_evaluation(evaluation: Evaluation, folder: Path, **more: Any) -> None:  # noqa: ANN401
    """Write scores.csv and scores.json below `folder`."""
    # Keys made from file names may hold lone surrogates, which UTF-8 can't.
    csv_bytes = evaluation.to_csv().encode("utf-8", "backslashreplace")
    write_bytes(folder / "scores.csv", csv_bytes)
    write_bytes(folder / "scores.json", evaluation.to_json(**more).encode())


def _finite(score: ImageScore) -> dict[str, str | float | None]:
    """A score by name, with None for what is infinite."""
    return {name: None if value == math.inf else value for name, value in asdict(score).items()}
