"""Masks as atoms against COCO run lengths: bytes, encoding, decoding, crops.

    python benchmarks/masks.py

The masks are superpixel regions of photographs that ship with scikit-image (not SAM's), about 110
overlapping masks an image. The peer is pycocotools with SA-1B style JSON, the form in which SA-1B
and amg.py keep masks.
"""

import json
import tempfile
import warnings
from pathlib import Path

import measure
import numpy as np
import skimage.data
from pycocotools import mask as coco

from samprior.pipeline import build_segmenter
from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard

CROP_PX = 256


def main() -> None:
    """Measure, print, and write benchmarks/results/masks.json."""
    # pycocotools 2.0.11 sets an array's shape in place, which NumPy 2.5 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    photos = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea")]
    segment = build_segmenter("superpixel")
    sets = [segment(photo) for photo in photos]
    planes = [masks.to_masks() for masks in sets]
    texts = [to_json(stack) for stack in planes]
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder), photos, sets)
        atom_bytes = store_mask_bytes(Path(folder))
        json_bytes = sum(map(len, texts))
        rows = [
            measure.against(
                "encode", lambda: list(map(MaskSet.from_masks, planes)),
                "pycocotools + JSON", lambda: list(map(to_json, planes)),
            ),
            measure.against(
                f"masks of a random {CROP_PX}x{CROP_PX} crop, from disk",
                lambda: crop_ours(store),
                "pycocotools, only masks that meet it", lambda: crop_coco(texts),
            ),
        ]  # fmt: skip
    for row in rows:
        measure.show(row)
    print(
        f"bytes: {atom_bytes}, SA-1B style JSON {json_bytes}, {json_bytes / atom_bytes:.2f} times"
    )
    measure.write(
        "masks",
        rows,
        machine=measure.machine("numpy", "zarr", "pycocotools"),
        num_masks=[len(masks) for masks in sets],
        atom_bytes=atom_bytes,
        json_bytes=json_bytes,
    )


def to_json(planes: np.ndarray) -> bytes:
    """Masks (K, H, W) as SA-1B keeps them."""
    codes = coco.encode(np.asfortranarray(planes.transpose(1, 2, 0).astype(np.uint8)))
    notes = [
        {
            "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            "area": int(coco.area(code)),
            "bbox": coco.toBbox(code).tolist(),
        }
        for code in codes
    ]
    return json.dumps(notes).encode()


def crop_coco(texts: list[bytes]) -> list[np.ndarray]:
    """Read, choose by box, decode, cut."""
    crops = []
    for text in texts:
        met = []
        for note in json.loads(text):
            x, y, width, height = note["bbox"]
            if x < CROP_PX and y < CROP_PX and width > 0 and height > 0:
                code = note["segmentation"]
                code = {"size": code["size"], "counts": code["counts"].encode()}
                met.append(coco.decode(code)[:CROP_PX, :CROP_PX].astype(bool))
        crops.append(np.stack(met))
    return crops


def crop_ours(store: MaskStore) -> list[np.ndarray]:
    """Read a crop with its two pictures, and unpack the masks."""
    return [
        store.crop(index, 0, 0, CROP_PX, CROP_PX).masks.to_masks() for index in range(len(store))
    ]


def write_store(root: Path, photos: list[np.ndarray], sets: list[MaskSet]) -> MaskStore:
    """All images in one shard."""
    count = len(sets)
    header = Header(
        num_images=count, num_shards=1, images_per_shard=count, paired=False, made_of={}
    )
    write_header(root, header)
    records = [
        Record(str(number), photo, photo, masks)
        for number, (photo, masks) in enumerate(zip(photos, sets, strict=True))
    ]
    write_shard(root, 0, records, paired=False)
    return MaskStore.open(root)


def store_mask_bytes(root: Path) -> int:
    """Bytes of everything but the pictures."""
    files = (file for file in (root / "shards" / "000000").rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if "clean" not in file.parts)


if __name__ == "__main__":
    main()
