"""Ready-made masks: folders of the official scripts/amg.py, and the JSON files of SA-1B.

Untrusted input, see `mask_files`. Columns are those of the `sam` segmenter: `predicted_iou`,
`stability`, `point`, float32.
"""

import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, ValidationError

from samprior.pipeline.mask_files import (
    LARGEST_NUMBER,
    Code,
    Count,
    Number,
    Side,
    Strict,
    empty_planes,
    first_problem,
    read_bounded,
    refuse,
    require_file,
)
from samprior.storage import MaskSet
from samprior.storage.errors import MaskFormatError
from samprior.storage.images import MAX_PIXELS
from samprior.storage.interchange import AMG_HEADER

_COLUMNS = AMG_HEADER.split(",")
_WHOLE = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_MAY_BE_NAN = ("predicted_iou", "stability_score")

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises for damaged PNG files."""


def read_amg_folder(folder: Path, *, shape: tuple[int, int] | None = None) -> MaskSet:
    """Read N.png and metadata.csv of scripts/amg.py, in the order of the ids.

    `shape` is (H, W) of the image the masks belong to; None takes that of the first mask.

    Raises:
        MaskFormatError: anything that scripts/amg.py would not write; names the file and line.
    """
    require_file(folder / "metadata.csv", inside=folder)
    rows = _read_metadata(folder / "metadata.csv")
    _refuse_unlisted(folder, rows)
    if shape is None:
        if not rows:
            raise MaskFormatError(
                f"{folder} lists no mask, so the size of the image is unknown; pass shape=(H, W)"
            )
        shape = _png_shape(folder / f"{rows[0].number}.png")
    planes = empty_planes(len(rows), shape, folder)
    for plane, row in zip(planes, rows, strict=True):
        plane[:] = _read_mask_png(folder / f"{row.number}.png", shape)
        area = int(np.count_nonzero(plane))
        if area != row.area:
            raise MaskFormatError(
                f"{folder / 'metadata.csv'} line {row.line} says mask {row.number} has an area of "
                f"{row.area}, but {row.number}.png has {area} pixels; write the folder again"
            )
    return _mask_set(
        planes, [row.iou for row in rows], [row.stability for row in rows], [r.point for r in rows]
    )


def read_sa1b(json_file: Path) -> MaskSet:
    """Read the masks of one image in the layout of SA-1B, in the order of the file.

    Raises:
        MaskFormatError: anything that isn't this layout; names the file and the annotation.
    """
    try:
        record = _Sa1bFile.model_validate_json(read_bounded(json_file))
    except ValidationError as error:
        raise MaskFormatError(
            f"{json_file} is not in the layout of SA-1B: {first_problem(error)}"
        ) from error
    height, width = record.image.height, record.image.width
    if height * width > MAX_PIXELS:
        raise MaskFormatError(
            f"{json_file} is for an image of {width}x{height}; at most {MAX_PIXELS:,} pixels are "
            "read"
        )
    notes = record.annotations
    planes = empty_planes(len(notes), (height, width), json_file)
    for i, (plane, note) in enumerate(zip(planes, notes, strict=True)):
        try:
            plane[:] = _decode(note, height, width)
        except ValueError as error:
            raise MaskFormatError(f"{json_file} annotations.{i}: {error}") from error
    return _mask_set(
        planes,
        [note.predicted_iou for note in notes],
        [note.stability_score for note in notes],
        [note.point_coords[0] for note in notes],
    )


@dataclass(frozen=True)
class _Row:
    line: int
    number: int
    area: int
    point: tuple[float, float]
    iou: float
    stability: float


def _read_metadata(path: Path) -> list[_Row]:
    try:
        lines = read_bounded(path).decode("ascii").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise MaskFormatError(f"{path} is not plain text: {error}") from error
    if lines[0].rstrip("\r") != AMG_HEADER:
        raise MaskFormatError(
            f"{path} line 1 is {lines[0][:60]!r}, wanted the header of scripts/amg.py: "
            f"{AMG_HEADER[:40]}..."
        )
    rows = [_parse_row(line.rstrip("\r"), n, path) for n, line in enumerate(lines[1:], 2)]
    rows.sort(key=lambda row: row.number)
    for one, other in pairwise(rows):
        if one.number == other.number:
            raise MaskFormatError(
                f"{path} line {other.line} has id {other.number} again, first in line {one.line}"
            )
    return rows


def _parse_row(text: str, line: int, path: Path) -> _Row:
    cells = text.split(",")
    if len(cells) != len(_COLUMNS):
        wanted = len(_COLUMNS)
        raise MaskFormatError(f"{path} line {line} has {len(cells)} columns, wanted {wanted}")
    for name, cell in zip(_COLUMNS, cells, strict=True):
        whole = name in ("id", "area")
        if cell == "nan" and name in _MAY_BE_NAN:
            continue  # a stability of 0/0
        if not (_WHOLE if whole else _NUMBER).fullmatch(cell) or abs(float(cell)) > LARGEST_NUMBER:
            kind = "a whole number" if whole else "a number"
            raise MaskFormatError(f"{path} line {line}: {name} is {cell[:40]!r}, wanted {kind}")
    value = dict(zip(_COLUMNS, cells, strict=True))
    return _Row(
        line=line,
        number=int(value["id"]),
        area=int(value["area"]),
        point=(float(value["point_input_x"]), float(value["point_input_y"])),
        iou=float(value["predicted_iou"]),
        stability=float(value["stability_score"]),
    )


def _refuse_unlisted(folder: Path, rows: list[_Row]) -> None:
    listed = {f"{row.number}.png" for row in rows}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".png" and file.stem.isdecimal() and file.name not in listed:
            raise MaskFormatError(
                f"{file} is not in metadata.csv; the table is cut off, or the file is of another "
                "run"
            )


def _open_png(path: Path) -> Image.Image:
    require_file(path, inside=path.parent)
    try:
        with warnings.catch_warnings():
            # The caller compares the size with the limit before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=["PNG"])
    except FileNotFoundError as error:
        raise MaskFormatError(f"{path} is missing, but metadata.csv lists it") from error
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        refuse(path, "read as PNG", error)


def _png_shape(path: Path) -> tuple[int, int]:
    with _open_png(path) as image:
        return image.height, image.width


def _read_mask_png(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    with _open_png(path) as image:
        if (image.height, image.width) != shape:
            raise MaskFormatError(
                f"{path} has {image.width}x{image.height} pixels, wanted {shape[1]}x{shape[0]} as "
                "the image"
            )
        if image.mode not in ("1", "L"):
            raise MaskFormatError(f"{path} has mode {image.mode}, wanted grey with 0 and 255 only")
        try:
            grey = np.asarray(image.convert("L"))
        except _UNREADABLE as error:
            refuse(path, "decoded", error)
    plane: npt.NDArray[np.bool_] = grey == 255
    if np.count_nonzero(grey) != np.count_nonzero(plane):
        raise MaskFormatError(f"{path} has other values than 0 and 255, so it is no mask")
    return plane


class _Annotation(Strict):
    segmentation: Code
    area: Count
    predicted_iou: Number | None
    """None is NaN, which JSON lacks."""
    stability_score: Number | None
    point_coords: Annotated[list[tuple[Number, Number]], Field(min_length=1, max_length=1)]


class _ImageNote(Strict):
    width: Side
    height: Side


class _Sa1bFile(Strict):
    image: _ImageNote
    annotations: list[_Annotation]


def _decode(note: _Annotation, height: int, width: int) -> npt.NDArray[np.bool_]:
    plane = note.segmentation.plane(height, width)
    area = int(np.count_nonzero(plane))
    if area != note.area:
        raise ValueError(f"area is {note.area}, but the code has {area} pixels")
    return plane


def _mask_set(
    planes: npt.NDArray[np.bool_],
    ious: list[float | None],
    stabilities: list[float | None],
    points: list[tuple[float, float]],
) -> MaskSet:
    return MaskSet.from_masks(
        planes,
        predicted_iou=np.array(ious, np.float32),
        stability=np.array(stabilities, np.float32),
        point=np.array(points, np.float32).reshape(-1, 2),
    )
