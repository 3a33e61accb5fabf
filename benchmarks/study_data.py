"""The data of benchmarks/distillation.py: stores of pairs with their masks, and with others'.

A store gets a second mask set, `shuffled`: to each picture the masks of the next one of its size.
Stores are the user's own, or made here of what lies below one folder, as it is published:

    bsds500/train/images/*.jpg, bsds500/train/human_segmentations/*.npz   (task noise, task rain)
    rain/input/*.png, rain/target/*.png, rain/human_segmentations/*.npz   (task rain-pairs)
    real_noise/*_real.JPG, real_noise/*_mean.JPG                          (task real-noise)

A segmentation file has the array `segmentations` (annotators, H, W), labels from 1. All annotators'
regions together are the masks of a picture: they nest and overlap, as SAM's do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import measure
import numpy as np

from samprior.pipeline import build_segmenter
from samprior.pipeline.synthetic import rain_streaks
from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.choices import check_choice
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb, read_rgb
from samprior.storage.manifest import read_header, read_receipts, write_header
from samprior.storage.mask_sets import mask_sets, set_name
from samprior.storage.places import open_place
from samprior.storage.writer import write_shard
from samprior.training.metrics import psnr

NOISE_SIGMA = 50.0
"""Standard deviation of the task noise, grey levels; the result is rounded and clipped to 8 bit."""

TEST_SHARE = 0.2
"""Share of the pictures that is tested on."""

MASKS = ("human", "superpixel")

SHUFFLED = "shuffled"
"""Name of the mask set with the masks of other pictures."""


@dataclass(frozen=True)
class Pair:
    """One picture of a task."""

    key: str
    degraded: Rgb
    clean: Rgb
    segmentations: Path | None
    """Of people; None where there are none."""


def make_splits(folder: Path, *, data: Path, task: str, masks: str) -> dict[str, Path]:
    """Write the stores of train and test below `folder`, if they aren't there yet.

    Raises:
        UsageError: an unknown task or kind of masks, or data that is not there.
    """
    check_choice("task", task, TASKS)
    check_choice("masks", masks, MASKS)
    splits = {name: folder / name for name in ("train", "test")}
    if not all(map(_is_whole, splits.values())):
        for name, pairs in _divided(list(TASKS[task](data))).items():
            records = [
                Record(pair.key, pair.degraded, pair.clean, _masks_of(pair, masks))
                for pair in pairs
            ]
            measure.write_records(splits[name], records)
    return splits


def degraded_psnr_db(root: Path) -> list[float]:
    """PSNR of each degraded picture of a store, as that of restored ones is taken."""
    return [psnr(record.degraded, record.clean) for record in MaskStore.open(root)]


def add_shuffled(root: Path) -> None:
    """Give a store the mask set `shuffled`, if it hasn't it yet.

    Raises:
        StoreError: the store is unfinished.
        UsageError: a picture is the only one of its size.
    """
    store = MaskStore.open(root).require_complete()
    target = root / set_name(SHUFFLED)
    if SHUFFLED in mask_sets(open_place(root)) and _is_whole(target):
        return
    others = _others([store.size(place) for place in range(len(store))], store.keys)
    made_of = {**store.header.made_of, "shuffled": "the next picture of the same size"}
    header = replace(store.header, made_of=made_of, images="parent", pictures_root=None)
    write_header(target, header)
    first = 0
    for receipt in store.receipts.values():
        places = range(first, first + len(receipt.keys))
        first = places.stop
        records = (replace(store[place], masks=store[others[place]].masks) for place in places)
        write_shard(
            target,
            receipt.shard,
            list(records),
            paired=header.paired,
            images="parent",
            inputs=receipt.inputs,
            quarantined=receipt.quarantined,
        )


def _noise(data: Path) -> Iterator[Pair]:
    """Photographs with Gaussian noise."""
    for number, (stem, clean, people) in enumerate(_photographs(data)):
        rng = np.random.default_rng((1, number))
        noisy = np.rint(clean + rng.normal(0, NOISE_SIGMA, clean.shape))
        yield Pair(stem, np.clip(noisy, 0, 255).astype(np.uint8), clean, people)


def _rain(data: Path) -> Iterator[Pair]:
    """Photographs with synthetic streaks."""
    for number, (stem, clean, people) in enumerate(_photographs(data)):
        yield Pair(stem, rain_streaks(clean, np.random.default_rng((2, number))), clean, people)


def _photographs(data: Path) -> Iterator[tuple[str, Rgb, Path]]:
    folder = data / "bsds500" / "train"
    for file in _files(folder / "images", "*.jpg"):
        yield file.stem, read_rgb(file), folder / "human_segmentations" / f"{file.stem}.npz"


def _rain_pairs(data: Path) -> Iterator[Pair]:
    """Published pairs."""
    folder = data / "rain"
    for file in _files(folder / "input", "*.png"):
        people = folder / "human_segmentations" / f"{file.stem}.npz"
        yield Pair(file.stem, read_rgb(file), read_rgb(folder / "target" / file.name), people)


def _real_noise(data: Path) -> Iterator[Pair]:
    """A camera's noise; the clean side is the mean of many shots."""
    for file in _files(data / "real_noise", "*_real.JPG"):
        clean = file.with_name(file.name.replace("_real.", "_mean."))
        yield Pair(file.stem.removesuffix("_real"), read_rgb(file), read_rgb(clean), None)


TASKS: Mapping[str, Callable[[Path], Iterator[Pair]]] = {
    "noise": _noise,
    "rain": _rain,
    "rain-pairs": _rain_pairs,
    "real-noise": _real_noise,
}
"""Pairs of a task, in order of their names."""


def _files(folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise UsageError(f"{folder} has no {pattern}; see the text of study_data.py for the layout")
    return files


def _divided(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """Train and test; drawn, as neighbours in a listing are often alike."""
    order = np.random.default_rng(0).permutation(len(pairs))
    num_test = round(TEST_SHARE * len(pairs))
    return {
        "train": [pairs[i] for i in order[num_test:]],
        "test": [pairs[i] for i in order[:num_test]],
    }


def _masks_of(pair: Pair, masks: str) -> MaskSet:
    """Of the clean side: what masks can give at best."""
    if masks == "superpixel":
        return build_segmenter("superpixel")(pair.clean)
    if pair.segmentations is None:
        raise UsageError(f"{pair.key} has no human segmentation; take --masks superpixel")
    with np.load(pair.segmentations, allow_pickle=False) as file:
        drawn = file["segmentations"]
    return MaskSet.from_masks(
        np.stack([labels == label for labels in drawn for label in np.unique(labels)])
    )


def _others(sizes: Sequence[tuple[int, int]], keys: Sequence[str]) -> list[int]:
    """For each picture the place of the next one of its size, in a circle.

    Raises:
        UsageError: a picture is the only one of its size.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(size, []).append(place)
    others = [0] * len(sizes)
    for group in groups.values():
        if len(group) == 1:
            raise UsageError(f"{keys[group[0]]} is the only picture of its size: none to swap with")
        for place, other in zip(group, [*group[1:], group[0]], strict=True):
            others[place] = other
    return others


def _is_whole(root: Path) -> bool:
    return root.exists() and len(read_receipts(root)) == read_header(root).num_shards
