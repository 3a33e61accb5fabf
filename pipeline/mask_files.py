"""What all importers of ready-made masks share: limits, strict models, errors that name the file.

The files may come from anywhere: every number is parsed strictly, no path leaves its folder, sizes
are bounded before anything is allocated, and whatever the content, the result is a `MaskSet` or a
`MaskFormatError`; passing errors of the machine come through as they are.
"""

import os
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samprior.storage.errors import MaskFormatError
from samprior.storage.images import MAX_PIXELS, is_passing
from samprior.storage.rle import MAX_MASK_PIXELS, counts_to_mask, decode_counts

MAX_TABLE_BYTES = 64 * 2**20
"""Larger tables of one image are refused; those of real images are far smaller."""

LARGEST_NUMBER = 1e9
"""No score or coordinate comes near; float32 holds it."""


class Strict(BaseModel):
    """A record whose fields have just the types they are said to have; further ones are let be."""

    model_config = ConfigDict(strict=True)


Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
Count = Annotated[int, Field(ge=0, le=MAX_PIXELS)]


class Code(Strict):
    """COCO run lengths, compressed or as a list."""

    size: tuple[Side, Side]
    counts: str | list[Count]

    def plane(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """The mask as boolean (H, W).

        Raises:
            ValueError: a code that is not of an image of this size.
        """
        if self.size != (height, width):
            raise ValueError(f"size is {list(self.size)}, wanted {[height, width]} as the image")
        counts = (
            decode_counts(self.counts)
            if isinstance(self.counts, str)
            else np.array(self.counts, np.int64)
        )
        return counts_to_mask(counts, height=height, width=width)


def require_file(path: Path, *, inside: Path | None = None) -> None:
    """Raise MaskFormatError unless a path is that of a file, which lies in the folder `inside`.

    A named pipe would be waited for; a link may lead to a file that is nobody's business.
    """
    if path.exists() and not path.is_file():
        raise MaskFormatError(f"{path} is no file")
    real = os.path.realpath(path)
    if inside is not None and not Path(real).is_relative_to(os.path.realpath(inside)):
        raise MaskFormatError(f"{path} is a link to {real}, outside of {inside}; copy the file")


def read_bounded(path: Path, *, max_bytes: int | None = None) -> bytes:
    """The content of a file of at most `max_bytes`; None is `MAX_TABLE_BYTES`.

    Raises:
        MaskFormatError: it can't be read, or is larger.
    """
    limit = MAX_TABLE_BYTES if max_bytes is None else max_bytes
    require_file(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        refuse(path, "read", error)
    if len(content) > limit:
        raise MaskFormatError(f"{path} has more than {limit >> 20} MiB; is it the file?")
    return content


def empty_planes(num_masks: int, shape: tuple[int, int], source: object) -> npt.NDArray[np.bool_]:
    """Room for boolean (K, H, W), or a MaskFormatError if that is more than memory should hold."""
    height, width = shape
    if height * width > MAX_PIXELS:
        raise MaskFormatError(
            f"{source} has masks of {width}x{height}; at most {MAX_PIXELS:,} pixels are read"
        )
    if num_masks * height * width > MAX_MASK_PIXELS:
        raise MaskFormatError(
            f"{source} has {num_masks} masks of {width}x{height}, more than memory should hold"
        )
    return np.empty((num_masks, height, width), np.bool_)


def refuse(path: Path, what: str, error: Exception) -> NoReturn:
    """Raise a MaskFormatError that names the file, or the error itself if it may pass."""
    if is_passing(error):
        raise error
    raise MaskFormatError(f"{path} can't be {what} ({error})") from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a record, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole of it"
    return f"{place}: {first['msg']}"
