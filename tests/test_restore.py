"""Restoring: tiles equal the whole picture, names are kept, and no picture is lost to another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from samprior.storage.errors import LayoutError, UsageError
from samprior.storage.images import Rgb, read_rgb, write_png
from samprior.training.networks import build_network
from samprior.training.restore import (
    pick_device,
    restoration_plan,
    restore,
    restore_files,
    restore_tiled,
    tile_spans,
    to_uint8,
)

CPU = torch.device("cpu")


@pytest.fixture
def convolutions() -> nn.Module:
    """Sees 3 pixels far in each direction; zero padding, as at the border of the whole image."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1)).eval()


def picture(height: int, width: int, seed: int = 0) -> Rgb:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(length=st.integers(1, 500), tile_px=st.integers(1, 120), data=st.data())
def test_tiles_cover_each_pixel_once(length: int, tile_px: int, data: st.DataObject) -> None:
    overlap_px = data.draw(st.integers(0, tile_px - 1))
    covered = np.zeros(length, int)
    spans = tile_spans(length, tile_px, overlap_px)
    for span in spans:
        assert span.keep.start < span.keep.stop
        covered[span.keep] += 1
        # `inner` is `keep`, counted from the start of the tile.
        assert np.array_equal(
            np.arange(length)[span.read][span.inner], np.arange(length)[span.keep]
        )
        assert span.read.stop - span.read.start == min(tile_px, length)
        # What is kept lies half an overlap from the tile's borders, but for the image's own.
        assert span.read.start == 0 or span.keep.start - span.read.start >= overlap_px // 2
        assert span.read.stop == length or span.read.stop - span.keep.stop >= overlap_px // 2
    assert (covered == 1).all()
    assert len(spans) <= max(1, -(-(length - overlap_px) // (tile_px - overlap_px)))


@pytest.mark.parametrize("shape", [(64, 64), (97, 61), (30, 200), (5, 7), (33, 32)])
@pytest.mark.parametrize(("tile_px", "overlap_px"), [(32, 6), (32, 16), (20, 7)])
@torch.no_grad()
def test_tiles_equal_the_whole_image(
    convolutions: nn.Module, shape: tuple[int, int], tile_px: int, overlap_px: int
) -> None:
    image = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    tiled = restore_tiled(convolutions, image, tile_px=tile_px, overlap_px=overlap_px)
    torch.testing.assert_close(tiled, convolutions(image), rtol=0, atol=1e-6)


@torch.no_grad()
def test_without_overlap_tile_borders_show(convolutions: nn.Module) -> None:
    """Guards the test above: it could not fail if the network saw one pixel alone."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tiled = restore_tiled(convolutions, image, tile_px=32, overlap_px=0)
    wrong = (tiled - convolutions(image)).abs().amax(1)[0] > 1e-6
    near = (torch.arange(64) - 31.5).abs() < 3
    assert wrong.any()
    assert not wrong[~near][:, ~near].any()


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(32, 32), (32, -1), (0, 0)])
def test_an_overlap_that_leaves_nothing_is_refused(tile_px: int, overlap_px: int) -> None:
    with pytest.raises(UsageError, match=f"below the tile's {tile_px} px, got {overlap_px}"):
        restore(nn.Identity(), picture(8, 8), device=CPU, tile_px=tile_px, overlap_px=overlap_px)


@pytest.mark.parametrize("tile_px", [None, 16])
@pytest.mark.parametrize("shape", [(16, 16), (37, 23), (1, 1), (3, 50)])
def test_the_identity_gives_the_identical_picture(
    shape: tuple[int, int], tile_px: int | None
) -> None:
    image = picture(*shape)
    image.reshape(-1)[:256] = np.arange(256)[: image.size]  # every level
    restored = restore(nn.Identity(), image, device=CPU, tile_px=tile_px, overlap_px=4)
    assert restored.dtype == np.uint8
    assert np.array_equal(restored, image)


@pytest.mark.parametrize("shape", [(1, 1), (7, 31), (17, 16)])
def test_odd_sizes_keep_their_size(shape: tuple[int, int]) -> None:
    network = build_network("nafnet", preset="tiny").eval()
    assert restore(network, picture(*shape), device=CPU).shape == (*shape, 3)


def test_levels_are_rounded_and_clipped() -> None:
    values = torch.tensor([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0, 7.0])
    image = values.reshape(1, 1, 7).expand(3, 1, 7)
    assert to_uint8(image)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_a_folder_keeps_its_names_and_its_tree(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    for name in ("b.png", "a/x.JPG", "a/deep/y.tif", "a/notes.txt", ".hidden.png"):
        file = source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".txt":
            file.write_text("no picture")
        else:
            Image.fromarray(picture(9, 12)).save(file)
    plan = restoration_plan(source, target)
    assert plan == [
        (source / "a" / "deep" / "y.tif", target / "a" / "deep" / "y.png"),
        (source / "a" / "x.JPG", target / "a" / "x.png"),
        (source / "b.png", target / "b.png"),
    ]
    seen: list[tuple[int, int]] = []
    failed = restore_files(
        nn.Identity(), plan, device=CPU, progress=lambda done, total: seen.append((done, total))
    )
    assert failed == {}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for before, after in plan:
        assert np.array_equal(read_rgb(after), read_rgb(before))
        with Image.open(after) as image:
            assert image.format == "PNG"
    assert sorted(p.name for p in target.rglob("*")) == ["a", "b.png", "deep", "x.png", "y.png"]


def test_a_file_goes_to_a_file_or_into_a_folder(tmp_path: Path) -> None:
    source = tmp_path / "photo.v2.jpg"
    Image.fromarray(picture(9, 12)).save(source)
    assert restoration_plan(source, tmp_path / "new.png") == [(source, tmp_path / "new.png")]
    assert restoration_plan(source, tmp_path / "new") == [
        (source, tmp_path / "new" / "photo.v2.png")
    ]
    folder = tmp_path / "there.d"
    folder.mkdir()
    assert restoration_plan(source, folder) == [(source, folder / "photo.v2.png")]


def test_results_are_png_alone(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture(4, 4))
    with pytest.raises(UsageError, match=r"PNG, not \.jpg"):
        restoration_plan(tmp_path / "a.png", tmp_path / "b.jpg")


def test_two_inputs_never_become_one_output(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_png(source / "a.png", picture(4, 4))
    Image.fromarray(picture(4, 4)).save(source / "a.jpg")
    with pytest.raises(UsageError, match=r"several inputs would become .*out/a\.png"):
        restoration_plan(source, tmp_path / "out")


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    write_png(tmp_path / "in" / "a.png", picture(4, 4))
    file = tmp_path / "in" / "a.png"
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for source, target in (
        (tmp_path / "in", tmp_path / "in"),
        (tmp_path / "in", tmp_path / "link"),
        (file, file),
        (file, tmp_path / "in"),
    ):
        with pytest.raises(UsageError, match=r"a\.png is an input and would be overwritten"):
            restoration_plan(source, target)


def test_nothing_to_restore_is_said(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="none does not exist"):
        restoration_plan(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match=r"empty holds no image .*\.png"):
        restoration_plan(tmp_path / "empty", tmp_path / "out")


def test_an_unreadable_picture_is_reported_and_the_others_are_restored(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_png(source / "a.png", picture(8, 8))
    write_png(source / "b.png", picture(8, 8))
    (source / "b.png").write_bytes((source / "b.png").read_bytes()[:60])
    write_png(source / "c.png", picture(8, 8))
    plan = restoration_plan(source, tmp_path / "out")
    failed = restore_files(nn.Identity(), plan, device=CPU)
    assert list(failed) == [source / "b.png"]
    assert "b.png" in failed[source / "b.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


class _InTraining(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        assert not self.training
        return image


def test_networks_are_put_into_evaluation_mode(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture(8, 8))
    plan = restoration_plan(tmp_path / "a.png", tmp_path / "out.png")
    assert restore_files(_InTraining().train(), plan, device=CPU) == {}


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}' can't be used") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_auto_finds_a_device() -> None:
    assert pick_device("auto").type in ("cpu", "cuda")
    assert pick_device("cpu") == CPU
