"""PSNR and SSIM of restored images, by scikit-image, under one written protocol."""

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from samprior.storage.choices import check_choice
from samprior.storage.errors import UsageError

Picture: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.floating]
"""(H, W, 3) RGB: uint8, or floats in [0, 1]."""

Space = Literal["rgb", "y", "y8"]

SPACES: dict[Space, str] = {
    "rgb": "RGB",
    "y": "Y of BT.601 YCbCr",
    "y8": "Y of BT.601 YCbCr rounded to 8 bit",
}
"""The scored channels, in words."""

PROTOCOL = (
    "PSNR = 10 log10(R² / MSE) over all pixels and channels; SSIM (Wang et al. 2004) with a "
    "Gaussian window of sigma 1.5 (11x11), population covariance, K1 = 0.01, K2 = 0.03, mean over "
    "the channels and all pixels at least 5 from the edge. Space rgb: R = 255 for uint8, 1 for "
    "floats. Space y: BT.601 luma in [16, 235], R = 255; y8: the same, rounded to whole numbers as "
    "MATLAB's rgb2ycbcr does with 8-bit pictures. border_px pixels are cut from each side "
    "first. Computed by scikit-image in double precision; scores of a set are means over images."
)
"""How the numbers of this module are made, in words."""

_SSIM_WINDOW_PX = 11


def psnr(restored: Picture, clean: Picture, *, space: Space = "rgb", border_px: int = 0) -> float:
    """PSNR in dB of two (H, W, 3) pictures, both uint8 or both floats in [0, 1]; see `PROTOCOL`.

    Identical pictures give inf.

    Raises:
        UsageError: other shapes or types, floats outside [0, 1], or a border that leaves nothing.
    """
    ours, truth, data_range = _comparable(restored, clean, space, border_px)
    with np.errstate(divide="ignore"):
        ratio = peak_signal_noise_ratio(truth, ours, data_range=data_range)  # type: ignore[no-untyped-call]
    return float(ratio)


def ssim(restored: Picture, clean: Picture, *, space: Space = "rgb", border_px: int = 0) -> float:
    """SSIM of two (H, W, 3) pictures, both uint8 or both floats in [0, 1]; see `PROTOCOL`.

    Raises:
        UsageError: as `psnr`, or less than 11 pixels along a side.
    """
    ours, truth, data_range = _comparable(restored, clean, space, border_px)
    if min(ours.shape[:2]) < _SSIM_WINDOW_PX:
        raise UsageError(
            f"SSIM needs at least {_SSIM_WINDOW_PX}x{_SSIM_WINDOW_PX} pixels, got "
            f"{ours.shape[0]}x{ours.shape[1]} inside a border of {border_px}"
        )
    similarity = structural_similarity(  # type: ignore[no-untyped-call]
        truth,
        ours,
        data_range=data_range,
        channel_axis=2 if ours.ndim == 3 else None,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(similarity)


def _comparable(
    restored: Picture, clean: Picture, space: Space, border_px: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic], float]:
    """Both pictures without border, in the wanted space, and the range R of their values."""
    check_choice("space", space, SPACES)
    if restored.shape != clean.shape or clean.ndim != 3 or clean.shape[2] != 3:
        raise UsageError(
            f"pictures to compare must both be (H, W, 3), got {restored.shape} and {clean.shape}"
        )
    if border_px < 0 or 2 * border_px >= min(clean.shape[:2]):
        raise UsageError(
            f"a border of {border_px} px doesn't fit {clean.shape[0]}x{clean.shape[1]} pictures"
        )
    height, width = clean.shape[:2]
    window = np.s_[border_px : height - border_px, border_px : width - border_px]
    ours, truth = _checked(restored)[window], _checked(clean)[window]
    if ours.dtype != truth.dtype:
        raise UsageError(
            f"pictures to compare must have one type, got {restored.dtype} and {clean.dtype}"
        )
    if space != "rgb":
        return _luma(ours, space), _luma(truth, space), 255.0
    return ours, truth, 255.0 if ours.dtype == np.uint8 else 1.0


def _luma(picture: npt.NDArray[np.generic], space: Space) -> npt.NDArray[np.float64]:
    luma: npt.NDArray[np.float64] = rgb2ycbcr(picture)[:, :, 0]
    # MATLAB rounds halves away from zero.
    return np.floor(luma + 0.5) if space == "y8" else luma


def _checked(picture: Picture) -> npt.NDArray[np.uint8] | npt.NDArray[np.float64]:
    """The picture as uint8, or as float64 in [0, 1]."""
    if picture.dtype == np.uint8:
        return picture.astype(np.uint8, copy=False)
    if not np.issubdtype(picture.dtype, np.floating):
        raise UsageError(f"pictures must be uint8 or floats in [0, 1], got {picture.dtype}")
    if picture.size and not (picture.min() >= 0 and picture.max() <= 1):
        raise UsageError(
            f"pictures of floats must lie in [0, 1], got {picture.min()} to {picture.max()}; "
            "clip them as saving would, or pass uint8"
        )
    return picture.astype(np.float64, copy=False)
