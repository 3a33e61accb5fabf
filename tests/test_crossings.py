"""The crossings code: lossless for any labels, equal bytes everywhere, safe with any bytes."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from samprior.storage import MaskSet, Record
from samprior.storage.crossings.chunk import (
    decode_image,
    decode_runs,
    encode_image,
    tile_places,
)
from samprior.storage.crossings.contexts import NUM_CONTEXTS
from samprior.storage.crossings.decode import DAMAGED, decode_tile
from samprior.storage.crossings.start import START_MODEL
from samprior.storage.manifest import Header, write_header
from samprior.storage.store import MaskStore
from samprior.storage.writer import write_shard

Atoms = npt.NDArray[np.unsignedinteger]

SIDES = st.integers(1, 70)


def assert_lossless(atoms: Atoms, *, tile_px: int) -> bytes:
    code = encode_image(atoms, tile_px=tile_px)
    found = decode_image(code, atoms.shape, atoms.dtype, tile_px=tile_px)
    assert found.dtype == atoms.dtype
    assert np.array_equal(found, atoms)
    return code


# Lossless


@st.composite
def planes(draw: st.DrawFn) -> npt.NDArray[np.bool_]:
    """Masks that overlap and nest; empty, full, of one pixel, and of one column among them."""
    height, width = draw(SIDES), draw(SIDES)
    masks = np.zeros((draw(st.integers(0, 12)), height, width), bool)
    for mask in masks:
        y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        y1, x1 = draw(st.integers(y0, height)), draw(st.integers(x0, width))
        kind = draw(st.sampled_from(["box", "ellipse", "pixel", "column", "row", "full", "empty"]))
        if kind == "box":
            mask[y0:y1, x0:x1] = True
        elif kind == "ellipse":
            y, x = np.ogrid[:height, :width]
            mask[:] = ((y - y0) / (y1 - y0 + 1)) ** 2 + ((x - x0) / (x1 - x0 + 1)) ** 2 < 1
        elif kind != "empty":
            at = {"pixel": (y0, x0), "column": (slice(y0, y1), x0), "row": (y0, slice(x0, x1))}
            mask[at.get(kind, ...)] = True
    return masks


@given(planes(), st.sampled_from([8, 24, 256]))
def test_masks_come_back_bit_for_bit(masks: npt.NDArray[np.bool_], tile_px: int) -> None:
    made = MaskSet.from_masks(masks)
    assert_lossless(made.atoms, tile_px=tile_px)


@given(
    hnp.arrays(
        st.sampled_from([np.uint16, np.uint32]),
        st.tuples(SIDES, SIDES),
        elements=st.one_of(st.integers(0, 2), st.integers(0, 0xFFFF)),
    ),
    st.sampled_from([8, 31, 64, 4096]),
)
def test_labels_without_any_order_come_back(atoms: Atoms, tile_px: int) -> None:
    assert_lossless(atoms, tile_px=tile_px)


@pytest.mark.parametrize("side", [1, 2, 255, 256, 257, 511, 513])
@pytest.mark.parametrize("num_labels", [1, 2, 400])
def test_sides_about_those_of_tiles(side: int, num_labels: int, rng: np.random.Generator) -> None:
    coarse = rng.integers(0, num_labels, (-(-side // 9), 40)).astype(np.uint16)
    atoms = coarse.repeat(9, axis=0)[:side].repeat(13, axis=1)
    assert_lossless(atoms, tile_px=256)
    assert_lossless(atoms.T, tile_px=256)


@pytest.mark.parametrize("rows", [1, 2, 63])
def test_rows_of_as_many_segments_as_pixels(rows: int, rng: np.random.Generator) -> None:
    """Beyond the segments for which the encoder looks for what continues what."""
    noise = rng.integers(0, 0xFFFF, (rows, 300), dtype=np.uint16)
    noise[-1, :150] = noise[0, :150]
    assert_lossless(noise, tile_px=300)
    assert_lossless(np.indices((rows, 300)).sum(axis=0).astype(np.uint16) % 2, tile_px=300)


def test_more_atoms_than_16_bits_count() -> None:
    rising = np.arange(1, 300 * 300 + 1, dtype=np.uint32).reshape(300, 300)
    assert_lossless(rising, tile_px=256)
    assert_lossless(rising[::-1, ::-1], tile_px=256)
    assert_lossless((rising % 300).astype(np.uint16), tile_px=256)


def test_the_highest_labels() -> None:
    for dtype in (np.uint16, np.uint32):
        top = np.iinfo(dtype).max
        atoms = np.array([[top, 0, top], [1, top - 1, 0], [top, top, 2]], dtype)
        assert_lossless(atoms, tile_px=256)
    with pytest.raises(ValueError, match="beyond uint16"):
        decode_image(encode_image(atoms, tile_px=8), (3, 3), np.dtype(np.uint16), tile_px=8)


def test_a_stack_is_one_image_after_the_other(rng: np.random.Generator) -> None:
    stack = rng.integers(0, 3, (2, 3, 2, 5)).repeat(10, axis=2).repeat(6, axis=3).astype(np.uint16)
    code = assert_lossless(stack, tile_px=256)
    codes = [encode_image(image, tile_px=256) for image in stack.reshape(-1, 20, 30)]
    assert all(len(one) <= 128 for one in codes), "so that each length has one byte"
    assert code == b"".join(one[:1] for one in codes) + b"".join(one[1:] for one in codes)


@pytest.mark.parametrize("layout", ["F", "strided", "read-only"])
def test_the_layout_in_memory_does_not_matter(layout: str, rng: np.random.Generator) -> None:
    atoms = rng.integers(0, 5, (60, 70)).astype(np.uint16)
    other = np.asfortranarray(atoms)
    if layout == "strided":
        other = np.repeat(np.repeat(atoms, 2, axis=0), 3, axis=1)[::2, ::3]
    elif layout == "read-only":
        other = np.frombuffer(atoms.tobytes(), np.uint16).reshape(60, 70)
    assert encode_image(other, tile_px=16) == encode_image(atoms, tile_px=16)


def test_tiles_of_zeros_take_a_byte_each() -> None:
    atoms = np.zeros((40, 60), np.uint16)
    assert assert_lossless(atoms, tile_px=20) == b"\0" * 6
    atoms[39, 59] = 1
    assert assert_lossless(atoms, tile_px=20)[:5] == b"\0" * 5


def test_any_tile_can_be_read_alone(rng: np.random.Generator) -> None:
    atoms = rng.integers(0, 3, (50, 75)).repeat(2, axis=1).astype(np.uint16)
    atoms[:20, 40:60] = 0
    code = np.frombuffer(encode_image(atoms, tile_px=20), np.uint8)
    places = tile_places(code, 3 * 8)
    assert places[-1] == len(code)
    for tile, (at, limit) in enumerate(pairwise(places)):
        y, x = (20 * part for part in divmod(tile, 8))
        wanted = atoms[y : y + 20, x : x + 20]
        if at == limit:
            assert not wanted.any()
            continue
        starts, labels, rows = decode_runs(code, int(at), int(limit), *wanted.shape)
        assert len(starts) == len(labels) == rows[-1]
        lengths = np.diff(np.append(starts, 0)) % wanted.shape[1]
        lengths[lengths == 0] = wanted.shape[1]
        assert np.array_equal(labels.repeat(lengths), wanted.reshape(-1))


# The same bytes everywhere


def a_dog() -> Atoms:
    """A dog, its ear, a wall that reaches into the dog's box, a leash, and a pixel of dirt."""
    masks = np.zeros((5, 24, 40), bool)
    y, x = np.mgrid[:24, :40]
    masks[0] = (y - 13) ** 2 * 3 + (x - 18) ** 2 < 190
    masks[1] = (y - 8) ** 2 + (x - 14) ** 2 < 12
    masks[2, :, 25:] = True
    masks[3, 2:20, 30] = True
    masks[4, 23, 0] = True
    return MaskSet.from_masks(masks).atoms


