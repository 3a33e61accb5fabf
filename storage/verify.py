"""Check a store against its receipts, and drop what is broken so that the job makes it anew."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from samprior.storage.cache import BoundedCache
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
    shard_name,
)
from samprior.storage.mask_sets import mask_sets, of_files, set_name
from samprior.storage.places import open_place
from samprior.storage.references import picture_problems, resolved_root
from samprior.storage.shard_reader import Resources, Shard
from samprior.storage.store import CACHE_BYTES

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
    pictures: list[str] = field(default_factory=list)
    """What is wrong with pictures that the store only refers to; a repair leaves them alone."""
    leftovers: list[Path] = field(default_factory=list)
    """Drafts of killed writers, and shards without a receipt: they don't count as data."""
    mask_sets: dict[str, "Verification"] = field(default_factory=dict)
    """The same for each further mask set, by name."""

    @property
    def ok(self) -> bool:
        """Whether every shard of the plan is there and whole, and those of all mask sets."""
        whole = not self.broken and not self.pictures and self.num_shards == self.planned_shards
        return whole and all(found.ok for found in self.mask_sets.values())


def verify_store(
    root: Path, *, repair: bool = False, seed: int = 0, progress: Progress | None = None
) -> Verification:
    """Check every digest of every shard and decode one image of each, chosen by `seed`.

    Mask sets are checked like the store, and that they fit its images; pictures that it only
    refers to, that they are there with the bytes they had.

    With `repair`, broken shards and leftovers are removed, so that the same `samprior precompute`
    as before makes just those again.

    Raises:
        StoreError: there is no store, or its header or that of a mask set is damaged.
        BusyError: with `repair`, while a job writes to the store or to a mask set.
    """
    checks = [_Check(root, None)]
    checks += [_Check(root / set_name(name), root) for name in mask_sets(open_place(root))]
    total = sum(check.header.num_shards for check in checks)
    done = count(1)

    def advance() -> None:
        if progress:
            progress(next(done), total)

    rng = np.random.default_rng(seed)
    for check in checks:
        with only_writer(check.root) if repair else nullcontext():
            check.run(rng, advance)
            if repair:
                _repair(check.root, check.found)
    whole, *sets = checks
    whole.found.mask_sets = {check.root.name: check.found for check in sets}
    return whole.found


class _Check:
    """One pass over a store, or over the mask set of the store at `parent`."""

    def __init__(self, root: Path, parent: Path | None) -> None:
        self.root = root
        self.parent = parent
        self.header = read_header(root)
        # A set that was not brought up to a store that has grown isn't whole.
        planned = self.header if parent is None else read_header(parent)
        self.found = Verification(planned_shards=planned.num_shards)

    def run(self, rng: np.random.Generator, advance: Callable[[], None]) -> None:
        """Check all shards, and look for what doesn't belong there."""
        for shard in range(self.header.num_shards):
            if receipt_file(self.root, shard).exists():
                self._check_shard(shard, rng)
            advance()
        _check_strangers(self.root, self.header.num_shards, self.found)

    def _check_shard(self, shard: int, rng: np.random.Generator) -> None:
        try:
            receipt = read_receipt(self.root, shard)
        except StoreError as error:
            self.found.broken[shard] = [str(error)]
            return
        problems = _digest_problems(shard_folder(self.root, shard), receipt)
        planned = self.header.planned(shard)
        if len(receipt.keys) + len(receipt.quarantined) != planned:
            file = receipt_file(self.root, shard)
            problems.append(f"{file} has not the {planned} images of the plan")
        if self.parent is not None:
            problems += _misfits(self.parent, receipt)
        if not problems and receipt.keys:
            row = int(rng.integers(len(receipt.keys)))
            problems = _decode_problems(self.root, self.header, receipt, row)
        if problems:
            self.found.broken[shard] = problems
        else:
            self._count(receipt)

    def _count(self, receipt: Receipt) -> None:
        self.found.num_shards += 1
        self.found.num_images += len(receipt.keys)
        self.found.num_masks += sum(receipt.num_masks)
        self.found.stored_bytes += receipt.stored_bytes
        self.found.quarantined |= receipt.quarantined
        if self.header.images == "reference":
            root = resolved_root(self.header, None, where=str(self.root))
            assert root is not None
            self.found.pictures += picture_problems(root, receipt)


def _misfits(parent: Path, receipt: Receipt) -> list[str]:
    """Why the shard of a mask set is not that of the store, if the store has it."""
    try:
        theirs = read_receipt(parent, receipt.shard)
    except (StoreError, OSError):
        return []  # said of the store itself
    if {*receipt.keys, *receipt.quarantined} != {*theirs.keys, *theirs.quarantined}:
        return [f"shard {receipt.shard} has other images than that of the store"]
    sizes = dict(zip(theirs.keys, theirs.sizes, strict=True))
    return [
        f"{key} has masks of another picture than the store's"
        for key, size in zip(receipt.keys, receipt.sizes, strict=True)
        if key in sizes and (size != sizes[key] or of_files(receipt, key) != of_files(theirs, key))
    ]


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


def _decode_problems(root: Path, header: Header, receipt: Receipt, row: int) -> list[str]:
    try:
        place = open_place(root).below(shard_name(receipt.shard))
        shard = Shard(place, receipt, Resources(BoundedCache(CACHE_BYTES)))
        height, width = map(int, shard.sizes[row])
        masks, table = shard.masks(row, (0, 0, height, width), None), shard.table(row)
        if header.images == "stored":
            for side in ("clean", "degraded") if header.paired else ("clean",):
                shard.read_picture(side, row, 0, 0, np.empty((height, width, 3), np.uint8))
    except (StoreError, ValueError, IndexError, KeyError) as error:
        return [f"{receipt.keys[row]} can't be decoded: {error}"]
    same = np.array_equal(masks.areas, table.areas) and np.array_equal(masks.boxes, table.boxes)
    return [] if same else [f"{receipt.keys[row]}: its atoms are read in two ways"]


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
