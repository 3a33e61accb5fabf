"""Pooling over atoms equals pooling over boolean planes; which masks are kept and dropped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from samprior.storage import MaskSet
from samprior.storage.errors import UsageError
from samprior.training.priors import RegionBatch, dropout_masks, keep_masks
from samprior.training.priors.regions import cell_counts_by_sorting

Planes = npt.NDArray[np.bool_]
HEIGHT, WIDTH = 16, 24


@st.composite
def rectangles(draw: st.DrawFn) -> Planes:
    """Up to 6 rectangles, overlapping, nested or empty, as (K, 16, 24)."""
    planes = np.zeros((draw(st.integers(0, 6)), HEIGHT, WIDTH), np.bool_)
    for plane in planes:
        y, x = draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))
        plane[y : y + draw(st.integers(0, HEIGHT)), x : x + draw(st.integers(0, WIDTH))] = True
    return planes


batches = st.lists(rectangles(), min_size=1, max_size=3)
quickly = settings(deadline=None, max_examples=40)


def human_masks(shared_data: Path, name: str) -> Planes:
    """All regions that all annotators drew in a window of 96x128: overlapping and nested."""
    with np.load(shared_data / "rain" / "human_segmentations" / f"{name}.npz") as content:
        labels = content["segmentations"][:, 100:196, 60:188]
    return np.concatenate([labels[:, None] == v for v in np.unique(labels)]).reshape(-1, 96, 128)


@pytest.fixture
def human_batch(shared_data: Path) -> list[Planes]:
    batch = [human_masks(shared_data, name) for name in ("004", "015")]
    # Leave some pixels uncovered, and one image without masks.
    return [batch[0], batch[1][::3], batch[0][:0]]


def collate(batch: list[Planes], strides: tuple[int, ...] = ()) -> RegionBatch:
    return RegionBatch.collate([MaskSet.from_masks(planes) for planes in batch], strides=strides)


def check_pooling(batch: list[Planes]) -> None:
    regions = collate(batch)
    _, height, width = batch[0].shape
    values = torch.rand(len(batch), 2, height, width, dtype=torch.float64)
    per_mask = regions.sum_by_mask(regions.sum_by_atom(values))
    dense = [
        torch.einsum("khw,chw->kc", torch.from_numpy(planes).double(), image)
        for planes, image in zip(batch, values, strict=True)
    ]
    torch.testing.assert_close(per_mask, torch.cat(dense))
    spread = regions.to_pixels(regions.sum_of_masks(per_mask))
    for image, (planes, sums) in enumerate(zip(batch, dense, strict=True)):
        back = torch.einsum("khw,kc->chw", torch.from_numpy(planes).double(), sums)
        torch.testing.assert_close(spread[image], back)


def check_order(batch: list[Planes]) -> None:
    regions = collate(batch)
    shown = regions.to_pixels(regions.in_largest(3)).numpy()
    for image, planes in enumerate(batch):
        order = sorted(range(len(planes)), key=lambda k: -int(planes[k].sum()))[:3]
        wanted = np.zeros((3, *planes.shape[1:]), np.bool_)
        wanted[: len(order)] = planes[order]
        np.testing.assert_array_equal(shown[image], wanted)
        areas = regions.largest_areas(3)[image].tolist()
        assert areas == wanted.sum(axis=(1, 2)).tolist()


def check_cells(batch: list[Planes], stride: int) -> None:
    regions = collate(batch)
    counts = regions.cell_counts(stride)
    by_sorting = cell_counts_by_sorting(regions.atoms, stride)
    assert all(map(torch.equal, counts.tensors, by_sorting.tensors))
    assert int(counts.count.min()) >= 1
    _, height, width = batch[0].shape
    planes = torch.nn.functional.one_hot(regions.atoms.long(), regions.num_atoms).permute(
        0, 3, 1, 2
    )
    dense = torch.nn.functional.avg_pool2d(planes.double(), stride) * stride**2
    dense = dense.permute(0, 2, 3, 1).reshape(-1, regions.num_atoms)
    table = torch.zeros(len(batch) * height * width // stride**2, regions.num_atoms)
    assert (counts.cell.diff() >= 0).all()
    table[counts.cell, counts.atom] = counts.count.float()
    torch.testing.assert_close(table, dense.float(), rtol=0, atol=1e-3)


@quickly
@given(batches)
def test_pooling_equals_planes_on_rectangles(batch: list[Planes]) -> None:
    check_pooling(batch)
    check_order(batch)
    check_cells(batch, 4)


def test_pooling_equals_planes_on_human_masks(human_batch: list[Planes]) -> None:
    check_pooling(human_batch)
    check_order(human_batch)
    check_cells(human_batch, 8)


def test_masks_keep_order_and_image() -> None:
    first = np.zeros((2, 8, 8), np.bool_)
    first[0, :2], first[1, :5] = True, True
    second = np.zeros((1, 8, 8), np.bool_)
    regions = collate([first, second])
    assert (regions.batch_size, regions.num_masks) == (2, 3)
    assert regions.mask_image.tolist() == [0, 0, 1]
    assert regions.mask_areas.tolist() == [16, 40, 0]
    assert regions.mask_position.tolist() == [0, 1, 0]
    assert regions.mask_rank.tolist() == [1, 0, 0]
    assert (regions.pair_mask.diff() >= 0).all()


def test_a_turned_set_pools_alike() -> None:
    planes = np.zeros((2, 8, 8), np.bool_)
    planes[0, :3], planes[1, 2:, 4:] = True, True
    masks = MaskSet.from_masks(planes)
    turned = MaskSet(np.ascontiguousarray(np.rot90(masks.atoms)), masks.members, masks.columns)
    image = torch.rand(1, 3, 8, 8)
    upright = RegionBatch.collate([masks])
    sideways = RegionBatch.collate([turned])
    torch.testing.assert_close(
        upright.sum_by_mask(upright.sum_by_atom(image)),
        sideways.sum_by_mask(sideways.sum_by_atom(image.rot90(1, (2, 3)))),
    )


def test_sums_are_the_same_in_every_run(human_batch: list[Planes]) -> None:
    regions = collate(human_batch, strides=(4,))
    values = torch.rand(3, 3, 96, 128, requires_grad=True)

    def run() -> tuple[Tensor, Tensor]:
        spread = regions.to_pixels(
            regions.sum_of_masks(regions.sum_by_mask(regions.sum_by_atom(values)))
        )
        (gradient,) = torch.autograd.grad(spread.square().sum(), values)
        return spread.detach(), gradient

    first = run()
    for _ in range(5):
        again = run()
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def test_counts_made_ahead_are_those_made_later(human_batch: list[Planes]) -> None:
    ahead = collate(human_batch, strides=(4, 8))
    later = collate(human_batch)
    assert set(ahead.cells) == {4, 8}
    for stride in (4, 8):
        for made, wanted in zip(
            ahead.cell_counts(stride).tensors, later.cell_counts(stride).tensors, strict=True
        ):
            assert torch.equal(made, wanted)


def test_to_moves_everything() -> None:
    regions = collate([np.ones((1, 8, 8), np.bool_)], strides=(4,)).to("meta")
    assert regions.atoms.device.type == "meta"
    assert regions.pair_mask.device.type == "meta"
    assert regions.cells[4].count.device.type == "meta"


def test_mistakes_say_what_was_wanted() -> None:
    small, large = np.ones((1, 8, 8), np.bool_), np.ones((1, 8, 12), np.bool_)
    with pytest.raises(UsageError, match="one size"):
        collate([small, large])
    with pytest.raises(UsageError, match="one size"):
        collate([])
    with pytest.raises(UsageError, match=r"no multiple of 8.*8x8"):
        collate([large], strides=(8,))
    with pytest.raises(UsageError, match="don't fit images"):
        collate([small]).check_image(torch.zeros(1, 3, 8, 9))


def kept_by_definition(planes: Planes, min_area_px: int, max_iou: float) -> list[bool]:
    keep = [False] * len(planes)
    for k in sorted(range(len(planes)), key=lambda k: -int(planes[k].sum())):
        others = [planes[j] for j in range(len(planes)) if keep[j]]
        ious = [(planes[k] & o).sum() / max((planes[k] | o).sum(), 1) for o in others]
        keep[k] = bool(planes[k].sum() >= min_area_px) and all(iou <= max_iou for iou in ious)
    return keep


@quickly
@given(rectangles(), st.integers(0, 64), st.sampled_from([0.3, 0.5, 0.9]))
def test_kept_masks_follow_the_definition(planes: Planes, min_area_px: int, max_iou: float) -> None:
    masks = MaskSet.from_masks(planes)
    keep = keep_masks(masks.areas, masks.intersections, min_area_px=min_area_px, max_iou=max_iou)
    assert keep.tolist() == kept_by_definition(planes, min_area_px, max_iou)
    assert len(masks.select(keep)) == keep.sum()


def test_small_and_doubled_masks_are_dropped() -> None:
    planes = np.zeros((4, 40, 40), np.bool_)
    planes[0, :7, :9] = True  # 63 px: too small
    planes[1, :20] = True
    planes[2, :20, :39] = True  # IoU 0.975 with the one before
    planes[3, :8, :8] = True  # 64 px: just large enough
    masks = MaskSet.from_masks(planes)
    assert keep_masks(masks.areas, masks.intersections).tolist() == [False, True, False, True]


@given(hnp.arrays(np.bool_, (0, 4, 4)))
def test_no_masks_are_fine(planes: Planes) -> None:
    masks = MaskSet.from_masks(planes)
    assert keep_masks(masks.areas, masks.intersections).shape == (0,)
    assert dropout_masks(0, np.random.default_rng(0)).shape == (0,)


def test_dropout_drops_the_share_and_every_mask_at_times() -> None:
    rng = np.random.default_rng(0)
    kept = np.stack([dropout_masks(10, rng, share=0.3) for _ in range(200)])
    assert (kept.sum(1) == 7).all()
    assert kept.any(0).all()
    assert (~kept).any(0).all()
    # One mask, half a mask to drop: dropped about every second time.
    single = [bool(dropout_masks(1, rng)[0]) for _ in range(400)]
    assert 140 < sum(single) < 260


def test_dropout_belongs_to_its_generator() -> None:
    draw: Callable[[int], list[bool]] = lambda seed: dropout_masks(  # noqa: E731
        9, np.random.default_rng(seed)
    ).tolist()
    assert draw(3) == draw(3)
    assert dropout_masks(5, np.random.default_rng(0), share=0.0).all()
    assert not dropout_masks(5, np.random.default_rng(0), share=1.0).any()
    with pytest.raises(UsageError, match=r"\[0, 1\], got 1.5"):
        dropout_masks(5, np.random.default_rng(0), share=1.5)
