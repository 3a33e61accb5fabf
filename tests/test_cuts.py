"""Windows of stored atoms equal windows of the masks, however the atoms are stored."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.arrays import read_sharded_arrays
from samprior.storage.atoms import AtomsArray, CodedAtoms, Members, PlainAtoms, open_atoms
from samprior.storage.cache import BoundedCache
from samprior.storage.crossings.codec import CrossingsCodec
from samprior.storage.errors import StoreError
from samprior.storage.manifest import Header, Receipt, digests_of, write_header
from samprior.storage.places import LocalFolder
from samprior.storage.writer import write_shard

CODINGS = {
    "format 1": {"chunks": (1, 128, 128), "compressors": ZstdCodec(level=3, checksum=True)},
    "tiles of 256": {"serializer": CrossingsCodec(tile_px=256), "compressors": Crc32cCodec()},
    "tiles of 64": {"serializer": CrossingsCodec(tile_px=64), "compressors": Crc32cCodec()},
    "tiles of 40": {"serializer": CrossingsCodec(tile_px=40), "compressors": Crc32cCodec()},
}
"""40 doesn't divide the padded sides."""


def overlapping(shape: tuple[int, int], *, num_masks: int, seed: int) -> MaskSet:
    """Ellipses that overlap and nest."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[0], : shape[1]]
    masks = np.zeros((num_masks, *shape), bool)
    for mask in masks:
        middle, radius = rng.random(2) * shape, 2 + rng.random(2) * shape / 2
        mask[:] = ((y - middle[0]) / radius[0]) ** 2 + ((x - middle[1]) / radius[1]) ** 2 < 1
    return MaskSet.from_masks(masks)


@cache
def all_different(shape: tuple[int, int]) -> MaskSet:
    """Each pixel but the first is an atom: mask k is where bit k of the pixel's number is set."""
    number = np.arange(shape[0] * shape[1]).reshape(shape)
    return MaskSet.from_masks((number >> np.arange(17)[:, None, None] & 1).astype(bool))


