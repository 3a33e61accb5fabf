"""The records that every golden store holds, whatever its format version.

python tests/golden/records.py    # packs the store of the present format, once it is final
"""

import tarfile
import tempfile
from pathlib import Path

import numpy as np

from samprior.storage import MaskSet, Record
from samprior.storage.header import FORMAT_VERSION
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard


def golden_records() -> list[Record]:
    """Three small pictures: overlapping masks, one pixel of mask, and no mask at all."""
    overlapping = np.zeros((3, 20, 150), bool)
    overlapping[0, 2:18, 3:140] = True
    overlapping[1, 5:12, 100:150] = True
    overlapping[2, 6:7, :] = True
    pixel = np.zeros((1, 9, 7), bool)
    pixel[0, 4, 3] = True
    return [
        _record("seq/0", overlapping),
        _record("seq/1", pixel),
        _record("seq/2", np.zeros((0, 130, 5), bool)),
    ]


def _record(key: str, planes: np.ndarray) -> Record:
    num_masks, height, width = planes.shape
    y, x = np.mgrid[:height, :width]
    clean = np.stack([y + x, 2 * y, 255 - x], axis=-1).astype(np.uint8)
    masks = MaskSet.from_masks(
        planes,
        predicted_iou=np.linspace(1, 0.5, num_masks, dtype=np.float32),
        point=np.arange(2 * num_masks, dtype=np.float64).reshape(-1, 2),
    )
    return Record(key=key, degraded=clean[::-1].copy(), clean=clean, masks=masks)


def write_golden(root: Path) -> None:
    """Write the golden store with the present code: three images, and one in quarantine."""
    records = golden_records()
    made_of = {"segmenter": "golden"}
    header = Header(num_images=4, num_shards=2, images_per_shard=2, paired=True, made_of=made_of)
    write_header(root, header)
    for shard, held in enumerate((records[:2], records[2:])):
        write_shard(
            root,
            shard,
            held,
            paired=True,
            inputs={record.key: (10, 20) for record in held},
            quarantined={"seq/3": "it was refused"} if shard else {},
        )


def pack_golden() -> None:
    """Write store-vN.tar.xz beside this file, with constant times and owners."""
    name = f"v{FORMAT_VERSION}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, name)
        write_golden(root)
        with tarfile.open(Path(__file__).with_name(f"store-{name}.tar.xz"), "w:xz") as tar:
            for path in sorted(root.rglob("*")):
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                if path.is_dir():
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(member)
                else:
                    member.size = path.stat().st_size
                    with path.open("rb") as stream:
                        tar.addfile(member, stream)


if __name__ == "__main__":
    pack_golden()
