"""Batches: the same sequence for any threads, ranks and workers, resumed anywhere, memory flat."""

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from samprior.storage import MaskStore
from samprior.storage.errors import ConfigError
from samprior.training.data import Crops, to_tensor
from samprior.training.loader import CropDataset, CropLoader, RawBatch
from samprior.training.priors import RegionBatch
from samprior.training.sampling import Draws, Place, image_of, share_of_rank
from samprior.training.turns import turn_atoms, turn_picture

MakeStore = Callable[..., MaskStore]
SHAPES = ((40, 56), (56, 40), (33, 70), (90, 100), (32, 32), (64, 48), (50, 50))
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings(
    # DataLoader warns of more workers than cores; the sequence is what is tested.
    "ignore:This DataLoader will create:UserWarning"
)


@pytest.fixture(scope="module")
def place_of_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loader") / "store"


@pytest.fixture
def store(place_of_store: Path, make_store: MakeStore) -> MaskStore:
    there = place_of_store.exists()
    return MaskStore.open(place_of_store) if there else make_store(place_of_store, SHAPES)


@pytest.fixture
def crops(store: MaskStore) -> Crops:
    return Crops(store=store, crop_px=32, seed=0, min_mask_px=1, mask_dropout=0.5)


def bits(raw: RawBatch) -> list[torch.Tensor]:
    """A copy of all that a batch holds."""
    assert raw.regions is not None
    regions = raw.regions
    parts = [raw.degraded, raw.clean, regions.atoms, regions.pair_atom, regions.pair_mask]
    parts += [regions.mask_rank, regions.atom_top, *regions.cells[4].tensors]
    return [part.clone() for part in parts]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def read(crops: Crops, **settings: int) -> list[list[torch.Tensor]]:
    return [bits(raw) for raw in CropLoader(crops=crops, strides=(4,), **settings)]


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_the_sequence_depends_neither_on_threads_nor_on_where_it_starts(
    crops: Crops, store: MaskStore, threads: int
) -> None:
    one_by_one = read(crops, batch_size=3, num_batches=6, threads=0)
    whole = read(crops, batch_size=3, num_batches=6, threads=threads)
    again = Crops(
        store=MaskStore.open(store.root), crop_px=32, seed=0, min_mask_px=1, mask_dropout=0.5
    )
    resumed = read(again, batch_size=3, first=6, num_batches=4, threads=threads)
    assert len(whole) == 6
    assert all(map(same, whole, one_by_one))
    assert all(map(same, resumed, one_by_one[2:]))


@pytest.mark.parametrize("stop", range(1, 15))
def test_broken_off_after_any_sample_the_sequence_goes_on_as_if_unbroken(
    crops: Crops, stop: int
) -> None:
    keys = [raw.keys for raw in CropLoader(crops=crops, batch_size=1, num_batches=20)]
    before = CropLoader(crops=crops, batch_size=1, num_batches=stop)
    *_, last = (raw for raw in before)
    after = CropLoader(crops=crops, batch_size=1, first=last.samples.stop, num_batches=20 - stop)
    assert keys[stop:] == [raw.keys for raw in after]


