"""Our reader of tiled arrays gives what plain zarr gives, and refuses what is damaged."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from samprior.storage import MaskSet, Record
from samprior.storage.tiles import TiledArray
from samprior.storage.writer import write_shard


@pytest.fixture
def shard(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two images of 300x200 and 130x390; half of the first is black, so tiles are absent."""
    records = []
    for key, shape in (("a", (300, 200)), ("b", (130, 390))):
        clean = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        clean[: shape[0] // 2] = 0
        masks = np.zeros((3, *shape), bool)
        for mask in masks:
            y, x = rng.integers(0, 100, 2)
            mask[y : y + 90, x : x + 80] = True
        records.append(Record(key, clean[::-1].copy(), clean, MaskSet.from_masks(masks)))
    write_shard(tmp_path, 0, records, paired=True)
    return tmp_path / "shards" / "000000"


@pytest.mark.parametrize("name", ["clean", "degraded", "atoms"])
def test_windows_equal_plain_zarr(shard: Path, name: str, rng: np.random.Generator) -> None:
    whole = np.asarray(zarr.open_group(shard, mode="r")[name])
    tiled = TiledArray(shard / name)
    assert tiled.shape == whole.shape
    windows = [(0, 0, 0, *whole.shape[1:3]), (1, 127, 128, 2, 1), (0, 128, 0, 128, 128)]
    for _ in range(40):
        row, y, x = (int(rng.integers(side)) for side in whole.shape[:3])
        height, width = (int(rng.integers(1, whole.shape[a] - (y, x)[a - 1] + 1)) for a in (1, 2))
        windows.append((row, y, x, height, width))
    for row, y, x, height, width in windows:
        found = tiled.read(row, y, x, height, width)
        assert found.dtype == whole.dtype
        assert np.array_equal(found, whole[row, y : y + height, x : x + width])


def test_black_pictures_have_no_object_and_read_as_black(tmp_path: Path) -> None:
    black = np.zeros((40, 50, 3), np.uint8)
    none = MaskSet.from_masks(np.zeros((0, 40, 50), bool))
    write_shard(tmp_path, 0, [Record("k", black, black, none)], paired=False)
    folder = tmp_path / "shards" / "000000"
    for name in ("clean", "atoms"):
        assert not (folder / name / "c").exists()
        assert not TiledArray(folder / name).read(0, 3, 4, 30, 20).any()


def test_short_and_damaged_objects_are_refused(shard: Path) -> None:
    file = shard / "atoms" / "c" / "0" / "0" / "0"
    whole = file.read_bytes()
    file.write_bytes(whole[:10])
    with pytest.raises(OSError, match="Invalid argument"):
        TiledArray(shard / "atoms")
    file.write_bytes(whole[100:])
    with pytest.raises(ValueError, match="beyond its tiles"):
        TiledArray(shard / "atoms")
    damaged = bytearray(whole)
    damaged[40] ^= 1
    file.write_bytes(damaged)
    tiled = TiledArray(shard / "atoms")
    with pytest.raises((RuntimeError, ValueError)):
        tiled.read(0, 0, 0, 300, 390)
