"""A sweep over every kind of file in a store: each flipped bit and each cut is found and mended.

Three folders are damaged, as jobs leave them: a store that has grown, with a further mask set and a
quarantined image; one that refers to its pictures; and tars. Damages are drawn with fixed seeds.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samprior.pipeline.datasets import Dataset, Pair, find_dataset
from samprior.pipeline.job_record import JobRecord
from samprior.pipeline.precompute import precompute
from samprior.pipeline.worker import MasksOf
from samprior.storage import MaskSet
from samprior.storage.header import HEADER_COPY, JOB
from samprior.storage.images import Rgb, write_png
from samprior.storage.locks import LOCK
from samprior.storage.manifest import digests_of
from samprior.storage.places import LocalFolder, open_place
from samprior.storage.verify import Verification, verify_store
from samprior.storage.verify_metadata import read_metadata

PATTERNS = {"degraded_pattern": "noisy/{key}.png", "clean_pattern": "clean/{key}.png"}

HARD = {"flips": 3, "cuts": 1}
GENTLE = {"flips": 1, "cuts": 1}
"""Damages of each kind of file: where they are only looked for, and where they are mended."""


@dataclass(frozen=True)
class Halves:
    """Two masks, the left and the right half."""

    name: str = "halves"

    def describe(self) -> dict[str, Any]:
        return {"segmenter": self.name, "threshold": 1e-05}  # `e` and `E` are one bit apart

    def inputs(self, pair: Pair) -> tuple[int | str, ...]:
        return ()

    def build(self) -> MasksOf:
        return self._masks_of

    def _masks_of(self, pair: Pair, image: Rgb) -> MaskSet:
        masks = np.zeros((2, *image.shape[:2]), bool)
        middle = image.shape[1] // 2
        masks[0, :, :middle] = masks[1, :, middle:] = True
        return MaskSet.from_masks(masks, brightness=[float(image.mean()), 1.5])


@dataclass(frozen=True)
class Folder:
    """What is damaged, and the command that makes it."""

    root: Path
    job: Callable[[], None]
    whole: dict[str, str]
    """Digest of every file."""

    def digests(self) -> dict[str, str]:
        digests, _ = digests_of(self.root)
        return {name: digest for name, digest in digests.items() if not name.endswith(LOCK)}

    def kinds(self) -> dict[str, list[str]]:
        """Names by what they are when numbers are left out."""
        kinds: dict[str, list[str]] = {}
        for name in self.whole:
            kinds.setdefault(re.sub(r"\d+", "N", name), []).append(name)
        return kinds


def pictures(folder: Path, *names: str) -> Dataset:
    rng = np.random.default_rng(len(names))
    for name in names:
        for side in ("noisy", "clean"):
            write_png(folder / side / f"{name}.png", rng.integers(0, 256, (20, 24, 3), np.uint8))
    return find_dataset("folder", folder, **PATTERNS)


def job(dataset: Dataset, root: Path | str, **more: Any) -> None:  # noqa: ANN401
    asked = {"images_per_shard": 2, **more}
    kept = {name: value for name, value in asked.items() if name != "append"}
    record = JobRecord(dataset="folder", root=str(dataset.root), **PATTERNS, **kept)
    precompute(dataset, root, Halves(), workers=0, record=record, **asked)


@pytest.fixture(scope="module", params=["store", "references", "tars"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    base = tmp_path_factory.mktemp(request.param)
    root, data = base / "out", base / "data"
    dataset = pictures(data, "a", "b", "é")  # not ASCII: an escape in JSON
    (data / "clean" / "b.png").write_bytes(b"")
    if request.param == "store":
        job(dataset, root)
        dataset = pictures(data, "0", "c", "d")
        job(dataset, root, append=True)
    more = {"references": {"images": "reference"}, "tars": {"form": "webdataset"}}

    def run() -> None:
        job(dataset, root, **more.get(request.param, {}))
        if request.param == "store":
            job(dataset, root, masks="blurred", source="degraded")

    run()
    made = Folder(root, run, {})
    assert verify_store(root).ok
    return Folder(root, run, made.digests())


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    bit = int(rng.integers(8 * len(content)))
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def damages(folder: Folder, rng: np.random.Generator, *, flips: int, cuts: int) -> Iterator[Path]:
    """Files of all kinds, one after another, each while it is damaged."""
    for names in folder.kinds().values():
        for damage in (flipped,) * flips + (cut,) * cuts:
            file = folder.root / names[int(rng.integers(len(names)))]
            content = file.read_bytes()
            file.write_bytes(damage(content, rng))
            yield file
            file.write_bytes(content)


def lines(found: Verification) -> list[str]:
    return [line for one in (found, *found.mask_sets.values()) for line in one.lines()]


def test_every_damage_is_found_and_named(folder: Folder, rng: np.random.Generator) -> None:
    count = 0
    for file in damages(folder, rng, **HARD):
        found = verify_store(folder.root)
        assert not found.ok, file
        assert any(str(file) in line for line in lines(found)), (file, lines(found))
        count += 1
    assert JOB in folder.kinds()
    assert count == sum(HARD.values()) * len(folder.kinds())
    assert verify_store(folder.root).ok
    assert folder.digests() == folder.whole


def test_repair_and_the_same_command_bring_the_same_bytes_back(
    folder: Folder, rng: np.random.Generator
) -> None:
    for file in damages(folder, rng, **GENTLE):
        found = verify_store(folder.root, repair=True)
        assert not found.ok, file
        if not found.mendable:
            folder.job()
        assert folder.digests() == folder.whole, file
    assert verify_store(folder.root).ok


def test_a_lost_file_is_found_and_made_again(folder: Folder, rng: np.random.Generator) -> None:
    for kind, names in folder.kinds().items():
        if kind.endswith((HEADER_COPY, JOB)):
            continue  # stores that were made before there was one have none
        (folder.root / names[int(rng.integers(len(names)))]).unlink()
        assert not verify_store(folder.root).ok, kind
        verify_store(folder.root, repair=True)
        folder.job()
        assert folder.digests() == folder.whole, kind


def test_every_bit_of_the_header_counts(folder: Folder) -> None:
    """Of both files that have it; the other one tells what it was."""
    place = LocalFolder(folder.root)
    header = read_metadata(place).header
    for name in [name for name in folder.whole if re.fullmatch(r"(zarr|header.*)\.json", name)]:
        file = folder.root / name
        content = file.read_bytes()
        for bit in range(0, 8 * len(content), 7):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            found = read_metadata(place)
            assert found.header == header
            assert list(found.rewrites.values()) == [content]
        file.write_bytes(content)


def test_a_folder_that_is_one_bit_away_is_not_taken_for_the_pictures(tmp_path: Path) -> None:
    root, near = tmp_path / "out", tmp_path / "data2"
    job(pictures(tmp_path / "data3", "a"), root, images="reference")
    near.mkdir()
    place = LocalFolder(root)
    header = read_metadata(place).header
    for name in ("zarr.json", HEADER_COPY):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content.replace(b"data3", b"data2"))
        found = read_metadata(place)
        assert found.header == header
        assert found.rewrites == {name: content}
        (root / name).write_bytes(content)


@pytest.mark.parametrize("form", ["zarr", "webdataset"])
def test_in_a_bucket_too(
    form: str, tmp_path: Path, bucket_url: str, rng: np.random.Generator
) -> None:
    dataset = pictures(tmp_path / "data", "a", "b", "c")
    place = open_place(bucket_url)

    def content() -> dict[str, bytes]:
        return {name: place.read(name) for name in place.sizes() if not name.endswith(LOCK)}

    job(dataset, bucket_url, form=form)
    whole = content()
    data = "shards/000001/clean/c/0/0/0/0" if form == "zarr" else "000001.tar"
    first = "zarr.json" if form == "zarr" else "header.json"
    for name in (data, first, "receipts/000000.json"):
        place.write(name, flipped(whole[name], rng))
        found = verify_store(bucket_url)
        assert any(f"{bucket_url}/{name}" in line for line in found.lines())
        verify_store(bucket_url, repair=True)
        job(dataset, bucket_url, form=form)
        assert content() == whole
    left = "shards/000007/clean/zarr.json" if form == "zarr" else "000007.tar"
    place.write(left, b"left")
    assert verify_store(bucket_url, repair=True).leftovers == ["/".join(left.split("/")[:2])]
    assert content() == whole
    assert verify_store(bucket_url).ok
