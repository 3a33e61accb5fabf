"""Augmentations that mix a crop with something else: rain over it, or another crop.

Each is a pure function of the seed and the number of the sample. Results are rounded to 8 bits, as
pictures of a store are. Masks are left alone: they are those of the clean crop, and after MixUp
those of the crop whose number it is.

Letters: h x w pixels of a crop, H x W of a rain layer.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samprior.storage.errors import ConfigError
from samprior.storage.images import IMAGE_SUFFIXES, read_rgb
from samprior.training.rainmix import Floats, rain_mix, synthetic_rain_layers
from samprior.training.sampling import LAYERS, Draws

Picture = npt.NDArray[np.uint8]
RainLayers = tuple[Floats, ...]
"""Rain layers (H, W) in [0, 1], of any sizes."""

SYNTHETIC = "synthetic"
_NUM_SYNTHETIC, _LEAST_SIDE_PX = 16, 512


def add_rain(degraded: Picture, clean: Picture, layers: RainLayers, draws: Draws) -> None:
    """Lay one of `layers`, changed by RainMix, over a crop (h, w, 3) in place."""
    rng = draws.generator()
    layer = layers[rng.integers(len(layers))]
    rainy, truth = (_planes(picture) for picture in (degraded, clean))
    (mixed,) = rain_mix(rainy, layer[None], rng, clean=truth)  # (3, h, w)
    degraded[:] = _rounded(255 * mixed.transpose(1, 2, 0))


def mix_up(
    pictures: tuple[Picture, Picture], others: tuple[Picture, Picture], share: float
) -> None:
    """Make each of `pictures` a mean of it, at weight `share`, and its counterpart, in place."""
    for picture, other in zip(pictures, others, strict=True):
        picture[:] = _rounded(share * picture.astype(np.float32) + (1 - share) * other)


def open_rain_layers(where: str | None, crop_px: int, *, seed: int) -> RainLayers | None:
    """The layers that `data.rain_layers` names, for crops of `crop_px`; None for None.

    Raises:
        ConfigError: no such folder, no picture in it, or one smaller than a crop.
        ImageError: a picture that can't be read.
    """
    if where is None:
        return None
    if where == SYNTHETIC:
        side = max(_LEAST_SIDE_PX, crop_px)
        rng = Draws(seed, 0, LAYERS).generator()
        return tuple(synthetic_rain_layers(_NUM_SYNTHETIC, height=side, width=side, rng=rng))
    layers = []
    for file in _pictures_in(where):
        layer = read_rgb(file).mean(axis=-1, dtype=np.float32) / np.float32(255)
        if min(layer.shape) < crop_px:
            height, width = layer.shape
            raise ConfigError(
                f"{file} is {width}x{height}, and rain layers must hold a crop of {crop_px} "
                "pixels; take larger layers or smaller crops"
            )
        layers.append(layer)
    return tuple(layers)


def rain_layers_digest(where: str | None) -> str | None:
    """What stands for data.rain_layers in a record: the content of the folder, not its place.

    Raises:
        ConfigError: no such folder, or no picture in it.
    """
    if where is None or where == SYNTHETIC:
        return where
    digest = hashlib.sha256()
    for file in _pictures_in(where):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _pictures_in(folder: str) -> list[Path]:
    """The pictures of a folder in the order of their names."""
    if not Path(folder).is_dir():
        raise ConfigError(
            f"data.rain_layers is {folder!r}, which is no folder; name one of pictures of rain "
            f"streaks on black, or take {SYNTHETIC!r}"
        )
    files = sorted(f for f in Path(folder).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ConfigError(f"data.rain_layers: {folder} holds no pictures")
    return files


def _planes(picture: Picture) -> Floats:
    """(h, w, 3) bytes as (1, 3, h, w) in [0, 1]."""
    planes: Floats = picture.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    return planes


def _rounded(picture: Floats) -> Picture:
    return np.rint(picture).astype(np.uint8)
