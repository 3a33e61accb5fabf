"""A corpus of bad input: each ends in quarantine with a reason, or in one line of our errors.

Never in a crash, in code that runs, or in a file outside of what was named. Pictures and datasets
are here, masks of others too; checkpoints, tars and stores are in test_bad_files.py.
"""

import io
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samprior.pipeline.datasets import Pair, find_dataset
from samprior.pipeline.imports import (
    amg_pictures,
    coco_pictures,
    sa1b_folder,
)
from samprior.pipeline.job import JobResult
from samprior.pipeline.precompute import import_pictures, precompute
from samprior.pipeline.worker import MasksOf
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import SampriorError
from samprior.storage.images import Rgb, write_png
from samprior.storage.interchange import AMG_HEADER
from samprior.storage.manifest import digests_of
from samprior.storage.verify import verify_store

H, W = 20, 24
Samprior = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Halves:
    """One mask, the left half."""

    def describe(self) -> dict[str, Any]:
        return {"segmenter": "halves"}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self._masks_of

    def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        masks = np.zeros((1, *image.shape[:2]), bool)
        masks[0, :, : image.shape[1] // 2] = True
        return MaskSet.from_masks(masks)


@pytest.fixture(autouse=True)
def nothing_outside_changes(tmp_path: Path) -> Iterator[None]:
    """What lies beside a test's own folder is there afterwards as it was."""
    (tmp_path / "outside").mkdir()
    secret = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
    write_png(tmp_path / "outside" / "secret.png", secret)
    (tmp_path / "outside" / "secret.txt").write_text("nobody's business")
    before = digests_of(tmp_path / "outside")
    yield
    assert digests_of(tmp_path / "outside") == before
    assert not list(tmp_path.rglob("sentinel"))


def ended(work: Callable[[], JobResult]) -> str:
    """How it ended: reasons of quarantine, or one of our errors; in one line of plain text."""
    try:
        text = "; ".join(work().quarantined.values())
    except SampriorError as error:
        text = str(error)
    assert text, "nothing was wrong with it"
    assert text.isprintable()
    assert len(text) < 2000
    return text


def picture(seed: int = 0, shape: tuple[int, ...] = (H, W, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(sentinel) (w) file closefile\n"
"""A program; Pillow would have ghostscript run it."""

SOME = picture()
RGB = Image.fromarray(SOME)
PNG, JPEG, TIFF = saved(RGB, "PNG"), saved(RGB, "JPEG"), saved(RGB, "TIFF")


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width: int, height: int, *, pixels: bytes = b"", more: bytes = b"") -> bytes:
    """An RGB file of any size and content."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def with_height(jpeg: bytes, height: int) -> bytes:
    """The same JPEG with another height in its marker of the frame."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">H", height) + jpeg[at + 2 :]


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("1.png", PNG)
    return stream.getvalue()


def frames(kind: str) -> bytes:
    others = [Image.fromarray(picture(seed)) for seed in (1, 2)]
    return saved(RGB, kind, save_all=True, append_images=others)


def transparent(mode: str) -> bytes:
    image = Image.fromarray(picture(shape=(H, W, 4)), "RGBA")
    if mode == "P":
        return saved(RGB.quantize(8), "PNG", transparency=0)
    return saved(image.convert(mode), "PNG")


BAD_PICTURES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("png", lambda: b"", "is empty"),
    "truncated": ("png", lambda: PNG[: len(PNG) // 2], "can't be decoded|can't be opened"),
    "truncated_jpeg": ("jpg", lambda: JPEG[:-300], "can't be decoded|can't be opened"),
    "header_only": ("png", lambda: PNG[:33], "can't be|not an image"),
    "flipped": ("png", lambda: PNG[:60] + b"\0\0\0\0" + PNG[64:], "can't be decoded"),
    "zip": ("png", zipped, "not an image"),
    "text": ("jpg", lambda: b"<html>404 not found</html>\n", "not an image"),
    "script": ("png", lambda: b"#!/bin/sh\ntouch sentinel\n", "not an image"),
    "postscript": ("png", lambda: POSTSCRIPT, "not an image"),
    "icon": ("png", lambda: saved(RGB.resize((16, 16)), "ICO"), "not an image"),
    "no_width": ("png", lambda: png(0, H), "."),
    "no_size": ("jpg", lambda: with_height(JPEG, 0), "."),
    "other_height": ("jpg", lambda: with_height(JPEG, 13), "must be of one size"),
    "tall": ("jpg", lambda: with_height(JPEG, 4000), "can't be decoded|one size"),
    "bomb": ("png", lambda: png(30_000, 30_000), "900,?000,?000|larger than|30000x30000"),
    "largest": ("png", lambda: png(2**31 - 1, 2**31 - 1), "larger than|pixels"),
    "text_bomb": (
        "png",
        lambda: png(W, H, more=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(99_000_000)))),
        "can't be",
    ),
    "colours_bomb": (
        "png",
        lambda: png(W, H, more=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(99_000_000)))),
        "can't be",
    ),
    "frames": ("png", lambda: frames("PNG"), "several frames"),
    "gif": ("png", lambda: frames("GIF"), "several frames"),
    "pages": ("tif", lambda: frames("TIFF"), "several frames"),
    "cmyk": ("jpg", lambda: saved(RGB.convert("CMYK"), "JPEG"), "CMYK"),
    "lab": ("tif", lambda: saved(RGB.convert("LAB"), "TIFF"), "Lab"),
    "alpha": ("png", lambda: transparent("RGBA"), "transparent"),
    "grey_alpha": ("png", lambda: transparent("LA"), "transparent"),
    "palette_alpha": ("png", lambda: transparent("P"), "transparent"),
    "nan": ("tif", lambda: saved(Image.fromarray(np.full((H, W), np.nan, "f4")), "TIFF"), "float"),
    "deep": ("tif", lambda: saved(Image.fromarray(np.ones((H, W), "i4")), "TIFF"), "32-bit"),
    "loop": ("tif", lambda: TIFF[:4] + struct.pack("<I", 2**32 - 8) + TIFF[8:], "."),
    "ppm": ("ppm", lambda: b"P6 999999999999999999999 9 255\n", "."),
    "ppm_bomb": ("ppm", lambda: b"P6 99999 99999 255\n", "pixels|larger"),
    "webp": ("webp", lambda: saved(RGB, "WEBP")[:40], "."),
    "bmp": ("bmp", lambda: saved(RGB, "BMP")[:18] + struct.pack("<ii", -1, -1) + bytes(28), "."),
    "smaller": ("png", lambda: saved(RGB.crop((0, 0, 9, 9)), "PNG"), "must be of one size"),
    "turned": ("jpg", lambda: saved(RGB, "JPEG", exif=b"Exif\0\0" + turned_exif()), "one size"),
}
"""By name: suffix, content of the clean side, and what the reason has to say."""


