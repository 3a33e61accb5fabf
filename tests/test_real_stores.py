"""Stores of real pictures and masks: lossless, small, and open to anyone who has zarr."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numcodecs.zstd import Zstd
from PIL import Image

from samprior.pipeline import build_segmenter
from samprior.pipeline.importers import read_amg_folder
from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.annotations import mask_annotations
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard

PLAIN_ZARR = """
import sys, zarr
shard = zarr.open_group(sys.argv[1], mode="r")
clean, atoms = shard["clean"][0], shard["atoms"][0]
assert not any(name.startswith(("samprior.training", "torch")) for name in sys.modules)
print(clean.shape, clean.astype(int).sum(), atoms.shape, atoms.astype(int).sum())
"""


def store_of(root: Path, records: list[Record], *, paired: bool) -> MaskStore:
    header = Header(
        num_images=len(records),
        num_shards=1,
        images_per_shard=len(records),
        paired=paired,
        made_of={},
    )
    write_header(root, header)
    write_shard(root, 0, records, paired=paired)
    return MaskStore.open(root)


def rgb(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def test_the_store_of_a_gopro_frame_opens_with_plain_zarr(
    tmp_path: Path, shared_data: Path
) -> None:
    sequence = shared_data / "gopro" / "GOPRO_Large" / "test" / "Flower"
    (sharp,) = sorted((sequence / "sharp").glob("*.png"))
    clean, degraded = rgb(sharp), rgb(sequence / "blur" / sharp.name)
    masks = build_segmenter("superpixel")(clean)
    store = store_of(tmp_path / "gopro", [Record("f", degraded, clean, masks)], paired=True)
    told = subprocess.run(
        [sys.executable, "-c", PLAIN_ZARR, store.root / "shards" / "000000"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert (
        told.split()
        == (
            f"(720, 1280, 3) {clean.astype(int).sum()} (720, 1280) {masks.atoms.astype(int).sum()}"
        ).split()
    )
    assert store["f"].masks.equals(masks)


@pytest.mark.parametrize("name", ["dog", "truck"])
def test_masks_of_sam_are_kept_bit_for_bit_and_small(
    tmp_path: Path, shared_data: Path, name: str
) -> None:
    folder = shared_data / "sam_masks" / name
    masks, picture = read_amg_folder(folder / "masks"), rgb(folder / "image.jpg")
    store = store_of(tmp_path / name, [Record(name, picture, picture, masks)], paired=False)
    held = store[name].masks
    assert held.equals(masks)
    planes = np.stack([rgb(folder / "masks" / f"{k}.png")[..., 0] > 0 for k in range(len(masks))])
    assert np.array_equal(held.to_masks(), planes)
    shard = store.root / "shards" / "000000"
    chunks = [file for file in shard.rglob("*") if file.is_file() and "c" in file.parts]
    held_bytes = sum(file.stat().st_size for file in chunks if "clean" not in file.parts)
    text = json.dumps(mask_annotations(masks)).encode()
    assert len(text) > 6 * held_bytes
    assert len(Zstd(3).encode(text)) > 1.7 * held_bytes


def test_human_segmentations_together_are_kept_bit_for_bit(
    tmp_path: Path, shared_data: Path
) -> None:
    """Five people's regions of one picture: hundreds of atoms, many of a few pixels."""
    folder = shared_data / "rain" / "human_segmentations"
    records, planes = [], []
    for file in sorted(folder.glob("*.npz"))[:3]:
        people = np.load(file)["segmentations"]
        planes.append(np.stack([one == label for one in people for label in np.unique(one)]))
        black = np.zeros((*people.shape[1:], 3), np.uint8)
        records.append(Record(file.stem, black, black, MaskSet.from_masks(planes[-1])))
    store = store_of(tmp_path / "human", records, paired=False)
    for record, wanted in zip(store, planes, strict=True):
        assert np.array_equal(record.masks.to_masks(), wanted)
