"""Score a network on the pairs of a dataset: before and after, image by image.

A score means something under a protocol alone, so an `Evaluation` holds both.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from samprior.storage.choices import check_choice
from samprior.storage.errors import ImageError
from samprior.storage.files import write_bytes
from samprior.storage.images import Rgb, read_rgb
from samprior.training.metrics import SPACES, Space, psnr, ssim
from samprior.training.networks.tlc import with_local_pooling
from samprior.training.restore import restore

PROTOCOL_SPACES: Mapping[str, Space] = {
    "gopro": "rgb",
    "sensenoise": "rgb",
    "rain": "y",
    "rain-matlab": "y8",
}
"""The scored channels of published protocols, by name; none of them cuts a border.

`rain-matlab` rounds Y to 8 bit, as MATLAB's rgb2ycbcr does, which scripts of deraining papers call;
`rain` keeps the fractions, as BasicSR does.
"""


def space_of(protocol: str | None, *, dataset: str) -> Space:
    """The scored channels of a protocol; without one, those in use for a dataset.

    Raises:
        UsageError: an unknown protocol; the nearest known one is named.
    """
    if protocol is None:
        return PROTOCOL_SPACES.get(dataset, "rgb")
    check_choice("protocol", protocol, PROTOCOL_SPACES)
    return PROTOCOL_SPACES[protocol]


class Measure(Protocol):
    """A further score of pictures against their clean side."""

    @property
    def remark(self) -> str:
        """How it is taken, in words; becomes part of the protocol."""

    def __call__(self, clean: Rgb, pictures: Sequence[Rgb]) -> Sequence[Mapping[str, float]]:
        """Values by name of each of `pictures`, uint8 (H, W, 3) as is `clean`."""
        ...


@dataclass(frozen=True)
class ImageScore:
    """One image, before and after restoration."""

    key: str
    psnr_before_db: float
    psnr_after_db: float
    ssim_before: float
    ssim_after: float
    further: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Values of other measures, NAME_before and NAME_after."""

    def row(self) -> dict[str, Any]:
        """The key and all values by name."""
        own = {name: value for name, value in vars(self).items() if name != "further"}
        return {**own, **self.further}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a dataset, with the protocol they were taken under."""

    images: tuple[ImageScore, ...]
    space: Space
    border_px: int
    tile_px: int | None
    overlap_px: int
    """Of tiles; whole images have none."""
    tlc_px: int | None = None
    """Window of local averages (TLC); None for the network as it was trained."""
    remarks: tuple[str, ...] = ()
    """How further measures were taken."""

    @property
    def protocol(self) -> str:
        """How the numbers were taken, in words."""
        tiles = "whole images"
        if self.tile_px is not None:
            tiles = f"tiles of {self.tile_px} px that overlap by {self.overlap_px} px"
        if self.tlc_px is not None:
            tiles += f", TLC with a window of {self.tlc_px} px"
        parts = (
            f"{len(self.images)} images, {SPACES[self.space]}, 8 bit, {self.border_px} px border "
            f"left out, {tiles}",
            "SSIM with an 11x11 Gaussian window",
            *self.remarks,
            "means over images",
        )
        return "; ".join(parts)

    def mean(self) -> ImageScore:
        """Means over the images."""
        rows = [list(image.row().values())[1:] for image in self.images]
        psnr_before, psnr_after, ssim_before, ssim_after, *others = (
            float(value) for value in np.array(rows, float).mean(axis=0)
        )
        further = dict(zip(self.images[0].further, others, strict=True))
        return ImageScore("mean", psnr_before, psnr_after, ssim_before, ssim_after, further)

    def to_csv(self) -> str:
        """One line per image, then the mean."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(self.mean().row()), lineterminator="\n")
        writer.writeheader()
        writer.writerows(image.row() for image in (*self.images, self.mean()))
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
    tlc_px: int | None = None,
    measures: Sequence[Measure] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Restore and score every pair of (key, degraded file, clean file).

    Args:
        network: takes and gives (1, 3, H, W) in [0, 1].
        pairs: what to score.
        device: where to compute.
        space: scored channels, see `samprior.training.metrics.PROTOCOL`.
        border_px: border left out of PSNR and SSIM.
        tile_px: side of tiles to restore in; None restores whole images.
        overlap_px: pixels by which tiles overlap.
        tlc_px: window of local averages, see `samprior.training.networks.tlc`; None for none.
        measures: further scores.
        progress: called with (images done, images to do).

    Raises:
        ImageError: a file can't be read, or the two sides differ in size.
        UsageError: TLC for a network without global average pooling.
    """
    if tlc_px is not None:
        network = with_local_pooling(network, tlc_px)
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
                _further(measures, clean, degraded, restored),
            )
        )
        if progress:
            progress(number, len(pairs))
    remarks = tuple(measure.remark for measure in measures)
    return Evaluation(tuple(scores), space, border_px, tile_px, overlap_px, tlc_px, remarks)


def write_evaluation(evaluation: Evaluation, folder: Path, **more: Any) -> None:  # noqa: ANN401
    """Write scores.csv and scores.json below `folder`."""
    # Keys made from file names may hold lone surrogates, which UTF-8 can't.
    csv_bytes = evaluation.to_csv().encode("utf-8", "backslashreplace")
    write_bytes(folder / "scores.csv", csv_bytes)
    write_bytes(folder / "scores.json", evaluation.to_json(**more).encode())


def _further(
    measures: Sequence[Measure], clean: Rgb, degraded: Rgb, restored: Rgb
) -> dict[str, float]:
    """All further values of an image, a measure's before and after side by side."""
    values: dict[str, float] = {}
    for measure in measures:
        before, after = measure(clean, (degraded, restored))
        for name in before:
            values |= {f"{name}_before": before[name], f"{name}_after": after[name]}
    return values


def _finite(score: ImageScore) -> dict[str, str | float | None]:
    """A score by name, with None for what is infinite."""
    return {name: None if value == math.inf else value for name, value in score.row().items()}
