"""Segment other pictures in the place of a dataset's own, such as restored ones: `--source FOLDER`.

The pictures have the sizes of the dataset's, and names that tell which is whose. Only the masks are
made from them; the pictures of the store stay those of the dataset.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from samprior.pipeline.datasets import Dataset, Pair
from samprior.pipeline.folders import counted, existing_folder, find_images, named
from samprior.pipeline.makers import Segmented
from samprior.pipeline.plan import Source
from samprior.pipeline.worker import ManyMasksOf, MasksOf
from samprior.storage.errors import ImageError, LayoutError
from samprior.storage.files import sha256_of
from samprior.storage.images import Rgb, image_size, read_rgb
from samprior.storage.manifest import Inputs
from samprior.storage.masks import MaskSet


@dataclass(frozen=True)
class SegmentedFolder(Segmented):
    """Masks by a segmenter, of pictures that lie in a folder of their own."""

    pictures: Mapping[str, Path]
    """The picture to segment, by key."""

    def inputs(self, pair: Pair) -> Inputs:
        """Bytes and hex SHA-256 of the picture: another network's is of the same name and size."""
        file = self.pictures[pair.key]
        return file.stat().st_size, sha256_of(file)

    def build(self) -> MasksOf:
        """Load the segmenter."""
        masks_of = super().build()
        if isinstance(masks_of, ManyMasksOf):
            return _InBatches(masks_of, self.pictures)
        return lambda pair, image: masks_of(pair, _picture(self.pictures, pair, image))


@dataclass(frozen=True)
class _InBatches:
    """The same for several pictures at once, a `ManyMasksOf`."""

    masks_of: ManyMasksOf
    pictures: Mapping[str, Path]

    @property
    def images_at_once(self) -> int:
        return self.masks_of.images_at_once

    def __call__(self, pair: Pair, image: Rgb) -> MaskSet:
        return self.masks_of(pair, _picture(self.pictures, pair, image))

    def many(self, pairs: Sequence[Pair], images: Sequence[Rgb]) -> Iterator[MaskSet]:
        read = [
            _picture(self.pictures, pair, image) for pair, image in zip(pairs, images, strict=True)
        ]
        return self.masks_of.many(pairs, read)

    def take_notes(self) -> tuple[str, ...]:
        return self.masks_of.take_notes()


def folder_maker(maker: Segmented, dataset: Dataset, folder: Path) -> SegmentedFolder:
    """A maker whose segmenter sees the pictures of `folder`.

    They are named by the keys of the dataset, or as its degraded files below the split's folder or
    any deeper one: what `samprior restore RUN DEGRADED FOLDER` writes.

    Raises:
        LayoutError: no such folder, pictures that are missing, that can't be told apart, or that
            have another size than the dataset's; the message names some.
    """
    base = existing_folder(folder)
    pictures = _by_key(dataset, base, _by_stem(base))
    faults = [fault for pair in dataset.pairs if (fault := _fault(pair, pictures[pair.key]))]
    if faults:
        raise LayoutError(
            f"{folder} has {counted(len(faults), 'picture')} that can't be segmented in the place "
            f"of the dataset's: {named(faults, separator='; ')}. Restore the dataset's pictures "
            "whole, without resizing"
        )
    return SegmentedFolder(maker.settings, pictures)


def maker_of_source(maker: Segmented, dataset: Dataset, source: str) -> tuple[Segmented, Source]:
    """The maker and the side that --source asks for; a folder called `clean` is `./clean`.

    Raises:
        LayoutError: see `folder_maker`.
    """
    sides: dict[str, Source] = {"clean": "clean", "degraded": "degraded"}
    if source in sides:
        return maker, sides[source]
    return folder_maker(maker, dataset, Path(source)), "folder"


def _by_stem(base: Path) -> dict[str, str]:
    """All pictures below a folder: path without suffix, and path."""
    found: dict[str, str] = {}
    for file in find_images(base, inside=base):
        stem = PurePosixPath(file).with_suffix("").as_posix()
        if stem in found:
            raise LayoutError(
                f"{base} has {found[stem]} and {file}, which would be for the same picture; remove "
                "one of them"
            )
        found[stem] = file
    return found


def _by_key(dataset: Dataset, base: Path, found: Mapping[str, str]) -> dict[str, Path]:
    """The picture of each key, by the first way of naming that has one for all."""
    ways = _namings(dataset)
    for names in ways:
        if set(names.values()) <= found.keys():
            return {key: base / found[name] for key, name in names.items()}
    nearest = max(ways, key=lambda names: len(found.keys() & set(names.values())))
    missing = sorted(set(nearest.values()) - found.keys())
    raise LayoutError(
        f"{base} lacks {len(missing)} of {counted(len(dataset.pairs), 'picture')} of the dataset: "
        f"{named(missing)} (any image suffix). Make them with `samprior restore RUN DEGRADED "
        f"{base}`, or name them by the dataset's keys, such as {dataset.pairs[0].key}.png"
    )


def _namings(dataset: Dataset) -> list[dict[str, str]]:
    """What the pictures may be called: by key; as the degraded files, from the split's folder or
    from 1, 2 ... folders further down, as long as no two get one name."""
    base = dataset.root / (dataset.split or "")
    paths = {pair.key: pair.degraded.relative_to(base).with_suffix("") for pair in dataset.pairs}
    depth = min(len(path.parts) for path in paths.values())
    ways = [
        {key: key for key in paths},
        *(
            {key: PurePosixPath(*path.parts[start:]).as_posix() for key, path in paths.items()}
            for start in range(depth)
        ),
    ]
    return [names for names in ways if len(set(names.values())) == len(names)]


def _fault(pair: Pair, picture: Path) -> str | None:
    """What is wrong with the header of a picture; a fault of the dataset's own is left to the job,
    which quarantines the pair."""
    try:
        wanted = image_size(pair.clean)
    except ImageError:
        return None
    try:
        got = image_size(picture)
    except ImageError as error:
        return str(error)
    return None if got == wanted else _sizes_differ(picture, got, wanted)


def _picture(pictures: Mapping[str, Path], pair: Pair, image: Rgb) -> Rgb:
    """The picture to segment in the place of `image`."""
    picture = read_rgb(pictures[pair.key])
    if picture.shape != image.shape:
        raise ImageError(_sizes_differ(pictures[pair.key], picture.shape, image.shape))
    return picture


def _sizes_differ(picture: Path, got: Sequence[int], wanted: Sequence[int]) -> str:
    return (
        f"{picture} is {got[1]}x{got[0]}, the dataset's picture is {wanted[1]}x{wanted[0]} "
        "(width x height)"
    )
