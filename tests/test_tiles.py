"""Our reader of tiled arrays gives what plain zarr gives, and refuses what is damaged."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.arrays import ShardedArray, file_identity, read_sharded_arrays
from samprior.storage.cache import BoundedCache
from samprior.storage.manifest import Header, Receipt, digests_of, write_header
from samprior.storage.places import LocalFolder, Place, check_end, check_ranges, missing
from samprior.storage.tiles import MAX_MAPS, Maps, TiledArray, mapped, read_ranges
from samprior.storage.writer import write_shard

NAMES = ("clean", "degraded", "atoms")


class Memory:
    """An object store in memory, which counts what it is asked for."""

    def __init__(self, files: dict[str, bytes], folder: str = "") -> None:
        self.files = files
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        """Name and number of the ranges of each call."""

    local = None

    @property
    def url(self) -> str:
        return f"memory://{self.folder}"

    def below(self, folder: str) -> "Memory":
        place = Memory(self.files, f"{self.folder}{folder}/")
        place.asked = self.asked
        return place

    def read(self, name: str) -> bytes:
        if self.folder + name not in self.files:
            raise missing(self.url + name)
        return self.files[self.folder + name]

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        return [self.read(name) for name in names]

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.asked.append((name, len(ranges)))
        content = self.read(name)
        check_ranges(ranges, size=len(content), file=name)
        return [content[start:stop] for start, stop in ranges]

    def read_end(self, name: str, num_bytes: int) -> bytes:
        content = self.read(name)
        check_end(len(content), num_bytes, name)
        return content[-num_bytes:]

    def size(self, name: str) -> int:
        return len(self.read(name))

    def sizes(self) -> dict[str, int]:
        start = len(self.folder)
        found = sorted(name for name in self.files if name.startswith(self.folder))
        return {name[start:]: len(self.files[name]) for name in found}

    def names(self, folder: str = "") -> list[str]:
        inside = f"{self.folder}{folder}/" if folder else self.folder
        names = (name[len(inside) :] for name in self.files if name.startswith(inside))
        return sorted({name.partition("/")[0] for name in names})


def in_memory(folder: Path) -> Memory:
    files = (file for file in folder.rglob("*") if file.is_file())
    return Memory({file.relative_to(folder).as_posix(): file.read_bytes() for file in files})


def blocks(rng: np.random.Generator) -> dict[str, npt.NDArray[np.unsignedinteger]]:
    """Two images of 300 x 390; half of the first is black, so tiles are absent."""
    found: dict[str, npt.NDArray[np.unsignedinteger]] = {}
    for name in ("clean", "degraded"):
        found[name] = rng.integers(0, 256, (2, 300, 390, 3), dtype=np.uint8)
    found["atoms"] = rng.integers(0, 9, (2, 300, 390)).astype(np.uint16)
    for block in found.values():
        block[0, :150] = 0
        block[1, 128:256, 256:] = 0
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of format 1: raw pictures, and atoms under zstd, in tiles of 128."""
    folder = tmp_path_factory.mktemp("shard")
    group = zarr.open_group(LocalStore(folder), mode="w", zarr_format=3)
    for name, block in blocks(np.random.default_rng(0)).items():
        array = group.create_array(
            name,
            shape=block.shape,
            dtype=block.dtype,
            chunks=(1, 128, 128, 3)[: block.ndim],
            shards=(2, 384, 512, 3)[: block.ndim],
            compressors=ZstdCodec(level=3, checksum=True) if name == "atoms" else None,
            fill_value=0,
        )
        array[...] = block
    return folder


def sharded(place: Place, folder: Path) -> dict[str, ShardedArray]:
    """The arrays of a shard's folder, read from a place that holds the same."""
    digests, stored_bytes = digests_of(folder)
    receipt = Receipt(
        shard=0, keys=(), sizes=(), num_masks=(), stored_bytes=stored_bytes, digests=digests
    )
    return read_sharded_arrays(place, receipt, place.sizes())


