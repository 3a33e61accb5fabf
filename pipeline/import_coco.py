"""Masks of COCO instances files: run lengths in both forms, and polygons as pycocotools draws them.

Such a file is one for a whole dataset and may have gigabytes, so it is not made into Python
objects at once: one pass finds where each annotation begins and ends, and those of an image are
read when the image is. Untrusted input, see `mask_files`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Discriminator, Field, Tag, ValidationError

from samprior.pipeline.json_scan import JsonScanner
from samprior.pipeline.mask_files import (
    Code,
    Number,
    Side,
    Strict,
    empty_planes,
    first_problem,
    read_bounded,
)
from samprior.pipeline.polygons import polygon_mask
from samprior.storage import MaskSet
from samprior.storage.annotations import read_columns
from samprior.storage.errors import MaskFormatError
from samprior.storage.manifest import Json
from samprior.storage.writer import COLUMN_NAME

MAX_FILE_BYTES = 2 * 2**30
"""Larger files are refused; the largest of COCO itself has half a gigabyte."""

COCO_COLUMNS: Json = {
    "category_id": {"dtype": "int64", "shape": []},
    "iscrowd": {"dtype": "uint8", "shape": []},
}
"""Columns of masks from a file that doesn't list its own in `info.columns`."""

_LISTS = ("images", "annotations", "categories")

_Id = Annotated[int, Field(ge=0, lt=2**63)]


class _Image(Strict):
    id: _Id
    file_name: Annotated[str, Field(min_length=1, max_length=4096)]
    width: Side
    height: Side


class _Category(Strict):
    id: _Id
    name: str


class _Owner(Strict):
    image_id: _Id


_Segmentation = Annotated[
    Annotated[Code, Tag("code")] | Annotated[list[list[Number]], Tag("polygons")],
    Discriminator(lambda value: "polygons" if isinstance(value, list) else "code"),
]


class _Note(Strict):
    segmentation: _Segmentation
    category_id: _Id
    iscrowd: Literal[0, 1] = 0


R = TypeVar("R", _Image, _Category)


@dataclass(frozen=True)
class CocoImage:
    """One picture that the file lists."""

    number: int
    """Its `id`."""
    file_name: str
    """Relative path, "/" between folders, inside the folder of the pictures."""
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An instances file, indexed; see `read_coco`."""

    path: Path
    images: tuple[CocoImage, ...]
    """In the order of the file."""
    categories: tuple[Json, ...]
    """`id` and `name` of each, in the order of the file."""
    columns: Json
    """Types of the masks' columns, as `storage.annotations.column_types` has them."""
    _text: str = field(repr=False)
    _spans: Mapping[int, list[tuple[int, int, int]]] = field(repr=False)
    """Of each image's id: place, start and end of its annotations in the text."""

    def masks(self, image: CocoImage) -> MaskSet:
        """The masks of one picture, in the order of the file.

        Raises:
            MaskFormatError: annotations that are not COCO's; names the file and the annotation.
        """
        spans = self._spans.get(image.number, [])
        shape = (image.height, image.width)
        planes = empty_planes(len(spans), shape, f"{self.path}: {image.file_name}")
        known = {category["id"] for category in self.categories}
        notes = []
        for plane, (place, start, end) in zip(planes, spans, strict=True):
            text = self._text[start:end]
            try:
                note = _Note.model_validate_json(text)
                if note.category_id not in known:
                    raise ValueError(f"category_id {note.category_id} is not among the categories")
                plane[:] = _plane(note.segmentation, *shape)
            except ValidationError as error:
                self._refuse(f"annotations.{place}.{first_problem(error)}", error)
            except ValueError as error:
                self._refuse(f"annotations.{place}: {error}", error)
            notes.append({"iscrowd": 0} | json.loads(text))
        try:
            columns = read_columns(notes, self.columns)
        except ValueError as error:
            self._refuse(f"{image.file_name}: {error}", error)
        return MaskSet.from_masks(planes, **columns)

    def inputs(self, image: CocoImage) -> tuple[int, str]:
        """Bytes of a picture's annotations and their hex SHA-256: they tell a changed one."""
        spans = self._spans.get(image.number, [])
        text = "\n".join(self._text[start:end] for _, start, end in spans).encode()
        return len(text), hashlib.sha256(text).hexdigest()

    def _refuse(self, what: str, error: Exception) -> NoReturn:
        raise MaskFormatError(f"{self.path} {what}") from error


