"""SGR: zero for equal images, blind to mask order, equal to planes, and moves only the student."""

import re
import urllib.error
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage import MaskSet
from samprior.storage.errors import CheckpointError, UsageError
from samprior.training.priors import RegionBatch, RelationLoss, build_analyzer

Planes = npt.NDArray[np.bool_]


class PatchAnalyzer(nn.Module):
    """Two feature maps of strides 2 and 4 by fixed smooth functions of the patches."""

    name = "patches"
    strides = (2, 4)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.kernels = [
            torch.randn(5, 3, stride, stride, generator=generator, dtype=torch.float64)
            for stride in self.strides
        ]

    def forward(self, image: Tensor) -> list[Tensor]:
        return [
            F.softplus(F.conv2d(image, kernel.to(image.dtype), stride=stride))
            for kernel, stride in zip(self.kernels, self.strides, strict=True)
        ]


def collate(*batch: Planes) -> RegionBatch:
    return RegionBatch.collate([MaskSet.from_masks(planes) for planes in batch])


def random_images(batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, batch, 3, height, width)
    first, second = torch.rand(shape, generator=generator, dtype=torch.float64)
    return first, second


def dense_loss(
    first: Tensor, second: Tensor, batch: list[Planes], *, eta: float = 0.1, max_regions: int = 32
) -> float:
    """The formulas of the loss, on boolean planes resized by `interpolate(mode="area")`."""
    analyzer = PatchAnalyzer()
    total = 0.0
    for ours, theirs in zip(analyzer(first), analyzer(second), strict=True):
        for i, planes in enumerate(batch):
            order = sorted(range(len(planes)), key=lambda k: -int(planes[k].sum()))
            rest = ~planes.any(axis=0)
            masks = torch.from_numpy(np.stack([rest, *planes[order]])).double()
            resized = F.interpolate(masks[None], size=ours.shape[2:], mode="area")[0]
            kept = resized.sum((1, 2)) >= 1
            nodes = torch.cat([resized[:1][kept[:1]], resized[1:][kept[1:]][:max_regions]])
            if len(nodes) < 2:
                continue
            u, v = (
                torch.einsum("kp,cp->kc", nodes.flatten(1), features[i].flatten(1))
                / nodes.sum((1, 2))[:, None]
                for features in (ours, theirs)
            )
            cos_u = F.cosine_similarity(u[:, None], u[None], dim=2)
            cos_v = F.cosine_similarity(v[:, None], v[None], dim=2)
            node_term = (1 - F.cosine_similarity(u, v, dim=1)).mean()
            total += float((cos_u - cos_v).square().mean() + eta * node_term)
    return total / len(batch)


@st.composite
def rectangles(draw: st.DrawFn) -> Planes:
    planes = np.zeros((draw(st.integers(0, 6)), 12, 20), np.bool_)
    for plane in planes:
        y, x = draw(st.integers(0, 11)), draw(st.integers(0, 19))
        plane[y : y + draw(st.integers(0, 12)), x : x + draw(st.integers(0, 20))] = True
    return planes


@settings(deadline=None, max_examples=40)
@given(st.lists(rectangles(), min_size=1, max_size=3), st.integers(1, 4))
def test_loss_equals_planes_on_rectangles(batch: list[Planes], max_regions: int) -> None:
    first, second = random_images(len(batch), 12, 20)
    loss = RelationLoss(PatchAnalyzer(), max_regions=max_regions)(first, second, collate(*batch))
    wanted = dense_loss(first, second, batch, max_regions=max_regions)
    assert loss.item() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_loss_equals_planes_on_human_masks(shared_data: Path, eta: float) -> None:
    with np.load(shared_data / "rain" / "human_segmentations" / "015.npz") as content:
        labels = content["segmentations"][:, 100:196, 60:188]
    planes = np.stack([one == v for one in labels for v in np.unique(one)])
    batch = [planes, planes[::5], planes[:1]]
    first, second = random_images(3, 96, 128)
    loss = RelationLoss(PatchAnalyzer(), eta=eta)(first, second, collate(*batch))
    assert loss.item() == pytest.approx(dense_loss(first, second, batch, eta=eta), rel=1e-6)


@pytest.fixture
def quarters() -> Planes:
    """Four masks that overlap and leave some pixels out, of different areas."""
    planes = np.zeros((4, 16, 16), np.bool_)
    planes[0, :9, :9], planes[1, 6:, :7], planes[2, :8, 5:15], planes[3, 2:14, 2:5] = (True,) * 4
    return planes


