"""Check a store against its receipts, and drop what is broken so that the job makes it anew.

Every byte is read and compared with what was written, so a single flipped bit is found wherever it
is. Memory doesn't grow with the store: receipts and shards are read one by one.
"""

from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np

from samprior.storage.errors import BusyError, StoreError, UnreachableError
from samprior.storage.files import is_draft
from samprior.storage.holding import wait_for_holders
from samprior.storage.locks import LOCK, only_writer_of
from samprior.storage.mask_sets import FOLDER, is_name, set_name
from samprior.storage.places import Place, open_place
from samprior.storage.status import Writer, writer_of
from samprior.storage.verify_checks import Check, StoreCheck, TarCheck, Verification
from samprior.storage.verify_metadata import read_metadata

__all__ = ["Progress", "Verification", "verify_store"]

Progress = Callable[[int, int], None]
"""Called with (shards checked, shards in all)."""


def verify_store(
    where: str | Path | Place,
    *,
    repair: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    after: Verification | None = None,
) -> Verification:
    """Check every byte of a store, or of a job's tars, and decode one image of each shard.

    The image is chosen by `seed`. Mask sets are checked like the store, and that they fit its
    images; pictures that it only refers to, that they are there with the bytes they had.

    With `repair`, files that describe the store are written as they ought to be; broken shards and
    leftovers are removed, so that the same `samprior precompute` as before makes just those again.
    Workers of a job that was killed are waited for first.

    Args:
        where: folder or URL.
        repair: see above.
        seed: chooses the images to decode.
        progress: called after each shard.
        after: what an earlier pass found. Shards that it found whole are not read again, nor the
            pictures that they refer to: a quick look at what a repair has made since.

    Raises:
        StoreError: there is no store, or neither its header nor the copy is whole.
        UnreachableError: an object store didn't answer.
        BusyError: with `repair`, while a job or its workers write to the store or to a mask set.
    """
    place = open_place(where)
    metadata = read_metadata(place)
    store = (TarCheck if metadata.is_tars else StoreCheck)(place, metadata)
    checks = [store, *_mask_sets(store)]
    total = sum(check.header.num_shards for check in checks)
    done = count(1)

    def advance() -> None:
        if progress:
            progress(next(done), total)

    rng = np.random.default_rng(seed)
    trusted = _sound_shards(place, after)
    # A store is held until its mask sets are checked, which have to fit its shards.
    with ExitStack() as held:
        for check in checks:
            if repair:
                held.enter_context(only_writer_of(check.place))
                _wait_until_still(check)
            before = None if repair else _other_writer(check.place)
            check.run(rng, advance, trusted.get(check.place.url, frozenset()))
            if repair:
                check.repair()
            else:
                check.found.writer = before or _other_writer(check.place)
    return store.found


def _other_writer(place: Place) -> Writer | None:
    """Who writes now, or may do so from another machine."""
    writer = writer_of(place)
    return None if writer is None or writer.is_alive is False else writer


def _sound_shards(place: Place, found: Verification | None) -> Mapping[str, Set[int]]:
    """Shards found whole, of the store and of each mask set, by URL."""
    if found is None:
        return {}
    sets = {place.below(set_name(name)).url: of.sound for name, of in found.mask_sets.items()}
    return {place.url: found.sound, **sets}


def _wait_until_still(check: Check) -> None:
    """Wait for workers without a job; whoever holds the lock then is the only one that writes.

    Raises:
        BusyError: they don't end; or a job has changed the store before the lock was taken.
    """
    if check.place.local is not None:
        wait_for_holders(check.place.local / check.header_file)
    if read_metadata(check.place).header != check.header:
        raise BusyError(f"a job has just written to {check.place.url}; run the same command again")


def _mask_sets(store: Check) -> list[Check]:
    """The checks of a store's mask sets; of one that has no header left is only told."""
    checks: list[Check] = []
    for name in store.place.names(FOLDER):
        place = store.place.below(set_name(name))
        if is_draft(name):
            store.found.leftovers.append(set_name(name))
        elif not is_name(name) or not _is_folder(place):
            store.found.strangers.append(set_name(name))
        elif any(one != LOCK and not is_draft(one) for one in place.names()):
            try:
                checks.append(_mask_set(place, store))
                store.found.mask_sets[name] = checks[-1].found
            except UnreachableError:
                raise
            except StoreError as error:
                store.found.mask_sets[name] = Verification(metadata=[str(error)])
    return checks


def _mask_set(place: Place, store: Check) -> Check:
    check = StoreCheck(place, read_metadata(place), store)
    if check.header.images != "parent":
        raise StoreError(f"{place.url} is no mask set of {store.place.url}; remove it")
    return check


def _is_folder(place: Place) -> bool:
    return place.local is None or place.local.is_dir()
