"""PSNR and SSIM are scikit-image's under the documented protocol, and misuse is refused."""

import math
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from samprior.storage.errors import UsageError
from samprior.storage.images import read_rgb
from samprior.training.metrics import psnr, ssim

Picture = npt.NDArray[np.uint8]


@pytest.fixture
def pair() -> tuple[Picture, Picture]:
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (40, 52, 3)).astype(np.uint8)
    noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    return noisy, clean


def reference_ssim(
    a: npt.ArrayLike, b: npt.ArrayLike, data_range: float, axis: int | None
) -> float:
    return float(
        structural_similarity(
            a,
            b,
            data_range=data_range,
            channel_axis=axis,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def test_rgb_scores_are_those_of_skimage(pair: tuple[Picture, Picture]) -> None:
    noisy, clean = pair
    assert psnr(noisy, clean) == peak_signal_noise_ratio(clean, noisy, data_range=255)
    assert ssim(noisy, clean) == reference_ssim(clean, noisy, 255, 2)


def test_float_scores_are_those_of_skimage(pair: tuple[Picture, Picture]) -> None:
    noisy, clean = (picture / 255 for picture in pair)
    assert psnr(noisy, clean) == peak_signal_noise_ratio(clean, noisy, data_range=1)
    assert ssim(noisy, clean) == reference_ssim(clean, noisy, 1, 2)


@pytest.mark.parametrize("as_float", [False, True])
def test_luma_scores_are_those_of_skimage(pair: tuple[Picture, Picture], *, as_float: bool) -> None:
    noisy, clean = (picture / 255 if as_float else picture for picture in pair)
    y_noisy, y_clean = rgb2ycbcr(noisy)[..., 0], rgb2ycbcr(clean)[..., 0]
    assert psnr(noisy, clean, space="y") == peak_signal_noise_ratio(
        y_clean, y_noisy, data_range=255
    )
    assert ssim(noisy, clean, space="y") == reference_ssim(y_clean, y_noisy, 255, None)


def test_formula_of_psnr(pair: tuple[Picture, Picture]) -> None:
    noisy, clean = pair
    mse = np.mean((noisy.astype(np.float64) - clean) ** 2)
    assert psnr(noisy, clean) == pytest.approx(10 * math.log10(255**2 / mse))


def test_type_does_not_change_the_score(pair: tuple[Picture, Picture]) -> None:
    noisy, clean = pair
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-4)):
        floats = [(picture / 255).astype(dtype) for picture in pair]
        assert psnr(floats[0], floats[1]) == pytest.approx(psnr(noisy, clean), abs=tolerance)
        assert ssim(floats[0], floats[1]) == pytest.approx(ssim(noisy, clean), abs=tolerance)


def test_border_is_cut_before_scoring(pair: tuple[Picture, Picture]) -> None:
    noisy, clean = pair
    inner = np.s_[4:-4, 4:-4]
    assert psnr(noisy, clean, border_px=4) == psnr(noisy[inner], clean[inner])
    assert ssim(noisy, clean, border_px=4) == ssim(noisy[inner], clean[inner])


def test_identical_pictures(pair: tuple[Picture, Picture]) -> None:
    assert psnr(pair[1], pair[1]) == math.inf
    assert psnr(pair[1], pair[1], space="y") == math.inf
    assert ssim(pair[1], pair[1]) == 1


def test_the_published_blur_of_a_gopro_frame(shared_data: Path) -> None:
    folder = shared_data / "gopro" / "GOPRO_Large" / "test" / "Flower"
    blurred = read_rgb(next((folder / "blur").glob("*.png")))
    sharp = read_rgb(next((folder / "sharp").glob("*.png")))
    assert psnr(blurred, sharp) == pytest.approx(25.11, abs=0.005)


ZEROS = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("restored", "clean", "settings", "message"),
    [
        (ZEROS[:8], ZEROS, {}, "got (8, 16, 3) and (16, 16, 3)"),
        (ZEROS[..., 0], ZEROS[..., 0], {}, "must both be (H, W, 3)"),
        (ZEROS / 255, ZEROS, {}, "one type, got float64 and uint8"),
        (ZEROS.astype(np.int32), ZEROS, {}, "got int32"),
        (ZEROS + 7.0, ZEROS + 0.5, {}, "must lie in [0, 1], got 7.0 to 7.0"),
        (ZEROS + np.nan, ZEROS + 0.5, {}, "must lie in [0, 1], got nan"),
        (ZEROS, ZEROS, {"border_px": 8}, "border of 8 px doesn't fit"),
        (ZEROS, ZEROS, {"border_px": -1}, "border of -1 px"),
        (ZEROS, ZEROS, {"border_px": 3}, "at least 11x11"),
        (ZEROS, ZEROS, {"space": "ycbcr"}, "Known: rgb, y"),
    ],
)
def test_misuse_is_refused(
    restored: Picture, clean: Picture, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        ssim(restored, clean, **settings)  # type: ignore[arg-type]
