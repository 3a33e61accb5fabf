"""What a store says about itself: its header (what it is made of) and one receipt per shard.

The manifest is the set of receipts. A shard counts when its receipt is there, and the receipt is
written last, so resume is plan minus receipts. Neither file holds a time: the same job gives the
same bytes, broken off or not (the files' modification times tell the pace).

On disk, below the store's folder:

    zarr.json                  root group; attribute `samprior` is the header
    header-copy.json           the header once more
    shards/000000/...          one zarr group per shard, see samprior.storage.store
    receipts/000000.json       one receipt per shard
    listing.json               see samprior.storage.growth
    masks/NAME/...             see samprior.storage.mask_sets
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from samprior.storage.errors import StoreError, UnreachableError
from samprior.storage.files import sha256_of
from samprior.storage.header import Header as Header
from samprior.storage.header import Json as Json
from samprior.storage.header import canonical_json as canonical_json
from samprior.storage.header import digest, readable_json, store_files
from samprior.storage.places import Place, joined, open_place

RECEIPTS_AT_ONCE = 1024
"""Receipts held as text while all are read; remote ones of a batch are fetched together."""

DAMAGES = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,  # of an int of infinity
    RecursionError,
)
"""What reading something as JSON raises that was not meant to be read so."""

MAX_IMAGE_PIXELS = 2**31
"""Pixels of the largest image that a receipt is believed to tell of."""

Inputs = tuple[int | str, ...]
"""Sizes and digests of the files that an image was made of; they tell a changed file."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one finished shard holds."""

    shard: int
    keys: tuple[str, ...]
    """Keys of the stored images, in order."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each image, pixels."""
    num_masks: tuple[int, ...]
    """Masks of each image."""
    stored_bytes: int
    """Bytes of the shard's files."""
    digests: Mapping[str, str]
    """Hex SHA-256 of every file of the shard, by path below the shard's folder."""
    inputs: Mapping[str, Inputs] = field(default_factory=dict)
    """Bytes of the degraded and the clean file of each key, quarantined ones included; of
    imported masks also the bytes of their files and the hex SHA-256 of their listing; of pictures
    that were segmented in their place also bytes and hex SHA-256."""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """Reason for each image that could not be used."""
    notes: tuple[str, ...] = ()
    """What was out of the ordinary, such as a smaller batch for want of memory."""
    pictures: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of a store that only refers to its pictures: degraded and clean file of each key, below
    the header's `pictures_root`."""

    def to_json(self) -> bytes:
        """The receipt as a small readable JSON file that holds its own digest."""
        record = asdict(self)
        if not self.pictures:  # so in all other stores, and before there was the field
            del record["pictures"]
        signed = {**record, "sha256": digest(record)}
        return readable_json(signed)

    @classmethod
    def from_json(cls, content: bytes, origin: str | Path) -> Self:
        """Read `to_json`'s bytes back.

        Raises:
            StoreError: the content is no receipt, or was altered; the message names `origin`.
        """
        try:
            record = json.loads(content)
            if record.pop("sha256") != digest(record):
                raise ValueError("its digest does not fit its content")
            if not len(record["keys"]) == len(record["sizes"]) == len(record["num_masks"]):
                raise ValueError("its lists are not of one length")
            return cls(
                shard=_count(record["shard"]),
                keys=_texts(record["keys"]),
                sizes=tuple(map(_size, record["sizes"])),
                num_masks=tuple(map(_count, record["num_masks"])),
                stored_bytes=_count(record["stored_bytes"]),
                digests={name: _text(value) for name, value in record["digests"].items()},
                inputs={key: _inputs(values) for key, values in record["inputs"].items()},
                quarantined={key: _text(value) for key, value in record["quarantined"].items()},
                notes=_texts(record.get("notes", [])),
                pictures={
                    key: (_text(degraded), _text(clean))
                    for key, (degraded, clean) in record.get("pictures", {}).items()
                },
            )
        except DAMAGES as error:
            raise StoreError(
                f"{origin} is no receipt ({error!r}); run `samprior verify --repair` on the store"
            ) from error


def shard_folder(root: Path, shard: int) -> Path:
    """Where a shard's zarr group lies."""
    return root / shard_name(shard)


def shard_name(shard: int) -> str:
    """The same, below the store's folder."""
    return f"shards/{shard:06d}"


def receipt_file(root: Path, shard: int) -> Path:
    """Where a shard's receipt lies."""
    return root / receipt_name(shard)


def receipt_name(shard: int) -> str:
    """The same, below the store's folder."""
    return f"receipts/{shard:06d}.json"


def receipt_files(root: Path) -> dict[int, Path]:
    """The receipts that are there, by shard, in order; files of other names are none."""
    return {shard: receipt_file(root, shard) for shard in receipt_shards(open_place(root))}


