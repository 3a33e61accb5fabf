"""One image as a webdataset sample: the members of a tar that share the image's key.

    <key>.degraded.png   (absent where the store is not paired)
    <key>.clean.png
    <key>.masks.npz      atoms (H, W), members (A, K), and one array per column
    <key>.masks.json     instead: the annotations of SA-1B's JSON, for other tools

Reading trusts nothing: sizes are bounded before memory is taken, and nothing is unpickled.
"""

import io
import json
import lzma
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from samprior.storage.annotations import column_types, mask_annotations, read_columns
from samprior.storage.exports import png_bytes
from samprior.storage.images import MAX_PIXELS
from samprior.storage.manifest import Json
from samprior.storage.masks import MaskSet
from samprior.storage.rle import MAX_MASK_PIXELS, counts_to_mask, decode_counts
from samprior.storage.writer import COLUMN_PREFIX, Record

MaskForm = Literal["atoms", "rle"]
"""How a sample holds its masks: our arrays, or COCO run lengths in JSON."""

DEGRADED, CLEAN, ATOMS, RLE = "degraded.png", "clean.png", "masks.npz", "masks.json"

MAX_ARRAY_BYTES = 2 * 2**30
"""Arrays of one image beyond this are refused; atoms of the largest picture have 400 MB."""

UNREADABLE = (
    *(KeyError, TypeError, ValueError, AttributeError, OSError, EOFError, SyntaxError),
    *(OverflowError, RuntimeError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    Image.DecompressionBombError,
)
"""What `record_of` raises for a sample that is damaged or of another origin."""


def sample_of(record: Record, *, paired: bool, masks: MaskForm = "atoms") -> dict[str, str | bytes]:
    """The members of an image by name, and its key as webdataset's `__key__`."""
    sample: dict[str, str | bytes] = {"__key__": record.key}
    if paired:
        sample[DEGRADED] = png_bytes(record.degraded)
    sample[CLEAN] = png_bytes(record.clean)
    if masks == "atoms":
        sample[ATOMS] = _npz(record.masks)
    else:
        sample[RLE] = _json(record.masks, f"{record.key}.{CLEAN}")
    return sample


def record_of(sample: Mapping[str, Any]) -> Record:
    """The image of a sample's members.

    Raises:
        *UNREADABLE: the members are not those of `sample_of`.
    """
    clean = _rgb(sample[CLEAN])
    degraded = _rgb(sample[DEGRADED]) if DEGRADED in sample else clean
    masks = _from_npz(sample[ATOMS]) if ATOMS in sample else _from_json(sample[RLE])
    if len({degraded.shape[:2], clean.shape[:2], masks.shape}) > 1:
        raise ValueError(
            f"degraded {degraded.shape[:2]}, clean {clean.shape[:2]} and masks {masks.shape} are "
            "not of one size"
        )
    return Record(key=sample["__key__"], degraded=degraded, clean=clean, masks=masks)


def _rgb(content: bytes) -> npt.NDArray[np.uint8]:
    with warnings.catch_warnings():
        # Pillow's own limit warns at 89 Mpx; ours below is an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        opened = Image.open(io.BytesIO(content), formats=["PNG"])
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"a picture of {image.width}x{image.height} is too large")
        return np.asarray(image.convert("RGB"))


def _npz(masks: MaskSet) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {"atoms": masks.atoms, "members": masks.members}
    arrays |= {COLUMN_PREFIX + name: column for name, column in masks.columns.items()}
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _from_npz(content: bytes) -> MaskSet:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = archive.infolist()
        if sum(file.file_size for file in files) > MAX_ARRAY_BYTES:
            raise ValueError("the masks' arrays are too large")
        arrays = {f.filename.removesuffix(".npy"): _array(archive.read(f)) for f in files}
    atoms, members = arrays.pop("atoms"), arrays.pop("members")
    if atoms.dtype not in (np.uint16, np.uint32):
        raise ValueError(f"atoms are {atoms.dtype}, wanted uint16 or uint32")
    columns = {name.removeprefix(COLUMN_PREFIX): column for name, column in arrays.items()}
    return MaskSet(atoms, members, columns)


def _array(content: bytes) -> npt.NDArray[Any]:
    """The array of a .npy file, whose header is checked against its bytes first."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array has another version of the .npy format than 1.0")
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    body = content[stream.tell() :]
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"an array of {dtype} {shape} has {len(body)} bytes")
    if dtype.kind == "b" and body.translate(None, b"\0\1"):
        raise ValueError("a boolean array has other bytes than 0 and 1")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if in_columns else "C").copy()


def _json(masks: MaskSet, file_name: str) -> bytes:
    height, width = masks.shape
    record = {
        "image": {"width": width, "height": height, "file_name": file_name},
        "columns": column_types(masks),
        "annotations": mask_annotations(masks),
    }
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def _from_json(content: bytes) -> MaskSet:
    record: Json = json.loads(content)
    shape = record["image"]["height"], record["image"]["width"]
    notes = record["annotations"]
    if not all(type(side) is int and side > 0 for side in shape) or not isinstance(notes, list):
        raise ValueError("the masks' JSON has no size, or no list of annotations")
    num_pixels = shape[0] * shape[1]
    if num_pixels > MAX_PIXELS or num_pixels * len(notes) > MAX_MASK_PIXELS:
        raise ValueError(f"{len(notes)} masks of {shape[1]}x{shape[0]} are too many")
    planes = np.empty((len(notes), *shape), np.bool_)
    for plane, note in zip(planes, notes, strict=True):
        counts = decode_counts(note["segmentation"]["counts"])
        plane[:] = counts_to_mask(counts, height=shape[0], width=shape[1])
    return MaskSet.from_masks(planes, **read_columns(notes, record["columns"]))