def stored(folder: Path, sets: Sequence[MaskSet], coding: dict[str, Any]) -> AtomsArray:
    """The atoms of one shard, written by zarr; smaller images are padded."""
    height, width = (max(masks.shape[axis] for masks in sets) for axis in (0, 1))
    block = np.zeros((len(sets), height, width), np.result_type(*(m.atoms for m in sets)))
    for image, masks in zip(block, sets, strict=True):
        image[: masks.shape[0], : masks.shape[1]] = masks.atoms
    sides = [-(-side // 128) * 128 for side in (height, width)]
    group = zarr.open_group(LocalStore(folder), mode="w", zarr_format=3)
    settings = {"chunks": (1, *sides), **coding}
    array = group.create_array(
        "atoms",
        shape=block.shape,
        dtype=block.dtype,
        shards=(len(block), *sides),
        fill_value=0,
        **settings,
    )
    array[...] = block
    digests, stored_bytes = digests_of(folder)
    receipt = Receipt(
        shard=0,
        keys=tuple(map(str, range(len(sets)))),
        sizes=tuple(masks.shape for masks in sets),
        num_masks=tuple(map(len, sets)),
        stored_bytes=stored_bytes,
        digests=digests,
    )
    place = LocalFolder(folder)
    arrays = read_sharded_arrays(place, receipt, place.sizes())
    sizes = np.array(receipt.sizes, np.int64)
    return open_atoms(arrays["atoms"], sizes, BoundedCache(99), BoundedCache(2**22))


@pytest.fixture(scope="module")
def sets() -> list[MaskSet]:
    """Of different sizes, with no mask, with one that is everywhere, and with many."""
    everywhere = np.ones((2, 33, 300), bool)
    everywhere[1, :, 150:] = False
    return [
        overlapping((300, 330), num_masks=40, seed=1),
        overlapping((90, 140), num_masks=9, seed=2),
        MaskSet.from_masks(np.zeros((0, 64, 64), bool)),
        MaskSet.from_masks(everywhere),
        overlapping((1, 257), num_masks=8, seed=3),
        MaskSet.from_masks(np.zeros((3, 70, 30), bool)),
    ]


@pytest.fixture(scope="module")
def arrays(sets: list[MaskSet], tmp_path_factory: pytest.TempPathFactory) -> dict[str, AtomsArray]:
    folder = tmp_path_factory.mktemp("shards")
    found = {name: stored(folder / name, sets, coding) for name, coding in CODINGS.items()}
    kinds = [PlainAtoms, CodedAtoms, CodedAtoms, CodedAtoms]
    assert [type(array) for array in found.values()] == kinds
    return found


def assert_cut(
    array: AtomsArray,
    row: int,
    masks: MaskSet,
    window: tuple[int, int, int, int],
    keep: npt.NDArray[np.bool_] | None,
) -> None:
    """A cut equals the masks' own crop, of the kept ones."""
    cut = array.cut(row, window, members_of(masks), keep, only_met=True)
    kept = np.ones(len(masks), bool) if keep is None else keep
    wanted = masks.select(kept).crop(*window)
    assert cut.atoms.dtype == wanted.atoms.dtype
    assert np.array_equal(cut.atoms, wanted.atoms)
    assert np.array_equal(cut.members, wanted.members)
    assert np.array_equal(cut.areas, wanted.atom_areas)
    y, x, height, width = window
    planes = masks.to_masks()[:, y : y + height, x : x + width]
    assert cut.masks.tolist() == np.flatnonzero(planes.any(axis=(1, 2)) & kept).tolist()
    every = array.cut(row, window, members_of(masks), keep, only_met=False)
    assert every.masks.tolist() == np.flatnonzero(kept).tolist()
    assert np.array_equal(every.members[:, np.isin(every.masks, cut.masks)], cut.members)


def members_of(masks: MaskSet) -> Members:
    return Members(np.packbits(masks.members, axis=1), len(masks))


@settings(max_examples=120)
@given(st.data())
def test_any_window_of_any_image(
    arrays: dict[str, AtomsArray], sets: list[MaskSet], data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, len(sets) - 1))
    masks = sets[row]
    y, x = (data.draw(st.integers(0, side - 1)) for side in masks.shape)
    height, width = (
        data.draw(st.integers(1, side - first))
        for side, first in zip(masks.shape, (y, x), strict=True)
    )
    share = data.draw(st.sampled_from([None, 0.0, 0.3, 0.9, 1.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    keep = None if share is None else rng.random(len(masks)) < share
    for array in arrays.values():
        assert_cut(array, row, masks, (y, x, height, width), keep)
        wanted = masks.atoms[y : y + height, x : x + width]
        assert array.outline(row, (y, x, height, width)) == (wanted[:, 1:] != wanted[:, :-1]).sum()


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "window",
    [
        (0, 0, 64, 64),  # one tile of 64
        (64, 128, 64, 128),  # two
        (100, 100, 64, 64),  # four
        (60, 60, 130, 130),  # nine
        (255, 0, 2, 330),
        (0, 255, 300, 2),
        (299, 329, 1, 1),
        (0, 0, 300, 330),
    ],
)
def test_windows_over_several_tiles(
    arrays: dict[str, AtomsArray], sets: list[MaskSet], coding: str, window: tuple[int, ...]
) -> None:
    for keep in (None, np.arange(40) % 3 > 0):
        assert_cut(arrays[coding], 0, sets[0], window, keep)  # type: ignore[arg-type]


@pytest.mark.parametrize("coding", CODINGS)
def test_measures_are_those_of_the_atoms(
    arrays: dict[str, AtomsArray], sets: list[MaskSet], coding: str
) -> None:
    for row, masks in enumerate(sets):
        areas, boxes = arrays[coding].measure(row, len(masks.members))
        assert np.array_equal(areas, masks.atom_areas)
        for atom in range(1, len(areas)):
            y, x = np.nonzero(masks.atoms == atom)
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert boxes[atom].tolist() == box


@pytest.mark.parametrize("coding", CODINGS)
def test_more_atoms_than_16_bits_count(tmp_path: Path, coding: str) -> None:
    masks = all_different((260, 280))
    array = stored(tmp_path, [masks, overlapping((40, 50), num_masks=3, seed=4)], CODINGS[coding])
    for window in ((0, 0, 260, 280), (130, 20, 90, 250), (259, 279, 1, 1)):
        assert_cut(array, 0, masks, window, None)
        assert_cut(array, 0, masks, window, np.arange(17) > 3)
    areas, _ = array.measure(0, len(masks.members))
    assert np.array_equal(areas, masks.atom_areas)


@pytest.mark.parametrize("coding", CODINGS)
def test_atoms_without_a_row_of_members_are_an_error(
    arrays: dict[str, AtomsArray], sets: list[MaskSet], coding: str
) -> None:
    too_few = Members(np.packbits(sets[0].members[:5], axis=1), len(sets[0]))
    for keep in (None, np.ones(len(sets[0]), bool)):
        with pytest.raises(ValueError, match="beyond its 5"):
            arrays[coding].cut(0, (0, 0, 300, 330), too_few, keep, only_met=True)
    with pytest.raises(ValueError, match="beyond its 5"):
        arrays[coding].measure(0, 5)


@pytest.mark.parametrize("coding", CODINGS)
def test_windows_outside_the_array_are_an_error(
    arrays: dict[str, AtomsArray], sets: list[MaskSet], coding: str
) -> None:
    for window in ((0, 0, 400, 100), (0, 300, 10, 100), (500, 0, 1, 1), (0, 600, 1, 1)):
        with pytest.raises((ValueError, IndexError)):
            arrays[coding].cut(0, window, members_of(sets[0]), None, only_met=True)


@pytest.mark.parametrize("tile_px", [0, 1, 70_000, "64", None])
def test_sides_of_tiles_that_no_writer_uses_are_an_error(
    tmp_path: Path, sets: list[MaskSet], tile_px: object
) -> None:
    array = stored(tmp_path, sets, CODINGS["tiles of 64"])
    assert isinstance(array, CodedAtoms)
    array.array.codecs[0]["configuration"]["tile_px"] = tile_px
    with pytest.raises(ValueError, match="tile_px"):
        open_atoms(array.array, array.sizes, array.maps, array.cache)


def test_unknown_codecs_are_an_error(tmp_path: Path, sets: list[MaskSet]) -> None:
    with pytest.raises(ValueError, match=r"unknown codecs \['bytes', 'crc32c'\]"):
        stored(tmp_path, sets, {"compressors": Crc32cCodec()})


# The kernels as they are


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`storage.cuts`, each kernel replaced by the function that it was made of."""
    from samprior.storage import cuts, memory

    for name, value in list(vars(cuts).items()):
        if hasattr(value, "py_func"):
            monkeypatch.setattr(cuts, name, value.py_func)
    monkeypatch.setattr(cuts, "fill_run", memory._fill_run)
    return cuts


def test_interpreted_kernels_cut_the_same(
    interpreted: ModuleType, tmp_path: Path, sets: list[MaskSet]
) -> None:
    """With the bounds checks that compiled kernels lack."""
    array = stored(tmp_path, sets, CODINGS["tiles of 64"])
    wide = all_different((260, 280))
    wide_array = stored(tmp_path / "wide", [wide], CODINGS["tiles of 256"])
    for keep in (None, np.arange(40) % 3 > 0):
        assert_cut(array, 0, sets[0], (50, 40, 90, 130), keep)
        assert_cut(array, 2, sets[2], (50, 40, 10, 20), None)
    assert array.outline(0, (50, 40, 90, 130)) > 0
    assert_cut(wide_array, 0, wide, (100, 100, 100, 120), np.arange(17) > 1)
    areas, _ = array.measure(1, len(sets[1].members))
    assert np.array_equal(areas, sets[1].atom_areas)


# Whole stores


def write_store(root: Path, sets: Sequence[MaskSet]) -> list[Record]:
    records = []
    for place, masks in enumerate(sets):
        clean = np.indices((*masks.shape, 3)).sum(axis=0).astype(np.uint8)
        columns = {"score": np.arange(len(masks), dtype=np.float32)}
        held = MaskSet(masks.atoms, masks.members, columns)
        records.append(Record(str(place), clean[::-1].copy(), clean, held))
    header = Header(
        num_images=len(sets), num_shards=1, images_per_shard=99, paired=True, made_of={}
    )
    write_header(root, header)
    write_shard(root, 0, records, paired=True)
    return records


@pytest.fixture
def store(tmp_path: Path) -> MaskStore:
    """Two images of more than 3 x 3 tiles, and a small one."""
    shapes = [(540, 530), (520, 600), (50, 60)]
    write_store(
        tmp_path, [overlapping(s, num_masks=20, seed=place) for place, s in enumerate(shapes)]
    )
    return MaskStore.open(tmp_path)


Window = tuple[int, int, int, int, int]


@pytest.fixture
def windows(store: MaskStore, rng: np.random.Generator) -> list[Window]:
    """(image, y, x, height, width): all of each, and parts of them."""
    found = [(index, 0, 0, *store.size(index)) for index in range(len(store))]
    for _ in range(60):
        index = int(rng.integers(len(store)))
        y, x = (int(rng.integers(side)) for side in store.size(index))
        height, width = (
            int(rng.integers(1, side - first + 1))
            for side, first in zip(store.size(index), (y, x), strict=True)
        )
        found.append((index, y, x, height, width))
    return found


def same(one: Record, other: Record) -> bool:
    return (
        one.key == other.key
        and np.array_equal(one.clean, other.clean)
        and np.array_equal(one.degraded, other.degraded)
        and one.masks.equals(other.masks)
    )


def test_crops_and_tables_of_a_store(store: MaskStore, windows: list[Window]) -> None:
    records = list(store)
    for index, y, x, height, width in windows:
        cut, masks = store.crop(index, y, x, height, width), records[index].masks
        inside = np.s_[y : y + height, x : x + width]
        assert np.array_equal(cut.clean, records[index].clean[inside])
        assert np.array_equal(cut.degraded, records[index].degraded[inside])
        if (height, width) == store.size(index):
            assert cut.masks.equals(masks)
        else:
            assert cut.masks.equals(masks.crop(y, x, height, width))
        keep = np.arange(len(masks)) % 4 != 1
        found = store.masks(index, y, x, height, width, keep=keep)
        assert found.equals(masks.select(keep).crop(y, x, height, width))
    for index, record in enumerate(records):
        table, masks = store.table(index), record.masks
        assert np.array_equal(table.members, masks.members)
        assert np.array_equal(table.atom_areas, masks.atom_areas)
        assert np.array_equal(table.areas, masks.areas)
        assert np.array_equal(table.boxes, masks.boxes)


@pytest.mark.parametrize("cache_bytes", [0, 3000, 2**28])
def test_the_cache_changes_nothing_and_stays_bounded(
    store: MaskStore, windows: list[Window], cache_bytes: int
) -> None:
    small = MaskStore.open(store.root, cache_bytes=cache_bytes)
    for window in windows:
        assert same(small.crop(*window), store.crop(*window))
        assert small._resources.cache.num_bytes <= cache_bytes


def test_any_flipped_byte_of_atoms_is_noticed(tmp_path: Path) -> None:
    write_store(tmp_path, [overlapping((30, 40), num_masks=5, seed=1)])
    file = tmp_path / "shards" / "000000" / "atoms" / "c" / "0" / "0" / "0"
    whole = file.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(StoreError, match="checksum"):
            MaskStore.open(tmp_path).masks(0, 3, 4, 20, 20)
    file.write_bytes(whole)
    assert len(MaskStore.open(tmp_path).masks(0, 3, 4, 20, 20))


@pytest.mark.parametrize("change", ["truncated", "gone", "longer"])
def test_other_bytes_than_were_written(tmp_path: Path, change: str) -> None:
    write_store(tmp_path, [overlapping((30, 40), num_masks=5, seed=1)])
    file = tmp_path / "shards" / "000000" / "atoms" / "c" / "0" / "0" / "0"
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] if change == "truncated" else b"0" * 10**4)
    with pytest.raises(StoreError, match="samprior verify"):
        MaskStore.open(tmp_path)[0]


def test_a_store_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    write_store(tmp_path, [overlapping((30, 40), num_masks=5, seed=1)])
    store = MaskStore.open(tmp_path)
    store.table(0)  # opens the shard, and reads the atoms
    other = MaskStore.open(tmp_path, cache_bytes=0)
    other._shard(other._locate(0)[0])  # opens the shard only
    file = tmp_path / "shards" / "000000" / "atoms" / "c" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(StoreError, match="was replaced; open the store again"):
        other[0]


# Threads and processes


def test_threads_read_what_one_reads(store: MaskStore, windows: list[Window]) -> None:
    wanted = [store.crop(*window) for window in windows]
    for cache_bytes in (0, 20_000, 2**28):
        shared = MaskStore.open(store.root, cache_bytes=cache_bytes)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(shared.crop, *zip(*windows, strict=True)))
        assert all(map(same, found, wanted))


def test_a_pickled_store_reads_the_same(store: MaskStore, windows: list[Window]) -> None:
    wanted = [store.crop(*window) for window in windows]
    content = pickle.dumps(store)
    assert len(content) < 10_000, "what was read doesn't travel"
    other = pickle.loads(content)
    assert all(same(other.crop(*window), one) for window, one in zip(windows, wanted, strict=True))


def forked(work: Callable[[], object]) -> object:
    """What `work` returns in a forked process; what it raises, as text."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(50)  # no child is left behind
        try:
            sender.send(work())
        except BaseException as error:
            sender.send(repr(error))
        os._exit(0)
    assert receiver.poll(60), "the forked process hangs"
    answer = receiver.recv()
    os.waitpid(child, 0)
    return answer


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("is_open", [True, False])
def test_a_fork_reads_the_same(store: MaskStore, windows: list[Window], is_open: bool) -> None:
    wanted = [store.crop(*window) for window in windows]
    other = store if is_open else MaskStore.open(store.root)
    found = forked(lambda: [other.crop(*window) for window in windows])
    assert isinstance(found, list), found
    assert all(map(same, found, wanted))
    assert all(same(store.crop(*w), one) for w, one in zip(windows, wanted, strict=True))


SPAWNED = """
import pickle, sys
store, windows = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps([store.crop(*window) for window in windows]))
"""


def test_a_fresh_process_reads_the_same(store: MaskStore, windows: list[Window]) -> None:
    """As a spawned worker does: it gets the store pickled and imports what that needs."""
    wanted = [store.crop(*window) for window in windows]
    content = pickle.dumps((store, windows))
    done = subprocess.run([sys.executable, "-c", SPAWNED], input=content, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert all(map(same, pickle.loads(done.stdout), wanted))
