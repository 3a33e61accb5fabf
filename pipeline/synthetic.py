"""Degrade real photographs by known, seeded recipes: small datasets to try everything on.

The photographs ship with scikit-image, so nothing is downloaded. The recipes imitate what the
benchmarks hold: camera shake in linear light as in GoPro, streaks added on top as in Rain13K,
sensor noise as in the shots behind SenseNoise. They stand in for the benchmarks, and scores on
them compare with nothing. Equal seeds give equal pixels.
"""

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samprior.storage.errors import UsageError
from samprior.storage.files import staged_folder
from samprior.storage.images import Rgb, read_rgb, write_png

Floats = npt.NDArray[np.float64]

# The motorcycles are one scene from two eyes: they stay on one side.
TRAIN_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "coffee.png",
    "coins.png",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
)
TEST_PHOTOS = ("chelsea.png", "rocket.jpg")

_GAMMA = 2.2
"""Display to linear light, as GoPro's authors averaged frames (Nah et al., CVPR 2017)."""
_SHIFT_PX = 24
"""Room for the frames of one photograph to differ by, in both directions together."""


def motion_blur(image: Rgb, rng: np.random.Generator, *, extent_px: float | None = None) -> Rgb:
    """Blur uint8 (H, W, 3) by one random camera shake, in linear light.

    `extent_px` is the longer side of the box around the shake's path; None draws it from 3 to 10.
    """
    extent_px = float(rng.uniform(3, 10)) if extent_px is None else extent_px
    if not 0 < extent_px < min(image.shape[:2]) / 2 - 2:
        raise UsageError(
            "extent_px must be above 0 and below half of the image's shorter side, got "
            f"{extent_px} for {image.shape[1]}x{image.shape[0]}"
        )
    kernel = _shake_kernel(rng, extent_px=extent_px)
    linear = (image / 255.0) ** _GAMMA  # (H, W, 3)
    blurred = np.stack([_convolve(linear[:, :, c], kernel) for c in range(3)], axis=2)
    return _to_uint8(np.clip(blurred, 0, 1) ** (1 / _GAMMA))


def rain_streaks(image: Rgb, rng: np.random.Generator, *, density: float | None = None) -> Rgb:
    """Add oriented bright streaks to uint8 (H, W, 3): O = B + S, as in Rain100 and Rain13K.

    `density` from 0 (a few drops) to 1 (a downpour); None draws it.
    """
    density = float(rng.uniform(0, 1)) if density is None else density
    if not 0 <= density <= 1:
        raise UsageError(f"density must be in [0, 1], got {density}")
    height, width = image.shape[:2]
    slant = rng.uniform(-0.6, 0.6)  # radians from the vertical
    streaks = np.zeros((height, width))
    # Far rain is fine and short, near rain long, bright and rare.
    for length_px, width_px, brightness, share in ((14, 0.6, 0.35, 1.0), (30, 0.9, 0.55, 0.35)):
        drops = rng.random((height, width)) < share * (0.001 + 0.004 * density)
        light = drops * rng.uniform(0.3, 1.0, (height, width))
        angle = slant + rng.normal(0, 0.04)
        kernel = _streak_kernel(length_px * rng.uniform(0.8, 1.3), angle=angle, width_px=width_px)
        streaks += brightness * np.minimum(_convolve(light, kernel), 1)
    return _to_uint8(image / 255.0 + streaks[:, :, None])


def camera_noise(image: Rgb, rng: np.random.Generator, *, full_well: float | None = None) -> Rgb:
    """Add the noise of a colour sensor at high gain to uint8 (H, W, 3).

    Shot noise (Poisson) and read noise (normal) in linear light, stronger in red and blue by the
    white balance, and smeared by interpolating the Bayer mosaic. `full_well` is the number of
    electrons at white, the fewer the noisier; None draws it from 80 to 250.
    """
    full_well = float(rng.uniform(80, 250)) if full_well is None else full_well
    if full_well <= 0:
        raise UsageError(f"full_well must be above 0, got {full_well}")
    gains = np.array([1.9, 1.0, 1.6])
    linear = (image / 255.0) ** _GAMMA
    electrons = rng.poisson(linear * full_well / gains) + rng.normal(0, 2.5, image.shape)
    noise = electrons * gains / full_well - linear  # (H, W, 3), mean 0
    noisy = linear + _interpolate_mosaic(noise)
    return _to_uint8(np.clip(noisy, 0, 1) ** (1 / _GAMMA))


