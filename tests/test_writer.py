"""A shard's folder is what zarr-python makes of the same records, file by file, byte by byte.

zarr-python is the outsider here; the writer itself does without it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.indexing import morton_order_iter
from zarr.storage import LocalStore

from samprior.storage import MaskSet, Record
from samprior.storage.crossings.codec import CrossingsCodec
from samprior.storage.errors import StoreError
from samprior.storage.header import Images
from samprior.storage.manifest import digests_of, read_receipt, shard_folder
from samprior.storage.writer import write_shard
from samprior.storage.zarr_files import GroupWriter, HashedStream, morton_order

Make = Callable[..., Any]
Columns = Mapping[str, npt.NDArray[np.generic]]


def zarr_writes(
    folder: Path, records: Sequence[Record], *, paired: bool, with_images: bool = True
) -> None:
    """The shard by zarr-python, as docs/store-format.md describes it."""
    group = zarr.open_group(LocalStore(folder), mode="w", zarr_format=3)
    if not records:
        return
    height, width = (max(record.masks.shape[axis] for record in records) for axis in (0, 1))
    stacks = {"atoms": [record.masks.atoms for record in records]}
    if with_images:
        stacks["clean"] = [record.clean for record in records]
    if with_images and paired:
        stacks["degraded"] = [record.degraded for record in records]
    for name, images in stacks.items():
        shape = (len(images), height, width, *images[0].shape[2:])
        stack = np.zeros(shape, np.result_type(*images))
        for row, image in enumerate(images):
            stack[row, : image.shape[0], : image.shape[1]] = image
        zarr_writes_stack(group, name, stack)
    for name, values in tables_of([record.masks for record in records]).items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=tuple(max(1, side) for side in values.shape),
            compressors=ZstdCodec(level=15, checksum=True),
        )
        if values.size:
            array[...] = values


def zarr_writes_stack(group: zarr.Group, name: str, stack: npt.NDArray[Any]) -> None:
    height, width = (-(-side // 128) * 128 for side in stack.shape[1:3])
    trailing = stack.shape[3:]
    forms: dict[str, Any] = {
        "chunks": (1, 128, 128, *trailing),
        "compressors": None,
        "dimension_names": ("image", "y", "x", "channel"),
    }
    if name == "atoms":
        forms = {
            "chunks": (1, height, width),
            "serializer": CrossingsCodec(tile_px=256),
            "compressors": Crc32cCodec(),
            "dimension_names": ("image", "y", "x"),
        }
    array = group.create_array(
        name,
        shape=stack.shape,
        dtype=stack.dtype,
        shards=(len(stack), height, width, *trailing),
        fill_value=0,
        **forms,
    )
    array[...] = stack


def tables_of(sets: Sequence[MaskSet]) -> dict[str, npt.NDArray[Any]]:
    extents = [(*masks.shape, len(masks), len(masks.members)) for masks in sets]
    members = [np.packbits(masks.members, axis=1).reshape(-1) for masks in sets]
    columns = {
        f"column.{name}": np.concatenate([masks.columns[name] for masks in sets])
        for name in sets[0].columns
    }
    return {"extent": np.array(extents), "members": np.concatenate(members), **columns}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def assert_as_zarr(root: Path, records: Sequence[Record], *, paired: bool = True) -> set[str]:
    """Both write the records; the names of the files, which are equal."""
    receipt = write_shard(root, 0, records, paired=paired)
    assert read_receipt(root, 0) == receipt
    folder = shard_folder(root, 0)
    assert (dict(receipt.digests), receipt.stored_bytes) == digests_of(folder)
    zarr_writes(root / "zarr", records, paired=paired)
    assert_same_files(folder, root / "zarr")
    return set(contents(folder))


def assert_same_files(ours_in: Path, theirs_in: Path) -> None:
    ours, theirs = contents(ours_in), contents(theirs_in)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("zarr.json") and not zarr.__version__.startswith("3.1."):
            assert json.loads(ours[name]) == json.loads(theirs[name])  # other text, maybe
        else:
            assert ours[name] == theirs[name], name


def with_columns(record: Record, columns: Columns) -> Record:
    return replace(record, masks=MaskSet(record.masks.atoms, record.masks.members, columns))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1)],
        [(128, 128)],
        [(40, 56), (16, 16)],
        [(130, 257)],
        [(300, 129), (128, 390), (1, 1)],
        [(256, 384)] * 5,
        [(20, 20)] * 33,
    ],
)
def test_sizes(
    tmp_path: Path, make_record: Make, shapes: list[tuple[int, int]], paired: bool
) -> None:
    records = [
        make_record(str(row), shape=shape, num_masks=row % 4, paired=paired, seed=row)
        for row, shape in enumerate(shapes)
    ]
    names = assert_as_zarr(tmp_path, records, paired=paired)
    assert ("degraded/c/0/0/0/0" in names) == paired


def test_tiles_that_are_0_are_left_out(
    tmp_path: Path, make_record: Make, rng: np.random.Generator
) -> None:
    """In the midst, at the edge, of one image, and of all."""
    records = [make_record(str(row), shape=(400, 300), seed=row) for row in range(4)]
    for record in records:
        for y in range(0, 400, 128):
            for x in range(0, 300, 128):
                for picture in (record.clean, record.degraded):
                    picture[y : y + 128, x : x + 128] *= rng.integers(0, 2, dtype=np.uint8)
        record.degraded[:128, 256:] = 0
    records[2].clean[...] = 0
    records[3].clean[...] = 0
    records[3].clean[-1, -1, -1] = 1  # the last byte of a tile
    assert_as_zarr(tmp_path, records)


def test_black_pictures_have_no_object(tmp_path: Path, make_record: Make) -> None:
    record = make_record()
    black = np.zeros_like(record.clean)
    names = assert_as_zarr(tmp_path, [replace(record, clean=black, degraded=black)])
    assert {"clean/zarr.json", "degraded/zarr.json", "atoms/c/0/0/0"} <= names
    assert not {"clean/c/0/0/0/0", "degraded/c/0/0/0/0"} & names


def test_images_without_masks(tmp_path: Path, make_record: Make) -> None:
    records = [make_record(str(row), num_masks=(0, 3, 0)[row], seed=row) for row in range(3)]
    names = assert_as_zarr(tmp_path / "one", records)
    assert "atoms/c/0/0/0" in names
    names = assert_as_zarr(tmp_path / "none", [records[0], records[2]])
    tables = {name for name in names if name.startswith(("members", "column.", "atoms"))}
    assert all(name.endswith("/zarr.json") for name in tables)
    assert len(tables) == 5


def test_atoms_of_32_bits(tmp_path: Path, make_record: Make) -> None:
    """Of one image; the other's are widened. Sizes are no multiples of a tile of atoms."""
    plain = make_record("plain", shape=(300, 200), num_masks=0, seed=1)
    numbers = np.arange(260 * 260).reshape(260, 260)
    planes = (numbers >> np.arange(17)[:, None, None] & 1).astype(bool)
    picture = np.zeros((260, 260, 3), np.uint8)
    many = Record("many", picture, picture, MaskSet.from_masks(planes))
    assert many.masks.atoms.dtype == np.uint32
    assert_as_zarr(tmp_path, [with_columns(plain, {}), many], paired=False)


