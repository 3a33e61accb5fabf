"""SPF: an identity at the start, and mask features that equal those of boolean planes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samprior.storage import MaskSet
from samprior.storage.errors import UsageError
from samprior.training.priors import (
    MASK_CHANNELS,
    RegionBatch,
    SemanticPriorFusion,
    mask_boundaries,
    mask_features,
)

Planes = npt.NDArray[np.bool_]
HEIGHT, WIDTH = 12, 20


@st.composite
def rectangles(draw: st.DrawFn) -> Planes:
    planes = np.zeros((draw(st.integers(0, 6)), HEIGHT, WIDTH), np.bool_)
    for plane in planes:
        y, x = draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))
        plane[y : y + draw(st.integers(0, HEIGHT)), x : x + draw(st.integers(0, WIDTH))] = True
    return planes


@pytest.fixture
def human_masks(shared_data: Path) -> Planes:
    with np.load(shared_data / "rain" / "human_segmentations" / "015.npz") as content:
        labels = content["segmentations"][:, ::2, ::2]
    planes = [segmentation == v for segmentation in labels for v in np.unique(segmentation)]
    return np.stack(planes)


def collate(*batch: Planes) -> RegionBatch:
    return RegionBatch.collate([MaskSet.from_masks(planes) for planes in batch])


def dense_map(image: Tensor, planes: Planes) -> Tensor:
    """MAP of one image (3, H, W) as in papers on SAM-Deblur, with our division."""
    masks = torch.from_numpy(planes).double()
    total = masks.sum(0)
    uncovered = 1 - total.clamp(0, 1)
    result = torch.zeros_like(image)
    for mask in masks:
        result += mask * ((mask * image).sum((1, 2)) / (mask.sum() + 1e-8))[:, None, None]
    result /= total.clamp(min=1)
    rest = (uncovered * image).sum((1, 2)) / (uncovered.sum() + 1e-8)
    return result + uncovered * rest[:, None, None]


def dense_idmap(planes: Planes) -> npt.NDArray[np.float64]:
    pixels = np.zeros(planes.shape[1:])
    for idx, plane in enumerate(planes):
        pixels[plane] += 2 * (idx + 1) if idx < 127 else 2 * (255 - idx) - 1
    return np.clip(pixels, 0, 255) / 255


def dense_boundaries(planes: Planes) -> Planes:
    """Paint the masks from the largest to the smallest, then compare 4-neighbours."""
    top = np.full(planes.shape[1:], -1)
    for k in sorted(range(len(planes)), key=lambda k: -int(planes[k].sum())):
        top[planes[k]] = k
    padded = np.pad(top, 1, mode="edge")
    return (
        (top != padded[2:, 1:-1])
        | (top != padded[:-2, 1:-1])
        | (top != padded[1:-1, 2:])
        | (top != padded[1:-1, :-2])
    )


def check_features(*batch: Planes) -> None:
    regions = collate(*batch)
    _, height, width = batch[0].shape
    image = torch.rand(len(batch), 3, height, width, dtype=torch.float64)
    by_map = mask_features(image, regions, mask_repr="map")
    by_id = mask_features(image, regions, mask_repr="idmap")
    by_top = mask_features(image, regions, mask_repr="topk")
    for i, planes in enumerate(batch):
        torch.testing.assert_close(by_map[i, :3], dense_map(image[i], planes), rtol=0, atol=1e-7)
        np.testing.assert_allclose(by_id[i, 0].numpy(), dense_idmap(planes), atol=1e-12)
        order = sorted(range(len(planes)), key=lambda k: -int(planes[k].sum()))[:32]
        wanted = np.zeros((32, height, width))
        wanted[: len(order)] = planes[order]
        np.testing.assert_array_equal(by_top[i, :32].numpy(), wanted)
        for features in (by_map, by_id, by_top):
            np.testing.assert_array_equal(features[i, -1].numpy(), dense_boundaries(planes))


@settings(deadline=None, max_examples=40)
@given(st.lists(rectangles(), min_size=1, max_size=3))
def test_features_equal_those_of_planes_on_rectangles(batch: list[Planes]) -> None:
    check_features(*batch)


def test_features_equal_those_of_planes_on_human_masks(human_masks: Planes) -> None:
    assert len(human_masks) > 130, "idmap's second formula starts at mask 127"
    check_features(human_masks, human_masks[::3], human_masks[:0])


@settings(deadline=None, max_examples=40)
@given(rectangles(), st.floats(0, 1, width=32))
def test_map_of_a_constant_image_is_that_constant(planes: Planes, value: float) -> None:
    image = torch.full((1, 3, HEIGHT, WIDTH), value)
    features = mask_features(image, collate(planes), mask_repr="map")
    assert torch.equal(features[:, :3], image)


def test_map_of_a_large_constant_image_is_that_constant() -> None:
    # Single-precision sums would be off in the third digit here.
    planes = np.ones((3, 512, 512), np.bool_)
    planes[1, :300], planes[2, :, 100:] = False, False
    image = torch.full((1, 3, 512, 512), 0.3)
    assert torch.equal(mask_features(image, collate(planes))[:, :3], image)


def test_map_and_boundaries_do_not_depend_on_the_order_of_the_masks() -> None:
    rng = np.random.default_rng(0)
    planes = np.stack([rng.random((16, 16)) < share for share in (0.1, 0.3, 0.5, 0.7)])
    image = torch.rand(1, 3, 16, 16)
    shuffled = planes[[2, 0, 3, 1]]
    torch.testing.assert_close(
        mask_features(image, collate(planes)), mask_features(image, collate(shuffled))
    )
    assert torch.equal(mask_boundaries(collate(planes)), mask_boundaries(collate(shuffled)))


@pytest.mark.parametrize("mask_repr", ["map", "idmap", "topk"])
@pytest.mark.parametrize("use_masks", [True, False])
def test_fusion_starts_as_the_identity(mask_repr: str, *, use_masks: bool) -> None:
    planes = np.zeros((2, 16, 16), np.bool_)
    planes[0, :8], planes[1, 4:12, 4:12] = True, True
    fusion = SemanticPriorFusion(mask_repr, use_masks=use_masks)  # type: ignore[arg-type]
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(fusion(image, collate(planes, planes[:0])), image)


def test_size_is_the_documented_one() -> None:
    assert sum(p.numel() for p in SemanticPriorFusion().parameters()) == 42_019
    assert MASK_CHANNELS == {"map": 4, "idmap": 2, "topk": 33}


@pytest.fixture
def woken() -> SemanticPriorFusion:
    """A fusion whose last convolution is no longer zero."""
    fusion = SemanticPriorFusion()
    torch.nn.init.normal_(fusion.to_image.weight, generator=torch.Generator().manual_seed(0))
    return fusion


def test_masks_reach_the_result_unless_turned_off(woken: SemanticPriorFusion) -> None:
    planes = np.zeros((1, 16, 16), np.bool_)
    planes[0, :8] = True
    image = torch.rand(1, 3, 16, 16)
    one, other = collate(planes), collate(planes.transpose(0, 2, 1).copy())
    assert not torch.equal(woken(image, one), woken(image, other))
    woken.use_masks = False
    assert torch.equal(woken(image, one), woken(image, other))


def test_gradient_reaches_every_parameter_and_the_image(woken: SemanticPriorFusion) -> None:
    planes = np.zeros((1, 16, 16), np.bool_)
    planes[0, :8] = True
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    woken(image, collate(planes)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in woken.parameters())
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_mistakes_say_what_was_wanted() -> None:
    regions = collate(np.ones((1, 8, 8), np.bool_))
    with pytest.raises(UsageError, match="did you mean 'idmap'"):
        SemanticPriorFusion("idmaps")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="don't fit images"):
        SemanticPriorFusion()(torch.zeros(1, 3, 16, 16), regions)
