"""Batches read in a few kernel calls: bit for bit what is read by crop, and the same errors."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samprior.storage import MaskSet, MaskStore, Record, compiled, cuts
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.manifest import (
    digests_of,
    read_header,
    read_receipt,
    shard_folder,
    write_header,
    write_receipt,
)
from samprior.storage.mask_sets import set_name
from samprior.storage.writer import write_shard
from samprior.training import batches
from samprior.training.data import Crops
from samprior.training.loader import Buffer, CropLoader, RawBatch, read_batch
from samprior.training.priors import RegionBatch
from samprior.training.sampling import Draws, Place, drawn

MakeStore = Callable[..., MaskStore]
SIDE = 64
SHAPES = ((64, 64), (70, 90), (300, 310), (64, 128), (280, 100), (90, 65), (129, 70))
"""The third and fifth span tiles of pictures and of masks; with others in one shard all are padded.

Image i has i % 5 masks: the first and the sixth have none.
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches") / "store"


@pytest.fixture
def store(root: Path, make_store: MakeStore) -> MaskStore:
    return MaskStore.open(root) if root.exists() else make_store(root, SHAPES)


@pytest.fixture
def crops(store: MaskStore) -> Crops:
    return Crops(store=store, crop_px=SIDE, seed=0, min_mask_px=1)