def turned_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes().removeprefix(b"Exif\0\0")


GOOD_PICTURES: dict[str, tuple[str, Callable[[], bytes], tuple[int, int]]] = {
    "one": ("png", lambda: saved(RGB.crop((0, 0, 1, 1)), "PNG"), (1, 1)),
    "wrong_ending": ("png", lambda: JPEG, (H, W)),
    "sixteen": ("png", lambda: saved(Image.fromarray(np.ones((H, W), "u2")), "PNG"), (H, W)),
    "palette": ("png", lambda: saved(RGB.quantize(9), "PNG"), (H, W)),
    "bit": ("png", lambda: saved(RGB.convert("1"), "PNG"), (H, W)),
    "upright": ("jpg", lambda: saved(RGB, "JPEG", exif=b"Exif\0\0" + turned_exif()), (W, H)),
    "more_pixels": ("png", lambda: png(W, H, pixels=bytes(50_000_000)), (H, W)),
    "opaque": ("png", lambda: saved(RGB.convert("RGBA"), "PNG"), (H, W)),
}
"""Odd, but pictures: suffix, content of both sides, and height and width."""


def put(data: Path, name: str, clean: bytes, degraded: bytes) -> None:
    stem, _, _ = name.rpartition(".")
    for side, last, content in (("clean", name, clean), ("degraded", f"{stem}.png", degraded)):
        (data / side).mkdir(parents=True, exist_ok=True)
        (data / side / last).write_bytes(content)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MaskStore:
    """Of all these pictures at once: no one spoils it for the others."""
    base = tmp_path_factory.mktemp("pictures")
    for name, (suffix, content, _) in BAD_PICTURES.items():
        put(base / "data", f"{name}.{suffix}", content(), PNG)
    for name, (suffix, content, _) in GOOD_PICTURES.items():
        put(base / "data", f"{name}.{suffix}", content(), content())
    dataset = find_dataset("folder", base / "data")
    precompute(dataset, base / "store", Halves(), workers=0)
    assert verify_store(base / "store").ok
    return MaskStore.open(base / "store").require_complete()


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_are_quarantined(store: MaskStore, name: str) -> None:
    reason = store.quarantined[name]
    assert re.search(BAD_PICTURES[name][2], reason), reason
    assert reason.isprintable()
    assert name in reason