GOLDEN = "299ae8b5c700a819b7820f76244754fc57d8405f5f6a491e56df370a5824b9e1d73fcbec7540881861cc"
"""The code of `a_dog`. These bytes are the format: they may change with `FORMAT_VERSION` only, and
then the code that reads the old ones stays. The same holds of the digests below."""


@pytest.mark.parametrize("sides", [(20, 30), (21, 31), (32, 32), (40, 61), (70, 90)])
def test_images_are_padded_with_0(rng: np.random.Generator, sides: tuple[int, int]) -> None:
    """Without a copy of the image; also by whole tiles, of several images, and in one tile."""
    stack = rng.integers(1, 5, (2, 20, 30)).astype(np.uint16)
    padded = np.pad(stack, [(0, 0), (0, sides[0] - 20), (0, sides[1] - 30)])
    for tile_px in (16, 256):
        assert encode_image(stack, tile_px=tile_px, sides=sides) == encode_image(
            padded, tile_px=tile_px
        )


def test_golden_bytes() -> None:
    assert encode_image(a_dog(), tile_px=256).hex() == GOLDEN
    found = decode_image(bytes.fromhex(GOLDEN), (24, 40), np.dtype(np.uint16), tile_px=256)
    assert np.array_equal(found, a_dog())


def test_the_start_model_is_part_of_the_format() -> None:
    assert START_MODEL.shape == (NUM_CONTEXTS,)
    digest = hashlib.sha256(START_MODEL.astype("<i8").tobytes()).hexdigest()
    assert digest == "a83106b089bc7ccddc11ff547e5a282bddf48f54383c69229e067436b7b99a09"
    with pytest.raises(ValueError, match="read-only"):
        START_MODEL[0] = 1