@pytest.mark.parametrize("dtype", ["?", *"bBhHiIlLefd"])
@pytest.mark.parametrize("trailing", [(), (2,), (2, 3), (0,)])
def test_columns(tmp_path: Path, make_record: Make, dtype: str, trailing: tuple[int, ...]) -> None:
    record = make_record()
    values = np.arange(5 * int(np.prod(trailing)), dtype=float).reshape(5, *trailing) % 2
    columns = {"a": values.astype(dtype), "zeros": np.zeros((5, *trailing), dtype)}
    names = assert_as_zarr(tmp_path, [with_columns(record, columns)])
    assert not [name for name in names if name.startswith("column.zeros/c")]


@pytest.mark.parametrize("value", [-0.0, np.nan, np.inf, 5e-324])
def test_columns_of_odd_numbers(tmp_path: Path, make_record: Make, value: float) -> None:
    columns = {"score": np.full(5, value), "point": np.full((5, 4), value)[:, ::2]}
    names = assert_as_zarr(tmp_path, [with_columns(make_record(), columns)])
    assert "column.score/c/0" in names


def test_pictures_of_other_layouts(tmp_path: Path, make_record: Make) -> None:
    record = make_record(shape=(150, 140))
    turned = np.asfortranarray(record.clean)[::-1]
    grey = np.broadcast_to(record.clean[..., :1], record.clean.shape)
    turned.flags.writeable = False
    assert_as_zarr(tmp_path, [replace(record, clean=turned, degraded=grey)])


@pytest.mark.parametrize("images", ["parent", "reference"])
def test_shards_without_pictures(tmp_path: Path, make_record: Make, images: Images) -> None:
    records = [make_record(str(row), shape=(60, 70 + row), seed=row) for row in range(2)]
    write_shard(tmp_path, 0, records, paired=True, images=images)
    zarr_writes(tmp_path / "zarr", records, paired=True, with_images=False)
    assert_same_files(shard_folder(tmp_path, 0), tmp_path / "zarr")


def test_a_shard_of_no_images(tmp_path: Path) -> None:
    assert assert_as_zarr(tmp_path, []) == {"zarr.json"}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_the_order_of_chunks_is_zarr_s(grid: list[int]) -> None:
    assert morton_order(grid) == list(morton_order_iter(tuple(grid)))


@pytest.mark.parametrize("side", ["clean", "degraded"])
def test_pictures_of_other_types_are_refused(tmp_path: Path, make_record: Make, side: str) -> None:
    record = make_record("odd")
    odd = replace(record, **{side: record.clean.astype(np.float32)})
    with pytest.raises(StoreError, match=r"odd has pictures of float32.* holds uint8"):
        write_shard(tmp_path, 0, [odd], paired=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "broken", ["clean", "degraded", "atoms", "members", "extent", "column.point"]
)
def test_an_error_of_any_thread_is_raised(
    tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """And nothing is left of the shard."""
    real = GroupWriter.write

    def full(group: GroupWriter, name: str, content: bytes) -> None:
        if name.startswith(broken):
            raise OSError(28, "No space left on device")
        real(group, name, content)

    monkeypatch.setattr(GroupWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path, 0, [make_record()], paired=True)
    assert not contents(tmp_path)


def test_a_write_that_takes_a_part_goes_on(tmp_path: Path, rng: np.random.Generator) -> None:
    """The system may take less than it was given."""

    class Narrow:
        taken = b""

        def write(self, content: memoryview) -> int:
            self.taken += bytes(content[:1000])
            return min(1000, len(content))

    raw, content = Narrow(), rng.bytes(4567)
    stream = HashedStream(raw)  # type: ignore[arg-type]
    stream.write(content)
    assert raw.taken == content
    assert stream.num_bytes == 4567