@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_odd_pictures_are_stored(store: MaskStore, name: str) -> None:
    assert name not in store.quarantined
    assert store[name].clean.shape[:2] == GOOD_PICTURES[name][2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset of one good pair."""
    put(tmp_path / "data", "good.png", PNG, PNG)
    return tmp_path / "data"


def run(data: Path) -> JobResult:
    return precompute(find_dataset("folder", data), data.parent / "store", Halves(), workers=0)


def link(at: Path, to: Path | str) -> None:
    at.symlink_to(to)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to itself": (lambda data: link(data / "clean/x.png", "x.png"), "link"),
    "a link out of the root": (
        lambda data: link(data / "clean/x.png", data.parent / "outside/secret.png"),
        "outside of",
    ),
    "a folder out of the root": (
        lambda data: link(data / "clean/sub", data.parent / "outside"),
        "outside of",
    ),
    "a folder that leads back up": (lambda data: link(data / "clean/sub", data), "back up"),
    "a link to nothing": (lambda data: link(data / "clean/x.png", "gone.png"), "broken link"),
    "a pipe": (
        lambda data: (
            os.mkfifo(data / "clean/x.png"),
            write_png(data / "degraded/x.png", picture()),
        ),
        "without clean side",
    ),
    "a folder named as a picture": (
        lambda data: (
            (data / "clean/x.png").mkdir(),
            write_png(data / "degraded/x.png", picture()),
        ),
        "without clean side",
    ),
    "no clean side": (lambda data: (data / "clean/good.png").unlink(), "without clean side"),
    "no degraded side": (lambda data: (data / "degraded/good.png").unlink(), "without degraded"),
    "a side that is empty": (lambda data: shutil.rmtree(data / "degraded"), "degraded"),
    "equal keys by ending": (lambda data: put(data, "good.jpg", JPEG, PNG), "used twice"),
    "equal keys by odd characters": (
        lambda data: (put(data, "a b.png", PNG, PNG), put(data, "a_b.png", PNG, PNG)),
        "keys are equal",
    ),
    "an end of line in a name": (lambda data: put(data, "a\nb.png", b"", PNG), "is empty"),
    "a name that rings and paints": (
        lambda data: put(data, "\a\x1b[31m.png", b"", PNG),
        "is empty",
    ),
    "a name that is no text": (
        lambda data: put(data, os.fsdecode(b"\xff\xfe.png"), b"", PNG),
        "is empty",
    ),
    "a name of the other direction": (
        lambda data: put(data, "\u202egnp.png", b"", PNG),
        "is empty",
    ),
}
"""What was done to a good dataset, and what is to be said of it."""


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders_end_in_one_line(data: Path, name: str) -> None:
    spoil, message = BAD_FOLDERS[name]
    spoil(data)
    assert re.search(message, ended(lambda: run(data)))


def test_names_that_differ_by_case_are_two(data: Path) -> None:
    put(data, "Good.png", PNG, PNG)
    assert run(data).num_images == 2


def test_odd_names_are_stored_and_found_again(data: Path) -> None:
    for name in ("a\nb", "日本", os.fsdecode(b"\xff"), "x" * 200, "-rf", "$(touch sentinel)"):
        put(data, f"{name}.png", PNG, PNG)
    result = run(data)
    assert (result.num_images, result.quarantined) == (7, {})
    assert verify_store(data.parent / "store").ok
    assert all(record.clean.shape == (H, W, 3) for record in MaskStore.open(data.parent / "store"))


@pytest.mark.parametrize("becomes", ["nothing", "a folder", "a pipe", "a link out", "a link loop"])
def test_pictures_that_change_after_they_were_listed(data: Path, becomes: str) -> None:
    put(data, "x.png", PNG, PNG)
    dataset, file = find_dataset("folder", data), data / "clean/x.png"
    file.unlink()
    if becomes == "a folder":
        file.mkdir()
    elif becomes == "a pipe":
        os.mkfifo(file)
    elif becomes != "nothing":
        link(file, "x.png" if becomes == "a link loop" else data.parent / "outside/none.png")
    result = precompute(dataset, data.parent / "store", Halves(), workers=0)
    assert list(result.quarantined) == ["x"]
    assert result.num_images == 1


def test_the_command_says_it_in_one_line(samprior: Samprior, data: Path) -> None:
    """A name with an end of line in it, and no traceback."""
    put(data, "a\nb.png", POSTSCRIPT, PNG)
    arguments = ("--dataset", "folder", "--root", data, "--out", data.parent / "out")
    code, out, err = samprior("precompute", *arguments, "--segmenter", "superpixel", "--workers", 0)
    assert code == 1
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if "not an image" in line]
    assert lines
    assert all(r"a\nb.png is not an image" in line for line in lines)
    (data / "degraded/a\nb.png").unlink()
    code, out, err = samprior("precompute", *arguments, "--segmenter", "superpixel")
    assert code == 2
    assert len(err.splitlines()) == 1


# Masks of others


def table(*rows: str, header: str = AMG_HEADER) -> str:
    return "\n".join([header, *rows])


ROW = "0,60,0,0,9,6,1.5,2.25,0.9,0.95,0,0,24,20"


@pytest.fixture
def amg(tmp_path: Path) -> Path:
    """A folder of scripts/amg.py with one mask of 60 pixels, and its picture beside it."""
    folder = tmp_path / "masks" / "photo"
    folder.mkdir(parents=True)
    plane = np.zeros((H, W), np.uint8)
    plane[:6, :10] = 255
    Image.fromarray(plane).save(folder / "0.png")
    (folder / "metadata.csv").write_text(table(ROW))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.png").write_bytes(PNG)
    return folder


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content)


def masked(values: np.ndarray, kind: str = "PNG") -> bytes:
    return saved(Image.fromarray(values.astype(np.uint8)), kind)


BAD_AMG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no table": (lambda folder: (folder / "metadata.csv").unlink(), "does not exist|no masks"),
    "empty table": (write("metadata.csv", ""), "wanted the header"),
    "other columns": (write("metadata.csv", "id,area\n0,60"), "wanted the header"),
    "columns in another order": (
        write("metadata.csv", table(ROW, header=",".join(reversed(AMG_HEADER.split(","))))),
        "wanted the header",
    ),
    "a million columns": (write("metadata.csv", table("0," * 10**6)), "columns, wanted 14"),
    "a NUL": (write("metadata.csv", table(ROW.replace("0.9,", "0.9\0,"))), "predicted_iou is"),
    "not ASCII": (write("metadata.csv", table(ROW) + "é"), "not plain text"),
    "binary": (write("metadata.csv", bytes(range(256))), "not plain text"),
    "a huge area": (write("metadata.csv", table(ROW.replace("60", "9" * 30, 1))), "area is"),
    "a large area": (write("metadata.csv", table(ROW.replace("60", "999999999", 1))), "area of"),
    "a negative area": (write("metadata.csv", table(ROW.replace("60", "-60", 1))), "area is"),
    "infinity": (write("metadata.csv", table(ROW.replace("1.5", "inf"))), "point_input_x is"),
    "an expression": (write("metadata.csv", table(ROW.replace("1.5", "=1+1"))), "point_input_x"),
    "an id that is a path": (write("metadata.csv", table("../" + ROW)), "id is"),
    "a row twice": (write("metadata.csv", table(ROW, ROW)), "again"),
    "a missing mask": (lambda folder: (folder / "0.png").unlink(), "missing"),
    "a mask too many": (write("7.png", masked(np.zeros((H, W)))), "not in metadata.csv"),
    "a mask of another size": (write("0.png", masked(np.zeros((H, 9)))), "wanted 24x20"),
    "a mask of greys": (write("0.png", masked(np.full((H, W), 7))), "other values"),
    "a mask in colours": (write("0.png", PNG), "mode RGB"),
    "a mask of another kind": (write("0.png", masked(np.zeros((H, W)), "GIF")), "read as PNG"),
    "a bomb": (write("0.png", png(60_000, 60_000)), "read as PNG|wanted 24x20"),
    "a mask that is cut": (write("0.png", masked(picture(shape=(H, W)) & 128)[:90]), "0.png"),
    "a table out of the folder": (
        lambda folder: (
            (folder / "metadata.csv").unlink(),
            link(folder / "metadata.csv", folder.parents[1] / "outside/secret.txt"),
        ),
        "link",
    ),
    "a mask out of the folder": (
        lambda folder: (
            (folder / "0.png").unlink(),
            link(folder / "0.png", folder.parents[1] / "outside/secret.png"),
        ),
        "link",
    ),
    "a pipe for a table": (
        lambda folder: ((folder / "metadata.csv").unlink(), os.mkfifo(folder / "metadata.csv")),
        "does not exist|no masks",
    ),
    "a pipe for a mask": (
        lambda folder: ((folder / "0.png").unlink(), os.mkfifo(folder / "0.png")),
        "0.png",
    ),
    "a folder for a mask": (
        lambda folder: ((folder / "0.png").unlink(), (folder / "0.png").mkdir()),
        "0.png",
    ),
    "a folder of masks that lies elsewhere": (
        lambda folder: (
            folder.rename(folder.parents[1] / "outside/masks"),
            link(folder, folder.parents[1] / "outside/masks"),
        ),
        "link",
    ),
}


@pytest.mark.parametrize("name", BAD_AMG)
def test_bad_amg_folders_end_in_one_line(amg: Path, name: str) -> None:
    spoil, message = BAD_AMG[name]
    spoil(amg)
    out, photos = amg.parents[1] / "store", amg.parents[1] / "photos"
    told = ended(lambda: import_pictures(*amg_pictures(amg.parent, photos), out=out))
    assert re.search(message, told), told
    assert "nobody's business" not in told
    if name == "a folder of masks that lies elsewhere":
        shutil.rmtree(amg.parents[1] / "outside" / "masks")


def sa1b() -> dict[str, Any]:
    code = {"size": [H, W], "counts": [0, 6, H * W - 6]}
    note = {
        "segmentation": code,
        "area": 6,
        "bbox": [0, 0, 0, 5],
        "predicted_iou": 0.9,
        "stability_score": 0.95,
        "point_coords": [[0.5, 2.25]],
        "crop_box": [0, 0, W, H],
        "id": 1,
    }
    image = {"image_id": 1, "width": W, "height": H, "file_name": "sa_1.png"}
    return {"image": image, "annotations": [note]}


def changed(path: str, value: object) -> str:
    """The record as JSON, with another value at a place such as `annotations.0.area`."""
    record = deepcopy(sa1b())
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    inner: Any = record
    for part in way:
        inner = inner[part]
    inner[last] = value
    return json.dumps(record)


COUNTS = "annotations.0.segmentation.counts"
BAD_SA1B = {
    "no JSON": "{",
    "nothing": "",
    "another thing": "[1, 2]",
    "not UTF-8": b"\xff\xfe{}",
    "two texts": json.dumps(sa1b()) * 2,
    "deep": '{"image":' * 100_000,
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep elsewhere": json.dumps(sa1b())[:-1] + ', "more": ' + "[" * 5000 + "]" * 5000 + "}",
    "a huge integer": changed("annotations.0.area", 10**400),
    "an integer of a million digits": json.dumps(sa1b()).replace(": 6", ": " + "9" * 10**6),
    "infinity": changed("annotations.0.predicted_iou", float("inf")),
    "not a number": changed("annotations.0.point_coords", [[float("nan"), 0.0]]),
    "1e999": json.dumps(sa1b()).replace("0.95", "1e999"),
    "runs too long": changed(COUNTS, [0, 6, H * W]),
    "runs too short": changed(COUNTS, [0, 6]),
    "no runs": changed(COUNTS, []),
    "negative runs": changed(COUNTS, [-6, 12, H * W - 6]),
    "runs that overflow": changed(COUNTS, [2**63 - 1, 2**63 - 1, H * W + 2]),
    "runs of text": changed(COUNTS, ["6"]),
    "a code of other characters": changed(COUNTS, "\u0001\u00e9"),
    "a code that ends early": changed(COUNTS, "oooo"),
    "a code that overflows": changed(COUNTS, "o" * 40 + "0"),
    "masks of another size": changed("annotations.0.segmentation.size", [W, H]),
    "a negative size": changed("image.height", -H),
    "no size": changed("image.width", 0),
    "a size of text": changed("image.width", "24"),
    "a size of half a pixel": changed("image.width", 24.5),
    "the size of another picture": changed("image.width", W + 1),
    "an image too large": changed("image.width", 10**9),
    "true for a number": changed("annotations.0.area", True),
    "another area": changed("annotations.0.area", 7),
    "no annotations": changed("annotations", None),
    "annotations by name": changed("annotations", {}),
    "an annotation of text": changed("annotations.0", "mask"),
    "no points": changed("annotations.0.point_coords", []),
    "a point in space": changed("annotations.0.point_coords", [[1.0, 2.0, 3.0]]),
    "more masks than memory holds": None,
}


@pytest.mark.parametrize("name", BAD_SA1B)
def test_bad_sa1b_files_end_in_one_line(tmp_path: Path, name: str) -> None:
    folder, content = tmp_path / "sa1b", BAD_SA1B[name]
    if content is None:
        record = sa1b()
        record["image"] |= {"width": 9999, "height": 9999}
        content = json.dumps(record | {"annotations": record["annotations"] * 50})
    folder.mkdir()
    (folder / "sa_1.png").write_bytes(PNG)
    (folder / "sa_1.json").write_bytes(content.encode() if isinstance(content, str) else content)
    told = ended(lambda: import_pictures(*sa1b_folder(folder), out=tmp_path / "store"))
    assert "sa_1.json" in told


def test_nonsense_that_nobody_reads_does_no_harm(tmp_path: Path) -> None:
    """Boxes follow from the masks."""
    folder = tmp_path / "sa1b"
    folder.mkdir()
    (folder / "sa_1.png").write_bytes(PNG)
    (folder / "sa_1.json").write_text(changed("annotations.0.bbox", [-1e300, "x", {}, None]))
    import_pictures(*sa1b_folder(folder), out=tmp_path / "store")
    assert MaskStore.open(tmp_path / "store")[0].masks.areas.tolist() == [6]


@pytest.mark.parametrize("is_json", [True, False])
def test_sa1b_files_elsewhere_are_refused(tmp_path: Path, is_json: bool) -> None:
    folder = tmp_path / "sa1b"
    folder.mkdir()
    (folder / "sa_1.png").write_bytes(PNG)
    (folder / "sa_1.json").write_text(json.dumps(sa1b()))
    name = "sa_1.json" if is_json else "sa_1.png"
    (folder / name).unlink()
    link(folder / name, tmp_path / "outside" / ("secret.txt" if is_json else "secret.png"))
    told = ended(lambda: import_pictures(*sa1b_folder(folder), out=tmp_path / "store"))
    assert "link" in told


def coco(**changes: object) -> str:
    note = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]],
    }
    image = {"id": 1, "file_name": "a/1.png", "width": W, "height": H}
    record: dict[str, Any] = {
        "images": [image],
        "annotations": [note],
        "categories": [{"id": 1, "name": "x"}],
    }
    for name, value in changes.items():
        if name in record:
            record[name] = value
        elif name in image:
            image[name] = value
        else:
            note[name] = value
    return json.dumps(record)


BAD_COCO = {
    "no JSON": "{",
    "deep": "[" * 10**6,
    "deep annotations": coco().replace("[[1.0", "[" * 5000 + "[[1.0"),
    "a path out": coco(file_name="../outside/secret.png"),
    "an absolute path": coco(file_name="/etc/passwd"),
    "a path with a NUL": coco(file_name="a\0.png"),
    "a long name": coco(file_name="a" * 5000),
    "no images": coco(images=[]),
    "images of text": coco(images="all"),
    "a polygon of two corners": coco(segmentation=[[1.0, 1.0, 2.0, 2.0]]),
    "half a corner": coco(segmentation=[[1.0] * 7]),
    "a polygon far away": coco(segmentation=[[1e8] * 8]),
    "a polygon without end": coco(segmentation=[[0.0, 0.0, 9e5, 9e5] * 50]),
    "a polygon of NaN": coco(segmentation=[[float("nan")] * 6]),
    "a polygon of text": coco(segmentation=[["1"] * 6]),
    "masks of nothing": coco(segmentation=None),
    "runs too long": coco(segmentation={"size": [H, W], "counts": [H * W + 1]}),
    "a category that is none": coco(category_id=9),
    "a negative category": coco(category_id=-1),
    "a category beyond 64 bits": coco(category_id=2**64),
    "an image that is none": coco(image_id=2),
    "a crowd of 2": coco(iscrowd=2),
    "the size of another picture": coco(width=W + 1),
    "a picture that is missing": coco(file_name="b.png"),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_bad_coco_files_end_in_one_line(tmp_path: Path, name: str) -> None:
    write_png(tmp_path / "images" / "a" / "1.png", picture())
    file = tmp_path / "instances.json"
    file.write_text(BAD_COCO[name])
    ended(lambda: import_pictures(*coco_pictures(file, tmp_path / "images"), out=tmp_path / "s"))


def test_coco_pictures_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    link(tmp_path / "images" / "a", tmp_path / "outside")
    file = tmp_path / "instances.json"
    file.write_text(coco(file_name="a/secret.png"))
    told = ended(
        lambda: import_pictures(*coco_pictures(file, tmp_path / "images"), out=tmp_path / "store")
    )
    assert "link" in told
