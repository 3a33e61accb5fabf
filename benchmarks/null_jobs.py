"""Jobs in which only the job itself takes time: tiny pictures, makers that do nothing or wait.

A million images need no million files: sequences are links to a few folders of real pictures, so
that each image has paths of its own, as in a real dataset, and each of them can be read.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import cloudpickle

from samprior.pipeline.datasets import Pair
from samprior.pipeline.plan import ShardPlan, plan_header, plan_shards
from samprior.pipeline.worker import MasksOf
from samprior.storage import MaskSet, Record
from samprior.storage.header import Header
from samprior.storage.images import Rgb, write_png
from samprior.storage.manifest import Inputs, Receipt, write_receipt
from samprior.storage.places import Place
from samprior.storage.writer import write_shard

SIDE_PX = 16
"""Side of the pictures."""

SEQUENCE = 1000
"""Pictures of a sequence."""

ASK_AGAIN_S = 0.01
"""How often a worker looks whether the others have come."""

SIDES = ("degraded", "clean")


def write_pictures(root: Path, count: int) -> None:
    """A dataset of `count` images: one real sequence, and links to it."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    real = root / "real"
    for number in range(min(count, SEQUENCE)):
        write_png(real / f"{number:06d}.png", pixels)
    for side in SIDES:
        (root / side).mkdir(parents=True, exist_ok=True)
        for sequence in range(-(-count // SEQUENCE)):
            (root / side / f"sequence{sequence:06d}").symlink_to(real)


def find_pairs(root: Path, count: int) -> list[Pair]:
    """The pairs of `write_pictures`, without looking at the disk."""
    pairs = []
    for number in range(count):
        sequence, picture = divmod(number, SEQUENCE)
        name = f"sequence{sequence:06d}/{picture:06d}"
        pairs.append(Pair(name, *(root / side / f"{name}.png" for side in SIDES)))
    return pairs


def plan_of(
    root: Path, count: int, maker: "Nothing | Waiting", images_per_shard: int
) -> tuple[list[ShardPlan], Header]:
    """The plan of a job over `write_pictures`, and its header."""
    plan = plan_shards(find_pairs(root, count), images_per_shard=images_per_shard)
    header = plan_header(
        plan,
        dataset="null",
        layout="null",
        split=None,
        segmenter=maker.describe(),
        source="clean",
        images_per_shard=images_per_shard,
        paired=False,
    )
    return plan, header


@dataclass(frozen=True)
class Nothing:
    """A segmenter that finds nothing, at once."""

    def describe(self) -> dict[str, Any]:
        """See `MaskMaker`."""
        return {"segmenter": "nothing"}

    def inputs(self, _: Pair) -> Inputs:
        """None."""
        return ()

    def build(self) -> MasksOf:
        """Nothing to load."""
        none = MaskSet.from_masks(np.zeros((0, SIDE_PX, SIDE_PX), np.bool_))
        return lambda pair, image: none


@dataclass(frozen=True)
class Waiting(Nothing):
    """A segmenter that waits, as for a GPU, and finds two masks.

    No worker begins before all have loaded, which takes turns where there are fewer cores.
    """

    image_s: float
    workers: int
    loaded: Path
    """Folder in which each worker says when it had loaded."""

    def build(self) -> MasksOf:
        """Load what a worker needs, then wait for the others."""
        masks = np.zeros((2, SIDE_PX, SIDE_PX), np.bool_)
        masks[0, :, : SIDE_PX // 2] = masks[1, :, SIDE_PX // 2 :] = True
        found = MaskSet.from_masks(masks)
        picture = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
        # Libraries that the first shard would load, compiled code among them.
        mine = f"{os.uname().nodename}-{os.getpid()}"
        write_shard(self.loaded / mine, 0, [Record("0", picture, picture, found)], paired=False)
        (self.loaded / f"{mine}.txt").write_text(repr(time.monotonic()))
        while len(list(self.loaded.glob("*.txt"))) < self.workers:
            time.sleep(ASK_AGAIN_S)

        def masks_of(_: Pair, __: Rgb) -> MaskSet:
            time.sleep(self.image_s)
            return found

        return masks_of

    def all_loaded_s(self) -> float:
        """Monotonic time, which all processes of a Linux share, when the last had loaded."""
        return max(float(file.read_text()) for file in self.loaded.glob("*.txt"))


@dataclass(frozen=True)
class ReceiptsOnly:
    """Writes the receipt of a shard and no shard."""

    digests: Mapping[str, str]
    """Of `real_digests`, so that receipts are as large as real ones."""

    def __call__(
        self,
        root: Path | Place,
        shard: int,
        records: Sequence[Record],
        *,
        paired: bool,
        inputs: Mapping[str, Inputs] | None = None,
        quarantined: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> Receipt:
        """See `write_shard`."""
        receipt = Receipt(
            shard=shard,
            keys=tuple(record.key for record in records),
            sizes=tuple(record.masks.shape for record in records),
            num_masks=tuple(len(record.masks) for record in records),
            stored_bytes=0,
            digests=self.digests,
            inputs=dict(inputs or {}),
            quarantined=dict(quarantined or {}),
            notes=tuple(notes),
        )
        write_receipt(root, receipt)
        return receipt


def real_digests(folder: Path) -> dict[str, str]:
    """Those of a shard with pictures and SAM's masks, which is written to `folder`."""
    # Not black: zarr keeps no file for a chunk of zeros.
    picture = np.full((SIDE_PX, SIDE_PX, 3), 128, np.uint8)
    masks = MaskSet.from_masks(
        np.ones((1, SIDE_PX, SIDE_PX), np.bool_),
        predicted_iou=[1.0],
        stability=[1.0],
        point=[[1.0, 1.0]],
    )
    return dict(write_shard(folder, 0, [Record("0", picture, picture, masks)], paired=True).digests)


def travel_by_value() -> None:
    """Let Ray's workers have this module's classes: they can't import it."""
    import null_jobs

    cloudpickle.register_pickle_by_value(null_jobs)