@pytest.fixture(scope="module", params=["mapped", "remote"])
def arrays(request: pytest.FixtureRequest, folder: Path) -> dict[str, TiledArray]:
    place = LocalFolder(folder) if request.param == "mapped" else in_memory(folder)
    maps: Maps = BoundedCache(MAX_MAPS)
    return {name: TiledArray(array, maps) for name, array in sharded(place, folder).items()}


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, npt.NDArray[np.unsignedinteger]]:
    """What plain zarr reads."""
    group = zarr.open_group(folder, mode="r")
    return {name: np.asarray(group[name]) for name in NAMES}


@given(st.data())
def test_windows_equal_plain_zarr(
    arrays: dict[str, TiledArray],
    whole: dict[str, npt.NDArray[np.unsignedinteger]],
    data: st.DataObject,
) -> None:
    name = data.draw(st.sampled_from(NAMES))
    row = data.draw(st.integers(0, 1))
    sides = whole[name].shape[1:3]
    y, x = (data.draw(st.integers(0, side - 1)) for side in sides)
    height, width = (
        data.draw(st.integers(1, side - first)) for side, first in zip(sides, (y, x), strict=True)
    )
    found = arrays[name].read(row, y, x, height, width)
    assert found.dtype == whole[name].dtype
    assert np.array_equal(found, whole[name][row, y : y + height, x : x + width])
    out = np.full_like(found, 77)
    arrays[name].read_into(out, row, y, x)
    assert np.array_equal(out, found)


@pytest.mark.parametrize("window", [(0, 0, 300, 390), (0, 0, 1, 1), (127, 255, 2, 2)])
def test_windows_at_the_borders_of_tiles(
    arrays: dict[str, TiledArray],
    whole: dict[str, npt.NDArray[np.unsignedinteger]],
    window: tuple[int, int, int, int],
) -> None:
    y, x, height, width = window
    for name in NAMES:
        found = arrays[name].read(1, y, x, height, width)
        assert np.array_equal(found, whole[name][1, y : y + height, x : x + width])


def test_a_part_of_a_larger_array_is_filled(
    arrays: dict[str, TiledArray], whole: dict[str, npt.NDArray[np.unsignedinteger]]
) -> None:
    """As batches are; what lies beside the window stays as it was."""
    for part in (np.s_[1, 5:-5, 3:-3], np.s_[1]):
        batch = np.full((3, 150, 140, 3), 77, np.uint8)
        wanted = batch.copy()
        height, width = batch[part].shape[:2]
        wanted[part] = whole["clean"][1, 100 : 100 + height, 200 : 200 + width]
        arrays["clean"].read_into(batch[part], 1, 100, 200)
        assert np.array_equal(batch, wanted)


def test_an_array_of_another_type_is_filled(
    arrays: dict[str, TiledArray], whole: dict[str, npt.NDArray[np.unsignedinteger]]
) -> None:
    for name in NAMES:
        out = np.full((140, 150, *whole[name].shape[3:]), -1, np.float32)
        arrays[name].read_into(out, 1, 100, 200)  # type: ignore[arg-type]
        assert np.array_equal(out, whole[name][1, 100:240, 200:350])


def test_windows_outside_are_an_error(arrays: dict[str, TiledArray]) -> None:
    for name in NAMES:
        for row, y, x, height, width in (
            (0, 300, 0, 100, 9),
            (0, 0, 500, 9, 20),
            (2, 0, 0, 9, 9),
            (0, 0, -1, 9, 9),
        ):
            with pytest.raises((ValueError, IndexError)):
                arrays[name].read(row, y, x, height, width)


