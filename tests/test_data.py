"""Training crops: each image once an epoch, the same sequence however it is read, masks in step."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samprior.storage import MaskStore
from samprior.storage.errors import ConfigError, StoreError
from samprior.training.data import Crops, content_digest, to_tensor
from samprior.training.priors.regions import dropout_masks, keep_masks
from samprior.training.sampling import Place, permutation

MakeStore = Callable[..., MaskStore]
SHAPES = ((40, 56), (56, 40), (33, 70), (90, 100), (32, 32))


@pytest.fixture(scope="module")
def place_of_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "store"


@pytest.fixture
def store(place_of_store: Path, make_store: MakeStore) -> MaskStore:
    """One for all tests, written by the first; none may change it."""
    there = place_of_store.exists()
    return MaskStore.open(place_of_store) if there else make_store(place_of_store, SHAPES)


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6), length=st.integers(1, 300))
def test_an_epoch_has_each_index_once(seed: int, epoch: int, length: int) -> None:
    assert sorted(permutation(seed, epoch, length)) == list(range(length))


def test_the_order_of_an_epoch_is_pinned() -> None:
    # May change only when NumPy changes the stream of Generator.permutation (NEP 19 allows it in
    # a feature release). Then runs broken off before go on with other crops: say so in CHANGELOG.
    assert permutation(0, 0, 8).tolist() == [1, 6, 5, 3, 0, 4, 7, 2]
    assert permutation(0, 1, 8).tolist() == [7, 0, 6, 4, 3, 1, 5, 2]


def test_the_order_can_not_be_changed_for_the_next_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 0, 8)[0] = 3


def test_the_place_of_a_crop_is_pinned(store: MaskStore) -> None:
    # As above: may change with NumPy's streams alone.
    place = Crops(store=store, crop_px=32, seed=0).place(8)
    assert place == Place(index=3, y=51, x=34, flip=False, quarter_turns=2)


def test_each_image_comes_once_an_epoch_and_epochs_differ(store: MaskStore) -> None:
    crops = Crops(store=store, crop_px=32, seed=1)
    epochs = [[crops.place(5 * epoch + i).index for i in range(5)] for epoch in range(6)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    places = [crops.place(sample) for sample in range(50)]
    assert len(set(places)) > 40
    assert {place.quarter_turns for place in places} == {0, 1, 2, 3}
    assert {place.flip for place in places} == {False, True}


def test_crops_reach_all_corners_of_an_image_and_stay_inside(store: MaskStore) -> None:
    crops = Crops(store=store, crop_px=32, seed=0)
    in_first = [place for place in map(crops.place, range(4000)) if place.index == 0]
    assert {place.y for place in in_first} == set(range(40 - 32 + 1))
    assert {place.x for place in in_first} == set(range(56 - 32 + 1))


def test_seeds_give_other_crops(store: MaskStore) -> None:
    first, second = (Crops(store=store, crop_px=32, seed=seed) for seed in (0, 1))
    assert [first.place(i) for i in range(10)] != [second.place(i) for i in range(10)]


def test_without_augmentation_nothing_is_turned_and_crops_lie_where_they_did(
    store: MaskStore,
) -> None:
    turned = Crops(store=store, crop_px=32, seed=0)
    plain = Crops(store=store, crop_px=32, seed=0, augment="none")
    flipped = Crops(store=store, crop_px=32, seed=0, augment="hflip")
    for sample in range(20):
        a, b, c = (crops.place(sample) for crops in (turned, plain, flipped))
        assert (a.index, a.y, a.x) == (b.index, b.y, b.x) == (c.index, c.y, c.x)
        assert (b.flip, b.quarter_turns) == (False, 0)
        assert (c.flip, c.quarter_turns) == (a.flip, 0)


def test_flips_alone_mirror_left_to_right(store: MaskStore) -> None:
    crops = Crops(store=store, crop_px=32, seed=0, augment="hflip", min_mask_px=0, max_mask_iou=1)
    straight = Crops(store=store, crop_px=32, seed=0, augment="none", min_mask_px=0, max_mask_iou=1)
    flips = set()
    for sample in range(12):
        flip = crops.place(sample).flip
        flips.add(flip)
        degraded, clean, masks, key = crops.read(sample)
        before = straight.read(sample)
        step = -1 if flip else 1
        assert np.array_equal(degraded, before[0][:, ::step])
        assert np.array_equal(clean, before[1][:, ::step])
        assert np.array_equal(masks.to_masks(), before[2].to_masks()[:, :, ::step])
        assert key == before[3]
    assert flips == {False, True}


def test_images_and_masks_turn_together(store: MaskStore) -> None:
    """As if the turned image's masks had been cut from the image's own dense masks."""
    crops = Crops(store=store, crop_px=32, seed=0, min_mask_px=9, max_mask_iou=0.8)
    turns = set()
    for sample in range(40):
        place = crops.place(sample)
        record = store[place.index]
        kept = keep_masks(
            record.masks.areas, record.masks.intersections, min_area_px=9, max_iou=0.8
        )
        window = np.s_[place.y : place.y + 32, place.x : place.x + 32]
        planes = [plane[window] for plane in record.masks.to_masks()[kept]]
        wanted = [by_hand(plane, place) for plane in planes if plane.any()]

        degraded, clean, masks, key = crops.read(sample)
        assert key == record.key
        assert np.array_equal(degraded, by_hand(record.degraded[window], place))
        assert np.array_equal(clean, by_hand(record.clean[window], place))
        assert np.array_equal(masks.to_masks(), np.array(wanted).reshape(-1, 32, 32))
        turns.add((place.flip, place.quarter_turns))
    assert len(turns) == 8


def by_hand(image: npt.NDArray[np.generic], place: Place) -> npt.NDArray[np.generic]:
    """Mirror and turn by indices alone: one quarter turn takes the right edge to the top."""
    side = len(image)
    source = image[:, ::-1] if place.flip else image
    # Row i of the turned image is the source's column n - 1 - i, read downwards.
    rows, columns = np.mgrid[:side, :side]
    for _ in range(place.quarter_turns):
        rows, columns = columns, side - 1 - rows
    return source[rows, columns]


def test_dropout_hides_masks_and_never_moves_a_crop(store: MaskStore) -> None:
    plain = Crops(store=store, crop_px=32, seed=0, min_mask_px=1)
    dropping = Crops(store=store, crop_px=32, seed=0, min_mask_px=1, mask_dropout=0.5)
    num_masks = [0, 0]
    for sample in range(40):
        a, b = plain.read(sample), dropping.read(sample)
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[1], b[1])
        there = {plane.tobytes() for plane in a[2].to_masks()}
        assert all(plane.tobytes() in there for plane in b[2].to_masks())
        num_masks[0] += len(a[2])
        num_masks[1] += len(b[2])
    assert 0.3 < num_masks[1] / num_masks[0] < 0.7


def test_all_masks_can_be_dropped(store: MaskStore) -> None:
    crops = Crops(store=store, crop_px=32, seed=0, mask_dropout=1.0)
    assert all(len(crops.read(sample)[2]) == 0 for sample in range(10))
    assert not dropout_masks(5, np.random.default_rng(0), share=1.0).any()


def test_a_crop_larger_than_an_image_names_the_setting_and_the_image(store: MaskStore) -> None:
    with pytest.raises(ConfigError, match=r"data\.crop_px is 40, but image images/002 is 70x33"):
        Crops(store=store, crop_px=40, seed=0)


def test_images_without_degraded_sides_are_refused(tmp_path: Path, make_store: MakeStore) -> None:
    alone = make_store(tmp_path / "alone", SHAPES, paired=False)
    with pytest.raises(ConfigError, match="alone holds images without degraded sides"):
        Crops(store=alone, crop_px=32, seed=0)


def test_an_unfinished_store_is_refused(tmp_path: Path, store: MaskStore) -> None:
    unfinished = shutil.copytree(store.root, tmp_path / "unfinished")
    (unfinished / "receipts" / "000001.json").unlink()
    with pytest.raises(StoreError, match="2 of 3 shards"):
        Crops(store=MaskStore.open(unfinished), crop_px=32, seed=0)


def test_content_digest_tells_stores_apart_that_were_made_alike(
    tmp_path: Path, make_store: MakeStore
) -> None:
    made_of = {"recipe": "the same"}
    one = make_store(tmp_path / "one", made_of=made_of, seed=0)
    two = make_store(tmp_path / "two", made_of=made_of, seed=1)
    assert one.fingerprint == two.fingerprint
    assert content_digest(one) != content_digest(two)
    shutil.move(one.root, tmp_path / "moved")
    assert content_digest(MaskStore.open(tmp_path / "moved")) == content_digest(one)


def test_tensors_hold_every_level_exactly() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor([levels, levels[::-1]])
    assert tensor.shape == (2, 3, 16, 16)
    assert tensor.dtype == torch.float32
    wanted = np.moveaxis(levels, 2, 0).astype(np.float32) / np.float32(255)
    assert np.array_equal(tensor[0].numpy(), wanted)
    assert torch.equal(tensor[1], tensor[0].flip(1))
