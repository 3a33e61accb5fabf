"""The compiled way from planes to atoms and back gives what NumPy's way gives, array for array.

Bands are made small here, so that a picture of a few rows has many, and threads share them.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from samprior.storage import MaskSet, compiled, masks, planes

Planes = npt.NDArray[np.bool_]


@contextmanager
def numpy_only() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "KERNEL_PX", 1 << 62)
        yield


@contextmanager
def kernels_only(*, band_px: int = planes.BAND_PX, threads: int = 1) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "KERNEL_PX", 1)
        patch.setattr(planes, "BAND_PX", band_px)
        patch.setattr(planes, "_num_threads", lambda: threads)
        yield


def assert_same(stack: Planes, *, band_px: int = planes.BAND_PX, threads: int = 1) -> MaskSet:
    """Both ways give equal arrays of equal types, and the planes back."""
    with numpy_only():
        wanted = MaskSet.from_masks(stack)
        assert np.array_equal(wanted.to_masks(), stack)
    with kernels_only(band_px=band_px, threads=threads):
        got = MaskSet.from_masks(stack)
        back = got.to_masks()
    assert got.atoms.dtype == wanted.atoms.dtype
    assert np.array_equal(got.atoms, wanted.atoms)
    assert got.members.dtype == np.bool_
    assert got.members.flags.c_contiguous
    assert np.array_equal(got.members, wanted.members)
    assert got.atom_areas.dtype == wanted.atom_areas.dtype
    assert np.array_equal(got.atom_areas, wanted.atom_areas)
    assert back.dtype == np.bool_
    assert np.array_equal(back, stack)
    return got


@st.composite
def stacks(draw: st.DrawFn) -> Planes:
    """(K, H, W) of rectangles, noise, full, empty and equal masks; widths around a word's."""
    height = draw(st.integers(1, 7))
    width = draw(st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 24, 33]))
    drawn: list[Planes] = []
    for _ in range(draw(st.integers(0, 9))):
        plane = np.zeros((height, width), bool)
        kind = draw(st.sampled_from(["rectangle", "noise", "full", "empty", "repeat", "pixel"]))
        if kind == "rectangle":
            y0, y1 = sorted(draw(st.tuples(*[st.integers(0, height)] * 2)))
            x0, x1 = sorted(draw(st.tuples(*[st.integers(0, width)] * 2)))
            plane[y0:y1, x0:x1] = True
        elif kind == "noise":
            plane = draw(hnp.arrays(np.bool_, (height, width)))
        elif kind == "full":
            plane[:] = True
        elif kind == "pixel":
            plane[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
        elif kind == "repeat" and drawn:
            plane = draw(st.sampled_from(drawn)).copy()
        drawn.append(plane)
    return np.array(drawn, bool).reshape(-1, height, width)


@given(stacks(), st.sampled_from([1, 40, 1000]), st.integers(1, 3))
@example(np.zeros((0, 3, 4), bool), 1, 3)
@example(np.ones((1, 1, 1), bool), 1, 3)
@example(np.zeros((70, 2, 8), bool), 1, 3)
@example(np.ones((70, 5, 9), bool), 1, 3)
def test_both_ways_are_the_same(stack: Planes, band_px: int, threads: int) -> None:
    assert_same(stack, band_px=band_px, threads=threads)


@pytest.mark.parametrize("num_masks", [1, 31, 32, 33, 64, 65, 200])
def test_noise_in_words_of_masks(rng: np.random.Generator, num_masks: int) -> None:
    """Hardly two pixels are in the same masks, and most places of a row are switches."""
    assert_same(rng.random((num_masks, 20, 37)) < 0.5, band_px=5000, threads=2)


@pytest.mark.parametrize("width", [63, 64, 65])
@pytest.mark.parametrize("first", [0, 1])
def test_as_many_switches_as_there_can_be(width: int, first: int) -> None:
    stack = np.zeros((20, 30, width), bool)
    stack[:, :, first::2] = True
    assert_same(stack)


def test_two_thousand_masks_of_noise(rng: np.random.Generator) -> None:
    """Against the definition: NumPy's way takes minutes, for labels that no pixel has any more."""
    stack = rng.random((2000, 10, 40)) < 0.5
    with kernels_only(band_px=100_000, threads=2):
        got = MaskSet.from_masks(stack)
        assert np.array_equal(got.to_masks(), stack)
    # No two pixels are in the same masks, so atoms are pixels in reading order.
    assert np.array_equal(got.atoms, np.arange(1, 401).reshape(10, 40))
    assert np.array_equal(got.members[1:], stack.reshape(2000, -1).T)
    assert got.atom_areas.tolist() == [0] + [1] * 400


def test_masks_of_one_pixel(rng: np.random.Generator) -> None:
    stack = np.zeros((300, 20, 20), bool)
    stack.reshape(300, -1)[np.arange(300), rng.permutation(400)[:300]] = True
    got = assert_same(stack, band_px=30_000, threads=2)
    assert len(got.members) == 301
    assert set(got.atom_areas[1:].tolist()) == {1}


@pytest.mark.parametrize("side", [17, 256, 257])
def test_every_pixel_an_atom(side: int) -> None:
    """More than 255 atoms, exactly as many as uint16 holds, and more than these."""
    numbers = np.arange(side * side).reshape(side, side)
    got = assert_same(numbers >> np.arange(17)[:, None, None] & 1 > 0, band_px=1 << 17, threads=2)
    assert got.atoms.dtype == (np.uint16 if side <= 256 else np.uint32)
    assert np.array_equal(got.atoms, numbers)


def test_a_row_larger_than_a_band() -> None:
    stack = np.zeros((3, 2, 5000), bool)
    stack[0, :, 100:4000] = stack[1, 0, 3000:] = stack[2, 1] = True
    assert_same(stack, band_px=1000, threads=3)


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda stack: np.asfortranarray(stack),
        lambda stack: stack[:, :, ::-1],
        lambda stack: stack[::2],
        lambda stack: stack[:, 1:, 3:],
        lambda stack: np.ascontiguousarray(stack.transpose(1, 2, 0)).transpose(2, 0, 1),
        lambda stack: np.broadcast_to(stack[:1], stack.shape),
        lambda stack: np.frombuffer(b"\0" + stack.tobytes(), bool)[1:].reshape(stack.shape),
    ],
    ids=["fortran", "mirrored", "every other", "window", "channels last", "broadcast", "unaligned"],
)
def test_however_the_planes_lie(
    laid_out: Callable[[Planes], Planes], rng: np.random.Generator
) -> None:
    assert_same(laid_out(rng.random((6, 12, 16)) < 0.3), band_px=400, threads=2)