def test_black_pictures_have_no_object_and_read_as_black(tmp_path: Path) -> None:
    black = np.zeros((40, 50, 3), np.uint8)
    none = MaskSet.from_masks(np.zeros((0, 40, 50), bool))
    header = Header(num_images=1, num_shards=1, images_per_shard=1, paired=False, made_of={})
    write_header(tmp_path, header)
    write_shard(tmp_path, 0, [Record("k", black, black, none)], paired=False)
    shard = tmp_path / "shards" / "000000"
    for name in ("clean", "atoms"):
        assert not (shard / name / "c").exists()
    arrays = sharded(LocalFolder(shard), shard)
    assert not TiledArray(arrays["clean"], BoundedCache(9)).read(0, 3, 4, 30, 20).any()
    assert len(mapped(arrays["clean"], BoundedCache(9))) == 0
    record = MaskStore.open(tmp_path).crop(0, 3, 4, 30, 20)
    assert not record.clean.any()
    assert not record.masks.atoms.any()


# Damage


@pytest.mark.parametrize("name", NAMES)
def test_short_objects_are_refused(folder: Path, name: str) -> None:
    place = in_memory(folder)
    file = next(file for file in place.files if file.startswith(f"{name}/c/"))
    content = place.files[file]
    for held in (b"", content[:10], content[100:], content[:-1], content + b"\0"):
        place.files[file] = held
        with pytest.raises(ValueError, match=r"wrong checksum|fewer than|points beyond"):
            sharded(place, folder)


def test_raw_tiles_of_another_size_are_refused(folder: Path) -> None:
    array = sharded(LocalFolder(folder), folder)["clean"]
    array.spans[1, 2, 3, 0, 1] -= 1
    with pytest.raises(ValueError, match="tiles of other sizes than 49152 bytes"):
        TiledArray(array, BoundedCache(9))


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_of_the_index_is_noticed(folder: Path, name: str) -> None:
    """It would give other pixels of the picture."""
    place = in_memory(folder)
    file = next(file for file in place.files if file.startswith(f"{name}/c/"))
    whole = place.files[file]
    for back in range(1, 2 * 3 * 4 * 16 + 4 + 1, 7):
        content = bytearray(whole)
        content[-back] ^= 2
        place.files[file] = bytes(content)
        with pytest.raises(ValueError, match=f"index of {file} has a wrong checksum"):
            sharded(place, folder)


def test_an_object_cut_short_after_it_was_opened(tmp_path: Path, folder: Path) -> None:
    arrays = sharded(LocalFolder(folder), folder)
    array = arrays["clean"]
    shorter = tmp_path / array.object_name
    shorter.parent.mkdir(parents=True)
    shorter.write_bytes((folder / array.object_name).read_bytes()[:50_000])
    moved = ShardedArray(
        LocalFolder(tmp_path), "clean", array.shape, array.dtype, array.chunk, array.codecs,
        array.spans, file_identity(LocalFolder(tmp_path), array.object_name),
    )  # fmt: skip
    with pytest.raises(ValueError, match="shorter than it was"):
        TiledArray(moved, BoundedCache(9)).read(1, 0, 0, 300, 390)


def test_a_damaged_tile_of_compressed_atoms_is_refused(folder: Path) -> None:
    place = in_memory(folder)
    array = sharded(place, folder)["atoms"]
    whole = place.files[array.object_name]
    for at in range(0, len(whole) - 388, 997):
        content = bytearray(whole)
        content[at] ^= 1
        place.files[array.object_name] = bytes(content)
        tiled = TiledArray(array, BoundedCache(9))
        with pytest.raises((RuntimeError, ValueError)):
            [tiled.read(row, 0, 0, 300, 390) for row in (0, 1)]


def test_unknown_codecs_are_refused(folder: Path) -> None:
    array = sharded(LocalFolder(folder), folder)["clean"]
    array.codecs[0]["name"] = "other"
    with pytest.raises(ValueError, match=r"clean has unknown codecs \['other'\]"):
        TiledArray(array, BoundedCache(9))


# Maps


