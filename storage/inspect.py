"""The report on a store: one HTML page with numbers over all images and drawings of some.

The page needs nothing but itself: pictures, styles and script are inside. It holds no time, so
one store gives one page.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samprior.storage.charts import draw_charts
from samprior.storage.drawing import (
    data_uri,
    draw_masks,
    drawn_shape,
    shrink_masks,
    shrink_picture,
)
from samprior.storage.errors import UsageError
from samprior.storage.pages import is_superpixel, told, told_segmenter, write_page
from samprior.storage.store import MaskStore
from samprior.storage.survey import (
    STRANGE,
    Floats,
    Ints,
    Strangeness,
    Survey,
    choose,
    counted,
    percent,
    survey,
)

NUM_IMAGES = 24
"""Images that are drawn unless more are asked for."""

_PIXELATED_BELOW_PX = 320
"""Longer side below which a browser's smoothing would blur what is to be seen."""

_STRANGEST_TEXT = (
    "Ranked by how far the number of masks, the coverage, the largest mask or the overlap depth "
    "lies from the median of all images, in robust standard deviations (1.4826 times the median "
    "absolute deviation). Images without masks come first."
)
_SPACED_TEXT = "What the rest looks like: taken at even steps, in the order of the store."


@dataclass(frozen=True)
class _View:
    name: str
    uri: str
    alt: str


@dataclass(frozen=True)
class _Card:
    key: str
    place: int
    reason: str
    strange: bool
    facts: list[tuple[str, str]]
    views: list[_View]
    width: int
    height: int
    small: bool


