"""`--source FOLDER`: masks of other pictures than the dataset's, such as restored ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samprior.pipeline.datasets import Dataset, Pair, find_dataset
from samprior.pipeline.makers import Segmented
from samprior.pipeline.precompute import precompute
from samprior.pipeline.segmenters import build_segmenter, segmenter_settings
from samprior.pipeline.source_folder import folder_maker
from samprior.storage import MaskSet, MaskStore
from samprior.storage.errors import LayoutError, UsageError
from samprior.storage.files import sha256_of
from samprior.storage.header import JOB
from samprior.storage.images import Rgb, read_rgb, write_png
from samprior.storage.manifest import digests_of
from samprior.storage.verify import verify_store
from samprior.training.checkpoint import save_checkpoint
from samprior.training.networks import build_network

Samprior = Callable[..., tuple[int, str, str]]
SUPERPIXEL = ("--segmenter", "superpixel", "--workers", "0")
SIZES = ((40, 56), (48, 33), (40, 56))


def picture(rng: np.random.Generator, size: tuple[int, int]) -> Rgb:
    """Blocks of colours, so that there is something to segment."""
    blocks = rng.integers(0, 256, (-(-size[0] // 12), -(-size[1] // 12), 3), dtype=np.uint8)
    return np.ascontiguousarray(
        np.kron(blocks, np.ones((12, 12, 1), np.uint8))[: size[0], : size[1]]
    )


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A dataset of three pairs of two sizes, and `restored` pictures by their keys."""
    for number, size in enumerate(SIZES):
        for side in ("degraded", "clean"):
            write_png(tmp_path / "data" / side / f"a/{number}.png", picture(rng, size))
        write_png(tmp_path / "restored" / f"a/{number}.png", picture(rng, size))
    return tmp_path / "data"


def dataset(data: Path) -> Dataset:
    return find_dataset("folder", data)