def write_header(root: Path | Place, header: Header) -> None:
    """Make the empty store: the root group with its header, and the group of the shards.

    Writing it again over itself changes nothing.
    """
    write_header_files(root, store_files(header))


def write_header_files(root: Path | Place, files: Mapping[str, bytes]) -> None:
    """Write the files that say what a folder holds, of which the first is read.

    It is written first where there is none, for it makes the folder a store; where it is replaced
    it comes last, so that a job that was killed between them sees that it has to write them again.
    """
    place, names = open_place(root), list(files)
    if names[0] in place.names():
        names.reverse()
    for name in names:
        place.write(name, files[name])


def read_header(root: Path | Place) -> Header:
    """Read a store's header.

    Raises:
        StoreError: no store there, another format version, or a header that was altered.
        UnreachableError: an object store didn't answer.
    """
    place = open_place(root)
    file = joined(place.url, "zarr.json")
    try:
        record = json.loads(place.read("zarr.json"))["attributes"]["samprior"]
    except FileNotFoundError as error:
        raise StoreError(
            f"{place.url} is no samprior store: it has no zarr.json; make one with "
            "`samprior precompute --out`"
        ) from error
    except UnreachableError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{file} holds no samprior header ({error!r})") from error
    return Header.from_record(record, origin=file)


def write_receipt(root: Path | Place, receipt: Receipt) -> None:
    """Write a receipt: from here on its shard counts."""
    open_place(root).write(receipt_name(receipt.shard), receipt.to_json())


def read_receipts(root: Path | Place) -> dict[int, Receipt]:
    """All receipts of a store, by shard, in order.

    Raises:
        StoreError: a receipt is damaged, or is that of another shard.
        UnreachableError: an object store didn't answer.
    """
    return {receipt.shard: receipt for receipt in each_receipt(root)}


def each_receipt(root: Path | Place) -> Iterator[Receipt]:
    """The same one by one: the folder is listed once, and no receipt is kept.

    Raises:
        StoreError, UnreachableError: see `read_receipts`.
    """
    place = open_place(root)
    shards = receipt_shards(place)
    for first in range(0, len(shards), RECEIPTS_AT_ONCE):
        yield from _read_receipts(place, shards[first : first + RECEIPTS_AT_ONCE])


def read_receipt(root: Path | Place, shard: int) -> Receipt:
    """The receipt of one shard.

    Raises:
        StoreError: it is missing, damaged, or that of another shard.
        UnreachableError: an object store didn't answer.
    """
    (receipt,) = _read_receipts(open_place(root), [shard])
    return receipt


def _read_receipts(place: Place, shards: list[int]) -> Iterator[Receipt]:
    try:
        contents = place.read_many([receipt_name(shard) for shard in shards])
    except UnreachableError:
        raise
    except OSError as error:
        raise StoreError(f"a receipt of {place.url} can't be read ({error})") from error
    for shard, content in zip(shards, contents, strict=True):
        yield parse_receipt(content, shard, joined(place.url, receipt_name(shard)))


def parse_receipt(content: bytes, shard: int, origin: str) -> Receipt:
    """The receipt that a file holds.

    Raises:
        StoreError: it is damaged, or that of another shard.
    """
    receipt = Receipt.from_json(content, origin)
    if receipt.shard != shard:
        raise StoreError(
            f"{origin} is the receipt of shard {receipt.shard}; run `samprior verify --repair` on "
            "the store"
        )
    return receipt


def receipt_shards(place: Place) -> list[int]:
    """Shards that have a receipt, in order; files of other names are none."""
    numbers = [(name, name.removesuffix(".json")) for name in place.names("receipts")]
    return sorted(
        int(number)
        for name, number in numbers
        if number.isdecimal() and f"receipts/{name}" == receipt_name(int(number))
    )


def digests_of(folder: Path) -> tuple[dict[str, str], int]:
    """Hex SHA-256 of every file below `folder` by relative path, and their bytes in all."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digests = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    return digests, sum(file.stat().st_size for file in files)


def _count(value: object, *, least: int = 0) -> int:
    """A whole number as JSON has it; ValueError for anything else, such as text or true."""
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r:.80} is no number of at least {least}")
    return value


def _size(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{value!r:.80} is no height and width")
    height, width = (_count(side, least=1) for side in value)
    if height * width > MAX_IMAGE_PIXELS:
        raise ValueError(f"an image of {width}x{height} is larger than any")
    return height, width


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.80} is no text")
    return value


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r:.80} is no list of texts")
    return tuple(map(_text, values))


def _inputs(values: object) -> Inputs:
    if not isinstance(values, list):
        raise ValueError(f"{values!r:.80} is no list of inputs")
    return tuple(value if isinstance(value, str) else _count(value) for value in values)
