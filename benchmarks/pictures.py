"""Pictures with masks for the benchmarks of the store and the loader, without a network.

The pictures are cut from photographs that ship with scikit-image, scaled, and given fine noise in
place of the sensor's that scaling smoothed away; the degraded side is blurred and noisy as well.
Their masks imitate SAM's: superpixel regions at several levels, of which some are left out, some
come twice, and all have the smooth outlines of logits that were scaled up. They are not SAM's;
`read_amg` and `read_segmentations` bring real ones. Equal seeds give equal pictures and masks.

H x W pixels, K masks, h x w samples of the coarse grid that outlines are drawn on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image
from scipy.ndimage import gaussian_filter

from samprior.pipeline import build_segmenter
from samprior.pipeline.importers import read_amg_folder
from samprior.pipeline.synthetic import motion_blur
from samprior.storage import MaskSet, Record
from samprior.storage.errors import LayoutError
from samprior.storage.images import IMAGE_SUFFIXES, Rgb, read_rgb

Bools = npt.NDArray[np.bool_]
Command = TypeVar("Command", bound=Callable[..., None])

PHOTOGRAPHS = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "retina",
    "hubble_deep_field",
    "immunohistochemistry",
    "stereo_motorcycle",
)
"""Colour pictures that scikit-image holds without a download."""

COARSE_PX = 256
"""Longer side of the grid that outlines are drawn on: that of SAM's logits."""

LEVELS = (6, 25, 70, 110)
"""Most regions of each level of nested superpixels."""

KEPT = 0.58
"""Share of the regions that become masks."""

TWINS = 0.06
"""Share of the masks that come a second time, with a slightly different outline."""

SMOOTHING, WOBBLE_SCALE, WOBBLE = 1.8, 3.0, 0.4
"""Outlines are where the region, smoothed by so many samples, plus noise of that scale and size,
passes a half. So no two masks share an outline to the pixel, as SAM's don't."""

NOISE = 1.5
"""Standard deviation of the noise, grey levels."""

POINTS_PER_SIDE = 32
"""Prompts of SAM lie on a grid of so many points a side."""


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """Which pictures a benchmark works on."""

    count: int
    """How many of ours, and at most how many of `segmentations`."""
    size: tuple[int, int]
    """Width and height of all but those of `amg`."""
    amg: tuple[Path, ...] = ()
    """Folders for `read_amg`; if there are any, they replace ours."""
    segmentations: Path | None = None
    """Folder for `read_segmentations`; replaces ours."""

    def load(self) -> list[Record]:
        """The pictures with their masks.

        Raises:
            LayoutError, MaskFormatError: from `read_amg` and `read_segmentations`.
        """
        records = [read_amg(folder) for folder in self.amg]
        if self.segmentations is not None:
            records += read_segmentations(self.segmentations, self.count, self.size)
        return records or make_records(self.count, self.size)


def options(*, count: int) -> Callable[[Command], Command]:
    """The command-line options of `Subjects`, which are passed on as its fields."""
    chosen = (
        click.option("--pictures", "count", default=count, show_default=True, help="How many."),
        click.option("--size", type=(int, int), default=(1280, 720), show_default=True),
        click.option(
            "--amg",
            multiple=True,
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            help="Folder with a picture and the folder that scripts/amg.py wrote of it.",
        ),
        click.option(
            "--segmentations",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            help="Folder of npz files with `segmentations` (annotators, H, W).",
        ),
    )

    def decorate(command: Command) -> Command:
        for option in reversed(chosen):
            command = option(command)
        return command

    return decorate


def make_records(count: int, size: tuple[int, int], *, seed: int = 0) -> list[Record]:
    """Pictures of `size` (width, height) with their masks."""
    return [_make_record(number, size, seed) for number in range(count)]


def read_amg(folder: Path) -> Record:
    """A picture and its masks: `folder` has one picture, and scripts/amg.py's output below it.

    Raises:
        LayoutError: not one picture and one metadata.csv; names what was found.
        MaskFormatError: masks that scripts/amg.py would not write.
    """
    tables = sorted(folder.rglob("metadata.csv"))
    photos = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if len(tables) != 1 or len(photos) != 1:
        raise LayoutError(
            f"{folder} holds {len(photos)} pictures and {len(tables)} metadata.csv; wanted one "
            "picture, and below it one folder that scripts/amg.py wrote"
        )
    clean = read_rgb(photos[0])
    masks = read_amg_folder(tables[0].parent, shape=(clean.shape[0], clean.shape[1]))
    return Record(folder.name, _degraded(clean, np.random.default_rng(0)), clean, masks)


def read_segmentations(folder: Path, count: int, size: tuple[int, int]) -> list[Record]:
    """Human segmentations as masks, the regions of all annotators put together.

    `folder` holds npz files with `segmentations` (annotators, H, W), whole numbers, each region a
    mask. Their photographs are not needed: the pictures are ours. Outlines are smoothed and scaled
    to `size` (width, height) as those of our own masks are, but not moved.

    Raises:
        LayoutError: no npz file there.
    """
    files = sorted(folder.glob("*.npz"))[:count]
    if not files:
        raise LayoutError(f"{folder} has no .npz files with `segmentations`")
    return [_read_segmentation(file, number, size) for number, file in enumerate(files)]