def pictures() -> Iterator[tuple[Atoms, int]]:
    """Small images of all kinds, and the side of their tiles."""
    yield a_dog(), 256
    yield a_dog(), 8
    for num_labels in (2, 30, 70_000):
        # No generator of NumPy: their streams may change, and these codes are golden.
        labels = ((np.arange(13 * 17) * 2654435761 >> 7) % num_labels).reshape(13, 17)
        yield labels.astype(np.uint32), 16
        yield labels.repeat(3, axis=0).repeat(2, axis=1).astype(np.uint32), 32
    y, x = np.mgrid[:230, :12]  # a boundary that moves every seventy rows
    yield ((x > 3 + (y + 2) // 70) * 1 + (x > 9)).astype(np.uint16), 256
    yield np.array([[0xFFFFFFFF, 0], [1, 0xFFFFFFFE]], np.uint32), 8
    yield np.arange(90, dtype=np.uint16).reshape(1, 90), 90


def test_golden_digest_of_codes_of_all_kinds() -> None:
    digest = hashlib.sha256()
    for atoms, tile_px in pictures():
        digest.update(encode_image(atoms, tile_px=tile_px))
    assert digest.hexdigest() == "fe9101f852c809bbfb9d74d17a0310a5ba1269a9524632090ae249118b6b0f65"


def damaged(code: bytes, rng: np.random.Generator) -> bytes:
    """A code with a few bytes changed, cut, put in, or all of them at random."""
    content = bytearray(code)
    kind = int(rng.integers(5))
    if kind == 0:
        return rng.bytes(len(content))
    if kind == 1:
        return bytes(content[: int(rng.integers(len(content)))])
    if kind == 2:
        return bytes(content) + rng.bytes(int(rng.integers(1, 9)))
    for _ in range(int(rng.integers(1, 4))):
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
    if kind == 3:  # a length that fits, so that the tile is read
        body = bytes(content[1:])[:127]
        return bytes([len(body)]) + body
    return bytes(content)


def outcome(code: bytes, shape: tuple[int, ...], *, tile_px: int) -> bytes:
    """Digest of what is read of any bytes, or that they are refused."""
    try:
        atoms = decode_image(code, shape, np.dtype(np.uint32), tile_px=tile_px)
    except ValueError as error:
        return str(error).encode()
    assert atoms.shape == shape
    return hashlib.sha256(atoms.tobytes()).digest()


def digest_of_codes() -> str:
    """One digest of the codes of `pictures`, and of what is read of damaged ones."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(6)
    for atoms, tile_px in pictures():
        code = assert_lossless(atoms, tile_px=tile_px)
        digest.update(code)
        for _ in range(30):
            digest.update(outcome(damaged(code, rng), atoms.shape, tile_px=tile_px))
    return digest.hexdigest()


def digest_of_store(root: Path) -> str:
    """Write a tiny store and read crops and tables; digest of all files and all that is read."""
    records = []
    for key, shape in (("a", (24, 40)), ("b", (17, 31))):
        masks = np.zeros((4, *shape), bool)
        masks[0, 3:15, 5:30] = masks[1, 6:9, 2:12] = masks[2, 16] = True
        clean = np.indices((*shape, 3)).sum(axis=0).astype(np.uint8)
        records.append(Record(key, clean, clean, MaskSet.from_masks(masks, score=np.arange(4.0))))
    header = Header(num_images=2, num_shards=1, images_per_shard=2, paired=False, made_of={})
    write_header(root, header)
    write_shard(root, 0, records, paired=False)
    digest = hashlib.sha256()
    for file in sorted(file for file in root.rglob("*") if file.is_file()):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    store = MaskStore.open(root)
    for index, record in enumerate(records):
        assert store[index].masks.equals(record.masks)
        cut = store.masks(index, 2, 4, 12, 20, keep=np.array([True, False, True, True]))
        assert cut.equals(record.masks.select([0, 2, 3]).crop(2, 4, 12, 20))
        table = store.table(index)
        for values in (cut.atoms, cut.members, table.areas, table.boxes, table.atom_areas):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


WITHOUT_NUMBA = """
import runpy, sys
from pathlib import Path
sys.modules["numba"] = None
here = runpy.run_path(sys.argv[1])
print(here["digest_of_codes"](), here["digest_of_store"](Path(sys.argv[2])))
"""


def test_without_numba_the_bytes_are_the_same(tmp_path: Path) -> None:
    """Codes, what is read of damaged ones, and a store; interpreted, with bounds checked."""
    arguments = [sys.executable, "-W", "error", "-c", WITHOUT_NUMBA, __file__, tmp_path / "plain"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [digest_of_codes(), digest_of_store(tmp_path / "compiled")]


# Any bytes


def test_damaged_codes_are_refused_or_read_as_something(rng: np.random.Generator) -> None:
    codes = [(encode_image(a, tile_px=t), a.shape, t) for a, t in pictures()]
    outcomes = set()
    for _ in range(2000):
        for code, shape, tile_px in codes:
            outcomes.add(outcome(damaged(code, rng), shape, tile_px=tile_px))
    assert b"a tile's code is damaged" in outcomes
    assert len(outcomes) > 1000, "most of them say something"


@settings(max_examples=300)
@given(st.binary(max_size=60), st.tuples(SIDES, SIDES), st.sampled_from([8, 64]))
@example(b"", (8, 8), 8)
@example(b"\x80" * 40, (8, 8), 8)
@example(b"\xff" * 5 + b"\x7f", (8, 8), 8)
@example(b"\x01\x00", (70, 70), 64)
def test_random_bytes_are_refused_or_read_as_something(
    code: bytes, shape: tuple[int, int], tile_px: int
) -> None:
    outcome(code, shape, tile_px=tile_px)
    body = bytes([len(code)]) + code
    outcome(body, (min(shape[0], tile_px), min(shape[1], tile_px)), tile_px=tile_px)


@pytest.mark.parametrize("shape", [(24, 41), (23, 40), (25, 40), (24, 39), (2, 24, 40), (300, 40)])
def test_a_code_of_another_shape(shape: tuple[int, ...]) -> None:
    """Refused, or read as something else of this shape."""
    outcome(encode_image(a_dog(), tile_px=256), shape, tile_px=256)
    for code in (b"", bytes.fromhex(GOLDEN)[:-1], bytes.fromhex(GOLDEN) + b"\0"):
        with pytest.raises(ValueError, match="don't add up"):
            decode_image(code, (24, 40), np.dtype(np.uint16), tile_px=256)


def test_nothing_is_written_outside_the_arrays(rng: np.random.Generator) -> None:
    """Around every array that the decoder is handed lies a border that must stay as it was."""
    height, width, border = 9, 14, 64
    sides = {"starts": height * width, "labels": height * width, "rows": height + 1}
    room = {name: np.full(side + 2 * border, -77) for name, side in sides.items()}
    model = np.full(NUM_CONTEXTS + 2 * border, -77)
    inner = slice(border, -border)
    counts = []
    for _ in range(3000):
        code = rng.bytes(int(rng.integers(1, 40))) + rng.bytes(1) * int(rng.integers(40))
        model[inner] = START_MODEL
        arrays = (room[name][inner] for name in sides)
        content = np.frombuffer(code, np.uint8)
        count = decode_tile(content, 0, len(code), model[inner], width, height, *arrays)
        assert DAMAGED <= count <= height * width
        counts.append(count)
        for array in (*room.values(), model):
            assert (array[:border] == -77).all()
            assert (array[-border:] == -77).all()
    assert min(counts) == DAMAGED
    assert max(counts) > height


# Photographs


@pytest.mark.parametrize("name", ["dog", "truck"])
def test_masks_of_photographs_come_back(shared_data: Path, name: str) -> None:
    planes = []
    for file in sorted((shared_data / "sam_masks" / name / "masks").glob("*.png")):
        with Image.open(file) as plane:
            planes.append(np.asarray(plane) > 0)
    masks = MaskSet.from_masks(np.stack(planes))
    assert len(assert_lossless(masks.atoms, tile_px=256)) < 40_000