_RECIPES: dict[str, Callable[[Rgb, np.random.Generator], Rgb]] = {
    "gopro": motion_blur,
    "rain": rain_streaks,
    "sensenoise": camera_noise,
}


def write_demo_datasets(
    out: Path, *, seed: int = 0, num_frames: int = 2, longest_px: int = 512
) -> dict[str, Path]:
    """Write a small deblurring, deraining and denoising set below `out`.

    gopro/GOPRO_Large/{train,test}/PHOTO/{blur,sharp}/000001.png, rain/{train,test}/{input,target}/
    001.png and sensenoise/{train,test}/{noisy,clean}/PHOTO_1.png. Train and test share no
    photograph. Each set appears whole or not at all.

    Args:
        out: folder to write to; made if missing.
        seed: equal seeds and settings give equal files.
        num_frames: differently degraded, slightly shifted cuts of each photograph; 2 makes 16
            train and 4 test pairs in each set.
        longest_px: longest side of a cut.

    Returns:
        The root of each set, by the name under which `find_dataset` knows its layout.

    Raises:
        UsageError: one of the sets exists already, or a number is out of range.
    """
    if num_frames < 1 or longest_px < 64:
        raise UsageError(
            f"num_frames must be at least 1 and longest_px at least 64, got {num_frames} and "
            f"{longest_px}"
        )
    there = [str(out / task) for task in _RECIPES if (out / task).exists()]
    if there:
        raise UsageError(f"{', '.join(there)} exists; remove it or choose another folder")
    photos = {name: _photo(name) for name in (*TRAIN_PHOTOS, *TEST_PHOTOS)}
    for task in _RECIPES:
        with staged_folder(out / task) as draft:
            for split, names in (("train", TRAIN_PHOTOS), ("test", TEST_PHOTOS)):
                originals = {name: photos[name] for name in names}
                frames = _frames(
                    originals, task=task, seed=seed, num_frames=num_frames, longest_px=longest_px
                )
                for index, (name, frame, degraded, clean) in enumerate(frames, start=1):
                    paths = _paths(task, split, photo=Path(name).stem, frame=frame, index=index)
                    write_png(draft / paths[0], degraded)
                    write_png(draft / paths[1], clean)
    roots = {task: out / task for task in _RECIPES}
    return {**roots, "gopro": out / "gopro" / "GOPRO_Large"}


def _photo(name: str) -> Rgb:
    return read_rgb(Path(str(files("skimage"))) / "data" / name)


def _frames(
    photos: dict[str, Rgb], *, task: str, seed: int, num_frames: int, longest_px: int
) -> Iterator[tuple[str, int, Rgb, Rgb]]:
    """Photograph, frame number from 1, degraded and clean picture."""
    degrade = _RECIPES[task]
    for name, photo in photos.items():
        # The photograph's name is part of the seed: the choice of the others changes nothing.
        for frame in range(1, num_frames + 1):
            rng = np.random.default_rng((seed, frame, *f"{task}/{name}".encode()))
            clean = _shifted_cut(photo, rng, longest_px=longest_px)
            yield name, frame, degrade(clean, rng), clean


def _paths(task: str, split: str, *, photo: str, frame: int, index: int) -> tuple[Path, Path]:
    if task == "gopro":
        folder = Path("GOPRO_Large", split, photo)
        return folder / "blur" / f"{frame:06d}.png", folder / "sharp" / f"{frame:06d}.png"
    if task == "rain":
        return Path(split, "input", f"{index:03d}.png"), Path(split, "target", f"{index:03d}.png")
    name = f"{photo}_{frame}.png"
    return Path(split, "noisy", name), Path(split, "clean", name)


