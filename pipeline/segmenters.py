"""What turns a picture into masks: the `Segmenter` protocol and the makers of its kinds by name.

`segmenter_settings` checks and describes a choice without loading anything; `build_segmenter`
loads it. Light to import: torch, segment-anything and scikit-image come in with `build`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.sam_segmenter import SamSettings
from samprior.pipeline.superpixel import SuperpixelSettings
from samprior.storage import MaskSet
from samprior.storage.choices import check_choice
from samprior.storage.images import Rgb


class Segmenter(Protocol):
    """Anything that takes a picture and gives its masks."""

    def __call__(self, image: Rgb, /) -> MaskSet:
        """Masks of uint8 (H, W, 3); none at all is a valid result."""
        ...


@runtime_checkable
class BatchSegmenter(Protocol):
    """A `Segmenter` that works faster on several pictures at once."""

    @property
    def images_at_once(self) -> int:
        """How many pictures it wants at a time."""

    def __call__(self, image: Rgb, /) -> MaskSet:
        """Masks of one picture."""
        ...

    def many(self, images: Sequence[Rgb], /) -> Iterator[MaskSet]:
        """Masks of each picture, in order."""
        ...

    def take_notes(self) -> tuple[str, ...]:
        """What was out of the ordinary since the last call; it enters the shard's receipt."""
        ...


class SegmenterSettings(Protocol):
    """A checked choice of segmenter: small, picklable, and enough to build it anywhere."""

    def describe(self) -> dict[str, object]:
        """What determines the masks, as JSON; it enters the store's fingerprint."""
        ...

    def build(self) -> Segmenter:
        """Load what is needed and make the segmenter."""
        ...


def segmenter_settings(name: str, **settings: Any) -> SegmenterSettings:  # noqa: ANN401
    """Check a segmenter's settings without loading anything.

    "sam" takes the fields of `SamSettings` (model, checkpoint, device, engine, ...) and, beside
    them, those of `AmgSettings`; "superpixel" takes those of `SuperpixelSettings`.

    Raises:
        UsageError: an unknown segmenter or setting, with the nearest right name; a value of the
            wrong type or outside its range.
    """
    check_choice("segmenter", name, SEGMENTERS)
    return SEGMENTERS[name](settings)


def build_segmenter(name: str, **settings: Any) -> Segmenter:  # noqa: ANN401
    """Make the segmenter `name` ("sam" or "superpixel"); see `segmenter_settings`.

    Raises:
        UsageError: as `segmenter_settings`, or there is no such device.
        CheckpointError: SAM's checkpoint is missing, damaged, or can't be downloaded.
    """
    return segmenter_settings(name, **settings).build()


def _sam(settings: dict[str, Any]) -> SegmenterSettings:
    own = {field.name for field in fields(SamSettings)} - {"amg"}
    amg = {field.name for field in fields(AmgSettings)}
    for name in settings:
        check_choice("setting of the segmenter sam", name, sorted(own | amg))
    return SamSettings(
        amg=AmgSettings(**{name: settings[name] for name in settings if name in amg}),
        **{name: settings[name] for name in settings if name in own},
    )


def _superpixel(settings: dict[str, Any]) -> SegmenterSettings:
    known = [field.name for field in fields(SuperpixelSettings)]
    for name in settings:
        check_choice("setting of the segmenter superpixel", name, known)
    return SuperpixelSettings(**settings)


SEGMENTERS: dict[str, Callable[[dict[str, Any]], SegmenterSettings]] = {
    "sam": _sam,
    "superpixel": _superpixel,
}
"""Makers of settings by the name that `--segmenter` takes."""
