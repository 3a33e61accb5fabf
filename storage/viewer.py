"""Pages to leaf through a store: a list of its images, and a page for each with its masks.

A page needs nothing but itself and its neighbours' names, so the same pages are served by
`samprior.storage.serving` and written to a folder. Masks are switched on and off, and their scores
are listed. With a second store, each page shows an image's masks of both.

Letters: h x w pixels of a drawing, K masks, A atoms.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from samprior.storage.drawing import (
    data_uri,
    drawn_shape,
    mask_colours,
    shrink_masks,
    shrink_picture,
)
from samprior.storage.errors import UsageError
from samprior.storage.files import staged_folder
from samprior.storage.masks import MaskSet
from samprior.storage.pages import is_superpixel, page_bytes, told_segmenter
from samprior.storage.store import MaskStore
from samprior.storage.survey import counted, percent
from samprior.storage.writer import Record

IMAGES_PER_LIST = 200
"""Images of one page of the list."""

_LISTS_NEAR = 5
"""Pages of the list on either side that a page of the list links to."""

_NAME = re.compile(r"(index|image)-([0-9]{1,9})\.html")
_SCORES = {"predicted_iou": "IoU (predicted)", "stability": "stability"}


@dataclass(frozen=True)
class Viewer:
    """The pages of a store, made when they are asked for; safe in several threads."""

    store: MaskStore
    against: MaskStore | None = None
    """A store whose masks are shown beside it, image by image."""

    def __post_init__(self) -> None:
        if self.against is not None and self._keys_beside.isdisjoint(self.store.keys):
            raise UsageError(f"{self.against.url} has none of the images of {self.store.url}")

    # Once for all pages: of a large store each is a page's work many times over.
    @cached_property
    def _keys_beside(self) -> frozenset[str]:
        return frozenset(self.against.keys if self.against is not None else ())

    @cached_property
    def _num_masks(self) -> list[int]:
        return [count for receipt in self.store.receipts.values() for count in receipt.num_masks]

    @property
    def num_lists(self) -> int:
        """Pages of the list, at least one."""
        return max(1, -(-len(self.store) // IMAGES_PER_LIST))

    def names(self) -> Iterator[str]:
        """The names of all pages."""
        yield from (list_name(number) for number in range(self.num_lists))
        yield from (image_name(index) for index in range(len(self.store)))

    def page(self, name: str) -> bytes | None:
        """The page of a name, as HTML; None: there is none of that name.

        Raises:
            StoreError: a shard that can't be read.
        """
        found = _NAME.fullmatch("index-1.html" if name == "index.html" else name)
        if found is None:
            return None
        number = int(found[2]) - 1
        if found[1] == "index" and 0 <= number < self.num_lists and list_name(number) == name:
            return self._list_page(number)
        if found[1] == "image" and 0 <= number < len(self.store) and image_name(number) == name:
            return self._image_page(number)
        return None

    def _list_page(self, number: int) -> bytes:
        begin = number * IMAGES_PER_LIST
        rows = []
        for index in range(begin, min(begin + IMAGES_PER_LIST, len(self.store))):
            height, width = self.store.size(index)
            key = self.store.keys[index]
            size, num_masks = f"{width}x{height}", self._num_masks[index]
            rows.append((index + 1, key, image_name(index), size, num_masks))
        near = range(max(0, number - _LISTS_NEAR), min(number + _LISTS_NEAR + 1, self.num_lists))
        return self._fill(
            "viewer_list.html.j2",
            rows=rows,
            lists=[
                (place + 1, list_name(place)) for place in sorted({0, *near, self.num_lists - 1})
            ],
            number=number + 1,
            missing=len(self.store.missing_shards),
        )

    def _image_page(self, index: int) -> bytes:
        key = self.store.keys[index]
        sides = [_side(self.store, self.store[index], paired=self.store.paired)]
        if self.against is not None and key in self._keys_beside:
            sides.append(_side(self.against, self.against[key], paired=self.against.paired))
        neighbours = [
            image_name(other) if 0 <= other < len(self.store) else None
            for other in (index - 1, index + 1)
        ]
        return self._fill(
            "viewer_image.html.j2",
            key=key,
            place=index + 1,
            previous=neighbours[0],
            next=neighbours[1],
            list=list_name(index // IMAGES_PER_LIST),
            sides=sides,
            lacking=self.against is not None and len(sides) == 1,
        )

    def _fill(self, template: str, **values: Any) -> bytes:  # noqa: ANN401  # what it names
        stores = [self.store] + ([self.against] if self.against is not None else [])
        about = {
            "name": " and ".join(store.name for store in stores),
            "num_images": len(self.store),
            "num_images_text": counted(len(self.store), "image"),
            "against": self.against and self.against.name,
            "superpixel": list(
                dict.fromkeys(store.name for store in stores if is_superpixel(_made_of(store)))
            ),
        }
        return page_bytes(about | values, package="samprior.storage", template=template)


def list_name(number: int) -> str:
    """Name of a page of the list, counted from 0."""
    return "index.html" if number == 0 else f"index-{number + 1}.html"


def image_name(index: int) -> str:
    """Name of an image's page, by its place in the store, counted from 0."""
    return f"image-{index + 1:06d}.html"


def write_pages(
    viewer: Viewer, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write all pages to the folder `out`, whole or not at all; return `out`/index.html.

    Raises:
        UsageError: `out` is there already.
        StoreError: a shard that can't be read.
    """
    if out.exists():
        raise UsageError(f"{out} is there already; name a new folder for the pages")
    names = list(viewer.names())
    with staged_folder(out) as draft:
        for done, name in enumerate(names, 1):
            page = viewer.page(name)
            assert page is not None
            (draft / name).write_bytes(page)
            if progress is not None:
                progress(done, len(names))
    return out / "index.html"


def _made_of(store: MaskStore) -> dict[str, Any]:
    return dict(store.header.made_of)


def _side(store: MaskStore, record: Record, *, paired: bool) -> dict[str, Any]:
    """An image of a store as its page needs it."""
    shape = drawn_shape(record.masks.shape)
    pictures = {"clean": data_uri(shrink_picture(record.clean, shape))}
    if paired:
        pictures["degraded"] = data_uri(shrink_picture(record.degraded, shape))
    masks = record.masks
    return {
        "store": store.name,
        "segmenter": told_segmenter(_made_of(store)),
        "height": shape[0],
        "width": shape[1],
        "pictures": pictures,
        "rows": _rows(masks),
        "scores": [title for name, title in _SCORES.items() if name in masks.columns],
        "num_masks": counted(len(masks), "mask"),
        "coverage": percent(masks.coverage),
        # Numbers alone, so there is nothing to escape.
        "data": json.dumps(_overlay(shrink_masks(masks, shape))),
    }


def _rows(masks: MaskSet) -> list[dict[str, Any]]:
    """The masks from large to small: number, colour, area and scores."""
    colours = np.rint(mask_colours(len(masks))).astype(int)
    order = np.argsort(-masks.areas, kind="stable")
    num_pixels = masks.shape[0] * masks.shape[1]
    return [
        {
            "mask": int(mask),
            "colour": "#{:02x}{:02x}{:02x}".format(*colours[place]),
            "area": f"{int(masks.areas[mask]):,}",
            "share": percent(int(masks.areas[mask]) / num_pixels),
            "scores": [
                f"{float(masks.columns[name][mask]):.3f}"
                for name in _SCORES
                if name in masks.columns
            ],
        }
        for place, mask in enumerate(order)
    ]


def _overlay(masks: MaskSet) -> dict[str, Any]:
    """What the page's script draws: atoms as runs, and the masks of each, from large to small."""
    flat = masks.atoms.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=len(flat))
    return {
        "atoms": flat[starts].tolist(),
        "lengths": lengths.tolist(),
        "members": [np.flatnonzero(inside).tolist() for inside in masks.members],
    }
