"""Export a store as webdataset tars for streaming, and read them back.

One tar per shard of the store, one sample per image:

    <key>.degraded.png   (absent where the store is not paired)
    <key>.clean.png
    <key>.masks.npz      atoms (H, W), members (A, K), and one array per column

`index.json` beside the tars is written last and lists their digests, sizes and sample counts.
Equal stores give equal bytes: times and owners in the tars are constant.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import webdataset as wds
from PIL import Image
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from samprior.storage.errors import StoreError, UsageError
from samprior.storage.files import remove_drafts, sha256_of, staged_file, write_bytes
from samprior.storage.manifest import Json
from samprior.storage.masks import MaskSet
from samprior.storage.store import MaskStore
from samprior.storage.writer import COLUMN_PREFIX, Record

INDEX = "index.json"


def export_webdataset(
    store: MaskStore, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Write a complete store as tars below `out`; whole tars of an earlier run are kept.

    Args:
        store: a complete store.
        out: the folder, made if missing; no other export may write to it at the same time.
        progress: called with (images written, images in all).

    Returns:
        The tars, in order.

    Raises:
        StoreError: the store is unfinished, or `out` holds an export of another store.
        UsageError: a key that webdataset would read as another one.
    """
    store.require_complete()
    _check_keys(store.keys)
    _claim(out, store)
    remove_drafts(out)
    known = _known_digests(out)
    entries: list[Json] = []
    done = 0
    for receipt in store.receipts.values():
        if not receipt.keys:
            continue
        tar = out / f"{receipt.shard:06d}.tar"
        digest = sha256_of(tar) if tar.exists() else None
        if digest is None or digest != known.get(tar.name, digest):
            _write_tar(tar, store, receipt.keys)
            digest = sha256_of(tar)
        entries.append(
            {
                "name": tar.name,
                "num_samples": len(receipt.keys),
                "bytes": tar.stat().st_size,
                "sha256": digest,
            }
        )
        done += len(receipt.keys)
        if progress:
            progress(done, len(store))
    index = {"fingerprint": store.fingerprint, "num_samples": len(store), "shards": entries}
    write_bytes(out / INDEX, json.dumps(index, indent=1).encode() + b"\n")
    return [out / entry["name"] for entry in entries]


def read_webdataset(folder: Path) -> Iterator[Record]:
    """Stream the records of an export in order, each rank and worker its own tars.

    Raises:
        StoreError: the export is unfinished, or a tar is not as it was written; the message
            names it.
    """
    tars = exported_tars(folder)
    digests = {str(tar): entry["sha256"] for tar, entry in zip(tars, _index(folder), strict=True)}
    mine = wds.DataPipeline(
        wds.SimpleShardList(list(digests)), wds.split_by_node, wds.split_by_worker
    )
    for shard in mine:
        tar = Path(shard["url"])
        # Little beside the decoding, and decoders miss some flipped bits.
        if sha256_of(tar) != digests[shard["url"]]:
            raise StoreError(f"{tar} has another content than was written; export it again")
        # Not webdataset's own opener, which leaves each tar open until it is collected.
        with tar.open("rb") as stream:
            yield from map(_record, group_by_keys(tar_file_expander([{**shard, "stream": stream}])))


def exported_tars(folder: Path) -> list[Path]:
    """The tars of a finished export, in order.

    Raises:
        StoreError: there is no finished export, or a tar is missing or short.
    """
    tars = []
    for entry in _index(folder):
        tar = folder / entry["name"]
        if not tar.is_file() or tar.stat().st_size != entry["bytes"]:
            raise StoreError(f"{tar} is missing or not {entry['bytes']} bytes; export it again")
        tars.append(tar)
    return tars


def _index(folder: Path) -> list[Json]:
    """What a finished export says of its tars, in order."""
    try:
        return [
            {
                "name": Path(entry["name"]).name,
                "num_samples": int(entry["num_samples"]),
                "bytes": int(entry["bytes"]),
                "sha256": str(entry["sha256"]),
            }
            for entry in json.loads((folder / INDEX).read_bytes())["shards"]
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{folder} holds no finished export ({error}); run `samprior export` again"
        ) from error


def _known_digests(out: Path) -> dict[str, str]:
    """Digests of a finished export's tars; none after a broken run, whose tars are whole too."""
    try:
        return {entry["name"]: entry["sha256"] for entry in _index(out)}
    except StoreError:
        return {}


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if base_plus_ext(f"{key}.clean.png") != (key, "clean.png"):
            raise UsageError(
                f"key {key!r} can't be exported: webdataset ends a name at its first dot"
            )


def _claim(out: Path, store: MaskStore) -> None:
    """Mark the folder as the export of this store as it is now, or refuse another one's."""
    # The receipts too: a store keeps its fingerprint when a mended image is done again.
    content = b"".join(receipt.to_json() for receipt in store.receipts.values())
    claim = hashlib.sha256(store.fingerprint.encode() + content).hexdigest()
    mark = out / ".fingerprint"
    if mark.exists():
        if mark.read_text() != claim:
            raise StoreError(
                f"{out} holds an export of another store, or of this one before it was changed; "
                "choose another folder"
            )
    elif out.is_dir() and any(out.glob("*.tar")):
        raise StoreError(f"{out} holds tars that are no export of samprior; choose another folder")
    else:
        write_bytes(mark, claim.encode())


def _write_tar(tar: Path, store: MaskStore, keys: Sequence[str]) -> None:
    with (
        staged_file(tar) as stream,
        # pax, the one format with names of any length; the same bytes as ustar for short ones.
        wds.TarWriter(stream, encoder=False, mtime=0, format="PAX_FORMAT") as sink,
    ):
        for key in keys:
            sink.write(_sample(store[key], paired=store.paired))


def _sample(record: Record, *, paired: bool) -> dict[str, str | bytes]:
    sample: dict[str, str | bytes] = {"__key__": record.key}
    if paired:
        sample["degraded.png"] = _png(record.degraded)
    sample["clean.png"] = _png(record.clean)
    sample["masks.npz"] = _npz(record.masks)
    return sample


def _record(sample: Mapping[str, Any]) -> Record:
    clean = _rgb(sample["clean.png"])
    return Record(
        key=sample["__key__"],
        degraded=_rgb(sample["degraded.png"]) if "degraded.png" in sample else clean,
        clean=clean,
        masks=_masks(sample["masks.npz"]),
    )


def _png(rgb: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    # Level 1: photographs hardly shrink further, however long the compressor tries.
    Image.fromarray(rgb).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def _rgb(content: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def _npz(masks: MaskSet) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {"atoms": masks.atoms, "members": masks.members}
    arrays |= {COLUMN_PREFIX + name: column for name, column in masks.columns.items()}
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _masks(content: bytes) -> MaskSet:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        columns = {
            name.removeprefix(COLUMN_PREFIX): arrays[name]
            for name in arrays.files
            if name.startswith(COLUMN_PREFIX)
        }
        return MaskSet(arrays["atoms"], arrays["members"], columns)