def write_report(
    store: MaskStore,
    out: Path,
    *,
    num_images: int = NUM_IMAGES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the report on `store` to the HTML file `out`, and return `out`.

    Args:
        store: finished or growing; an empty one gives a page that says so.
        out: written whole or not at all.
        num_images: images drawn, half of them the strangest, half evenly spaced over the rest.
        seed: where the even spacing begins.
        progress: called with (images drawn, images to draw).

    Raises:
        UsageError: num_images below 0.
        StoreError: a shard that can't be read.
    """
    if num_images < 0:
        raise UsageError(f"the number of images to draw must be 0 or more, got {num_images}")
    say = progress or (lambda done, total: None)
    total = min(num_images, len(store))
    say(0, total)
    page: dict[str, Any] = {"tiles": [], "charts": [], "sections": [], "aspect": 1.0}
    if len(store):
        found = survey(store)
        strangeness = Strangeness(found)
        strangest, spaced = choose(strangeness.ranking(), num_images, seed=seed)
        cards = []
        for index in strangest + spaced:
            cards.append(_card(store, index, found, strangeness))
            say(len(cards), total)
        page["sections"] = [
            ("Strangest images", _STRANGEST_TEXT, cards[: len(strangest)]),
            ("Evenly spaced through the store", _SPACED_TEXT, cards[len(strangest) :]),
        ]
        page["aspect"] = _aspect(cards)
        page["tiles"] = _tiles(found)
        page["charts"] = draw_charts(found)
    page |= _about(store)
    return write_page(out, page, package="samprior.storage", template="inspect.html.j2")


def _about(store: MaskStore) -> dict[str, Any]:
    """What the page says of the store as a whole."""
    made_of = store.header.made_of
    return {
        "name": store.root.resolve().name,
        "facts": _store_facts(store),
        "fingerprint": store.fingerprint,
        "made_of": json.dumps(made_of, indent=2, sort_keys=True, ensure_ascii=False),
        "superpixel": is_superpixel(made_of),
        "num_missing": len(store.missing_shards),
        "num_shards": store.header.num_shards,
        "num_images": len(store),
        "num_images_text": counted(len(store), "image"),
        "num_masks_text": counted(_num_masks(store), "mask"),
        "quarantined": store.quarantined,
    }


def _store_facts(store: MaskStore) -> list[tuple[str, str]]:
    """What the store is, as names and values."""
    made_of, receipts = store.header.made_of, store.receipts.values()
    dataset = made_of.get("dataset", "not recorded")
    if isinstance(dataset, Mapping):
        dataset = {name: dataset[name] for name in ("name", "split") if name in dataset}
    else:
        dataset = {"name": dataset}
    stored_bytes = sum(receipt.stored_bytes for receipt in receipts)
    return [
        ("Dataset", told(dataset.get("name"))),
        ("Split", told(dataset.get("split"))),
        ("Segmenter", told_segmenter(made_of)),
        ("Masks made from", told(made_of.get("source", "not recorded"))),
        ("Images", f"{len(store):,} of {store.header.num_images:,} planned"),
        ("Masks", f"{_num_masks(store):,}"),
        ("Shards", f"{len(store.receipts):,} of {store.header.num_shards:,} planned"),
        ("Size", _size(stored_bytes)),
        ("Pictures", "degraded and clean pairs" if store.paired else "one per image, no pairs"),
        ("Quarantined", counted(len(store.quarantined), "image")),
        ("Fingerprint", store.fingerprint[:12]),
    ]


def _num_masks(store: MaskStore) -> int:
    return sum(sum(receipt.num_masks) for receipt in store.receipts.values())


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return counted(num_bytes, "byte")


def _tiles(found: Survey) -> list[tuple[str, str, str]]:
    """The few numbers to see first: value, what it is, and its range."""
    num_bare = int((found.num_masks == 0).sum())

    def ranged(values: Ints | Floats, form: Callable[[float], str]) -> tuple[str, str]:
        return form(float(np.median(values))), f"{form(values.min())} to {form(values.max())}"

    number = "{:,.6g}".format
    masks, coverage, largest, depth = (
        ranged(found.num_masks, number),
        ranged(found.coverage, percent),
        ranged(found.largest, percent),
        ranged(found.depth, number),
    )
    return [
        (masks[0], "masks per image, median", masks[1]),
        (coverage[0], "coverage, median", coverage[1]),
        (largest[0], "largest mask, median", largest[1]),
        (depth[0], "deepest overlap, median", depth[1]),
        (f"{num_bare:,}", "images without masks", f"of {len(found.num_masks):,}"),
    ]


def _aspect(cards: list[_Card]) -> float:
    """Width over height of the frame that all pictures are shown in, so that cards line up."""
    aspects = [card.width / card.height for card in cards]
    return min(max(float(np.median(aspects)), 0.75), 2.0) if aspects else 1.0


def _card(store: MaskStore, index: int, found: Survey, strangeness: Strangeness) -> _Card:
    """Read an image and draw it."""
    record = store[index]
    height, width = record.masks.shape
    shape = drawn_shape((height, width))
    clean = shrink_picture(record.clean, shape)
    drawn = draw_masks(clean, shrink_masks(record.masks, shape))
    number = counted(len(record.masks), "mask")
    views = [
        _View("masks", data_uri(drawn), f"{record.key}: {number} over the clean picture"),
        _View("clean", data_uri(clean), f"{record.key}: the clean picture"),
    ]
    if store.paired:
        degraded = data_uri(shrink_picture(record.degraded, shape))
        views.append(_View("degraded", degraded, f"{record.key}: the degraded picture"))
    return _Card(
        key=record.key,
        place=index + 1,
        reason=strangeness.reason(index),
        strange=bool(strangeness.scores[index] >= STRANGE),
        facts=[
            ("masks", f"{len(record.masks):,}"),
            ("coverage", percent(found.coverage[index])),
            ("largest", percent(found.largest[index])),
            ("deepest", f"{found.depth[index]:,}"),
            ("pixels", f"{width}x{height}"),
        ],
        views=views,
        width=shape[1],
        height=shape[0],
        small=max(shape) < _PIXELATED_BELOW_PX,
    )
