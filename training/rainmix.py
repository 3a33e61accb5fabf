"""RainMix: more kinds of rain for training, from a few rain layers (EfficientDeRain v4).

A rain layer is changed by random chains of rotation, shear, shift and zoom, the results are mixed,
and the mix is laid over an image. A pure function of images, layers and generator.

The constants are those of the authors' code (`augment_and_mix.py`). Three things differ: layers
stay floats where theirs are rounded to 8 bits after each operation; the result is clipped to
[0, 1], where theirs drops the clipped result; and a layer smaller than the image is refused, where
theirs cuts the image. The authors take the layers from photographed streaks (Garg and Nayar 2006);
`synthetic_rain_layers` draws some where there are none.

Letters: B images of h x w pixels, N layers of H x W pixels, H >= h and W >= w.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from samprior.storage.errors import UsageError

Floats = npt.NDArray[np.float32]

_MIN_LEVEL = 0.1
_MIN_KEPT = 0.7  # least weight of the unchanged layer
_MIN_MIXED = 0.5  # least weight of the strongest chain's result


@dataclass(frozen=True, kw_only=True)
class RainMixSettings:
    """How strongly layers are changed; the defaults are the authors'."""

    chains: int = 3
    """Chains of operations whose results are mixed."""
    severity: float = 3.0
    """Largest level of an operation, above 0.1 and up to 10: at 3 up to 9 degrees, 10 % shift."""
    alpha: float = 1.0
    """Concentration of the Dirichlet and Beta weights, above 0; 1 is uniform."""
    clean_share: float = 4 / 11
    """Share of the images whose own rain is replaced instead of added to, 0 to 1."""

    def __post_init__(self) -> None:
        if self.chains < 1:
            raise UsageError(f"RainMix needs at least 1 chain, got {self.chains}")
        if not _MIN_LEVEL < self.severity <= 10:
            raise UsageError(f"the severity of RainMix lies in (0.1, 10], got {self.severity}")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"alpha of RainMix must be above 0, got {self.alpha}")
        if not 0 <= self.clean_share <= 1:
            raise UsageError(f"clean_share of RainMix lies in [0, 1], got {self.clean_share}")


def rain_mix(
    rainy: Floats,
    layers: Floats,
    rng: np.random.Generator,
    *,
    clean: Floats,
    settings: RainMixSettings | None = None,
) -> Floats:
    """Lay one changed rain layer over each image, or over its clean version.

    Args:
        rainy: (B, 3, h, w) in [0, 1].
        layers: (N, H, W) in [0, 1], 0 without rain.
        rng: where all choices come from.
        clean: the images without rain, (B, 3, h, w) in [0, 1].
        settings: None takes the authors'.

    Returns:
        New rainy images (B, 3, h, w), float32 in [0, 1]. `clean` stays their truth.

    Raises:
        UsageError: other shapes, values outside [0, 1], no layer, or layers smaller than an image.
    """
    _check(rainy, layers, clean)
    settings = settings or RainMixSettings()
    out = np.empty(rainy.shape, np.float32)
    for result, image, truth in zip(out, rainy, clean, strict=True):
        base = truth if rng.random() < settings.clean_share else image
        layer = mixed_layer(layers[rng.integers(len(layers))], rng, settings=settings)
        rain = _random_cut(layer, rng, *image.shape[-2:])
        # Light on light: never beyond 1, and nothing changes where there is no rain.
        np.clip(base + rain - base * rain, 0, 1, out=result)
    return out


def mixed_layer(layer: Floats, rng: np.random.Generator, *, settings: RainMixSettings) -> Floats:
    """One rain layer (H, W) after RainMix, in [0, 1]; a layer of zeros stays one.

    max(1 - m, 0.7) * layer + max(m, 0.5 / max_i w_i) * sum_i w_i chain_i(layer), where the weights
    w are Dirichlet and m is Beta. All chains of a layer have the same length, 2 or 3 operations.
    """
    weights = rng.dirichlet([settings.alpha] * settings.chains)
    blend = rng.beta(settings.alpha, settings.alpha)
    length = int(rng.integers(2, 4))
    mix = np.zeros(layer.shape, np.float64)
    for weight in weights:
        mix += weight * _chain(layer, rng, length, settings.severity)
    mixed = max(1 - blend, _MIN_KEPT) * layer + max(blend, _MIN_MIXED / weights.max()) * mix
    clipped: Floats = np.clip(mixed, 0, 1).astype(np.float32)
    return clipped


def synthetic_rain_layers(
    num_layers: int, *, height: int, width: int, rng: np.random.Generator
) -> Floats:
    """Draw rain layers (N, H, W) in [0, 1], where photographed ones are missing.

    Each has its own slant (within 30 degrees of the vertical), density and length of streaks: drops
    of random brightness are scattered and smeared along the slant. The layer wraps around at its
    edges. A recipe of ours, coarser than rendered or photographed streaks.

    Raises:
        UsageError: a number or a side below 1.
    """
    if min(num_layers, height, width) < 1:
        raise UsageError(
            f"rain layers have at least 1 pixel each way, and there is at least 1; got "
            f"{num_layers} of {height}x{width}"
        )
    return np.stack([_drawn_layer(height, width, rng) for _ in range(num_layers)])


