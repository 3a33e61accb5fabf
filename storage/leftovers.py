"""Files that writers left behind: those of shards that don't count, and drafts.

A writer that was killed leaves files of a shard without its receipt. They do no harm, and the next
writer of the shard writes over them; but where nobody goes on they take room.
"""

import re
from pathlib import PurePosixPath

from samprior.storage.files import STAGED_SUFFIX
from samprior.storage.header import Header
from samprior.storage.manifest import receipt_name
from samprior.storage.mask_sets import FOLDER
from samprior.storage.places import Place

_OF_SHARD = re.compile(r"shards/([0-9]{6,12})/.*|([0-9]{6,12})\.tar", re.DOTALL)
"""A file of a shard of a zarr store, or a shard's tar."""


def leftovers_of(place: Place, header: Header) -> list[str]:
    """Names of the files at a place that belong to no shard that counts, in order.

    These are files of shards without a receipt or beyond the plan, and drafts. Files that a
    receipt doesn't name though its shard counts are left to `verify`. Mask sets are places of their
    own. One listing is all that is asked. Call only while nobody writes there: a shard that is
    being written has no receipt either.

    Args:
        place: a store, a mask set, or tars that a job writes.
        header: what it says of itself.
    """
    names = [name for name in place.sizes() if not name.startswith(f"{FOLDER}/")]
    receipts = {name for name in names if name.startswith("receipts/")}

    def is_left(name: str) -> bool:
        if any(_is_draft(part) for part in PurePosixPath(name).parts):
            return True
        found = _OF_SHARD.fullmatch(name)
        if found is None:
            return False
        number = found[1] or found[2]
        if len(number) > 6 and number.startswith("0"):
            return False  # no name that a writer gives
        shard = int(number)
        return shard >= header.num_shards or receipt_name(shard) not in receipts

    return [name for name in names if is_left(name)]


def _is_draft(part: str) -> bool:
    return part.startswith(".") and part.endswith(STAGED_SUFFIX)
