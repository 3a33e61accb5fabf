"""Where a job's masks come from: a segmenter, or masks that somebody made before."""

import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samprior.pipeline.checkpoints import fetch_checkpoint
from samprior.pipeline.checks import check_int
from samprior.pipeline.datasets import Pair, keyed_pairs
from samprior.pipeline.sam_segmenter import SamSettings
from samprior.pipeline.segmenters import (
    BatchSegmenter,
    SegmenterSettings,
    segmenter_settings,
)
from samprior.pipeline.worker import MaskMaker, MasksOf
from samprior.storage.errors import LayoutError, UsageError
from samprior.storage.files import sha256_of
from samprior.storage.images import IMAGE_SUFFIXES, Rgb
from samprior.storage.manifest import Inputs
from samprior.storage.masks import MaskSet


@dataclass(frozen=True)
class Segmented:
    """Masks by a segmenter."""

    settings: SegmenterSettings

    def describe(self) -> dict[str, Any]:
        """The segmenter's own description."""
        return dict(self.settings.describe())

    def inputs(self, pair: Pair) -> Inputs:
        """Nothing beside the pictures."""
        return ()

    def build(self) -> MasksOf:
        """Load the segmenter."""
        segment = self.settings.build()
        if isinstance(segment, BatchSegmenter):
            return _InBatches(segment)
        return lambda _, image: segment(image)


@dataclass(frozen=True)
class _InBatches:
    """A batch segmenter as a `ManyMasksOf`."""

    segment: BatchSegmenter

    @property
    def images_at_once(self) -> int:
        return self.segment.images_at_once

    def __call__(self, pair: Pair, image: Rgb) -> MaskSet:
        return self.segment(image)

    def many(self, pairs: Sequence[Pair], images: Sequence[Rgb]) -> Iterator[MaskSet]:
        return self.segment.many(images)

    def take_notes(self) -> tuple[str, ...]:
        return self.segment.take_notes()


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

        return lambda pair, _: read_sa1b(_json_of(pair))


def segmenter_maker(
    name: str,
    *,
    settings: Sequence[str] = (),
    model: str = "vit_h",
    checkpoint: Path | None = None,
    device: str | None = None,
    engine: str = "fast",
    precision: str = "float32",
    progress: Callable[[int, int | None], None] | None = None,
) -> Segmented:
    """The maker for a segmenter's name and `key=value` settings (values are TOML).

    SAM's official checkpoint is downloaded here, once, and not by every worker.

    Raises:
        UsageError: an unknown segmenter or setting, or one that the device can't do.
        CheckpointError: the checkpoint can't be had.
    """
    values = dict(_parsed(setting) for setting in settings)
    if name != "sam":
        return Segmented(segmenter_settings(name, **values))
    own = {
        "model": model,
        "checkpoint": checkpoint,
        "device": device,
        "engine": engine,
        "precision": precision,
    }
    if doubled := values.keys() & own.keys():
        option = sorted(doubled)[0]
        raise UsageError(f"--set {option}=... has an option of its own: use --{option}")
    wanted = segmenter_settings(name, **own, **values)
    if precision == "float16":
        _refuse_on_cpu(device)
    if checkpoint is None:
        fetch_checkpoint(model, progress=progress)
    return Segmented(wanted)


def _refuse_on_cpu(device: str | None) -> None:
    from samprior.pipeline.sam import pick_device

    if pick_device(device) == "cpu":
        raise UsageError("--precision float16 is for GPUs; on a CPU use bfloat16 or float32")


def worker_pool(maker: MaskMaker, workers: int | None = None) -> tuple[int, float]:
    """How many Ray workers a job gets, and how many GPUs each.

    By default one per GPU for SAM; one for SAM on the CPU, whose matrix products use every core;
    else one per core but one, which is the driver's. SAM on a GPU of a certain number runs in this
    process (0 workers), because Ray numbers the GPUs of each worker anew.

    Raises:
        UsageError: a negative number of workers, or several for one GPU by its number; a device
            that can't be used.
    """
    if workers is not None:
        check_int("--workers", workers, 0)
    if isinstance(maker, Segmented) and isinstance(maker.settings, SamSettings):
        import torch

        from samprior.pipeline.sam import pick_device

        device = pick_device(maker.settings.device)
        if device.startswith("cuda:"):
            if workers is not None and workers > 1:
                raise UsageError(
                    f"--device {device} is one GPU, so it goes with one worker, got {workers}; use "
                    "--device cuda, or choose among the GPUs with CUDA_VISIBLE_DEVICES"
                )
            return 0, 0.0
        if device.startswith("cuda"):
            num_gpus = torch.cuda.device_count()
            count = num_gpus if workers is None else workers
            return count, min(1.0, num_gpus / max(1, count))
        return (1 if workers is None else workers), 0.0
    spare = max(1, (os.cpu_count() or 1) - 1)
    return (spare if workers is None else workers), 0.0


def amg_image(folder: Path, image: Path) -> tuple[list[Pair], ImportedAmg]:
    """One image and the folder of its masks.

    Raises:
        LayoutError: one of them is not there.
    """
    _require(folder / "metadata.csv", "scripts/amg.py writes one per image")
    _require(image, "it is the picture that was segmented")
    (pair,) = keyed_pairs([(image.stem, image.name, image.name)], image.parent)
    return [pair], ImportedAmg({pair.key: folder})


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
    if len(set(folders.values())) < len(folders):
        raise LayoutError(
            f"{root}: several images share one mask folder by name; name the folders by key, "
            f"such as {root / pairs[0].key}"
        )
    return ImportedAmg(folders)


def sa1b_folder(folder: Path) -> tuple[list[Pair], ImportedSa1b]:
    """All images of a folder that have a JSON file beside them.

    Raises:
        LayoutError: there is none, an image or JSON file is alone, or two images have one key.
    """
    if not folder.is_dir():
        raise LayoutError(f"{folder} is no folder; give the one with sa_N.jpg and sa_N.json")
    images = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    notes = {f.stem for f in folder.glob("*.json")}
    if not images or not notes:
        raise LayoutError(f"{folder} holds no sa_N.jpg beside sa_N.json")
    if alone := sorted({file.stem for file in images} ^ notes):
        raise LayoutError(f"{folder}: image or JSON is missing for {', '.join(alone[:5])}")
    pairs = keyed_pairs([(file.stem, file.name, file.name) for file in images], folder)
    return list(pairs), ImportedSa1b()


def _json_of(pair: Pair) -> Path:
    return pair.clean.with_suffix(".json")


def _size_of(*files: Path) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def _digest_of(listing: Path) -> str:
    """Hex SHA-256 of a listing of masks, "" if there is none."""
    return sha256_of(listing) if listing.is_file() else ""


def _require(path: Path, why: str) -> None:
    if not path.is_file():
        raise LayoutError(f"{path} does not exist; {why}")


def _parsed(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not equals:
        raise UsageError(f"--set takes key=value, got {setting!r}; such as points_per_side=16")
    try:
        return name.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), text