def test_equal_images_give_exactly_zero(quarters: Planes) -> None:
    image = torch.rand(2, 3, 16, 16)
    student = image.clone().requires_grad_()
    loss = RelationLoss(PatchAnalyzer())(student, image, collate(quarters, quarters[:1]))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_order_of_the_masks_does_not_matter(quarters: Planes) -> None:
    first, second = random_images(1, 16, 16)
    loss = RelationLoss(PatchAnalyzer(), max_regions=3)
    results = [
        loss(first, second, collate(quarters[order])).item()
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1])
    ]
    assert results == pytest.approx([results[0]] * 3, rel=1e-12)


def test_fewer_than_two_regions_give_zero_and_a_zero_gradient() -> None:
    none, whole = np.zeros((0, 8, 8), np.bool_), np.ones((1, 8, 8), np.bool_)
    empty = np.zeros((1, 8, 8), np.bool_)
    first, second = random_images(3, 8, 8)
    first.requires_grad_()
    loss = RelationLoss(PatchAnalyzer())(first, second, collate(none, whole, empty))
    loss.backward()
    assert loss.item() == 0
    assert first.grad is not None
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_one_mask_and_the_rest_are_two_regions() -> None:
    half = np.zeros((1, 8, 8), np.bool_)
    half[0, :4] = True
    first, second = random_images(1, 8, 8)
    assert RelationLoss(PatchAnalyzer())(first, second, collate(half)).item() > 0


def test_only_the_student_gets_a_gradient(quarters: Planes) -> None:
    first, second = (image.requires_grad_() for image in random_images(1, 16, 16))
    RelationLoss(PatchAnalyzer())(first, second, collate(quarters)).backward()
    assert second.grad is None
    assert first.grad is not None
    assert first.grad.any()


def test_gradient_equals_finite_differences(quarters: Planes) -> None:
    first, second = random_images(1, 8, 8)
    loss, regions = RelationLoss(PatchAnalyzer()), collate(quarters[:, ::2, ::2])
    assert torch.autograd.gradcheck(lambda x: loss(x, second, regions), first.requires_grad_())


