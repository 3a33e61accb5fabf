"""Where a job's masks come from when somebody made them before: scripts/amg.py, SA-1B, COCO.

Each function here finds pictures and their masks, and gives the pairs with the maker that reads
the masks. A picture whose masks can't be used is quarantined by the job, with the reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from samprior.pipeline.datasets import Pair, keyed_pairs
from samprior.pipeline.folders import existing_folder, find_images, refuse_links_out
from samprior.pipeline.worker import MasksOf
from samprior.storage.errors import LayoutError, MaskFormatError
from samprior.storage.files import sha256_of
from samprior.storage.images import Rgb
from samprior.storage.manifest import Inputs
from samprior.storage.masks import MaskSet

if TYPE_CHECKING:
    from samprior.pipeline.import_coco import CocoFile, CocoImage


@dataclass(frozen=True)
class ImportedAmg:
    """Masks from folders of the official scripts/amg.py, one folder per image."""

    folders: dict[str, Path]
    """Folder of each key."""

    def describe(self) -> dict[str, Any]:
        """What the store says of its masks."""
        return {"segmenter": "imported", "format": "amg.py"}

    def inputs(self, pair: Pair) -> Inputs:
        """Bytes of all files of the pair's folder, and the hex SHA-256 of its metadata.csv."""
        folder = self.folders[pair.key]
        return _size_of(*folder.iterdir()), _digest_of(folder / "metadata.csv")

    def build(self) -> MasksOf:
        """Nothing to load."""
        from samprior.pipeline.importers import read_amg_folder

        def masks_of(pair: Pair, image: Rgb) -> MaskSet:
            return read_amg_folder(self.folders[pair.key], shape=image.shape[:2])

        return masks_of


@dataclass(frozen=True)
class ImportedSa1b:
    """Masks from SA-1B's JSON files, each beside its image."""

    def describe(self) -> dict[str, Any]:
        """What the store says of its masks."""
        return {"segmenter": "imported", "format": "SA-1B"}

    def inputs(self, pair: Pair) -> Inputs:
        """Bytes and hex SHA-256 of the pair's JSON file."""
        file = _json_of(pair)
        return _size_of(file), _digest_of(file)

    def build(self) -> MasksOf:
        """Nothing to load."""
        from samprior.pipeline.importers import read_sa1b

        return lambda pair, image: _of_size(read_sa1b(_json_of(pair)), image, _json_of(pair))


@dataclass(frozen=True)
class ImportedCoco:
    """Masks from one COCO instances file."""

    file: "CocoFile"
    images: Mapping[str, "CocoImage"]
    """What the file says of the picture of each key."""

    def describe(self) -> dict[str, Any]:
        """What the store says of its masks; an export gives the categories their names back."""
        return {
            "segmenter": "imported",
            "format": "COCO",
            "categories": list(self.file.categories),
            "columns": self.file.columns,
        }

    def inputs(self, pair: Pair) -> Inputs:
        """Bytes and hex SHA-256 of the picture's annotations."""
        return self.file.inputs(self.images[pair.key])

    def build(self) -> MasksOf:
        """Nothing to load: the file is open."""

        def masks_of(pair: Pair, image: Rgb) -> MaskSet:
            listed = self.images[pair.key]
            # Before anything is decoded: an honest file's size is that of the picture.
            _check_size((listed.height, listed.width), image, self.file.path)
            return self.file.masks(listed)

        return masks_of


def amg_image(folder: Path, image: Path) -> tuple[list[Pair], ImportedAmg]:
    """One image and the folder of its masks.

    Raises:
        LayoutError: one of them is not there.
    """
    _require(folder / "metadata.csv", "scripts/amg.py writes one per image")
    _require(image, "it is the picture that was segmented")
    (pair,) = keyed_pairs([(image.stem, image.name, image.name)], image.parent)
    return [pair], ImportedAmg({pair.key: folder})


def amg_pictures(root: Path, images: Path) -> tuple[list[Pair], ImportedAmg]:
    """All pictures below `images`, each with its mask folder as in `amg_dataset`.

    Raises:
        LayoutError: there is no picture, or one without a mask folder.
    """
    pairs = _pictures(images)
    return pairs, amg_dataset(root, pairs)


def amg_dataset(root: Path, pairs: Sequence[Pair]) -> ImportedAmg:
    """The mask folders of a dataset's clean images: `root/<key>`, or `root/<clean file's stem>`.

    Raises:
        LayoutError: pairs without a folder, with their number and some of them.
    """
    folders, missing = {}, []
    for pair in pairs:
        places = (root / pair.key, root / pair.clean.stem)
        found = [place for place in places if (place / "metadata.csv").is_file()]
        if found:
            folders[pair.key] = found[0]
        else:
            missing.append(pair.key)
    if missing:
        raise LayoutError(
            f"{root} has no masks for {len(missing)} of {len(pairs)} images, such as "
            f"{', '.join(missing[:3])}; looked for {root}/<key>/metadata.csv"
        )
    refuse_links_out(folders.values(), inside=root)
    if len(set(folders.values())) < len(folders):
        raise LayoutError(
            f"{root}: several images share one mask folder by name; name the folders by key, "
            f"such as {root / pairs[0].key}"
        )
    return ImportedAmg(folders)


def sa1b_folder(folder: Path) -> tuple[list[Pair], ImportedSa1b]:
    """All images below a folder, each with its JSON file beside it.

    Raises:
        LayoutError: there is none, an image or JSON file is alone, or two images have one key.
    """
    if not folder.is_dir():
        raise LayoutError(f"{folder} is no folder; give the one with sa_N.jpg and sa_N.json")
    images = find_images(folder.resolve(), inside=folder.resolve())
    notes = {file.relative_to(folder).as_posix() for file in folder.rglob("*.json")}
    if not images or not notes:
        raise LayoutError(f"{folder} holds no sa_N.jpg beside sa_N.json")
    if alone := sorted(set(map(_stem, images)) ^ set(map(_stem, notes))):
        raise LayoutError(f"{folder}: image or JSON is missing for {', '.join(alone[:5])}")
    refuse_links_out((folder / note for note in notes), inside=folder)
    return _keyed(images, folder), ImportedSa1b()


def coco_pictures(annotations: Path, images: Path) -> tuple[list[Pair], ImportedCoco]:
    """All pictures that a COCO instances file lists, which lie below the folder `images`.

    A picture that is missing is quarantined by the job, unless all are.

    Raises:
        LayoutError: no picture is there, or two have one key.
        MaskFormatError: the file is no COCO instances file.
    """
    from samprior.pipeline.import_coco import read_coco

    if not images.is_dir():
        raise LayoutError(f"{images} is no folder; give the one that file_name starts from")
    file = read_coco(annotations)
    if not any((images / image.file_name).is_file() for image in file.images):
        first = f", such as {file.images[0].file_name}" if file.images else ""
        raise LayoutError(
            f"{images} holds none of the {len(file.images)} pictures of {annotations}{first}; "
            "give the folder that file_name starts from"
        )
    refuse_links_out((images / image.file_name for image in file.images), inside=images)
    pairs = _keyed([image.file_name for image in file.images], images)
    by_path = {images / image.file_name: image for image in file.images}
    return pairs, ImportedCoco(file, {pair.key: by_path[pair.clean] for pair in pairs})


def _pictures(folder: Path) -> list[Pair]:
    base = existing_folder(folder)
    if not (images := find_images(base, inside=base)):
        raise LayoutError(f"{folder} holds no picture")
    return _keyed(images, base)


def _keyed(images: Iterable[str], base: Path) -> list[Pair]:
    return list(keyed_pairs([(_stem(image), image, image) for image in images], base))


def _stem(path: str) -> str:
    """A relative path without its suffix."""
    return PurePosixPath(path).with_suffix("").as_posix()


def _json_of(pair: Pair) -> Path:
    return pair.clean.with_suffix(".json")


def _of_size(masks: MaskSet, image: Rgb, source: Path) -> MaskSet:
    _check_size(masks.shape, image, source)
    return masks


def _check_size(shape: tuple[int, int], image: Rgb, source: Path) -> None:
    """Raise MaskFormatError if masks of `shape` (H, W) are not those of a picture of this size."""
    if shape != image.shape[:2]:
        raise MaskFormatError(
            f"{source} has masks of {shape[1]}x{shape[0]} for a picture of "
            f"{image.shape[1]}x{image.shape[0]}"
        )


def _size_of(*files: Path) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def _digest_of(listing: Path) -> str:
    """Hex SHA-256 of a listing of masks, "" if there is none."""
    return sha256_of(listing) if listing.is_file() else ""


def _require(path: Path, why: str) -> None:
    if not path.is_file():
        raise LayoutError(f"{path} does not exist; {why}")
