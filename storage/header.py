"""The header of a store: what all of its shards have in common, and how they are cut.

A header is read strictly: it may come from anywhere, and a field that isn't known may change the
meaning of the others. Fields that later formats added are absent from it at their defaults, so a
header of any readable format is written back as it was read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from samprior.storage.errors import StoreError

FORMAT_VERSION = 2
"""Of stores that are written now. Raised when what is on disk changes."""

READABLE_VERSIONS = (1, 2)
"""Formats that can be read; only the newest can be added to."""

_SINCE_2 = {"appended", "images", "pictures_root"}
"""Fields that headers of format 1 can't have."""

Json = dict[str, Any]

Images = Literal["stored", "reference", "parent"]
"""Where the pictures are: in the shards, in the dataset's files, or in the store that a mask set
belongs to."""


HEADER_COPY = "header-copy.json"
"""File below a store's folder that has the header once more: a repair finds it there."""

JOB = "job.json"
"""File below a store's folder that says which command made it; only that command reads it."""

MAX_SHARDS = 10**7
"""More are taken for damage: 320 million images in shards of 32."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a whole store is made of; equal for every shard."""

    num_images: int
    """Images in the plan, quarantined ones included."""
    num_shards: int
    """Shards in the plan."""
    images_per_shard: int
    """Images per shard, but for the last of each part."""
    paired: bool
    """False when images came alone (imported masks); `degraded` is then `clean`."""
    made_of: Mapping[str, Any]
    """Everything that determines the masks: dataset listing, segmenter, source, versions."""
    appended: tuple[int, ...] = ()
    """Images of each part that was appended later. Each part is cut into shards on its own."""
    images: Images = "stored"
    pictures_root: str | None = None
    """Folder of the pictures of a store that only refers to them. No part of the fingerprint: a
    moved dataset is the same dataset."""
    format_version: int = FORMAT_VERSION

    @property
    def parts(self) -> tuple[int, ...]:
        """Images of each part: those of the first job, then what each append added."""
        return (self.num_images - sum(self.appended), *self.appended)

    def planned(self, shard: int) -> int:
        """Images of a shard in the plan, quarantined ones included.

        Raises:
            IndexError: the plan has no such shard.
        """
        within = shard
        for part in self.parts:
            num_shards = -(-part // self.images_per_shard)
            if within < num_shards:
                return min(self.images_per_shard, part - within * self.images_per_shard)
            within -= num_shards
        raise IndexError(f"shard {shard} of {self.num_shards}")

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that the header says of the content."""
        return digest(self._fields())

    def to_record(self) -> Json:
        """The header as JSON, with its fingerprint."""
        root = {} if self.pictures_root is None else {"pictures_root": self.pictures_root}
        return {**self._fields(), **root, "fingerprint": self.fingerprint}

    @classmethod
    def from_record(cls, record: object, *, origin: str) -> Self:
        """Read `to_record`'s fields back.

        Raises:
            StoreError: it is no header, was altered, or is of a format this version can't read;
                the message names `origin`.
        """
        if not isinstance(record, dict) or type(record.get("format_version")) is not int:
            raise StoreError(f"{origin} holds no samprior header")
        if record["format_version"] not in READABLE_VERSIONS:
            raise StoreError(
                f"{origin} has store format {record['format_version']}, this samprior reads "
                f"{' and '.join(map(str, READABLE_VERSIONS))}; use a newer samprior, or run "
                "`samprior precompute` to a new --out"
            )
        known = {field.name for field in fields(cls)} | {"fingerprint"}
        if record["format_version"] == 1:
            known -= _SINCE_2
        if unknown := sorted(record.keys() - known):
            raise StoreError(
                f"{origin} was made by a newer samprior: its header has {', '.join(unknown)}, "
                "which this one doesn't know; upgrade samprior"
            )
        try:
            header = cls(**_checked(record))
            fingerprint = header.fingerprint
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"{origin} holds no samprior header ({error!r})") from error
        if fingerprint != record.get("fingerprint"):
            raise StoreError(
                f"{origin} was altered: its fingerprint does not fit its content; run `samprior "
                "verify --repair` on the store"
            )
        num_shards = count_shards(header.parts, header.images_per_shard)
        if min(header.parts) < 0 or num_shards != header.num_shards or num_shards > MAX_SHARDS:
            raise StoreError(
                f"{origin} holds no samprior header: {header.num_images} images don't fit "
                f"{header.num_shards} shards"
            )
        return header

    def difference(self, other: "Header") -> list[str]:
        """The dotted names of what differs from a wanted header, with both values."""
        ours, theirs = (_flatten({**one._fields(), "images": one.images}) for one in (self, other))
        return [
            f"{name} is {ours.get(name, 'absent')}, wanted {theirs.get(name, 'absent')}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name, "absent") != theirs.get(name, "absent")
        ]

    def _fields(self) -> Json:
        """What the fingerprint covers. Format 1 has just the first six of these."""
        record: Json = {
            "format_version": self.format_version,
            "num_images": self.num_images,
            "num_shards": self.num_shards,
            "images_per_shard": self.images_per_shard,
            "paired": self.paired,
            "made_of": dict(self.made_of),
        }
        if self.appended:
            record["appended"] = list(self.appended)
        if self.images != "stored":
            record["images"] = self.images
        return record


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def readable_json(value: object) -> bytes:
    """JSON as a store's own files have it: equal values give equal bytes."""
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def store_files(header: Header) -> dict[str, bytes]:
    """The files that say what a store is made of, by name; the first makes a folder a store."""
    return {
        "zarr.json": _group({"samprior": header.to_record()}),
        "shards/zarr.json": _group({}),
        HEADER_COPY: header_copy(header),
    }


def header_copy(header: Header) -> bytes:
    """The header once more, with a digest of all of it: a `pictures_root` is in no fingerprint."""
    record = header.to_record()
    return readable_json({**record, "sha256": digest(record)})


def digest(value: object) -> str:
    """Hex SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def count_shards(parts: tuple[int, ...], images_per_shard: int) -> int:
    """Shards that parts of so many images are cut into."""
    return sum(-(-part // images_per_shard) for part in parts)


def _group(attributes: Json) -> bytes:
    """The metadata of a zarr group."""
    return readable_json({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _checked(record: Json) -> Json:
    """A header's fields, each of its type.

    Raises:
        KeyError, TypeError, ValueError: they aren't.
    """
    made: Json = {
        name: _whole(name, record[name], least)
        for name, least in {"num_images": 0, "num_shards": 0, "images_per_shard": 1}.items()
    }
    made["format_version"] = record["format_version"]
    made["paired"] = _of_type("paired", record["paired"], bool)
    made["made_of"] = _of_type("made_of", record["made_of"], dict)
    made["appended"] = tuple(
        _whole("appended", part, 1)
        for part in _of_type("appended", record.get("appended", []), list)
    )
    made["images"] = record.get("images", "stored")
    if made["images"] not in get_args(Images):
        raise ValueError(f"images is {made['images']!r}")
    if "pictures_root" in record:
        made["pictures_root"] = _of_type("pictures_root", record["pictures_root"], str)
    return made


def _whole(name: str, value: object, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}")
    return value


def _of_type(name: str, value: object, wanted: type) -> Any:  # noqa: ANN401  # of that type
    if not isinstance(value, wanted):
        raise TypeError(f"{name} is {value!r}")
    return value


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, object] = {}
    for name, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat
