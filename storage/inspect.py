"""The report on a store: one HTML page with numbers over all images and drawings of some.

The page needs nothing but itself: pictures, styles and script are inside. It holds no time, so
one store gives one page.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from samprior.storage.drawing import (
    data_uri,
    draw_masks,
    drawn_shape,
    histogram_svg,
    shrink_masks,
    shrink_picture,
)
from samprior.storage.errors import UsageError
from samprior.storage.files import write_bytes
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

_MAX_BARS = 24
_BARS_PER_DECADE = 4
_PIXELATED_BELOW_PX = 320
"""Longer side below which a browser's smoothing would blur what is to be seen."""


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
    facts: list[tuple[str, str]]
    views: list[_View]
    width: int
    height: int
    small: bool


@dataclass(frozen=True)
class _Chart:
    title: str
    svg: str
    note: str


def write_report(
    store: MaskStore,
    out: Path,
    *,
    num_images: int = 24,
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
    page: dict[str, Any] = {"tiles": [], "charts": [], "sections": [], "strange": STRANGE}
    if len(store):
        found = survey(store)
        strangeness = Strangeness(found)
        strangest, spaced = choose(strangeness.ranking(), num_images, seed=seed)
        cards = []
        for index in strangest + spaced:
            cards.append(_card(store, index, found, strangeness.reason(index)))
            say(len(cards), total)
        page["sections"] = [cards[: len(strangest)], cards[len(strangest) :]]
        page["tiles"] = _tiles(found)
        page["charts"] = _charts(found)
    # Keys made from file names may hold lone surrogates, which UTF-8 can't.
    write_bytes(out, _render(store, page).encode("utf-8", "backslashreplace"))
    return out


def _render(store: MaskStore, page: Mapping[str, Any]) -> str:
    source = resources.files("samprior.storage").joinpath("inspect.html.j2")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source.read_text("utf-8")).render(
        page,
        name=store.root.resolve().name,
        facts=_store_facts(store),
        fingerprint=store.fingerprint,
        made_of=json.dumps(store.header.made_of, indent=2, sort_keys=True, ensure_ascii=False),
        superpixel=_segmenter(store.header.made_of) == "superpixel",
        num_missing=len(store.missing_shards),
        num_shards=store.header.num_shards,
        num_images=len(store),
        paired=store.paired,
        quarantined=store.quarantined,
    )


def _segmenter(made_of: Mapping[str, Any]) -> str:
    value = made_of.get("segmenter", "not recorded")
    return str(value.get("segmenter", "not recorded") if isinstance(value, Mapping) else value)


def _told(value: object) -> str:
    """A value of `made_of` in one line; a missing one as a dash."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_told, value)) + ")"
    return "–" if value is None else str(value)


def _store_facts(store: MaskStore) -> list[tuple[str, str]]:
    """What the store is, as names and values."""
    made_of, receipts = store.header.made_of, store.receipts.values()
    dataset = made_of.get("dataset", "not recorded")
    if isinstance(dataset, Mapping):
        dataset = {name: dataset[name] for name in ("name", "split") if name in dataset}
    else:
        dataset = {"name": dataset}
    segmenter = _segmenter(made_of)
    if segmenter == "superpixel":
        segmenter = "superpixel regions, not SAM"
    if isinstance(made_of.get("segmenter"), Mapping):
        settings = {k: v for k, v in made_of["segmenter"].items() if k != "segmenter"}
        segmenter += f" ({_told(settings)})" if settings else ""
    stored_bytes = sum(receipt.stored_bytes for receipt in receipts)
    return [
        ("Dataset", _told(dataset.get("name"))),
        ("Split", _told(dataset.get("split"))),
        ("Segmenter", segmenter),
        ("Segmented picture", _told(made_of.get("source"))),
        ("Images", f"{len(store):,} of {store.header.num_images:,} planned"),
        ("Masks", f"{sum(sum(receipt.num_masks) for receipt in receipts):,}"),
        ("Shards", f"{len(store.receipts):,} of {store.header.num_shards:,} planned"),
        ("Size", _size(stored_bytes)),
        ("Pictures", "degraded and clean pairs" if store.paired else "one per image, no pairs"),
        ("Quarantined", counted(len(store.quarantined), "image")),
        ("Fingerprint", store.fingerprint[:12]),
    ]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"


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


def _charts(found: Survey) -> list[_Chart]:
    return [
        _masks_chart(found.num_masks),
        _area_chart(found.area_shares),
        _coverage_chart(found.coverage),
        _depth_chart(found.depth_pixels),
    ]


def _masks_chart(num_masks: Ints) -> _Chart:
    width = int(num_masks.max()) // _MAX_BARS + 1
    counts = np.bincount(num_masks // width)
    lows = np.arange(len(counts)) * width
    spans = [f"{low}" if width == 1 else f"{low} to {low + width - 1}" for low in lows]
    every = -(-len(counts) // 8)
    median = float(np.median(num_masks))
    svg = histogram_svg(
        counts,
        names=[f"{s} masks: {counted(n, 'image')}" for s, n in zip(spans, counts, strict=True)],
        # A bar of one number is labelled below its middle, a wider one at its left edge.
        ticks=[
            (i + (0.5 if width == 1 else 0), str(lows[i])) for i in range(0, len(counts), every)
        ],
        description=f"Images by number of masks; the median is {median:g}",
        marker=(median / width + (0.5 if width == 1 else 0), f"median {median:,.6g}"),
    )
    return _Chart("Masks per image", svg, "images by number of masks")


def _area_chart(shares: Floats) -> _Chart:
    title = "Mask area"
    note = "masks by share of the picture, logarithmic"
    held = shares[shares > 0]
    if not len(held):
        return _Chart(title, "", "no mask has an area")
    decades = int(np.ceil(-np.log10(held.min()))) or 1
    edges = np.logspace(-decades, 0, decades * _BARS_PER_DECADE + 1)
    # Rounding must not push the ends out.
    counts, _ = np.histogram(np.clip(held, edges[0], edges[-1]), edges)
    median = float(np.median(held))
    spans = [f"{percent(low)} to {percent(high)}" for low, high in zip(edges, edges[1:])]
    svg = histogram_svg(
        counts,
        names=[f"{s}: {counted(n, 'mask')}" for s, n in zip(spans, counts, strict=True)],
        ticks=[
            (i * _BARS_PER_DECADE, f"{100 * 10.0 ** (i - decades):g} %") for i in range(decades + 1)
        ],
        description=f"Masks by share of the picture; the median is {percent(median)}",
        marker=(
            (np.log10(median) + decades) * _BARS_PER_DECADE,
            f"median {percent(median)}",
        ),
    )
    num_empty = len(shares) - len(held)
    return _Chart(title, svg, note + (f"; {num_empty:,} empty masks left out" * (num_empty > 0)))


def _coverage_chart(coverage: Floats) -> _Chart:
    edges = np.linspace(0, 1, 21)
    counts, _ = np.histogram(coverage, edges)
    median = float(np.median(coverage))
    names = [
        f"{percent(low)} to {percent(high)}: {counted(n, 'image')}"
        for low, high, n in zip(edges, edges[1:], counts, strict=False)
    ]
    svg = histogram_svg(
        counts,
        names=names,
        ticks=[(i, percent(i / 20)) for i in range(0, 21, 5)],
        description=f"Images by coverage; the median is {percent(median)}",
        marker=(median * 20, f"median {percent(median)}"),
    )
    return _Chart("Coverage", svg, "images by share of pixels in at least one mask")


def _depth_chart(pixels: Ints) -> _Chart:
    shares = 100 * pixels / pixels.sum()
    depths = [str(depth) for depth in range(len(shares))]
    if len(shares) > _MAX_BARS:
        shares = np.append(shares[: _MAX_BARS - 1], shares[_MAX_BARS - 1 :].sum())
        depths = [*depths[: _MAX_BARS - 1], f"{_MAX_BARS - 1}+"]
    every = -(-len(depths) // 12)
    svg = histogram_svg(
        shares,
        names=[f"{d} masks: {percent(s / 100)}" for d, s in zip(depths, shares, strict=True)],
        ticks=[(i + 0.5, depths[i]) for i in range(0, len(depths), every)],
        description="Pixels by the number of masks over them",
        unit=" %",
    )
    return _Chart("Overlap depth", svg, "pixels by number of masks over them")


def _card(store: MaskStore, index: int, found: Survey, reason: str) -> _Card:
    """Read an image and draw it."""
    record = store[index]
    height, width = record.masks.shape
    shape = drawn_shape((height, width))
    clean = shrink_picture(record.clean, shape)
    drawn = draw_masks(clean, shrink_masks(record.masks, shape))
    told = counted(len(record.masks), "mask")
    views = [
        _View("masks", data_uri(drawn), f"{record.key}: {told} over the clean picture"),
        _View("clean", data_uri(clean), f"{record.key}: the clean picture"),
    ]
    if store.paired:
        degraded = data_uri(shrink_picture(record.degraded, shape))
        views.append(_View("degraded", degraded, f"{record.key}: the degraded picture"))
    return _Card(
        key=record.key,
        place=index + 1,
        reason=reason,
        facts=[
            ("masks", f"{len(record.masks):,}"),
            ("coverage", percent(found.coverage[index])),
            ("largest", percent(found.largest[index])),
            ("deepest", f"{found.depth[index]:,}"),
            ("pixels", f"{width}×{height}"),
        ],
        views=views,
        width=shape[1],
        height=shape[0],
        small=max(shape) < _PIXELATED_BELOW_PX,
    )
