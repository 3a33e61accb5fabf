"""Several sets of masks for the pictures of one store, by name.

A set lies in STORE/masks/NAME and is itself a store, whose header says `images: "parent"`: it has
its own header, receipts, lock and shards, but no pictures. Its shards are cut as those of the store
are, so shard i of both holds the same keys, less what either has quarantined.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from samprior.storage.choices import check_choice
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.manifest import Inputs, Receipt
from samprior.storage.places import Place

MAIN = "main"
"""Name of the masks that lie in the store itself."""

FOLDER = "masks"
"""Where the other sets lie, below the store's folder."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can be that of a further mask set."""
    if not is_name(name):
        raise UsageError(
            f"--masks {name!r} can't name a mask set: up to 64 of a-z, 0-9, - and _, the first no "
            f"- or _, and not {MAIN!r}, which is the store's own"
        )


def is_name(name: str) -> bool:
    """Whether a further mask set can have this name."""
    return name != MAIN and _NAME.fullmatch(name) is not None


def set_name(name: str) -> str:
    """Where a set lies, below the store's folder."""
    return f"{FOLDER}/{name}"


def mask_sets(store: Place) -> list[str]:
    """Names of a store's further mask sets, in order; folders of other names are none."""
    names = [name for name in store.names(FOLDER) if is_name(name)]
    return [name for name in names if _holds_store(store.below(set_name(name)))]


def _holds_store(place: Place) -> bool:
    try:
        return "zarr.json" in place.names()
    except NotADirectoryError:
        return False


def mask_set_place(store: Place, name: str) -> Place:
    """Where a mask set of a store lies.

    Raises:
        UsageError: the store has none of this name; the message lists those it has.
    """
    check_choice(f"mask set of {store.url}", name, [MAIN, *mask_sets(store)])
    return store.below(set_name(name))


def joined(
    masks: Mapping[int, Receipt], pictures: Mapping[int, Receipt], *, where: str
) -> Iterator[tuple[Receipt, Sequence[int]]]:
    """Each receipt of a mask set, cut down to the images that the store has too, and their rows.

    Raises:
        StoreError: masks that are not of the picture's size.
    """
    sizes = {
        key: size
        for receipt in pictures.values()
        for key, size in zip(receipt.keys, receipt.sizes, strict=True)
    }
    files = {key: of_files(receipt, key) for receipt in pictures.values() for key in receipt.keys}
    for receipt in masks.values():
        rows = [row for row, key in enumerate(receipt.keys) if key in sizes]
        for row in rows:
            key = receipt.keys[row]
            if receipt.sizes[row] != sizes[key] or of_files(receipt, key) != files[key]:
                raise StoreError(
                    f"{where} has masks of {key} for another picture; run the same "
                    "`samprior precompute --masks` again"
                )
        if len(rows) == len(receipt.keys):
            yield receipt, range(len(rows))
        else:
            yield (
                replace(
                    receipt,
                    keys=tuple(receipt.keys[row] for row in rows),
                    sizes=tuple(receipt.sizes[row] for row in rows),
                    num_masks=tuple(receipt.num_masks[row] for row in rows),
                ),
                rows,
            )


def of_files(receipt: Receipt, key: str) -> Inputs:
    """Bytes of the two pictures that a receipt says an image was made of."""
    return receipt.inputs.get(key, ())[:2]
