"""Fit a dataset that may have grown to the parts of a store that is there. Pure: no writing."""

from collections.abc import Sequence

from samprior.pipeline.datasets import Pair
from samprior.pipeline.folders import counted, named
from samprior.storage.errors import StoreError
from samprior.storage.growth import Parts


def arrange_pairs(
    pairs: Sequence[Pair], parts: Parts, *, where: object, append: bool, hint: str
) -> tuple[list[Pair], tuple[int, ...]]:
    """The pairs in the order of the store's parts, new ones as a further part.

    Args:
        pairs: of the dataset as it is now.
        parts: keys of the store's parts.
        where: the store, for messages.
        append: whether new pairs may be added.
        hint: what to do if they may not.

    Returns:
        The pairs, and the images of each part but the first.

    Raises:
        StoreError: the dataset has lost images, or has others and `append` is not set.
    """
    by_key = {pair.key: pair for pair in pairs}
    known = {key for part in parts for key in part}
    if lost := sorted(known - by_key.keys()):
        raise StoreError(
            f"{where} has {counted(len(lost), 'image')} that the dataset no longer has "
            f"({named(lost)}); put them back, or choose another --out"
        )
    new = [pair.key for pair in pairs if pair.key not in known]
    if new and not append:
        raise StoreError(
            f"the dataset has {counted(len(new), 'image')} that {where} has not ({named(new)}); "
            f"{hint}"
        )
    whole = [*parts, *([new] if new else [])]
    return [by_key[key] for part in whole for key in part], tuple(map(len, whole[1:]))
