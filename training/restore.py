"""Restore pictures with a trained network: whole, or in overlapping tiles.

Tiles equal the whole image away from tile borders when the overlap covers the network's receptive
field. NAFNet's channel attention averages over everything it is given, so its tiles differ a
little from the whole image; restore whole images where memory allows, or take TLC, see
`samprior.training.networks.tlc`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from samprior.storage.errors import ImageError, LayoutError, UsageError
from samprior.storage.images import IMAGE_SUFFIXES, Rgb, read_rgb, write_png
from samprior.training.data import to_tensor
from samprior.training.networks.tlc import with_local_pooling


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; `auto` takes a GPU where there is one.

    Raises:
        UsageError: the name is no device, or the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} can't be used ({reason}); try cpu or cuda") from error
    return device


@torch.inference_mode()
def restore(
    network: nn.Module,
    image: Rgb,
    *,
    device: torch.device,
    tile_px: int | None = None,
    overlap_px: int = 32,
) -> Rgb:
    """Restore one picture.

    Args:
        network: takes and gives (1, 3, H, W) in [0, 1]; in eval mode, on `device`.
        image: uint8 (H, W, 3).
        device: where to compute.
        tile_px: side of a tile; None restores the whole image at once.
        overlap_px: pixels by which tiles overlap; their inner halves are kept.

    Returns:
        uint8 (H, W, 3), rounded.
    """
    degraded = to_tensor([image]).to(device)
    if tile_px is None:
        return to_uint8(network(degraded)[0])
    return to_uint8(restore_tiled(network, degraded, tile_px=tile_px, overlap_px=overlap_px)[0])


def restore_tiled(
    network: Callable[[Tensor], Tensor], image: Tensor, *, tile_px: int, overlap_px: int
) -> Tensor:
    """Apply a network to (B, 3, H, W) tile by tile, keeping of each what is far from its border.

    Raises:
        UsageError: the overlap leaves nothing of a tile.
    """
    if not 0 <= overlap_px < tile_px:
        raise UsageError(f"the overlap must be below the tile's {tile_px} px, got {overlap_px}")
    output = torch.empty_like(image)
    for rows in tile_spans(image.shape[2], tile_px, overlap_px):
        for columns in tile_spans(image.shape[3], tile_px, overlap_px):
            tile = network(image[:, :, rows.read, columns.read])
            output[:, :, rows.keep, columns.keep] = tile[:, :, rows.inner, columns.inner]
    return output


class Span:
    """One tile along one axis: what is read, what of the image is kept, and where that lies."""

    def __init__(self, start: int, stop: int, keep_start: int, keep_stop: int) -> None:
        self.read = slice(start, stop)
        self.keep = slice(keep_start, keep_stop)
        self.inner = slice(keep_start - start, keep_stop - start)


def tile_spans(length: int, tile_px: int, overlap_px: int) -> list[Span]:
    """Cut an axis into tiles of equal length whose kept parts cover each pixel once."""
    if length <= tile_px:
        return [Span(0, length, 0, length)]
    stride = tile_px - overlap_px
    starts = [*range(0, length - tile_px, stride), length - tile_px]
    # Neighbours share their overlap half and half.
    cuts = [0, *((a + tile_px + b) // 2 for a, b in pairwise(starts)), length]
    return [
        Span(start, start + tile_px, cuts[number], cuts[number + 1])
        for number, start in enumerate(starts)
    ]


def to_uint8(image: Tensor) -> npt.NDArray[np.uint8]:
    """(3, H, W) in [0, 1] as uint8 (H, W, 3), clipped and rounded to nearest."""
    levels = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())


def restoration_plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Which file becomes which: a file to a file, or every image below a folder, names kept.

    Restored pictures are PNG, so `a/b.jpg` becomes `a/b.png`.

    Raises:
        LayoutError: no image at `source`.
        UsageError: two inputs would become one output, an input would be overwritten, or an
            output is not PNG.
    """
    if source.is_dir():
        files = sorted(_images_below(source))
        if not files:
            raise LayoutError(f"{source} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        plan = [(file, target / file.relative_to(source).with_suffix(".png")) for file in files]
    elif source.is_file():
        into_folder = target.is_dir() or not target.suffix
        plan = [(source, target / f"{source.stem}.png" if into_folder else target)]
    else:
        raise LayoutError(f"{source} does not exist; give an image or a folder of images")
    outputs = [output for _, output in plan]
    if doubled := [str(output) for output, count in Counter(outputs).items() if count > 1]:
        raise UsageError(f"several inputs would become {doubled[0]}; rename one of them")
    inputs = {file.resolve() for file, _ in plan}
    if lost := [str(output) for output in outputs if output.resolve() in inputs]:
        raise UsageError(f"{lost[0]} is an input and would be overwritten; give another output")
    if outputs[0].suffix.lower() != ".png":
        raise UsageError(f"restored pictures are written as PNG, not {outputs[0].suffix}")
    return plan


def restore_files(
    network: nn.Module,
    plan: Sequence[tuple[Path, Path]],
    *,
    device: torch.device,
    tile_px: int | None = None,
    overlap_px: int = 32,
    tlc_px: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Path, str]:
    """Restore the files of a plan; returns the reason for each that could not be read.

    `tlc_px` is the window of local averages (TLC); None leaves the network as it was trained.

    Raises:
        UsageError: TLC for a network without global average pooling.
    """
    if tlc_px is not None:
        network = with_local_pooling(network, tlc_px)
    network = network.eval().to(device)
    failed = {}
    for number, (source, target) in enumerate(plan, start=1):
        try:
            image = read_rgb(source)
        except ImageError as error:
            failed[source] = str(error)
        else:
            restored = restore(
                network, image, device=device, tile_px=tile_px, overlap_px=overlap_px
            )
            write_png(target, restored)
        if progress:
            progress(number, len(plan))
    return failed


def _images_below(folder: Path) -> Iterator[Path]:
    return (
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not file.name.startswith(".")
    )