def test_views_of_the_map_can_not_be_written_to(folder: Path) -> None:
    array = sharded(LocalFolder(folder), folder)["clean"]
    maps: Maps = BoundedCache(9)
    one, other = read_ranges(array, [(0, 100), (50, 150)], maps)
    assert np.shares_memory(one, other), "views, no copies"
    for piece in (one, other, mapped(array, maps)):
        with pytest.raises(ValueError, match="read-only"):
            piece[0] = 1
    assert read_ranges(array, [], maps) == []


def test_what_was_read_is_ones_own(arrays: dict[str, TiledArray]) -> None:
    for name in NAMES:
        first = arrays[name].read(1, 0, 0, 128, 128)
        copy = first.copy()
        first[...] = 0
        assert np.array_equal(arrays[name].read(1, 0, 0, 128, 128), copy)


def test_the_number_of_maps_is_bounded(
    folder: Path, whole: dict[str, npt.NDArray[np.unsignedinteger]]
) -> None:
    maps: Maps = BoundedCache(2)
    tiled = {
        name: TiledArray(array, maps)
        for name, array in sharded(LocalFolder(folder), folder).items()
    }
    held = mapped(tiled["clean"].array, maps)
    for _ in range(3):
        for name in NAMES:
            assert np.array_equal(tiled[name].read(1, 0, 0, 300, 390), whole[name][1])
            assert len(maps) <= 2
    assert mapped(tiled["clean"].array, maps) is not held
    assert len(held[-1:]) == 1, "a map in use outlives its place in the cache"


def test_threads_share_maps(
    folder: Path, whole: dict[str, npt.NDArray[np.unsignedinteger]]
) -> None:
    maps: Maps = BoundedCache(1)  # each drops the others' maps
    arrays = sharded(LocalFolder(folder), folder)
    tiled = {name: TiledArray(array, maps) for name, array in arrays.items()}
    together = threading.Barrier(3)

    def read(name: str) -> bool:
        together.wait(60)
        return all(
            np.array_equal(tiled[name].read(row, 0, 0, 300, 390), whole[name][row])
            for row in (0, 1) * 10
        )

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(read, NAMES))


# Object stores


def test_a_window_of_a_remote_array_takes_one_call(folder: Path) -> None:
    place = in_memory(folder)
    tiled = {
        name: TiledArray(array, BoundedCache(9)) for name, array in sharded(place, folder).items()
    }
    for name in NAMES:
        place.asked.clear()
        tiled[name].read(1, 100, 100, 60, 60)
        assert [num_ranges for _, num_ranges in place.asked] == [4], "its four tiles"
        place.asked.clear()
        assert not tiled[name].read(0, 0, 0, 100, 100).any()
        assert place.asked == [], "absent tiles are not asked for"


def test_a_crop_of_a_remote_store_takes_one_call_an_array(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    clean = rng.integers(0, 256, (300, 390, 3), dtype=np.uint8)
    planes = np.zeros((5, 300, 390), bool)
    for plane in planes:
        y, x = rng.integers(0, 200, 2)
        plane[y : y + 90, x : x + 150] = True
    record = Record("k", clean[::-1].copy(), clean, MaskSet.from_masks(planes))
    header = Header(num_images=1, num_shards=1, images_per_shard=1, paired=True, made_of={})
    write_header(tmp_path, header)
    write_shard(tmp_path, 0, [record], paired=True)
    place = in_memory(tmp_path)
    store = MaskStore.open(place)  # type: ignore[arg-type]  # a place is taken as it is
    cut = store.crop(0, 100, 120, 150, 150)
    assert cut.masks.equals(record.masks.crop(100, 120, 150, 150))
    assert np.array_equal(cut.clean, clean[100:250, 120:270])
    assert np.array_equal(cut.degraded, record.degraded[100:250, 120:270])
    assert sorted(name.partition("/")[0] for name, _ in place.asked) == sorted(NAMES)
    place.asked.clear()
    assert store.crop(0, 0, 0, 300, 390).masks.equals(record.masks)
    asked = sorted(name.partition("/")[0] for name, _ in place.asked)
    assert asked == ["clean", "degraded"], "an image's code comes whole, and is kept"