def _drawn_layer(height: int, width: int, rng: np.random.Generator) -> Floats:
    slant, length_px = rng.uniform(-math.pi / 6, math.pi / 6), rng.uniform(8, 40)
    density, sigma_px = rng.uniform(0.001, 0.005), rng.uniform(0.5, 0.9)
    drops = (rng.random((height, width)) < density) * rng.uniform(0.3, 1, (height, width))
    # Pixel distances from the corner, the short way around.
    y = (np.fft.fftfreq(height) * height)[:, None]
    x = (np.fft.fftfreq(width) * width)[None, :]
    along, across = (
        y * math.cos(slant) + x * math.sin(slant),
        x * math.cos(slant) - y * math.sin(slant),
    )
    streak = np.exp(-(across**2) / (2 * sigma_px**2)) * (np.abs(along) <= length_px / 2)
    light = np.fft.irfft2(np.fft.rfft2(drops) * np.fft.rfft2(streak), s=(height, width))
    brightness = rng.uniform(0.3, 0.7)
    return (brightness * np.clip(light, 0, 1)).astype(np.float32)


def _chain(layer: Floats, rng: np.random.Generator, length: int, severity: float) -> Floats:
    picture = Image.fromarray(np.ascontiguousarray(layer, np.float32))
    for _ in range(length):
        operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
        picture = operation(picture, rng.uniform(_MIN_LEVEL, severity), rng)
    return np.asarray(picture)


def _rotate(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    degrees = _sign(rng) * int(level * 3)
    return picture.rotate(degrees, resample=Image.Resampling.BILINEAR)


def _shear_x(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return _affine(picture, (1, _sign(rng) * level * 0.03, 0, 0, 1, 0))


def _shear_y(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return _affine(picture, (1, 0, 0, _sign(rng) * level * 0.03, 1, 0))


def _shift_x(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return _affine(picture, (1, 0, _sign(rng) * int(level * picture.width / 30), 0, 1, 0))


def _shift_y(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0, 1, _sign(rng) * int(level * picture.height / 30)))


def _zoom_x(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    rate, start = _zoom(picture.width, level, rng)
    return _affine(picture, (rate, 0, start, 0, 1, 0))


def _zoom_y(picture: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    rate, start = _zoom(picture.height, level, rng)
    return _affine(picture, (1, 0, 0, 0, rate, start))


_OPERATIONS: tuple[Callable[[Image.Image, float, np.random.Generator], Image.Image], ...] = (
    _rotate,
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
    _zoom_x,
    _zoom_y,
)


def _zoom(side_px: int, level: float, rng: np.random.Generator) -> tuple[float, float]:
    """Pixels of the source per pixel, and where the source starts: one of the two ends stays."""
    rate = 1 / (level * 0.6)
    return rate, side_px * (1 - rate) if rng.random() > 0.5 else 0.0


def _affine(
    picture: Image.Image, source: tuple[float, float, float, float, float, float]
) -> Image.Image:
    """(x, y) of the result is (ax + by + c, dx + ey + f) of the picture; 0 outside."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, source, resample=Image.Resampling.BILINEAR
    )


def _sign(rng: np.random.Generator) -> int:
    return -1 if rng.random() > 0.5 else 1


def _random_cut(layer: Floats, rng: np.random.Generator, height: int, width: int) -> Floats:
    y = rng.integers(layer.shape[0] - height + 1)
    x = rng.integers(layer.shape[1] - width + 1)
    return layer[y : y + height, x : x + width]


def _check(rainy: Floats, layers: Floats, clean: Floats) -> None:
    if rainy.ndim != 4 or rainy.shape[1] != 3 or clean.shape != rainy.shape:
        raise UsageError(
            f"RainMix takes rainy and clean images (B, 3, h, w), got {rainy.shape} and "
            f"{clean.shape}"
        )
    if layers.ndim != 3 or len(layers) < 1:
        raise UsageError(f"RainMix takes at least one rain layer (N, H, W), got {layers.shape}")
    if layers.shape[1] < rainy.shape[2] or layers.shape[2] < rainy.shape[3]:
        raise UsageError(
            f"rain layers must be at least as large as the images, got {layers.shape[1:]} for "
            f"{rainy.shape[2:]}; take smaller crops or larger layers"
        )
    for what, values in (("rainy images", rainy), ("clean images", clean), ("layers", layers)):
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise UsageError(
                f"RainMix takes values in [0, 1], got {what} from {values.min()} to {values.max()}"
            )