def test_autocast_does_not_coarsen_the_loss(quarters: Planes) -> None:
    class Means:
        name = "means"
        strides = (4,)

        def __call__(self, image: Tensor) -> list[Tensor]:
            return [F.avg_pool2d(image, 4)]

    loss, regions = RelationLoss(Means()), collate(quarters)
    first, second = (image.float() for image in random_images(1, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(first, second, regions)
    assert torch.equal(cast, loss(first, second, regions))


def test_descending_the_loss_draws_the_relations_together(quarters: Planes) -> None:
    first, second = random_images(1, 16, 16)
    loss, regions = RelationLoss(PatchAnalyzer(), eta=0), collate(quarters)
    student = first.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.02)
    before = loss(student, second, regions).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(student, second, regions).backward()
        optimizer.step()
    assert loss(student, second, regions).item() < 0.1 * before


def test_mistakes_say_what_was_wanted() -> None:
    loss, image = RelationLoss(PatchAnalyzer()), torch.rand(1, 3, 10, 8)
    with pytest.raises(UsageError, match="no multiple of 4"):
        loss(image, image, collate(np.ones((1, 10, 8), np.bool_)))
    with pytest.raises(UsageError, match="don't fit images"):
        loss(image, image, collate(np.ones((1, 8, 8), np.bool_)))
    with pytest.raises(UsageError, match="eta must be at least 0"):
        RelationLoss(PatchAnalyzer(), eta=-1)
    with pytest.raises(UsageError, match="max_regions at least 1"):
        RelationLoss(PatchAnalyzer(), max_regions=0)


def test_vgg_features_have_the_documented_shapes() -> None:
    analyzer = build_analyzer("random-vgg")
    assert analyzer.name == "random-vgg"
    assert analyzer.strides == (4, 8)
    shapes = [tuple(features.shape) for features in analyzer(torch.rand(1, 3, 32, 48))]
    assert shapes == [(1, 256, 8, 12), (1, 512, 4, 6)]


def test_vgg16_is_the_same_with_fewer_layers() -> None:
    larger, lighter = build_analyzer("random-vgg"), build_analyzer("random-vgg16")
    assert lighter.name == "random-vgg16"
    assert lighter.strides == larger.strides
    assert len(lighter.features) < len(larger.features)
    image = torch.rand(1, 3, 32, 48)
    shapes = [[features.shape for features in each(image)] for each in (larger, lighter)]
    assert shapes[0] == shapes[1]


def test_other_layers_than_the_usual_are_told_with_the_name() -> None:
    usual = build_analyzer("random-vgg", layers=("relu3_4", "relu4_4"))
    assert usual.name == "random-vgg"
    assert build_analyzer("random-vgg16", layers=["relu2_2"]).name == "random-vgg16 at relu2_2"


def test_layers_come_in_the_order_asked_for() -> None:
    analyzer = build_analyzer("random-vgg", layers=("relu2_2", "relu1_1"))
    assert analyzer.strides == (2, 1)
    deep, shallow = analyzer(torch.rand(1, 3, 16, 16))
    assert (tuple(deep.shape), tuple(shallow.shape)) == ((1, 128, 8, 8), (1, 64, 16, 16))


def test_random_vgg_is_frozen_seeded_and_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first = build_analyzer("random-vgg", layers=("relu1_2",))
    assert torch.equal(torch.get_rng_state(), before)
    second = build_analyzer("random-vgg", layers=("relu1_2",))
    other = build_analyzer("random-vgg", layers=("relu1_2",), seed=1)
    key = "features.2.weight"
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert not any(p.requires_grad for p in first.parameters())
    wrapper = RelationLoss(first).train()
    assert wrapper.training
    assert not any(module.training for module in first.modules())


def test_images_are_clamped_and_normalised() -> None:
    analyzer = build_analyzer("random-vgg", layers=("relu1_1",))
    wild = torch.randn(1, 3, 8, 8) * 2
    (features,) = analyzer(wild)
    assert torch.equal(features, analyzer(wild.clamp(0, 1))[0])
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    weight = analyzer.state_dict()["features.0.weight"]
    by_hand = F.conv2d((wild.clamp(0, 1) - mean) / std, weight, padding=1).relu()
    torch.testing.assert_close(features, by_hand)


def test_loss_with_a_vgg_moves_the_student_alone(quarters: Planes) -> None:
    planes = quarters.repeat(2, axis=1).repeat(2, axis=2)
    analyzer = build_analyzer("random-vgg")
    first, second = (image.float() for image in random_images(1, 32, 32))
    first.requires_grad_()
    RelationLoss(analyzer)(first, second, collate(planes)).backward()
    assert first.grad is not None
    assert first.grad.any()
    assert first.grad.isfinite().all()
    assert all(p.grad is None for p in analyzer.parameters())


def test_weights_of_torchvision_load_into_the_right_places(tmp_path: Path) -> None:
    from torchvision.models import vgg

    reference = vgg.make_layers(vgg.cfgs["D"]).eval()
    file = tmp_path / "mine.pth"
    torch.save({f"features.{key}": value for key, value in reference.state_dict().items()}, file)
    analyzer = build_analyzer("vgg16", weights=file)
    assert analyzer.name == "vgg16 (mine.pth)"
    image = torch.rand(1, 3, 16, 16)
    normalised = (image - analyzer.mean) / analyzer.std
    with torch.no_grad():
        for features, depth in zip(analyzer(image), (16, 23), strict=True):
            torch.testing.assert_close(features, reference[:depth](normalised))


def test_missing_weights_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    expected = tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth"
    with pytest.raises(CheckpointError, match=re.escape(str(expected))) as caught:
        build_analyzer("vgg19")
    assert "random-vgg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unfit_weights_are_refused(tmp_path: Path) -> None:
    damaged, foreign, listed = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "c.pth"
    damaged.write_bytes(b"not a checkpoint")
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3)}, foreign)
    torch.save([1, 2], listed)
    cases = [
        (damaged, "can't be read from"),
        (tmp_path / "d.pth", "can't be read from"),
        (foreign, "features.0.weight must be (64, 3, 3, 3), the file has (64, 1, 3, 3)"),
        (listed, "holds a list"),
    ]
    for file, message in cases:
        with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
            build_analyzer("vgg19", weights=file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg91"}, "did you mean 'vgg19'?"),
        ({"name": "random-vgg", "weights": Path("x.pth")}, "random-vgg takes no weights"),
        ({"name": "random-vgg16", "weights": Path("x.pth")}, "did you mean vgg16?"),
        ({"name": "random-vgg16", "layers": ("relu3_4",)}, "unknown layer of vgg16 'relu3_4'"),
        ({"name": "vgg16", "layers": ("relu3_3", "relu3_3")}, "once each, got relu3_3, relu3_3"),
        ({"name": "random-vgg", "layers": ("relu9_1",)}, "unknown layer of vgg19 'relu9_1'"),
        ({"name": "random-vgg", "layers": ()}, "at least one layer"),
    ],
)
def test_unknown_analyzers_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        build_analyzer(**arguments)  # type: ignore[arg-type]
