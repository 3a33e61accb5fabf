"""Any zarr v3 reader of a machine where samprior is installed reads coded atoms."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from samprior.storage import Record
from samprior.storage.crossings import CODEC_NAME as NAME
from samprior.storage.crossings.chunk import encode_image
from samprior.storage.crossings.codec import CrossingsCodec
from samprior.storage.writer import write_shard

Stack = npt.NDArray[np.unsignedinteger]


def make_array(
    folder: Path, stack: Stack, *, tile_px: int = 32, **settings: tuple[int, ...] | None
) -> zarr.Array:
    """(n, H, W) as a store keeps it: one object, a coded image with a checksum for each chunk."""
    array = zarr.create_array(
        folder,
        shape=stack.shape,
        dtype=stack.dtype,
        **{"chunks": (1, *stack.shape[1:]), "shards": stack.shape, **settings},
        serializer=CrossingsCodec(tile_px=tile_px),
        compressors=Crc32cCodec(),
        fill_value=0,
    )
    array[...] = stack
    return array


@pytest.fixture
def stack(rng: np.random.Generator) -> Stack:
    """Three images, of which the second has no mask."""
    stack = rng.integers(0, 9, (3, 10, 9)).repeat(9, axis=1).repeat(10, axis=2).astype(np.uint16)
    stack[1] = 0
    return stack


READ = """
import sys, zarr
atoms = zarr.open(sys.argv[1], mode="r")[...]
print(atoms.dtype, atoms.shape, int((atoms.astype("i8").ravel() * range(atoms.size)).sum()))
"""


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_plain_zarr_finds_the_codec_by_itself(tmp_path: Path, stack: Stack, dtype: type) -> None:
    make_array(tmp_path / "atoms", stack.astype(dtype))
    command = [sys.executable, "-W", "error", "-c", READ, tmp_path / "atoms"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    checksum = int((stack.ravel().astype(np.int64) * range(stack.size)).sum())
    assert done.stdout.strip() == f"{np.dtype(dtype)} {stack.shape} {checksum}"


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<u4", ">u4"])
@pytest.mark.parametrize("is_sharded", [True, False])
def test_arrays_come_back(tmp_path: Path, stack: Stack, dtype: str, is_sharded: bool) -> None:
    shards = stack.shape if is_sharded else None
    make_array(tmp_path, stack.astype(dtype), shards=shards)
    found = zarr.open_array(tmp_path, mode="r")
    assert np.array_equal(found[...], stack)
    assert np.array_equal(found[2, 30:50, 7:31], stack[2, 30:50, 7:31])
    assert not found[1].any()


def test_chunks_at_the_edge_and_of_several_images(tmp_path: Path, stack: Stack) -> None:
    make_array(tmp_path, stack, chunks=(2, 64, 64), shards=None)
    found = zarr.open_array(tmp_path, mode="r")
    assert np.array_equal(found[...], stack)
    found = zarr.open_array(tmp_path, mode="r+")
    found[1, 50:70, 60:70] = 7  # reads the chunks that it changes a part of
    stack[1, 50:70, 60:70] = 7
    assert np.array_equal(found[...], stack)


def test_images_without_masks_are_not_written(tmp_path: Path, stack: Stack) -> None:
    make_array(tmp_path, np.zeros_like(stack))
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["zarr.json"]
    assert not zarr.open_array(tmp_path, mode="r")[...].any()


def test_metadata_come_back(tmp_path: Path, stack: Stack) -> None:
    make_array(tmp_path, stack)
    (sharding,) = json.loads((tmp_path / "zarr.json").read_bytes())["codecs"]
    told, checksum = sharding["configuration"]["codecs"]
    assert told == {"name": NAME, "configuration": {"tile_px": 32}}
    assert checksum["name"] == "crc32c"
    codec = CrossingsCodec.from_dict(told)
    assert codec == CrossingsCodec(tile_px=32)
    assert codec.to_dict() == told
    assert CrossingsCodec.from_dict({"name": NAME}) == CrossingsCodec(tile_px=256)


@pytest.mark.parametrize(
    "told",
    [
        {"name": "samprior.other"},
        {"configuration": {"tile_px": 32}},
        {"name": NAME, "configuration": [32]},
        {"name": NAME, "configuration": {"tile_px": 7}},
        {"name": NAME, "configuration": {"tile_px": 4097}},
        {"name": NAME, "configuration": {"tile_px": "256"}},
        {"name": NAME, "configuration": {"tile_px": 256.0}},
        {"name": NAME, "configuration": {"tile_px": None}},
        {"name": NAME, "configuration": {"tile_px": 256, "level": 3}},
    ],
)
def test_other_configurations_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=NAME):
        CrossingsCodec.from_dict(told)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.uint8, (4, 4)), (np.int32, (4, 4)), (np.float32, (4, 4)), (">u2", (9,))],
)
def test_other_arrays_are_refused(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{NAME} codes uint16 or uint32"):
        make_array(tmp_path, np.ones(shape, dtype), chunks=shape, shards=None)


@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_flipped_bit_of_the_code_is_noticed(tmp_path: Path, stack: Stack, place: int) -> None:
    make_array(tmp_path, stack[:1], shards=None)
    (file,) = tmp_path.glob("c/0/0/0")
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path, mode="r")[...]


def test_a_damaged_code_without_checksum_is_an_error(tmp_path: Path, stack: Stack) -> None:
    zarr.create_array(
        tmp_path,
        data=stack[0],
        chunks=stack[0].shape,
        serializer=CrossingsCodec(tile_px=32),
        compressors=None,
    )
    (file,) = tmp_path.glob("c/0/0")
    assert file.read_bytes() == encode_image(stack[0], tile_px=32)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="don't add up"):
        zarr.open_array(tmp_path, mode="r")[...]


def test_many_chunks_at_once(tmp_path: Path, stack: Stack) -> None:
    """zarr codes chunks in several threads."""
    many = np.concatenate([np.roll(stack, shift, axis=2) for shift in range(20)])
    make_array(tmp_path, many, chunks=(1, 45, 45), shards=None)
    assert np.array_equal(zarr.open_array(tmp_path, mode="r")[...], many)


def test_the_writer_s_object_is_the_one_zarr_would_write(
    tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    """Images of three sizes, one without masks, more atoms than bytes hold."""
    shapes = ((300, 270), (40, 520), (16, 16))
    records = [
        make_record(str(k), shape=shape, num_masks=12 * (2 - k), seed=k)
        for k, shape in enumerate(shapes)
    ]
    write_shard(tmp_path, 0, records, paired=False)
    folder = tmp_path / "shards" / "000000" / "atoms"
    ours = zarr.open_array(folder, mode="r")
    again = zarr.create_array(
        tmp_path / "again",
        shape=ours.shape,
        dtype=ours.dtype,
        chunks=ours.chunks,
        shards=ours.shards,
        serializer=CrossingsCodec(),
        compressors=Crc32cCodec(),
        fill_value=0,
    )
    again[...] = ours[...]
    for record, atoms in zip(records, ours[...], strict=True):
        height, width = record.masks.shape
        assert np.array_equal(atoms[:height, :width], record.masks.atoms)
        assert not atoms[height:].any()
        assert not atoms[:, width:].any()
    name = Path("c", "0", "0", "0")
    assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
