"""Rain over crops and MixUp: functions of seed and sample alone, and masks stay where they were."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samprior.storage import MaskStore
from samprior.storage.errors import ConfigError, ImageError
from samprior.storage.images import write_png
from samprior.training.data import Crops
from samprior.training.loader import CropLoader
from samprior.training.mixing import RainLayers, mix_up, open_rain_layers, rain_layers_digest

MakeStore = Callable[..., MaskStore]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixing") / "store"


@pytest.fixture
def store(root: Path, make_store: MakeStore) -> MaskStore:
    return MaskStore.open(root) if root.exists() else make_store(root, ((40, 56), (33, 48)))


def rain() -> RainLayers:
    layers = open_rain_layers("synthetic", 32, seed=0)
    assert layers is not None
    return layers


def test_nothing_is_mixed_unless_asked_for(store: MaskStore) -> None:
    crops = Crops(store=store, crop_px=32, seed=1)
    for sample in range(4):
        place = crops.place(sample)
        degraded, clean = np.empty((2, 32, 32, 3), np.uint8)
        crops.read_pictures(place, degraded, clean)
        read = crops.read(sample)
        assert np.array_equal(read[0], degraded)
        assert np.array_equal(read[1], clean)


def test_mixup_is_a_weighted_mean_of_two_crops_of_the_store(store: MaskStore) -> None:
    plain = Crops(store=store, crop_px=32, seed=1)
    mixing = Crops(store=store, crop_px=32, seed=1, mixup_alpha=1.2)
    shares = []
    for sample in range(8):
        before, after = plain.read(sample), mixing.read(sample)
        assert np.array_equal(before[2].to_masks(), after[2].to_masks())  # masks
        assert before[3] == after[3]
        # One share for both pictures: what is added to them is that much of another pair.
        moved = [a.astype(float) - b for b, a in zip(before[:2], after[:2], strict=True)]
        assert all(np.abs(m).max() > 0 for m in moved)
        shares.append(float(np.mean([np.abs(m).mean() for m in moved])))
    assert np.std(shares) > 0


def test_a_share_of_the_crops_is_mixed_and_the_others_stay(store: MaskStore) -> None:
    plain, every, half = (
        Crops(store=store, crop_px=32, seed=1, mixup_alpha=alpha, mixup_share=share)
        for alpha, share in ((0.0, 1.0), (1.2, 1.0), (1.2, 0.5))
    )
    num_mixed = 0
    for sample in range(80):
        as_read, mixed, found = (crops.read(sample)[:2] for crops in (plain, every, half))
        # What a crop is mixed with does not depend on how many are mixed.
        is_mixed = not np.array_equal(found[0], as_read[0])
        wanted = mixed if is_mixed else as_read
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
        num_mixed += is_mixed
    assert 25 <= num_mixed <= 55


def test_mixing_by_hand() -> None:
    ours = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), 10, np.uint8)
    theirs = np.full((2, 2, 3), 200, np.uint8), np.full((2, 2, 3), 25, np.uint8)
    mix_up(ours, theirs, 0.75)
    assert set(ours[0].ravel().tolist()) == {125}
    assert set(ours[1].ravel().tolist()) == {14}  # 13.75


def test_rain_brightens_the_degraded_crop_alone(store: MaskStore) -> None:
    plain = Crops(store=store, crop_px=32, seed=1)
    raining = Crops(store=store, crop_px=32, seed=1, rain_layers=rain())
    changed = 0
    for sample in range(6):
        before, after = plain.read(sample), raining.read(sample)
        assert np.array_equal(before[1], after[1])
        assert np.array_equal(before[2].to_masks(), after[2].to_masks())
        # Rain is laid over the rainy crop or over its clean version, and only ever adds light.
        over = [after[0].astype(int) - each for each in (before[0], before[1])]
        assert any(difference.min() >= 0 for difference in over)
        changed += not np.array_equal(before[0], after[0])
    assert changed >= 5


def test_mixed_crops_depend_on_their_number_alone(store: MaskStore) -> None:
    crops = Crops(store=store, crop_px=32, seed=2, mixup_alpha=0.5, rain_layers=rain())

    def pictures(first: int, batch_size: int, threads: int) -> list[bytes]:
        loader = CropLoader(
            crops=crops,
            batch_size=batch_size,
            first=first,
            num_batches=(8 - first) // batch_size,
            strides=None,
            threads=threads,
        )
        return [
            raw.buffer.pictures[:, row].numpy().tobytes()
            for raw in loader
            for row in range(batch_size)
        ]

    whole = pictures(0, 2, 0)
    assert pictures(4, 4, 2) == whole[4:]
    again = Crops(store=store, crop_px=32, seed=3, mixup_alpha=0.5, rain_layers=rain())
    assert again.read(0)[0].tobytes() != crops.read(0)[0].tobytes()


# ---- layers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    layers = tmp_path / "layers"
    layers.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("b.png", (40, 50)), ("a.png", (64, 33))):
        grey = rng.integers(0, 256, shape, dtype=np.uint8)
        write_png(layers / name, np.repeat(grey[..., None], 3, axis=-1))
    (layers / "notes.txt").write_text("not a picture")
    return layers


def test_layers_are_read_in_the_order_of_their_names(folder: Path) -> None:
    layers = open_rain_layers(str(folder), 32, seed=0)
    assert layers is not None
    assert [layer.shape for layer in layers] == [(64, 33), (40, 50)]
    assert all(layer.min() >= 0 and layer.max() <= 1 for layer in layers)


def test_synthetic_layers_hold_a_crop_and_follow_the_seed() -> None:
    one, same, other = (open_rain_layers("synthetic", 600, seed=seed) for seed in (0, 0, 1))
    assert one is not None
    assert same is not None
    assert other is not None
    assert all(layer.shape == (600, 600) for layer in one)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_layers_are_known_by_content(folder: Path) -> None:
    before = rain_layers_digest(str(folder))
    moved = folder.rename(folder.with_name("moved"))
    assert rain_layers_digest(str(moved)) == before
    (moved / "a.png").unlink()
    assert rain_layers_digest(str(moved)) != before
    assert rain_layers_digest("synthetic") == "synthetic"
    assert rain_layers_digest(None) is None


def test_layers_that_can_not_be_had_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.png is 33x64, and rain layers must hold a crop"):
        open_rain_layers(str(folder), 40, seed=0)
    for where in ("sinthetic", str(tmp_path / "none")):
        with pytest.raises(ConfigError, match="which is no folder; name one of pictures"):
            open_rain_layers(where, 32, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no pictures"):
        rain_layers_digest(str(tmp_path / "empty"))
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png"):
        open_rain_layers(str(folder), 32, seed=0)
