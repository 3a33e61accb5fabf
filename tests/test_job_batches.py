"""Makers that take several pictures at once: the same stores, one bad picture costs only itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samprior.pipeline.datasets import Pair
from samprior.pipeline.makers import Segmented
from samprior.pipeline.plan import ShardPlan
from samprior.pipeline.sam import random_sam
from samprior.pipeline.segmenters import segmenter_settings
from samprior.pipeline.worker import MasksOf, ShardWorker
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import StoreError
from samprior.storage.images import Rgb, write_png
from samprior.storage.manifest import Header, Receipt, read_receipt, write_header


@dataclass
class Batches:
    """Whole pictures as masks, three at a time; fails on pictures that begin with a 0."""

    images_at_once: int = 3
    error: Exception = field(default_factory=lambda: ValueError("a black corner"))
    sizes: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shrinks: bool = False
    """Whether it takes one picture less at a time after each call, as when memory runs out."""

    def describe(self) -> dict[str, Any]:
        return {"segmenter": "batches"}

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self

    def __call__(self, pair: Pair, image: Rgb) -> MaskSet:
        return next(self.many([pair], [image]))

    def many(self, pairs: Sequence[Pair], images: Sequence[Rgb]) -> Iterator[MaskSet]:
        self.sizes.append(len(images))
        self.images_at_once = max(1, self.images_at_once - self.shrinks)
        for image in images:
            if not image[0, 0].any():
                raise self.error
            yield MaskSet.from_masks(np.ones((1, *image.shape[:2]), bool), mean=[image.mean()])

    def take_notes(self) -> tuple[str, ...]:
        notes, self.notes = tuple(self.notes), []
        return notes


@pytest.fixture
def pairs(tmp_path: Path, rng: np.random.Generator) -> list[Pair]:
    """Seven pictures of 20x24."""
    found = []
    for number in range(7):
        file = tmp_path / f"{number}.png"
        write_png(file, rng.integers(1, 256, (20, 24, 3), dtype=np.uint8))
        found.append(Pair(f"{number}", file, file))
    return found


def write(root: Path, pairs: Sequence[Pair], maker: Any) -> Receipt:  # noqa: ANN401
    header = Header(
        num_images=len(pairs), num_shards=1, images_per_shard=len(pairs), paired=False, made_of={}
    )
    write_header(root, header)
    worker = ShardWorker(root, maker, source="clean", paired=False)
    return worker.write(ShardPlan(0, tuple(pairs)))


def blacken(pair: Pair) -> None:
    write_png(pair.clean, np.zeros((20, 24, 3), np.uint8))


def test_pictures_come_in_batches_and_masks_go_to_their_pictures(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    maker = Batches()
    assert write(tmp_path / "out", pairs, maker).keys == tuple("0123456")
    assert maker.sizes == [3, 3, 1]
    for record in MaskStore.open(tmp_path / "out"):
        assert record.masks.columns["mean"][0] == record.clean.mean()


def test_no_picture_is_lost_when_batches_become_smaller(tmp_path: Path, pairs: list[Pair]) -> None:
    maker = Batches(shrinks=True)
    receipt = write(tmp_path / "out", pairs, maker)
    assert receipt.keys == tuple("0123456")
    assert receipt.notes == ()
    assert maker.sizes == [3, 2, 1, 1]


def test_one_bad_picture_of_a_batch_costs_only_itself(tmp_path: Path, pairs: list[Pair]) -> None:
    blacken(pairs[1])
    pairs[4].clean.write_bytes(b"no picture")
    receipt = write(tmp_path / "out", pairs, Batches())
    assert receipt.keys == tuple("02356")
    assert receipt.quarantined["1"] == "ValueError: a black corner"
    assert receipt.notes == ("batch 0 to 2 done one by one: ValueError: a black corner",)
    assert str(pairs[4].clean) in receipt.quarantined["4"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError(), "out of memory at 1"),
        (MemoryError(), "out of memory at 1"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "out of memory at 1"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of memory at 1"),
        (RuntimeError("CUDA error: an illegal memory access"), "the GPU failed at 1"),
    ],
)
def test_what_the_machine_lacks_stops_the_shard_and_quarantines_nothing(
    tmp_path: Path, pairs: list[Pair], error: Exception, message: str
) -> None:
    blacken(pairs[1])
    with pytest.raises(StoreError, match=message) as told:
        write(tmp_path / "out", pairs, Batches(error=error))
    assert len(str(told.value).splitlines()) == 1


def test_notes_are_in_the_receipt_of_their_shard(tmp_path: Path, pairs: list[Pair]) -> None:
    noted = write(tmp_path / "out", pairs, Batches(notes=["encoder batch halved to 2"]))
    assert noted.notes == ("encoder batch halved to 2",)
    assert read_receipt(tmp_path / "out", 0) == noted
    assert write(tmp_path / "quiet", pairs, Batches()).notes == ()


def test_the_engine_segments_a_shard_in_batches(tmp_path: Path, pairs: list[Pair]) -> None:
    sam = random_sam(0)
    loose = {"points_per_side": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.0}
    for at_once in (1, 4):
        settings = segmenter_settings("sam", model=sam, images_at_once=at_once, **loose)
        write(tmp_path / f"{at_once}", pairs, Segmented(settings))
    one_by_one, batched = (MaskStore.open(tmp_path / f"{at_once}") for at_once in (1, 4))
    for one, same in zip(one_by_one, batched, strict=True):
        assert len(one.masks) > 0
        assert np.array_equal(one.masks.columns["point"], same.masks.columns["point"])
        assert (one.masks.to_masks() != same.masks.to_masks()).sum() <= 1