def _shifted_cut(photo: Rgb, rng: np.random.Generator, *, longest_px: int) -> Rgb:
    """A cut near the middle, with sides that are multiples of 8."""
    window = []
    for side_px in photo.shape[:2]:
        cut_px = min(longest_px, side_px - _SHIFT_PX) // 8 * 8
        middle = (side_px - cut_px) // 2
        start = middle + int(rng.integers(-_SHIFT_PX // 2, _SHIFT_PX // 2 + 1))
        window.append(slice(start, start + cut_px))
    return np.ascontiguousarray(photo[window[0], window[1]])


def _shake_kernel(rng: np.random.Generator, *, extent_px: float) -> Floats:
    """Time spent at each offset along a smooth random path, centred; sums to 1."""
    num_steps = 400
    # A hand can't change speed at once: velocity is white noise, smoothed over a third of the path.
    smooth = np.hanning(num_steps // 3)
    velocity = rng.normal(size=(2, num_steps + len(smooth) - 1))
    path = np.cumsum([np.convolve(axis, smooth, mode="valid") for axis in velocity], axis=1)
    path *= extent_px / np.ptp(path, axis=1).max()
    # Sharp and blurred picture lie on each other when the path's mean is the kernel's middle.
    path -= path.mean(axis=1, keepdims=True)
    return _splat(path, side_px=2 * int(np.ceil(extent_px)) + 3)


def _streak_kernel(length_px: float, *, angle: float, width_px: float) -> Floats:
    """A slanted line that fades at both ends, brightest value 1."""
    side_px = 2 * int(np.ceil(length_px / 2 + 3 * width_px)) + 1
    rows, columns = np.mgrid[:side_px, :side_px] - side_px // 2
    position = rows * np.cos(angle) + columns * np.sin(angle)
    distance = columns * np.cos(angle) - rows * np.sin(angle)
    fade = np.sqrt(np.cos(np.pi * np.clip(position / length_px, -0.5, 0.5)).clip(0))
    line: Floats = fade * np.exp(-0.5 * (distance / width_px) ** 2)
    line /= line.max()
    return line


def _splat(path: Floats, *, side_px: int) -> Floats:
    """Spread points (2, N) around the middle over their four nearest pixels; sums to 1."""
    points = path + side_px // 2
    corner = np.floor(points).astype(int)
    part = points - corner
    grid = np.zeros((side_px, side_px))
    for down in (0, 1):
        for right in (0, 1):
            share = abs(1 - down - part[0]) * abs(1 - right - part[1])
            np.add.at(grid, (corner[0] + down, corner[1] + right), share)
    grid /= grid.sum()
    return grid


def _interpolate_mosaic(values: Floats) -> Floats:
    """Keep each pixel's own colour of an RGGB mosaic, fill in the others bilinearly."""
    rows, columns = np.indices(values.shape[:2])
    colour = (rows % 2) + (columns % 2)  # 0 red, 1 green, 2 blue
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    square = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    kernels = (square, cross, square)
    planes = [_convolve(values[:, :, c] * (colour == c), kernels[c]) for c in range(3)]
    return np.stack(planes, axis=2)


def _convolve(plane: Floats, kernel: Floats) -> Floats:
    """Convolve (H, W) with an odd kernel, mirrored at the borders."""
    pad = kernel.shape[0] // 2
    padded = np.pad(plane, pad, mode="reflect")
    spectrum = np.fft.rfft2(padded) * np.fft.rfft2(kernel, s=padded.shape)
    whole: Floats = np.fft.irfft2(spectrum, s=padded.shape)
    return whole[2 * pad :, 2 * pad :]


def _to_uint8(display: Floats) -> Rgb:
    return np.round(np.clip(display, 0, 1) * 255).astype(np.uint8)
