"""Read any picture a data set may hold as the 8-bit RGB that a viewer shows, or say why not.

The choices, made once for all of samprior:

* EXIF orientation is applied; grey, 1-bit and palette images become RGB.
* 16-bit images keep their high byte, which is what an 8-bit screen shows.
* An alpha channel that is fully opaque is dropped; real transparency has no one colour: refused.
* CMYK, Lab, float and 32-bit integer images have no one 8-bit RGB: refused.
* Of files with several frames only camera JPEGs (MPO: previews) are read; others are refused.
* Embedded colour profiles are not applied: pixel values are what the file holds, as in the
  published scores of the field.
* Only the `FORMATS` below are read, whatever the ending of the name. Pillow knows many more, of
  which some are programs that another program would run (PostScript).
* More than `MAX_PIXELS` is refused before anything is decoded (decompression bombs).

What the machine lacks at the moment (memory, file handles, a disk that answers) says nothing of a
picture: such a MemoryError or OSError comes through as it is.
"""

import errno
import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from samprior.storage.errors import ImageError
from samprior.storage.files import write_bytes

Rgb = npt.NDArray[np.uint8]
"""A picture: uint8 (H, W, 3)."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})
"""Endings, in lower case, of the files that count as images of a data set."""

# Pillow knows the first five by itself, the others once their modules are imported.
FORMATS = (
    *("BMP", "GIF", "JPEG", "PNG", "PPM"),
    TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)
"""What a file may hold, by Pillow's names; JPEG includes the MPO of cameras."""

MAX_PIXELS = 100_000_000
"""Larger images are refused; the largest camera sensors have about 60 million pixels."""

_FAULTS_OF_FILES = (
    None,  # Pillow's own errors, such as for a truncated file
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EINVAL,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENXIO,
)
_HIGH_BYTE_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_EXIF_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_REFUSED_MODES = {
    "CMYK": "CMYK print colours",
    "LAB": "Lab colours",
    "HSV": "HSV colours",
    "F": "floating-point pixels",
    "I": "32-bit integer pixels",
}


def read_rgb(path: Path) -> Rgb:
    """Read the picture at `path` as uint8 (H, W, 3).

    Raises:
        ImageError: the file is missing, empty, truncated, no image, too large, or of a kind
            that has no one 8-bit RGB (see the module's text); the message names the file.
        OSError, MemoryError: the machine's fault, not the file's.
    """
    with _open(path) as image:
        try:
            _refuse_unclear(image, path)
            return np.ascontiguousarray(_to_rgb(image, path))
        except ImageError:
            raise
        except Exception as error:  # decoders meet damage with whatever exception they like
            if is_passing(error):
                raise
            raise ImageError(f"{path} can't be decoded ({error}); replace the file") from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright picture at `path`, from its header alone.

    Raises:
        ImageError: the header can't be read; the message names the file.
        OSError, MemoryError: as for `read_rgb`.
    """
    with _open(path) as image:
        try:
            width, height = image.size
            return (width, height) if _is_turned(image, path) else (height, width)
        except Exception as error:  # as above
            if is_passing(error):
                raise
            raise ImageError(f"{path} has damaged EXIF data ({error}); replace it") from error


def is_passing(error: Exception) -> bool:
    """Whether an error of reading is the machine's, not the file's: it may be gone next time."""
    if isinstance(error, OSError):
        return error.errno not in _FAULTS_OF_FILES
    return isinstance(error, MemoryError)


def write_png(path: Path, rgb: Rgb) -> None:
    """Write uint8 (H, W, 3) losslessly to `path`, whole or not at all."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, format="PNG")
    write_bytes(path, stream.getvalue())


def _open(path: Path) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes); replace the file")
        with warnings.catch_warnings():
            # Pillow's own limit warns at 89 Mpx and raises at 179 Mpx; ours below is one line.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is larger than {MAX_PIXELS:,} pixels; cut it up") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not an image of a kind that is read ({', '.join(FORMATS)})"
        ) from error
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist") from error
    except ImageError:
        raise
    except Exception as error:  # as in read_rgb
        if is_passing(error):
            raise
        raise ImageError(f"{path} can't be opened ({error})") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(
            f"{path} has {width}x{height} pixels; at most {MAX_PIXELS:,} are read. Cut it up"
        )
    return image


def _is_turned(image: Image.Image, path: Path) -> bool:
    """Whether the upright picture has width and height of the stored one swapped."""
    if image.format == "TIFF":
        return False  # Pillow has swapped the size itself
    if image.format == "PNG" and not _has_late_exif(path):
        # PngImageFile.getexif decodes all pixels first, for chunks that may follow them.
        exif = Image.Image.getexif(image)
    else:
        exif = image.getexif()
    return exif.get(0x0112) in (5, 6, 7, 8)


def _has_late_exif(path: Path) -> bool:
    """Whether a PNG file keeps an orientation behind its pixels."""
    is_behind = False
    with path.open("rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            start = stream.read(min(length, 24))
            is_behind = is_behind or kind == b"IDAT"
            if is_behind and (kind == b"eXIf" or start.startswith(_EXIF_TEXTS)):
                return True
            stream.seek(length - len(start) + 4, 1)
    return False


def _refuse_unclear(image: Image.Image, path: Path) -> None:
    if image.mode in _REFUSED_MODES:
        raise ImageError(
            f"{path} has {_REFUSED_MODES[image.mode]} (mode {image.mode}), which have no one "
            "8-bit RGB; convert it to sRGB first"
        )
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ImageError(f"{path} holds several frames; save the wanted one as its own file")


def _to_rgb(image: Image.Image, path: Path) -> npt.NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _HIGH_BYTE_MODES:
        deep = np.asarray(upright).astype(np.uint16)
        if (deep == upright.info.get("transparency", -1)).any():
            raise _transparent(path)
        return np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        rgba = np.asarray(upright.convert("RGBA"))
        if int(rgba[:, :, 3].min()) < 255:
            raise _transparent(path)
        return rgba[:, :, :3]
    return np.asarray(upright.convert("RGB"))


def _transparent(path: Path) -> ImageError:
    return ImageError(
        f"{path} has transparent pixels, whose colour depends on the background; flatten it first"
    )
