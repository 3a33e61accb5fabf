"""Check a store against its receipts, and drop what is broken so that the job makes it anew."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samprior.storage.errors import StoreError
from samprior.storage.files import STAGED_SUFFIX, only_writer, remove_drafts
from samprior.storage.manifest import (
    Header,
    Receipt,
    digests_of,
    read_header,
    read_receipt,
    receipt_file,
    receipt_files,
    shard_folder,
)
from samprior.storage.places import open_place
from samprior.storage.store import MaskStore

Progress = Callable[[int, int], None]
"""Called with (shards checked, shards in all)."""


@dataclass
class Verification:
    """What `verify_store` found."""

    num_images: int = 0
    num_masks: int = 0
    num_shards: int = 0
    planned_shards: int = 0
    stored_bytes: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    broken: dict[int, list[str]] = field(default_factory=dict)
    """What is wrong, by shard."""
    leftovers: list[Path] = field(default_factory=list)
    """Drafts of killed writers, and shards without a receipt: they don't count as data."""

    @property
    def ok(self) -> bool:
        """Whether every shard of the plan is there and whole."""
        return not self.broken and self.num_shards == self.planned_shards


def verify_store(
    root: Path, *, repair: bool = False, seed: int = 0, progress: Progress | None = None
) -> Verification:
    """Check every digest of every shard and decode one image of each, chosen by `seed`.

    With `repair`, broken shards and leftovers are removed, so that the same `samprior precompute`
    as before makes just those again.

    Raises:
        StoreError: there is no store, or its header is damaged.
        BusyError: with `repair`, while a job writes to the store.
    """
    header = read_header(root)
    with only_writer(root) if repair else nullcontext():
        found = _verify(root, header, seed, progress)
        if repair:
            _repair(root, found)
    return found


def _verify(root: Path, header: Header, seed: int, progress: Progress | None) -> Verification:
    found = Verification(planned_shards=header.num_shards)
    rng = np.random.default_rng(seed)
    for shard in range(header.num_shards):
        if receipt_file(root, shard).exists():
            _check_shard(root, header, shard, found, rng)
        if progress:
            progress(shard + 1, header.num_shards)
    _check_strangers(root, header.num_shards, found)
    return found


def _check_shard(
    root: Path, header: Header, shard: int, found: Verification, rng: np.random.Generator
) -> None:
    try:
        receipt = read_receipt(root, shard)
    except StoreError as error:
        found.broken[shard] = [str(error)]
        return
    problems = _digest_problems(shard_folder(root, shard), receipt)
    planned = min(header.images_per_shard, header.num_images - shard * header.images_per_shard)
    if len(receipt.keys) + len(receipt.quarantined) != planned:
        problems.append(f"{receipt_file(root, shard)} has not the {planned} images of the plan")
    if not problems and receipt.keys:
        problems = _decode_problems(root, receipt, int(rng.integers(len(receipt.keys))))
    if problems:
        found.broken[shard] = problems
        return
    found.num_shards += 1
    found.num_images += len(receipt.keys)
    found.num_masks += sum(receipt.num_masks)
    found.stored_bytes += receipt.stored_bytes
    found.quarantined |= receipt.quarantined


def _digest_problems(folder: Path, receipt: Receipt) -> list[str]:
    if not folder.is_dir():
        return [f"{folder} is missing"]
    digests, _ = digests_of(folder)
    return [
        f"{folder / name} " + ("is missing" if name not in digests else "is not in the receipt")
        if (name in digests) != (name in receipt.digests)
        else f"{folder / name} has another content than was written"
        for name in sorted(digests.keys() | receipt.digests.keys())
        if digests.get(name) != receipt.digests.get(name)
    ]


def _decode_problems(root: Path, receipt: Receipt, row: int) -> list[str]:
    try:
        store = MaskStore(open_place(root), read_header(root), {receipt.shard: receipt})
        record, table = store[row], store.table(row)
    except (StoreError, ValueError, IndexError, KeyError) as error:
        return [f"{receipt.keys[row]} can't be decoded: {error}"]
    same = (
        record.masks.shape == receipt.sizes[row]
        and len(record.masks) == receipt.num_masks[row]
        and np.array_equal(record.masks.areas, table.areas)
        and np.array_equal(record.masks.boxes, table.boxes)
    )
    return [] if same else [f"{receipt.keys[row]}: masks don't fit the receipt and the table"]


def _check_strangers(root: Path, num_shards: int, found: Verification) -> None:
    """Receipts beyond the plan are broken; shards without a receipt and drafts are leftovers."""
    receipts = receipt_files(root)
    for shard, file in receipts.items():
        if shard >= num_shards:
            found.broken[shard] = [f"{file} is no shard of the plan"]
    counted = {shard_folder(root, shard) for shard in receipts}
    shards = {path for path in (root / "shards").glob("[0-9]*") if path.is_dir()}
    found.leftovers += sorted(shards - counted)
    for folder in (root, root / "shards", root / "receipts"):
        found.leftovers += sorted(folder.glob(f".*{STAGED_SUFFIX}"))


def _repair(root: Path, found: Verification) -> None:
    for shard in found.broken:
        receipt_file(root, shard).unlink(missing_ok=True)
        shutil.rmtree(shard_folder(root, shard), ignore_errors=True)
    for leftover in found.leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in (root, root / "shards", root / "receipts"):
        remove_drafts(folder)
