"""Pictures are read as a viewer shows them, or refused with the file's name and the reason."""

import contextlib
import errno
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samprior.storage.errors import ImageError
from samprior.storage.images import MAX_PIXELS, Rgb, image_size, read_rgb, write_png

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 21, 3), dtype=np.uint8)

# What a viewer does to the stored picture, per EXIF orientation (EXIF 2.3, tag 0x0112).
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    width: int, height: int, *, depth: int, colour: int, rows: bytes, more: bytes = b""
) -> bytes:
    """A PNG file written by hand; `rows` with a filter byte before each row."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def assert_reads(path: Path, expected: Rgb) -> None:
    rgb = read_rgb(path)
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, expected)
    assert image_size(path) == rgb.shape[:2]


# --- orientation --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 95}}.get(suffix, {})
    stored = PIXELS
    if suffix == ".jpg":  # lossy: what counts is the place, so compare with the stored picture
        stored = read_rgb(save(tmp_path / "plain.jpg", PIXELS, **options))
    path = save(tmp_path / f"turned{suffix}", PIXELS, exif=exif, **options)
    assert_reads(path, UPRIGHT[orientation](stored))


@pytest.mark.parametrize("value", [0, 9, 255])
def test_orientations_that_do_not_exist_change_nothing(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert_reads(save(tmp_path / "odd.png", PIXELS, exif=exif), PIXELS)


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = save(tmp_path / "plain.png", PIXELS).read_bytes()
    end = chunk(b"IEND", b"")
    late = tmp_path / "late.png"
    late.write_bytes(plain.removesuffix(end) + chunk(b"eXIf", exif.tobytes()[6:]) + end)
    assert_reads(late, UPRIGHT[6](PIXELS))


def test_size_is_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / f"picture{suffix}", PIXELS) for suffix in (".png", ".jpg", ".tif")]

    def refuse(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert [image_size(path) for path in paths] == [(13, 21)] * 3


# --- kinds of pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm", ".PNG"])
def test_lossless_rgb_comes_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    assert_reads(save(tmp_path / f"picture{suffix}", PIXELS), PIXELS)


def test_write_png_round_trip_and_stays_byte_identical(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_png(tmp_path / "new" / f"{name}.png", PIXELS)
    assert_reads(tmp_path / "new" / "a.png", PIXELS)
    files = sorted((tmp_path / "new").iterdir())
    assert [file.name for file in files] == ["a.png", "b.png"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = PIXELS[:, :, 0]
    assert_reads(save(tmp_path / "grey.png", grey), np.dstack([grey] * 3))
    assert_reads(save(tmp_path / "grey.tif", grey), np.dstack([grey] * 3))


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = PIXELS[:, :, 0] > 99
    assert_reads(save(tmp_path / "bits.png", bits), np.dstack([bits * np.uint8(255)] * 3))


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    colours = np.array([(255, 0, 0), (0, 128, 0), (10, 20, 30)], np.uint8)
    indices = (PIXELS[:, :, 0] % 3).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    image.save(tmp_path / "palette.gif")
    assert_reads(tmp_path / "palette.png", colours[indices])
    assert_reads(tmp_path / "palette.gif", colours[indices])


def test_sixteen_bits_keep_the_high_byte(tmp_path: Path) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (13, 21, 3)).astype(">u2")
    grey_rows = b"".join(b"\0" + row.tobytes() for row in deep[:, :, 0])
    (tmp_path / "grey.png").write_bytes(png(21, 13, depth=16, colour=0, rows=grey_rows))
    high = (deep >> 8).astype(np.uint8)
    assert_reads(tmp_path / "grey.png", np.dstack([high[:, :, 0]] * 3))
    rgb_rows = b"".join(b"\0" + row.tobytes() for row in deep)
    (tmp_path / "rgb.png").write_bytes(png(21, 13, depth=16, colour=2, rows=rgb_rows))
    assert_reads(tmp_path / "rgb.png", high)
    assert_reads(
        save(tmp_path / "grey.tif", deep[:, :, 0].astype(np.uint16)),
        np.dstack([high[:, :, 0]] * 3),
    )


def test_sixteen_bit_grey_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    deep = PIXELS[:, :, 0].astype(np.uint16) << 8
    stored = np.dstack([PIXELS[:, :, 0]] * 3)
    assert_reads(save(tmp_path / "deep.png", deep, exif=exif), UPRIGHT[8](stored))


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((13, 21, 1), 255, np.uint8)
    assert_reads(save(tmp_path / "rgba.png", np.dstack([PIXELS, alpha])), PIXELS)
    grey = np.dstack([PIXELS[:, :, :1], alpha])
    assert_reads(save(tmp_path / "la.png", grey), np.repeat(PIXELS[:, :, :1], 3, axis=2))
    absent = save(tmp_path / "p.png", PIXELS // 128 * 255, "P", transparency=255)
    assert_reads(absent, read_rgb(save(tmp_path / "q.png", PIXELS // 128 * 255, "P")))


def test_colour_profiles_are_not_applied(tmp_path: Path) -> None:
    assert_reads(save(tmp_path / "icc.png", PIXELS, icc_profile=b"no profile at all"), PIXELS)


def test_camera_jpegs_with_a_preview_are_read(tmp_path: Path) -> None:
    preview = Image.fromarray(PIXELS[:4, :4].copy())
    path = save(tmp_path / "a.jpg", PIXELS, format="MPO", save_all=True, append_images=[preview])
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert_reads(path, read_rgb(save(tmp_path / "b.jpg", PIXELS)))


# --- refused: no one 8-bit RGB ------------------------------------------------------------------


@pytest.mark.parametrize("place", [(0, 0), (12, 20)])
def test_transparency_is_refused(tmp_path: Path, place: tuple[int, int]) -> None:
    rgba = np.dstack([PIXELS, np.full((13, 21), 255, np.uint8)])
    rgba[(*place, 3)] = 254
    path = save(tmp_path / "clear.png", rgba)
    with pytest.raises(ImageError, match=r"clear.png has transparent pixels.*flatten"):
        read_rgb(path)


def test_transparent_colours_are_refused(tmp_path: Path) -> None:
    used = int(np.asarray(Image.fromarray(PIXELS).convert("P"))[5, 5])
    palette = save(tmp_path / "palette.png", PIXELS, "P", transparency=used)
    colour = save(tmp_path / "rgb.png", PIXELS, transparency=tuple(PIXELS[3, 4].tolist()))
    rows = b"\0" + struct.pack(">2H", 300, 301)
    deep = tmp_path / "deep.png"
    more = chunk(b"tRNS", struct.pack(">H", 301))
    deep.write_bytes(png(2, 1, depth=16, colour=0, rows=rows, more=more))
    for path in (palette, colour, deep):
        with pytest.raises(ImageError, match=rf"{path.name} has transparent pixels"):
            read_rgb(path)
    more = chunk(b"tRNS", struct.pack(">H", 302))  # a colour no pixel has, except in 8 bits
    deep.write_bytes(png(2, 1, depth=16, colour=0, rows=rows, more=more))
    assert_reads(deep, np.ones((1, 2, 3), np.uint8))


@pytest.mark.parametrize(
    ("mode", "suffix", "words"),
    [
        ("CMYK", ".jpg", "CMYK print colours"),
        ("CMYK", ".tif", "CMYK print colours"),
        ("LAB", ".tif", "Lab colours"),
        ("F", ".tif", "floating-point pixels"),
        ("I", ".tif", "32-bit integer pixels"),
    ],
)
def test_modes_without_one_rgb_are_refused(
    tmp_path: Path, mode: str, suffix: str, words: str
) -> None:
    path = tmp_path / f"odd{suffix}"
    Image.new(mode, (21, 13)).save(path)
    with pytest.raises(ImageError, match=rf"odd{suffix} has {words} \(mode {mode}\).*convert"):
        read_rgb(path)


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp"])
def test_several_frames_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.roll(PIXELS, shift, axis=0)) for shift in range(3)]
    path = tmp_path / f"film{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=rf"film{suffix} holds several frames"):
        read_rgb(path)


# --- damaged files ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused(tmp_path: Path, suffix: str, part: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut{suffix}", pixels)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ImageError, match=f"cut{suffix}"):
        read_rgb(path)


@pytest.mark.parametrize("read", [read_rgb, image_size])
def test_files_that_are_no_pictures(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "picture.png"
    with pytest.raises(ImageError, match=r"picture.png does not exist"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"picture.png is empty \(0 bytes\)"):
        read(path)
    path.write_text("version https://example.org/a-pointer-instead-of-the-file\n")
    with pytest.raises(ImageError, match=r"picture.png is not an image"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ImageError, match=r"picture.png can't be opened"):
        read(path)


@pytest.mark.parametrize("read", [read_rgb, image_size])
@pytest.mark.parametrize("side_px", [10_001, 60_000])
def test_decompression_bombs_are_refused_by_their_header(
    tmp_path: Path, read: Callable[[Path], object], side_px: int
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side_px, side_px, depth=1, colour=0, rows=b""))
    with pytest.raises(ImageError, match=rf"bomb.png .*{MAX_PIXELS:,}.*[Cc]ut it up"):
        read(path)


def test_large_photographs_are_no_bombs(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(10_000, 10_000, depth=1, colour=0, rows=b""))
    assert image_size(path) == (10_000, 10_000)


def test_any_damage_ends_in_an_image_error(tmp_path: Path, rng: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "damaged"
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM"):
        stream = io.BytesIO()
        options = {} if kind in ("BMP", "PPM") else {"exif": exif}
        Image.fromarray(PIXELS).save(stream, format=kind, **options)
        whole = np.frombuffer(stream.getvalue(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            places = rng.integers(0, min(len(whole), int(rng.choice([60, 400]))), 4)
            damaged[places] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(ImageError):
                rgb = read_rgb(path)
                assert image_size(path) == rgb.shape[:2]


@pytest.mark.parametrize("read", [read_rgb, image_size])
@pytest.mark.parametrize(
    "passing", [MemoryError(), *(OSError(n, "no") for n in (errno.EIO, errno.EMFILE, errno.ESTALE))]
)
def test_what_the_machine_lacks_is_no_fault_of_the_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], object],
    passing: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise passing

    path = save(tmp_path / "picture.png", PIXELS)
    for place in ("PIL.Image.open", "PIL.ImageFile.ImageFile.load", "PIL.Image.Image.getexif"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            if place.endswith("load") and read is image_size:
                continue
            with pytest.raises(type(passing)) as told:
                read(path)
            assert told.value is passing


def test_files_that_may_not_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = save(tmp_path / "picture.png", PIXELS)
    monkeypatch.setattr("PIL.Image.open", refuse)
    with pytest.raises(ImageError, match=r"picture.png can't be opened .*Permission denied"):
        read_rgb(path)


def test_real_pictures(shared_data: Path) -> None:
    for name in ("kodak/01.png", "sam_masks/dog/image.jpg", "rain/input/001.png"):
        path = shared_data / name
        with Image.open(path) as image:
            assert_reads(path, np.asarray(image.convert("RGB")))
