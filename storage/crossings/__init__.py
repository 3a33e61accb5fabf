"""The crossings code of atoms: see docs/crossings.md. Here is what it is called in metadata."""

from typing import Any

CODEC_NAME = "samprior.crossings"
"""Of the zarr codec."""

DEFAULT_TILE_PX = 256
"""Side of the tiles of codes that don't say it."""


def codec_metadata(tile_px: int) -> dict[str, Any]:
    """Name and configuration of the codec, for an array's metadata."""
    return {"name": CODEC_NAME, "configuration": {"tile_px": tile_px}}


def tile_px_of(metadata: object) -> int:
    """The side of tiles that an array's metadata tell, pixels.

    Raises:
        ValueError: another codec's metadata, or a configuration that no version has.
    """
    told = metadata if isinstance(metadata, dict) else {}
    configuration = told.get("configuration") or {}
    if (
        told.get("name") != CODEC_NAME
        or not isinstance(configuration, dict)
        or configuration.keys() - {"tile_px"}
    ):
        raise ValueError(f"wanted {CODEC_NAME} with a configuration of tile_px, got {metadata!r}")
    return checked_tile_px(configuration.get("tile_px", DEFAULT_TILE_PX))


def checked_tile_px(value: object) -> int:
    """The side of tiles, pixels.

    Raises:
        ValueError: no whole number from 8 to 4096.
    """
    if not isinstance(value, int) or not 8 <= value <= 4096:
        raise ValueError(f"{CODEC_NAME}: tile_px must be 8 to 4096, got {value!r}")
    return value
