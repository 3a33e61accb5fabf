"""The rain kernels that RCDNet starts from: computed by the authors' recipe, or read from a file.

The authors draw one 9x9 streak per rain map: an upright Gaussian with a flat centre, of sum 1, the
same for red, green and blue. The first three eighths are hair-thin, the rest broad, each longer
than the one before. `rain_kernels` follows their generator `init_rain_kernel.m`. The file
`init_kernel.mat` beside their code is another draw: widths and sums (0.14 to 1) differ from kernel
to kernel there; `read_rain_kernels` takes it. Kernels are learned from there on.

Letters: N rain maps.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from samprior.storage.errors import CheckpointError, UsageError

KERNEL_PX = 9
"""Side of a rain kernel."""

_OFFICIAL_KERNELS, _OFFICIAL_THIN = 32, 12
_MAX_FILE_BYTES = 1 << 20  # the authors' has 11,573
_MAX_KERNELS = 1024
_VARIABLE = "C9"


def rain_kernels(num_kernels: int) -> npt.NDArray[np.float32]:
    """Streaks to start from, (3, N, 9, 9); those of the authors' generator for N = 32.

    For another N the lengths are spread evenly over the same range.

    Raises:
        UsageError: a number below 1.
    """
    if num_kernels < 1:
        raise UsageError(f"RCDNet needs at least 1 rain kernel, got {num_kernels}")
    # Places in the authors' list, counted from 1.
    places = np.linspace(1, _OFFICIAL_KERNELS, num_kernels)
    streaks = np.stack([_streak(float(place)) for place in places])  # (N, 9, 9)
    return np.repeat(streaks[None], 3, axis=0).astype(np.float32)


def read_rain_kernels(file: Path) -> npt.NDArray[np.float32]:
    """Kernels (3, N, 9, 9) from a MATLAB file such as the authors' `init_kernel.mat` (variable C9).

    Only numbers are read; objects and functions in the file are left alone.

    Raises:
        CheckpointError: no such file, not a MATLAB 5 file, or no finite kernels of this shape.
    """
    from scipy.io import loadmat, whosmat

    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise CheckpointError(f"{file} is larger than any file of rain kernels (1 MiB)")
        # The headers alone, so that a small file can't unpack to a huge array.
        shapes = {name: (shape, kind) for name, shape, kind in whosmat(file, appendmat=False)}
        shape, kind = shapes.get(_VARIABLE, (None, None))
        if not _is_kernel_shape(shape) or kind not in ("double", "single"):
            raise CheckpointError(
                f"{file} has no variable {_VARIABLE} of numbers (3, N, 9, 9), got {shapes}; RCDNet "
                "starts from the file init_kernel.mat of its authors, or from computed kernels"
            )
        found = loadmat(file, appendmat=False, variable_names=[_VARIABLE])[_VARIABLE]
    except CheckpointError:
        raise
    except Exception as error:  # SciPy's readers raise all kinds on damaged bytes
        raise CheckpointError(
            f"{file} can't be read as a MATLAB 5 file of rain kernels: {error}"
        ) from error
    kernels = np.asarray(found)
    if kernels.shape != shape or kernels.dtype.kind != "f" or not np.isfinite(kernels).all():
        raise CheckpointError(f"{file} holds rain kernels that aren't finite numbers")
    return kernels.astype(np.float32)


def _is_kernel_shape(shape: tuple[int, ...] | None) -> bool:
    if shape is None or len(shape) != 4:
        return False
    colours, num_kernels, *sides = shape
    return colours == 3 and 1 <= num_kernels <= _MAX_KERNELS and sides == [KERNEL_PX, KERNEL_PX]


def _streak(place: float) -> npt.NDArray[np.float64]:
    """The kernel (9, 9) at a place, 1 to 32, of the authors' list."""
    thin = place < _OFFICIAL_THIN + 0.5
    length = (2.5 if thin else 2.0) + place / 4  # how much longer than wide
    sigma_px, flat_px = (0.25, 0.0) if thin else (0.5, 1.0)
    reach = KERNEL_PX // 2
    distance = np.maximum(np.abs(np.arange(-reach, reach + 1)) - flat_px, 0)
    across, along = distance[None, :], distance[:, None] / length
    light = np.exp(-(across**2 + along**2) / (2 * sigma_px**2))
    light[light < np.finfo(np.float64).eps * light.max()] = 0
    streak: npt.NDArray[np.float64] = light / light.sum()
    return streak