def test_any_byte_but_zero_is_in_the_mask(rng: np.random.Generator) -> None:
    """As in the planes that come of pictures of 0 and 255."""
    stack = rng.random((4, 9, 24)) < 0.5
    with kernels_only():
        of_bytes = MaskSet.from_masks((stack * np.uint8(255)).view(bool))
        assert of_bytes.equals(MaskSet.from_masks(stack))


def test_atoms_in_any_layout_come_back(rng: np.random.Generator) -> None:
    stack = rng.random((5, 8, 10)) < 0.4
    got = MaskSet.from_masks(stack)
    turned = MaskSet(np.rot90(got.atoms), got.members, {})
    with kernels_only(band_px=50, threads=2):
        assert np.array_equal(turned.to_masks(), np.rot90(stack, axes=(1, 2)))


def test_equal_digests_are_told_apart(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all sets of masks have the same digest, in a band and between bands."""

    class Constant:
        def integers(self, _: int, *, size: tuple[int]) -> npt.NDArray[np.int64]:
            return np.zeros(size, np.int64)

    stack = rng.random((40, 6, 19)) < 0.3
    monkeypatch.setattr(np.random, "default_rng", lambda _: Constant())
    assert_same(stack, band_px=2000, threads=2)


def test_many_callers_at_once(rng: np.random.Generator) -> None:
    drawn = [rng.random((5, 30, 40)) < 0.1 for _ in range(12)]
    wanted = [MaskSet.from_masks(stack) for stack in drawn]
    with kernels_only(band_px=500, threads=3), ThreadPoolExecutor(4) as callers:
        got = list(callers.map(MaskSet.from_masks, drawn * 5))
    assert all(a.equals(b) for a, b in zip(got, wanted * 5, strict=True))


def test_what_fails_on_a_thread_is_raised() -> None:
    def work(item: int) -> int:
        if item == 7:
            raise MemoryError("band 7")
        return item

    with kernels_only(threads=3), pytest.raises(MemoryError, match="band 7"):
        planes._share(work, range(20))


def test_without_numba_it_is_numpys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "KERNEL_PX", 1)
    monkeypatch.setattr(compiled, "numba", None)
    monkeypatch.setattr(planes, "planes_to_atoms", None)
    monkeypatch.setattr(planes, "atoms_to_planes", None)
    stack = np.ones((2, 3, 4), bool)
    assert np.array_equal(MaskSet.from_masks(stack).to_masks(), stack)


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_few_pixels_do_not_import_numba() -> None:
    run(
        "import sys, numpy as np\n"
        "from samprior.storage import MaskSet\n"
        "MaskSet.from_masks(np.ones((2, 100, 100), bool)).to_masks()\n"
        "assert 'numba' not in sys.modules"
    )


def test_threads_start_anew_in_a_forked_process() -> None:
    run(
        "import os, numpy as np\n"
        "from samprior.storage import MaskSet, planes\n"
        "planes.BAND_PX, planes._num_threads = 100_000, lambda: 3\n"
        "stack = np.ones((2, 400, 400), bool)\n"
        "MaskSet.from_masks(stack)\n"
        "child = os.fork()\n"
        "made = MaskSet.from_masks(stack)\n"
        "if not child: os._exit(len(made.members))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2"
    )
