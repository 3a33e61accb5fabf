"""Stores that grow: images that were appended later, part by part.

The first job makes part 0. Each append adds a part, which is cut into shards on its own, so that
shards that are there stay as they are. Which keys belong to which part is kept in `listing.json`:
a dataset only says which keys it has now.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from samprior.storage.errors import StoreError, UnreachableError
from samprior.storage.header import readable_json
from samprior.storage.manifest import Header, Receipt
from samprior.storage.places import Place, joined, open_place

LISTING = "listing.json"
"""File below the store's folder that has the keys of each part; only where there are several."""

Parts = Sequence[Sequence[str]]
"""The keys of each part, in the order of their shards."""


def listing_sha256(keys: Iterable[str]) -> str:
    """Hex SHA-256 of keys in the order of the plan; a header's `made_of` has it."""
    told = hashlib.sha256()
    for place, key in enumerate(keys):
        told.update((f"\n{key}" if place else key).encode())
    return told.hexdigest()


def write_listing(root: Path | Place, parts: Parts) -> None:
    """Write which keys belong to which part.

    Before the header that counts a new part: a listing may have one part more than its header.
    """
    open_place(root).write(LISTING, listing_json(parts))


def listing_json(parts: Parts) -> bytes:
    """The content of the listing."""
    return readable_json({"parts": [list(part) for part in parts]})


def known_parts(root: Path | Place, header: Header, receipts: Mapping[int, Receipt]) -> Parts:
    """The keys of each part of a store, quarantined ones included.

    Raises:
        StoreError: nothing says so: shards are missing, the listing is damaged, or the store was
            not made of a dataset.
    """
    place = open_place(root)
    if header.appended:
        parts = _read_listing(place, len(header.parts))
    elif len(receipts) == header.num_shards:
        held = receipts.values()
        parts = [sorted(key for one in held for key in (*one.keys, *one.quarantined))]
    else:
        raise StoreError(
            f"{place.url} has {len(receipts)} of {header.num_shards} shards; finish it first, "
            "with the same `samprior precompute` and the images it had then"
        )
    dataset = header.made_of.get("dataset")
    wanted = dataset.get("listing_sha256") if isinstance(dataset, Mapping) else None
    if listing_sha256(key for part in parts for key in part) != wanted:
        raise StoreError(f"{place.url}: its images are not those that its header was written for")
    return parts


def is_grown(old: Header, new: Header, keys: Sequence[str]) -> bool:
    """Whether `new`, the header of a plan with these keys, only adds parts to `old`."""
    same = len(old.appended)
    if new.appended[:same] != old.appended or len(new.appended) == same:
        return False
    kept = sum(new.parts[: same + 1])
    made_of = {**new.made_of, "dataset": {**new.made_of["dataset"]}}
    made_of["dataset"]["listing_sha256"] = listing_sha256(keys[:kept])
    before = Header(
        num_images=kept,
        num_shards=old.num_shards,
        images_per_shard=new.images_per_shard,
        paired=new.paired,
        made_of=made_of,
        appended=old.appended,
        images=new.images,
        format_version=new.format_version,
    )
    return before.fingerprint == old.fingerprint


def cut(keys: Sequence[str], parts: Sequence[int]) -> Parts:
    """Keys in the order of the plan, cut into parts of so many images."""
    return [keys[start:stop] for start, stop in pairwise(accumulate(parts, initial=0))]


def _read_listing(place: Place, num_parts: int) -> Parts:
    file = joined(place.url, LISTING)
    try:
        parts = json.loads(place.read(LISTING))["parts"]
        return [[str(key) for key in part] for part in parts[:num_parts]]
    except UnreachableError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{file} can't be read ({error!r}), which says what was appended; restore it from a "
            "copy, or make the store anew"
        ) from error