def test_batches_of_another_size_cut_the_same_sequence(crops: Crops) -> None:
    by_two, by_four = (
        torch.cat(
            [
                raw.clean.clone()
                for raw in CropLoader(crops=crops, batch_size=size, num_batches=8 // size)
            ]
        )
        for size in (2, 4)
    )
    assert torch.equal(by_two, by_four)


def test_ranks_share_the_sequence_whatever_their_number(crops: Crops) -> None:
    alone = [
        key for raw in CropLoader(crops=crops, batch_size=2, num_batches=12) for key in raw.keys
    ]
    for world_size in (2, 3):
        ranks = [
            [
                raw.keys
                for raw in CropLoader(
                    crops=crops,
                    batch_size=2,
                    num_batches=12 // world_size,
                    rank=rank,
                    world_size=world_size,
                )
            ]
            for rank in range(world_size)
        ]
        by_step = [key for step in zip(*ranks, strict=True) for keys in step for key in keys]
        assert by_step == alone


def test_two_ranks_with_three_workers_see_each_image_once_an_epoch(crops: Crops) -> None:
    num_images, epochs = len(SHAPES), 6
    seen: list[str] = []
    batches: list[list[tuple[str, ...]]] = []
    for rank in range(2):
        # 42 samples: a batch of one each, in turn for both ranks.
        loader = CropLoader(
            crops=crops, batch_size=1, num_batches=num_images * epochs // 2, rank=rank, world_size=2
        )
        view = DataLoader(
            CropDataset(loader), batch_size=None, num_workers=3, multiprocessing_context="fork"
        )
        batches.append([batch["keys"] for batch in view])
    for step in zip(*batches, strict=True):
        seen += [key for keys in step for key in keys]
    for epoch in range(epochs):
        held = seen[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(held) == sorted(crops.store.keys)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_view_for_a_data_loader_gives_the_loader_s_batches(crops: Crops, workers: int) -> None:
    loader = CropLoader(crops=crops, batch_size=2, num_batches=7)
    wanted = [(raw.samples, raw.keys, raw.degraded.clone()) for raw in loader]
    view = DataLoader(
        CropDataset(loader),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    for (samples, keys, degraded), batch in zip(wanted, view, strict=True):
        assert batch["first"] == samples.start
        assert tuple(batch["keys"]) == keys
        assert torch.equal(batch["degraded"], degraded)


def test_a_batch_is_whole_until_the_next_one_is_taken(crops: Crops) -> None:
    settings = {"batch_size": 2, "num_batches": 40}
    copies = [raw.clean.clone() for raw in CropLoader(crops=crops, **settings, threads=0)]
    for raw, wanted in zip(CropLoader(crops=crops, **settings, threads=4), copies, strict=True):
        assert torch.equal(raw.clean, wanted)


def test_on_the_device_a_batch_is_floats_of_its_own(crops: Crops) -> None:
    raw = next(iter(CropLoader(crops=crops, batch_size=3, strides=None)))
    batch = raw.to(CPU)
    assert batch.regions is None
    assert batch.degraded.shape == (3, 3, 32, 32)
    assert torch.equal(batch.clean, to_tensor(list(raw.clean.numpy())))
    raw.buffer.pictures.zero_()
    assert batch.clean.any()


def test_breaking_off_the_reading_ends_it(crops: Crops) -> None:
    batches = iter(CropLoader(crops=crops, batch_size=2, threads=3))
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # hangs if the threads went on


def test_memory_is_flat_over_a_hundred_epochs(crops: Crops) -> None:
    epoch = len(SHAPES)
    loader = iter(CropLoader(crops=crops, batch_size=epoch, num_batches=100, strides=(4,)))
    sizes = []
    tracemalloc.start()
    try:
        for number, raw in enumerate(loader):
            assert raw.samples.start == number * epoch
            if number in (20, 99):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 2**17


def test_crops_that_favour_outlines_cross_more_of_them(store: MaskStore) -> None:
    evenly, favouring = (
        Crops(store=store, crop_px=32, seed=0, outline_tries=tries) for tries in (1, 6)
    )

    def crossed(crops: Crops, sample: int) -> int:
        place = crops.place(sample)
        return store.outline(place.index, place.y, place.x, 32, 32)

    pairs = [(crossed(evenly, sample), crossed(favouring, sample)) for sample in range(60)]
    assert all(best >= first for first, best in pairs)
    assert sum(best for _, best in pairs) > 1.2 * sum(first for first, _ in pairs)
    with pytest.raises(ConfigError, match="outline_tries must be at least 1"):
        Crops(store=store, crop_px=32, seed=0, outline_tries=0)


def test_outlines_are_counted_along_rows(store: MaskStore) -> None:
    for index, (height, width) in enumerate(SHAPES):
        atoms = store[index].masks.atoms[3 : height - 2, 5 : width - 1]
        wanted = int((atoms[:, 1:] != atoms[:, :-1]).sum())
        assert store.outline(index, 3, 5, *atoms.shape) == wanted


def test_draws_are_even_and_their_own_for_each_purpose() -> None:
    values = np.array([Draws(3, sample, 0).below(5, 7) for sample in range(7000)])
    for column, limit in zip(values.T, (5, 7), strict=True):
        counts = np.bincount(column, minlength=limit)
        assert len(counts) == limit
        assert np.abs(counts - 7000 / limit).max() < 5 * np.sqrt(7000 / limit)
    assert Draws(3, 5, 0).below(2**31) != Draws(3, 5, 1).below(2**31)
    assert Draws(3, 5, 0).below(10, 20) == Draws(3, 5, 0).below(10, 20)


def test_the_sequence_is_pinned(crops: Crops) -> None:
    # May change only with NumPy's Philox, which NEP 19 keeps as it is.
    assert Draws(0, 8, 0).below(100, 100, 100) == DRAWN
    assert crops.place(8) == PLACED


DRAWN = [86, 49, 1]
PLACED = Place(index=1, y=21, x=4, flip=False, quarter_turns=2)


def test_shares_of_ranks_are_disjoint_and_without_gaps() -> None:
    shares = [
        list(share_of_rank(10, 3, number, rank=rank, world_size=2))
        for number in range(2)
        for rank in range(2)
    ]
    assert [sample for share in shares for sample in share] == list(range(10, 22))
    assert sorted(image_of(0, sample, 6) for sample in range(6)) == list(range(6))


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"threads": -1}, {"rank": 1}, {"rank": 2, "world_size": 2}]
)
def test_settings_that_can_not_be(crops: Crops, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="a loader needs"):
        CropLoader(crops=crops, **{"batch_size": 2, **wrong})


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_turning_then_pooling_equals_pooling(
    store: MaskStore, rng: np.random.Generator, *, flip: bool, quarter_turns: int
) -> None:
    """Sums over masks are those of the straight crop; back on the pixels they turn along."""
    place = Place(3, 0, 0, flip, quarter_turns)
    masks = store.masks(3, 5, 7, 48, 48)
    assert len(masks) > 1
    values = rng.integers(0, 256, (48, 48, 3)).astype(np.float64)  # whole: sums are exact
    straight = RegionBatch.collate([masks])
    turned_masks = replace(masks, atoms=turn_atoms(masks.atoms, place))
    around = RegionBatch.collate([turned_masks])

    def pooled(regions: RegionBatch, image: np.ndarray) -> torch.Tensor:
        channels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        return regions.sum_by_atom(channels)

    one, other = pooled(straight, values), pooled(around, turned(values, place))
    assert torch.equal(one, other)
    assert torch.equal(straight.sum_by_mask(one), around.sum_by_mask(other))
    pixels = straight.to_pixels(one)[0].permute(1, 2, 0).numpy()
    wanted = around.to_pixels(other)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(turned(pixels, place), wanted)


@pytest.mark.parametrize("side", [1, 16, 41])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_pictures_and_atoms_turn_as_numpy_turns_them(
    rng: np.random.Generator, side: int, *, flip: bool, quarter_turns: int
) -> None:
    place = Place(0, 0, 0, flip, quarter_turns)
    picture = rng.integers(0, 256, (side, side, 3), np.uint8)
    out = np.empty_like(picture)
    turn_picture(picture, place, out)
    assert np.array_equal(out, turned(picture, place))
    for dtype in (np.uint16, np.uint32):
        atoms = rng.integers(0, 999, (side, side)).astype(dtype)
        around = turn_atoms(atoms, place)
        assert around.dtype == dtype
        assert np.array_equal(around, turned(atoms, place))


def turned(image: np.ndarray, place: Place) -> np.ndarray:
    return np.rot90(image[:, ::-1] if place.flip else image, place.quarter_turns)