def read_coco(path: Path) -> CocoFile:
    """Read the pictures and categories of an instances file, and find its annotations.

    Raises:
        MaskFormatError: the file is no COCO instances file; names the place.
    """
    try:
        text = read_bounded(path, max_bytes=MAX_FILE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise MaskFormatError(f"{path} is not UTF-8 text: {error}") from error
    reader = _Reader(text)
    try:
        reader.read()
        return CocoFile(
            path,
            _checked_images(reader.images, reader.spans),
            tuple(category.model_dump() for category in _once(reader.categories, "categories")),
            _columns(reader.info),
            text,
            reader.spans,
        )
    except ValidationError as error:
        raise MaskFormatError(f"{reader.where(path)}: {first_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise MaskFormatError(f"{reader.where(path)}: {error}") from error


class _Reader:
    """One pass over the text: small lists are kept, of annotations only where they are."""

    def __init__(self, text: str) -> None:
        self.scanner = JsonScanner(text)
        self.place = ""
        self.info: object = None
        self.images: list[_Image] = []
        self.categories: list[_Category] = []
        self.spans: dict[int, list[tuple[int, int, int]]] = {}

    def where(self, path: Path) -> str:
        """The file and the place in it that is read at the moment."""
        return f"{path} {self.place}".rstrip()

    def read(self) -> None:
        """Read the whole file.

        Raises:
            ValueError, ValidationError, RecursionError: it isn't COCO; `place` says where.
        """
        seen = set()
        for name in self.scanner.names():
            if name in seen:
                raise ValueError(f"{name} is there twice")
            seen.add(name)
            self.place = name
            if name in _LISTS:
                for i, (value, start, end) in enumerate(self.scanner.items()):
                    self.place = f"{name}.{i}"
                    self._take(name, value, (i, start, end))
            else:
                value = self.scanner.value()
                self.info = value if name == "info" else self.info
        self.place = ""
        self.scanner.end()
        if missing := [name for name in _LISTS if name not in seen]:
            raise ValueError(f"{missing[0]} is missing, so it is no COCO instances file")

    def _take(self, name: str, value: object, span: tuple[int, int, int]) -> None:
        if name == "images":
            self.images.append(_Image.model_validate(value))
        elif name == "categories":
            self.categories.append(_Category.model_validate(value))
        else:
            self.spans.setdefault(_Owner.model_validate(value).image_id, []).append(span)


def _checked_images(images: list[_Image], spans: Mapping[int, object]) -> tuple[CocoImage, ...]:
    found = tuple(
        CocoImage(image.id, image.file_name, image.height, image.width)
        for image in _once(images, "images")
    )
    for image in found:
        name = image.file_name
        parts = name.split("/")
        is_long = any(len(part.encode()) > 255 for part in parts)
        if {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name or is_long:
            raise ValueError(f"file_name {name[:80]!r} is no path below the pictures")
    if strangers := sorted(spans.keys() - {image.number for image in found}):
        raise ValueError(f"annotations are of image_id {strangers[0]}, which is no image")
    return found


def _once(records: list[R], name: str) -> list[R]:
    seen = set()
    for record in records:
        if record.id in seen:
            raise ValueError(f"{name} have id {record.id} twice")
        seen.add(record.id)
    return records


def _columns(info: object) -> Json:
    """The types that samprior's own export lists, else those of COCO's fields."""
    listed = info.get("columns") if isinstance(info, dict) else None
    if listed is None:
        return COCO_COLUMNS
    if not isinstance(listed, dict):
        raise ValueError("info.columns should be an object")
    for name in listed:
        if not COLUMN_NAME.fullmatch(name):
            raise ValueError(f"info.columns has a column {name!r:.80}, which is no column's name")
    read_columns([], listed)  # refuses what is no type
    return listed


def _plane(
    segmentation: Code | list[list[float]], height: int, width: int
) -> npt.NDArray[np.bool_]:
    if isinstance(segmentation, Code):
        return segmentation.plane(height, width)
    plane = np.zeros((height, width), np.bool_)
    for polygon in segmentation:
        plane |= polygon_mask(polygon, height=height, width=width)
    return plane
