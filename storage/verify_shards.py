"""Check one shard of a store against its receipt, wherever the store lies, in bounded memory."""

import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from samprior.storage.cache import BoundedCache
from samprior.storage.errors import StoreError, UnreachableError
from samprior.storage.header import Header
from samprior.storage.manifest import Receipt, parse_receipt, receipt_name, shard_name
from samprior.storage.mask_sets import of_files
from samprior.storage.places import Place, joined
from samprior.storage.shard_reader import Resources, Shard
from samprior.storage.store import CACHE_BYTES
from samprior.storage.verify_metadata import content_of, is_as_written

PIECE_BYTES = 8 * 2**20
"""Read at a time; an object store answers that in about the time of its first byte."""

DIGESTS_AT_ONCE = 4
"""Files of a shard that are read side by side."""


def whole_receipt(place: Place, shard: int) -> Receipt:
    """A shard's receipt, of which no bit has changed.

    Raises:
        StoreError: it is missing or damaged; one line that names it.
        UnreachableError: an object store didn't answer.
    """
    name = receipt_name(shard)
    origin = joined(place.url, name)
    content = content_of(place, name)
    if content is None:
        raise StoreError(f"{origin} is missing, or no file")
    receipt = parse_receipt(content, shard, origin)
    if not is_as_written(content):
        raise StoreError(f"{origin} has another content than was written")
    return receipt


def shard_problems(place: Place, header: Header, receipt: Receipt, row: int | None) -> list[str]:
    """What is wrong with the files of a shard; the image of a row is decoded, too."""
    folder = place.below(shard_name(receipt.shard))
    sizes = folder.sizes()
    if not sizes and receipt.digests:
        return [f"{folder.url} is missing"]
    problems = digest_problems(folder, receipt, sizes)
    if problems or row is None:
        return problems
    return _decode_problems(folder, header, receipt, row)


def digest_problems(folder: Place, receipt: Receipt, sizes: dict[str, int]) -> list[str]:
    """What is wrong with the bytes of the files in `folder`, which has those of `sizes`."""
    missing = receipt.digests.keys() - sizes.keys()
    strangers = sizes.keys() - receipt.digests.keys()
    problems = dict.fromkeys(missing, "is missing")
    problems |= dict.fromkeys(strangers, "is not in the receipt")
    held = sorted(receipt.digests.keys() & sizes.keys())
    with ThreadPoolExecutor(DIGESTS_AT_ONCE) as threads:
        digests = threads.map(lambda name: _digest_of(folder, name, sizes[name]), held)
        for name, digest in zip(held, digests, strict=True):
            if digest != receipt.digests[name]:
                problems[name] = "has another content than was written"
    found = [f"{joined(folder.url, name)} {problems[name]}" for name in sorted(problems)]
    if not found and sum(sizes.values()) != receipt.stored_bytes:
        found.append(f"{folder.url} has not the {receipt.stored_bytes} bytes of its receipt")
    return found


def _digest_of(folder: Place, name: str, num_bytes: int) -> str | None:
    """Hex SHA-256 of a file; None if it can't be read whole."""
    digest = hashlib.sha256()
    try:
        for start in range(0, num_bytes, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, num_bytes)
            digest.update(folder.read_ranges(name, [(start, stop)])[0])
    except UnreachableError:
        raise
    except (StoreError, FileNotFoundError):  # shorter than it was listed, or gone
        return None
    except OSError as error:
        if error.errno != errno.EIO:  # that is the disk's way to say that it lost something
            raise
        return None
    return digest.hexdigest()


def _decode_problems(folder: Place, header: Header, receipt: Receipt, row: int) -> list[str]:
    try:
        shard = Shard(folder, receipt, Resources(BoundedCache(CACHE_BYTES)))
        height, width = map(int, shard.sizes[row])
        masks, table = shard.masks(row, (0, 0, height, width), None), shard.table(row)
        if header.images == "stored":
            for side in ("clean", "degraded") if header.paired else ("clean",):
                shard.read_picture(side, row, 0, 0, np.empty((height, width, 3), np.uint8))
    except UnreachableError:
        raise
    except (StoreError, ValueError, IndexError, KeyError) as error:
        return [f"{receipt.keys[row]} can't be decoded: {error}"]
    same = np.array_equal(masks.areas, table.areas) and np.array_equal(masks.boxes, table.boxes)
    return [] if same else [f"{receipt.keys[row]}: its atoms are read in two ways"]


def plan_problems(place: Place, header: Header, receipt: Receipt) -> list[str]:
    """What of a receipt doesn't fit the plan."""
    planned = header.planned(receipt.shard)
    told = len(receipt.keys) + len(receipt.quarantined)
    if told == len({*receipt.keys, *receipt.quarantined}) == planned:
        return []
    origin = joined(place.url, receipt_name(receipt.shard))
    return [f"{origin} has not the {planned} images of the plan"]


def misfits(parent: Place, receipt: Receipt) -> list[str]:
    """Why the shard of a mask set is not that of the store, if the store has it."""
    try:
        theirs = whole_receipt(parent, receipt.shard)
    except UnreachableError:
        raise
    except StoreError:
        return []  # said of the store itself
    if {*receipt.keys, *receipt.quarantined} != {*theirs.keys, *theirs.quarantined}:
        return [f"shard {receipt.shard} has other images than that of the store"]
    sizes = dict(zip(theirs.keys, theirs.sizes, strict=True))
    return [
        f"{key} has masks of another picture than the store's"
        for key, size in zip(receipt.keys, receipt.sizes, strict=True)
        if key in sizes and (size != sizes[key] or of_files(receipt, key) != of_files(theirs, key))
    ]