@pytest.fixture
def by_crop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RawBatch]:
    """`read_batch` of a loader that finds nothing in memory."""

    def read(*arguments: object, **settings: object) -> RawBatch:
        with monkeypatch.context() as patch:
            patch.setattr(batches, "read_pictures", lambda *_: False)
            patch.setattr(batches, "read_regions", lambda *_: None)
            return read_batch(*arguments, **settings)  # type: ignore[arg-type]

    return read


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ways that were taken, "kernel" or "crop"."""
    ways: list[str] = []
    for name in ("read_pictures", "read_regions"):
        read = getattr(batches, name)

        def noted(*arguments: object, read: Callable[..., object] = read) -> object:
            made = read(*arguments)
            ways.append("kernel" if made else "crop")
            return made

        monkeypatch.setattr(batches, name, noted)
    return ways


def room(num_crops: int, side: int = SIDE) -> Buffer:
    return Buffer(num_crops, side, pinned=False)


def check_equal(one: RawBatch, other: RawBatch) -> None:
    assert (one.keys, one.samples) == (other.keys, other.samples)
    assert torch.equal(one.buffer.pictures, other.buffer.pictures)
    assert one.regions is not None
    assert other.regions is not None
    check_regions(one.regions, other.regions)


def check_regions(one: RegionBatch, other: RegionBatch) -> None:
    for field in fields(RegionBatch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "cells":
            assert a.keys() == b.keys()
            assert all(
                torch.equal(x, y)
                for stride in a
                for x, y in zip(a[stride].tensors, b[stride].tensors, strict=True)
            )
        else:
            assert a.dtype == b.dtype, field.name
            assert a.is_contiguous() == b.is_contiguous()
            assert torch.equal(a, b), field.name


class Given(Crops):
    """Crops at given places."""

    places: Sequence[Place] = ()

    def place(self, sample: int) -> Place:
        return self.places[sample]


def given_crops(store: MaskStore, places: Sequence[Place], *, crop_px: int = SIDE) -> Given:
    made = Given(store=store, crop_px=crop_px, seed=0, min_mask_px=1)
    object.__setattr__(made, "places", places)
    return made


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_batch_is_what_is_read_crop_by_crop(
    store: MaskStore,
    by_crop: Callable[..., RawBatch],
    taken: list[str],
    dropout: float,
    size: int,
) -> None:
    """Every turn, images without masks, several shards, tiles of padding; tiles not yet decoded."""
    crops = Crops(store=store, crop_px=SIDE, seed=1, min_mask_px=9, mask_dropout=dropout)
    fresh = replace(crops, store=MaskStore.open(store.root))
    for first in range(0, 48, size):
        samples = range(first, first + size)
        made = read_batch(crops, samples, room(size), strides=(4, 16))
        wanted = by_crop(fresh, samples, room(size), strides=(4, 16))
        check_equal(made, wanted)
    assert set(taken) == {"kernel"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a store is only read
@given(data=st.data())
def test_any_windows_with_any_masks_kept(store: MaskStore, data: st.DataObject) -> None:
    side = data.draw(st.integers(1, SIDE))
    places, keeps = [], []
    for _ in range(data.draw(st.integers(1, 5))):
        index = data.draw(st.integers(0, len(SHAPES) - 1))
        y, x = (data.draw(st.integers(0, length - side)) for length in SHAPES[index])
        places.append(Place(index, y, x, data.draw(st.booleans()), data.draw(st.integers(0, 3))))
        count = index % 5
        keep = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        keeps.append(np.array(keep, np.bool_))
    crops = given_crops(store, places, crop_px=side)
    crops._keep.update({place.index: keep for place, keep in zip(places, keeps, strict=True)})
    keeps = [crops._keep[place.index] for place in places]
    pictures = np.empty((2, len(places), side, side, 3), np.uint8)
    atoms = np.empty((len(places), side, side), np.int32)
    assert batches.read_pictures(store, places, pictures)
    made = batches.read_regions(store, places, keeps, atoms)
    assert made is not None
    check_regions(made, RegionBatch.collate([crops.masks(0, place) for place in places]))
    for place, *pair in zip(places, *pictures, strict=True):
        wanted = np.empty((2, side, side, 3), np.uint8)
        crops.read_pictures(place, *wanted)
        assert np.array_equal(pair, wanted)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_read_the_same_batches(crops: Crops, threads: int) -> None:
    settings = {"batch_size": 5, "num_batches": 30}
    alone = CropLoader(crops=crops, **settings, threads=0)
    fresh = replace(crops, store=MaskStore.open(crops.store.root))
    ahead = CropLoader(crops=fresh, **settings, threads=threads)
    for one, other in zip(alone, ahead, strict=True):
        check_equal(one, other)


def test_without_room_for_decoded_tiles(
    store: MaskStore, by_crop: Callable[..., RawBatch], taken: list[str]
) -> None:
    tight = MaskStore.open(store.root, cache_bytes=0)
    crops = Crops(store=tight, crop_px=SIDE, seed=0)
    for first in (0, 8, 16):
        samples = range(first, first + 8)
        made = read_batch(crops, samples, room(8), strides=(4,))
        check_equal(made, by_crop(crops, samples, room(8), strides=(4,)))
    assert set(taken) == {"kernel"}


def test_stages_without_masks_need_no_room_for_atoms(crops: Crops) -> None:
    buffer = room(4)
    made = read_batch(crops, range(4), buffer, strides=None)
    assert made.regions is None
    assert "atoms" not in vars(buffer)


def test_a_batch_on_the_cpu_keeps_its_atoms(crops: Crops) -> None:
    raw = read_batch(crops, range(4, 8), room(4), strides=())
    batch = raw.to(torch.device("cpu"))
    assert batch.regions is not None
    atoms = batch.regions.atoms.clone()
    assert atoms.any()
    raw.buffer.atoms.zero_()
    assert torch.equal(batch.regions.atoms, atoms)


def test_rain_and_mixed_pictures_come_on_top(
    store: MaskStore, by_crop: Callable[..., RawBatch], taken: list[str]
) -> None:
    crops = Crops(store=store, crop_px=SIDE, seed=0, mixup_alpha=1.0)
    made = read_batch(crops, range(6), room(6), strides=())
    plain = replace(crops, mixup_alpha=0.0)
    check_equal(made, by_crop(crops, range(6), room(6), strides=()))
    unmixed = read_batch(plain, range(6), room(6), strides=())
    assert not torch.equal(made.degraded, unmixed.degraded)
    assert set(taken) == {"kernel"}


def mask_set(store: MaskStore, make_record: Callable[..., Record]) -> MaskStore:
    """A further set of five masks for each image of a store, less one that it has no masks of."""
    place = store.root / set_name("other")
    write_header(place, replace(read_header(store.root), images="parent", made_of={"masks": 5}))
    for receipt in store.receipts.values():
        records = [
            make_record(key, shape=size, seed=99)
            for key, size in zip(receipt.keys, receipt.sizes, strict=True)
        ]
        write_shard(place, receipt.shard, records, paired=True, images="parent")
    return MaskStore.open(store.root, masks="other")


def test_masks_of_a_mask_set_over_the_store_s_pictures(
    tmp_path: Path,
    make_store: MakeStore,
    make_record: Callable[..., Record],
    by_crop: Callable[..., RawBatch],
    taken: list[str],
) -> None:
    other = mask_set(make_store(tmp_path / "store", SHAPES), make_record)
    crops = Crops(store=other, crop_px=SIDE, seed=0, min_mask_px=1)
    made = read_batch(crops, range(12), room(12), strides=(8,))
    check_equal(made, by_crop(crops, range(12), room(12), strides=(8,)))
    assert made.regions is not None
    assert made.regions.num_masks > 30
    assert set(taken) == {"kernel"}


def test_pictures_that_are_zero_everywhere_have_no_file(
    tmp_path: Path, make_store: MakeStore, by_crop: Callable[..., RawBatch]
) -> None:
    store = make_store(tmp_path / "store", SHAPES[:2])
    nothing = np.zeros((70, 80, 3), np.uint8)
    masks = MaskSet.from_masks(np.zeros((0, 70, 80), np.bool_))
    records = [Record(key, nothing, nothing, masks) for key in store.keys]
    write_shard(store.root, 0, records, paired=True)
    crops = Crops(store=MaskStore.open(store.root), crop_px=SIDE, seed=0)
    made = read_batch(crops, range(4), room(4), strides=())
    check_equal(made, by_crop(crops, range(4), room(4), strides=()))
    assert not made.clean.any()


def test_more_atoms_than_sixteen_bits_are_read_by_crop(
    tmp_path: Path, make_store: MakeStore, taken: list[str]
) -> None:
    store = make_store(tmp_path / "store", SHAPES[:1])
    side = 260
    # Each pixel has its own bits, so each is an atom.
    labels = np.arange(1, side * side + 1).reshape(side, side)
    planes = np.stack([(labels >> bit & 1).astype(np.bool_) for bit in range(17)])
    picture = np.zeros((side, side, 3), np.uint8)
    record = Record(store.keys[0], picture, picture, MaskSet.from_masks(planes))
    write_shard(store.root, 0, [record], paired=True)
    crops = Crops(store=MaskStore.open(store.root), crop_px=SIDE, seed=0, max_mask_iou=1)
    made = read_batch(crops, range(2), room(2), strides=())
    assert made.regions is not None
    assert made.regions.num_atoms > 2 * SIDE * SIDE
    assert taken == ["kernel", "crop"]


@pytest.mark.parametrize(("y", "x"), [(7, 0), (0, -1), (2**40, 0)])
def test_a_window_outside_its_image(store: MaskStore, y: int, x: int) -> None:
    crops = given_crops(store, [Place(1, 0, 0, False, 0), Place(1, y, x, False, 0)])
    with pytest.raises(UsageError, match="does not lie inside 90x70"):
        read_batch(crops, range(2), room(2), strides=())


@pytest.fixture
def copied(store: MaskStore, tmp_path: Path) -> Path:
    shutil.copytree(store.root, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_shard_that_was_replaced_under_an_open_store(
    copied: Path, make_record: Callable[..., Record]
) -> None:
    crops = Crops(store=MaskStore.open(copied), crop_px=SIDE, seed=0)
    crops.keep(0, Place(0, 0, 0, False, 0))  # the shard is open, its pictures are not mapped
    held = read_receipt(copied, 0)
    records = [
        make_record(key, shape=size, seed=9)
        for key, size in zip(held.keys, held.sizes, strict=True)
    ]
    write_shard(copied, 0, records, paired=True)
    with pytest.raises(StoreError, match="was replaced; open the store again"):
        read_batch(crops, range(7), room(7), strides=())


def test_masks_with_a_wrong_checksum(copied: Path) -> None:
    file = shard_folder(copied, 0) / "atoms/c/0/0/0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    digests, stored_bytes = digests_of(shard_folder(copied, 0))
    receipt = replace(read_receipt(copied, 0), digests=digests, stored_bytes=stored_bytes)
    write_receipt(copied, receipt)
    store = MaskStore.open(copied)
    keeps = [np.ones(index % 5, np.bool_) for index in (1, 0)]
    places = [Place(index, 0, 0, False, 0) for index in (1, 0)]
    with pytest.raises(StoreError, match="wrong checksum"):
        batches.read_regions(store, places, keeps, np.empty((2, SIDE, SIDE), np.int32))


INTERPRETED = """
import sys
import numpy as np
from samprior.storage import MaskStore, compiled
from samprior.training.data import Crops
from samprior.training.loader import Buffer, read_batch
crops = Crops(store=MaskStore.open(sys.argv[1]), crop_px=16, seed=0, min_mask_px=1)
raw = read_batch(crops, range(3, 9), Buffer(6, 16, pinned=False), strides=(4,))
parts = {name: part.numpy() for name, part in vars(raw.regions).items() if name != "cells"}
np.savez(sys.argv[2], pictures=raw.buffer.pictures.numpy(), **parts)
print(compiled.numba is None)
"""


def test_with_compilation_switched_off_a_batch_is_the_same(
    store: MaskStore, tmp_path: Path
) -> None:
    held = []
    for switch in ("0", "1"):
        file = tmp_path / f"{switch}.npz"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", INTERPRETED, str(store.root), str(file)],
            env={**os.environ, "NUMBA_DISABLE_JIT": switch},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(switch == "1")
        held.append(dict(np.load(file)))
    assert held[0].keys() == held[1].keys()
    for name, part in held[0].items():
        assert part.dtype == held[1][name].dtype
        assert np.array_equal(part, held[1][name]), name


@given(
    seed=st.integers(0, 2**128 - 1),
    sample=st.integers(0, 2**63 - 1),
    purpose=st.integers(0, 9),
    limits=st.lists(st.integers(1, 2**32), max_size=11),
)
def test_draws_by_the_generator_of_a_thread(
    seed: int, sample: int, purpose: int, limits: list[int]
) -> None:
    held = Draws(seed, sample, purpose)
    assert drawn(seed, sample, purpose, *limits) == held.below(*limits)
    # Nothing is left over from the draws before.
    assert drawn(seed, sample, purpose, 2**32) == Draws(seed, sample, purpose).below(2**32)


def test_a_change_of_the_store_s_kernels_compiles_those_of_batches_anew() -> None:
    held = cuts.cut._cache._cache_file._source_stamp  # type: ignore[attr-defined]
    stamp = batches._cut_regions._cache._cache_file._source_stamp  # type: ignore[attr-defined]
    assert stamp.endswith(compiled._sources(Path(compiled.__file__).parent))
    assert stamp != held