def arguments(data: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("precompute", "--dataset", "folder", "--root", data, "--out", out, *SUPERPIXEL, *more)


def of_folder(data: Path, folder: Path, name: str = "superpixel") -> Any:  # noqa: ANN401
    return folder_maker(Segmented(segmenter_settings(name)), dataset(data), folder)


# ---- what is stored


def test_masks_are_of_the_folder_and_pictures_of_the_dataset(
    data: Path, tmp_path: Path, samprior: Samprior
) -> None:
    folder, out = tmp_path / "restored", tmp_path / "store"
    code, _, err = samprior(*arguments(data, out, "--source", folder))
    assert code == 0, err
    store, segment = MaskStore.open(out).require_complete(), build_segmenter("superpixel")
    assert store.header.made_of["source"] == "folder"
    for record, pair in zip(store, dataset(data).pairs, strict=True):
        assert np.array_equal(record.clean, read_rgb(pair.clean))
        assert np.array_equal(record.degraded, read_rgb(pair.degraded))
        assert record.masks.equals(segment(read_rgb(folder / f"{record.key}.png")))
        assert not record.masks.equals(segment(record.clean))
    inputs = {key: of for one in store.receipts.values() for key, of in one.inputs.items()}
    file = folder / "a/1.png"
    assert inputs["a/1"][2:] == (file.stat().st_size, sha256_of(file))
    assert verify_store(out).ok


def test_a_mask_set_of_a_folder_joins_a_store(
    data: Path, tmp_path: Path, samprior: Samprior
) -> None:
    out = tmp_path / "store"
    assert samprior(*arguments(data, out))[0] == 0
    more = ("--masks", "restored", "--source", tmp_path / "restored")
    code, said, err = samprior(*arguments(data, out, *more))
    assert code == 0, err
    assert "masks restored: 3 images" in said
    store = MaskStore.open(out, masks="restored").require_complete()
    assert store.header.made_of["source"] == "folder"
    assert MaskStore.open(out).header.made_of["source"] == "clean"
    segment = build_segmenter("superpixel")
    for record in store:
        restored = read_rgb(tmp_path / "restored" / f"{record.key}.png")
        assert record.masks.equals(segment(restored))
    code, said, _ = samprior(*arguments(data, out, *more))
    assert (code, "nothing to do" in said) == (0, True)


def test_restored_pictures_are_segmented_as_restore_writes_them(
    data: Path, tmp_path: Path, samprior: Samprior
) -> None:
    settings = {"width": 2, "enc_blocks": [1], "middle_blocks": 1, "dec_blocks": [1]}
    torch.manual_seed(0)
    network = build_network("nafnet", **settings)
    record = {"network": {"name": "nafnet", "preset": None, "settings": settings}}
    save_checkpoint(tmp_path / "run/model.safetensors", network.state_dict(), record)
    for number, source in enumerate((data / "degraded", data)):
        folder = tmp_path / f"out{number}"
        assert samprior("restore", tmp_path / "run", source, folder, "--device", "cpu")[0] == 0
        out = tmp_path / f"store{number}"
        code, _, err = samprior(*arguments(data, out, "--source", folder))
        assert code == 0, err
        (out / JOB).unlink()  # it names the folder
    assert digests_of(tmp_path / "store0") == digests_of(tmp_path / "store1")


def test_a_dry_run_writes_nothing(data: Path, tmp_path: Path, samprior: Samprior) -> None:
    more = ("--source", tmp_path / "restored", "--dry-run")
    code, said, _ = samprior(*arguments(data, tmp_path / "store", *more))
    assert code == 0
    assert "3 images in 1 shard" in said
    assert not (tmp_path / "store").exists()


# ---- resume


def test_a_changed_picture_is_segmented_again_and_no_other(
    data: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder, out = tmp_path / "restored", tmp_path / "store"

    def run(to: Path) -> int:
        maker = of_folder(data, folder)
        done = precompute(dataset(data), to, maker, source="folder", images_per_shard=1, workers=0)
        return done.shards_written

    assert run(out) == 3
    assert run(out) == 0
    file = folder / "a/2.png"
    before = file.read_bytes()
    write_png(file, picture(rng, SIZES[2]))
    file.write_bytes(file.read_bytes().ljust(len(before), b"\0"))
    assert run(out) == 1
    assert run(tmp_path / "anew") == 3
    assert digests_of(out) == digests_of(tmp_path / "anew")


def test_a_moved_folder_is_the_same(data: Path, tmp_path: Path, samprior: Samprior) -> None:
    out = tmp_path / "store"
    assert samprior(*arguments(data, out, "--source", tmp_path / "restored"))[0] == 0
    (tmp_path / "restored").rename(tmp_path / "elsewhere")
    code, said, _ = samprior(*arguments(data, out, "--source", tmp_path / "elsewhere"))
    assert (code, "nothing to do" in said) == (0, True)
    code, _, err = samprior(*arguments(data, out, "--source", "degraded"))
    assert code == 1
    assert "source is folder, wanted degraded" in err


# ---- names


@pytest.mark.parametrize("way", ["{key}", "degraded/{key}", "a b/{key}"])
def test_pictures_are_found_by_key_or_by_the_degraded_file(
    tmp_path: Path, rng: np.random.Generator, way: str
) -> None:
    """As `restore` names them when it is given the split's folder, or the degraded side's."""
    root = tmp_path / "data"
    for side in ("degraded", "clean"):
        write_png(root / "train" / side / "x.y/1 2.png", picture(rng, SIZES[0]))
    found = find_dataset("folder", root, split="train")
    assert [pair.key for pair in found.pairs] == ["x_y/1_2"]
    name = {"{key}": "x_y/1_2", "degraded/{key}": "degraded/x.y/1 2", "a b/{key}": "x.y/1 2"}[way]
    write_png(tmp_path / "restored" / f"{name}.png", picture(rng, SIZES[0]))
    maker = folder_maker(Segmented(segmenter_settings("superpixel")), found, tmp_path / "restored")
    assert maker.pictures == {"x_y/1_2": tmp_path / "restored" / f"{name}.png"}


def test_what_is_missing_or_of_another_size_is_named(
    data: Path, tmp_path: Path, rng: np.random.Generator, samprior: Samprior
) -> None:
    folder, out = tmp_path / "restored", tmp_path / "store"

    def refusal(source: object) -> str:
        code, _, err = samprior(*arguments(data, out, "--source", source))
        assert code == 2
        assert not out.exists()
        return err.splitlines()[-1]

    assert "nowhere does not exist" in refusal(tmp_path / "nowhere")
    (folder / "a/1.png").rename(tmp_path / "kept.png")
    assert "lacks 1 of 3 pictures of the dataset: a/1 " in refusal(folder)
    write_png(folder / "a/1.png", picture(rng, (33, 48)))
    message = refusal(folder)
    assert "1 picture that can't be segmented" in message
    assert "1.png is 48x33, the dataset's picture is 33x48" in message
    (folder / "a/1.png").write_bytes(b"no picture")
    assert "a/1.png is not an image" in refusal(folder)
    (tmp_path / "kept.png").rename(folder / "a/1.png")
    (folder / "a/2.jpg").write_bytes((folder / "a/2.png").read_bytes())
    assert "has a/2.jpg and a/2.png" in refusal(folder)


def test_one_picture_is_not_taken_for_two(tmp_path: Path, rng: np.random.Generator) -> None:
    for folder in ("a", "b"):
        for side in ("degraded", "clean"):
            write_png(tmp_path / "data" / side / folder / "1.png", picture(rng, SIZES[0]))
    write_png(tmp_path / "restored/1.png", picture(rng, SIZES[0]))
    with pytest.raises(LayoutError, match="lacks 2 of 2 pictures"):
        of_folder(tmp_path / "data", tmp_path / "restored")


def test_a_damaged_pair_of_the_dataset_is_quarantined_as_ever(
    data: Path, tmp_path: Path, samprior: Samprior
) -> None:
    (data / "clean/a/1.png").write_bytes(b"")
    code, said, err = samprior(
        *arguments(data, tmp_path / "store", "--source", tmp_path / "restored")
    )
    assert code == 1
    assert "2 images" in said
    assert "a/1:" in err


def test_source_and_maker_go_together(data: Path, tmp_path: Path) -> None:
    plain = Segmented(segmenter_settings("superpixel"))
    with pytest.raises(UsageError, match="folder_maker"):
        precompute(dataset(data), tmp_path / "s", plain, source="folder", workers=0)
    with pytest.raises(UsageError, match="folder_maker"):
        precompute(dataset(data), tmp_path / "s", of_folder(data, tmp_path / "restored"), workers=0)


# ---- segmenters that take several pictures at once


@dataclass
class Batches:
    """Two masks a picture: where it is brighter than its mean, and where not."""

    images_at_once: int = 2
    calls: list[int] = field(default_factory=list)

    def __call__(self, image: Rgb) -> MaskSet:
        return next(self.many([image]))

    def many(self, images: Sequence[Rgb]) -> Iterator[MaskSet]:
        self.calls.append(len(images))
        for image in images:
            bright = image.mean(2) > image.mean()
            yield MaskSet.from_masks(np.stack([bright, ~bright]))

    def take_notes(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class BatchSettings:
    segment: Batches

    def describe(self) -> dict[str, Any]:
        return {"segmenter": "bright"}

    def build(self) -> Batches:
        return self.segment


def test_batches_are_of_the_folder_too(data: Path, tmp_path: Path) -> None:
    segment = Batches()
    folder = tmp_path / "restored"
    maker = folder_maker(Segmented(BatchSettings(segment)), dataset(data), folder)
    precompute(dataset(data), tmp_path / "store", maker, source="folder", workers=0)
    assert segment.calls == [2, 1]
    for record in MaskStore.open(tmp_path / "store"):
        assert record.masks.equals(segment(read_rgb(folder / f"{record.key}.png")))


def test_a_picture_that_shrank_meanwhile_is_quarantined_alone(
    data: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "restored"
    maker = folder_maker(Segmented(BatchSettings(Batches())), dataset(data), folder)
    write_png(folder / "a/0.png", picture(rng, (12, 12)))
    done = precompute(dataset(data), tmp_path / "store", maker, source="folder", workers=0)
    assert list(done.quarantined) == ["a/0"]
    assert "is 12x12, the dataset's picture is 56x40" in done.quarantined["a/0"]


def test_pairs_keep_their_own_pictures(data: Path, tmp_path: Path) -> None:
    maker = of_folder(data, tmp_path / "restored")
    pair: Pair = dataset(data).pairs[0]
    masks = maker.build()(pair, read_rgb(pair.clean))
    assert masks.equals(build_segmenter("superpixel")(read_rgb(tmp_path / "restored/a/0.png")))