def statistics(records: Sequence[Record]) -> dict[str, Any]:
    """What the masks are like, for the results: means over the pictures, extremes over all."""
    sets = [record.masks for record in records]
    shares = np.concatenate([masks.areas / masks.atoms.size for masks in sets])
    return {
        "num_pictures": len(records),
        "sizes": sorted({(width, height) for height, width in (masks.shape for masks in sets)}),
        "num_masks": [len(masks) for masks in sets],
        "num_atoms": [len(masks.members) - 1 for masks in sets],
        "masks_mean": float(np.mean([len(masks) for masks in sets])),
        "coverage_mean": float(np.mean([masks.coverage for masks in sets])),
        "deepest": max(int(masks.members.sum(axis=1).max()) for masks in sets),
        "area_share_min_median_max": np.quantile(shares, (0, 0.5, 1)).tolist(),
    }


def _make_record(number: int, size: tuple[int, int], seed: int) -> Record:
    rng = np.random.default_rng((seed, number))
    photo = _photograph(PHOTOGRAPHS[number % len(PHOTOGRAPHS)])
    view = _view(photo, size, rng)
    height, width = (max(1, round(side * COARSE_PX / max(size))) for side in reversed(size))
    coarse = np.asarray(Image.fromarray(view).resize((width, height), Image.Resampling.BOX))
    regions = build_segmenter("superpixel", levels=LEVELS, min_area=0.0005)(coarse).to_masks()
    chosen = regions[rng.random(len(regions)) < KEPT]
    chosen = np.repeat(chosen, 1 + (rng.random(len(chosen)) < TWINS), axis=0)
    return Record(
        key=f"{number:04d}",
        degraded=_degraded(view, rng),
        clean=_noisy(view, rng),
        masks=_mask_set(_outlined(chosen, size, rng, wobble=WOBBLE), rng),
    )


def _photograph(name: str) -> Rgb:
    loaded = getattr(skimage.data, name)()
    photo = loaded[0] if name == "stereo_motorcycle" else loaded
    return np.ascontiguousarray(photo)


def _view(photo: Rgb, size: tuple[int, int], rng: np.random.Generator) -> Rgb:
    """A part of the photograph in the proportions of `size`, most of it, perhaps mirrored."""
    whole = Image.fromarray(photo)
    scale = min(whole.width / size[0], whole.height / size[1]) * rng.uniform(0.75, 1)
    width, height = size[0] * scale, size[1] * scale
    left, top = rng.uniform(0, whole.width - width), rng.uniform(0, whole.height - height)
    box = (left, top, left + width, top + height)
    view = np.asarray(whole.resize(size, Image.Resampling.BICUBIC, box=box))
    return np.ascontiguousarray(view[:, ::-1] if rng.random() < 0.5 else view)


def _degraded(clean: Rgb, rng: np.random.Generator) -> Rgb:
    return _noisy(motion_blur(clean, rng, extent_px=10), rng)


def _noisy(view: Rgb, rng: np.random.Generator) -> Rgb:
    noise = rng.standard_normal(view.shape, np.float32) * NOISE
    return (view + noise).round().clip(0, 255).astype(np.uint8)


def _outlined(
    regions: Bools, size: tuple[int, int], rng: np.random.Generator, *, wobble: float
) -> Bools:
    """Coarse regions (K, h, w) as smooth masks (K, H, W), less those that smoothing removed."""
    planes = []
    for region in regions:
        noise = gaussian_filter(rng.standard_normal(region.shape, np.float32), WOBBLE_SCALE)
        soft = gaussian_filter(region.astype(np.float32), SMOOTHING) + wobble * noise
        scaled = np.asarray(Image.fromarray(soft).resize(size, Image.Resampling.BILINEAR))
        planes.append(scaled > 0.5)
    shape = (size[1], size[0])
    return np.array([plane for plane in planes if plane.any()], np.bool_).reshape(-1, *shape)


def _mask_set(planes: Bools, rng: np.random.Generator) -> MaskSet:
    """Masks with the columns of the `sam` segmenter, the highest predicted IoU first, as SAM's."""
    count = len(planes)
    return MaskSet.from_masks(
        planes[rng.permutation(count)],
        predicted_iou=np.sort(rng.uniform(0.88, 1.02, count).astype(np.float32))[::-1],
        stability=rng.uniform(0.95, 1, count).astype(np.float32),
        point=_grid_points(planes.shape[1:], count, rng),
    )


def _grid_points(
    shape: tuple[int, ...], count: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """(K, 2) x and y of points on SAM's grid, drawn without regard to the masks."""
    place = (rng.integers(POINTS_PER_SIDE, size=(count, 2)) + 0.5) / POINTS_PER_SIDE
    return (place * shape[::-1]).astype(np.float32)


def _read_segmentation(file: Path, number: int, size: tuple[int, int]) -> Record:
    rng = np.random.default_rng((1, number))
    try:
        with np.load(file, allow_pickle=False) as held:
            layers = held["segmentations"]
    except (OSError, ValueError, KeyError) as error:
        raise LayoutError(f"{file} has no readable array `segmentations` ({error})") from error
    regions = np.stack([layer == label for layer in layers for label in np.unique(layer)])
    different = np.stack(list({region.tobytes(): region for region in regions}.values()))
    masks = _mask_set(_outlined(different, size, rng, wobble=0), rng)
    clean = _noisy(_view(_photograph(PHOTOGRAPHS[number % len(PHOTOGRAPHS)]), size, rng), rng)
    return Record(file.stem, _degraded(clean, rng), clean, masks)
