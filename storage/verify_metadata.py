"""Check what a store says of itself as a whole: header, groups and listing, byte by byte.

JSON forgives some flipped bits (an `e` of a number that became an `E`), so files are compared with
the bytes that were written. All of them follow from the header, which is kept twice, and from the
receipts; so each can be told right, and mended without making a mask anew.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from samprior.storage.errors import StoreError
from samprior.storage.growth import LISTING, Parts, cut, listing_json, listing_sha256
from samprior.storage.header import HEADER_COPY, JOB, Header, digest, readable_json, store_files
from samprior.storage.manifest import DAMAGES, Receipt
from samprior.storage.places import Place, joined
from samprior.storage.tar_job import HEADER as TAR_HEADER
from samprior.storage.tar_job import tar_files


@dataclass
class Metadata:
    """The header of a store or of a job's tars, and what is wrong with the files that say it."""

    header: Header
    is_tars: bool
    problems: list[str] = field(default_factory=list)
    rewrites: dict[str, bytes] = field(default_factory=dict)
    """What files ought to hold, by name below the store."""

    def compare(self, place: Place, name: str, wanted: bytes) -> None:
        """Note a file that is missing or has other bytes than these."""
        held = content_of(place, name)
        if held != wanted:
            wrong = "is missing" if held is None else "has another content than was written"
            self.problems.append(f"{joined(place.url, name)} {wrong}")
            self.rewrites[name] = wanted


def read_metadata(place: Place) -> Metadata:
    """Find the header of a store, or of a job's tars, where one of its two files is right.

    Raises:
        StoreError: there is no store, or neither file can be trusted.
        UnreachableError: an object store didn't answer.
    """
    names = set(place.names())
    is_tars = not names & {"zarr.json", "shards"} and bool(names & {TAR_HEADER, HEADER_COPY})
    files_of = tar_files if is_tars else store_files
    held = {
        name: content_of(place, name)
        for name in (TAR_HEADER if is_tars else "zarr.json", HEADER_COPY)
    }
    read, errors = _parsed(place, held)
    if not read:
        raise StoreError(errors[0])
    header, copy = next(iter(read.values())), read.get(HEADER_COPY)
    if copy is not None and copy.fingerprint == header.fingerprint:
        header = copy  # its digest covers the folder of the pictures, which no fingerprint does
    found = Metadata(header, is_tars)
    for name, wanted in files_of(header).items():
        # Stores that were made before there was a copy have none.
        if name != HEADER_COPY or held[HEADER_COPY] is not None:
            found.compare(place, name, wanted)
    return found


def _parsed(place: Place, held: Mapping[str, bytes | None]) -> tuple[dict[str, Header], list[str]]:
    """The headers in those files that have one, and what is wrong with the others."""
    read, errors = {}, []
    for name, content in held.items():
        origin = joined(place.url, name)
        try:
            if content is None:
                raise StoreError(
                    f"{place.url} is no samprior store: it has no {name}; make one with `samprior "
                    "precompute --out`"
                )
            read[name] = _parse(name, content, origin)
        except StoreError as error:
            errors.append(str(error))
    return read, errors


def _parse(name: str, content: bytes, origin: str) -> Header:
    try:
        record = json.loads(content)
        record = record["attributes"]["samprior"] if name == "zarr.json" else record
        if name == HEADER_COPY and record.pop("sha256") != digest(record):
            raise ValueError("its digest doesn't fit")
    except DAMAGES as error:
        raise StoreError(
            f"{origin} holds no samprior header ({error!r}), and {HEADER_COPY} doesn't help; put "
            "one of them back from a copy, or remove the folder and make it anew"
        ) from error
    return Header.from_record(record, origin=origin)


def content_of(place: Place, name: str) -> bytes | None:
    """A small file; None if there is none, or something else in its place, such as a folder."""
    if place.local is not None and not (place.local / name).is_file():
        return None  # a named pipe would be waited for
    try:
        return place.read(name)
    except FileNotFoundError:
        return None


def is_as_written(content: bytes) -> bool:
    """Whether a JSON file has the bytes that its values are written as."""
    try:
        return readable_json(json.loads(content)) == content
    except DAMAGES:
        return False


class Listing:
    """The keys of all shards, as the receipts tell them, against those the header was written for.

    They are kept in memory only if `listing.json` has to be made of them again.
    """

    def __init__(self, place: Place, header: Header) -> None:
        self.place = place
        self.header = header
        self._is_right = not has_listing(header) or _is_right(content_of(place, LISTING), header)
        self._digest = hashlib.sha256()
        self._num_shards = 0
        self._keys: list[str] = []

    def add(self, receipt: Receipt) -> None:
        """Take the keys of the next shard; of a dataset they are sorted."""
        keys: Sequence[str] = receipt.keys
        if receipt.quarantined:
            keys = sorted((*receipt.keys, *receipt.quarantined))
        text = "\n".join(keys)
        self._digest.update((f"\n{text}" if self._num_shards else text).encode())
        self._num_shards += 1
        if not self._is_right:
            self._keys += keys

    def check(self, found: Metadata) -> None:
        """Note what is wrong, once all shards that are there were added."""
        is_whole = self._num_shards == self.header.num_shards
        fits = _wanted(self.header) in (None, self._digest.hexdigest())
        if is_whole and not fits:
            found.problems.append(
                f"{self.place.url} has other images than its header was written for; run the same "
                "`samprior precompute` again"
            )
        if self._is_right:
            return
        if is_whole and fits:
            found.compare(self.place, LISTING, listing_json(cut(self._keys, self.header.parts)))
        else:
            found.problems.append(
                f"{joined(self.place.url, LISTING)} is damaged, and can't be made again while "
                "receipts are missing; put it back from a copy, or make the store anew"
            )


def check_job(place: Place, found: Metadata) -> None:
    """Note a `job.json` that is there and was altered; the same command writes it again."""
    content = content_of(place, JOB)
    if content is None:
        return
    try:
        record = json.loads(content)
        fits = record.pop("sha256") == digest(record) and is_as_written(content)
    except DAMAGES:
        fits = False
    if not fits:
        found.problems.append(
            f"{joined(place.url, JOB)} has another content than was written; run the same "
            "`samprior precompute` again, which writes it"
        )


def has_listing(header: Header) -> bool:
    """Whether a store with this header keeps a `listing.json`."""
    return bool(header.appended) and header.images != "parent"


def _is_right(content: bytes | None, header: Header) -> bool:
    """Whether a listing has the header's parts and keys, and the bytes that were written."""
    try:
        parts: Parts = json.loads(content or b"")["parts"]
        lengths = tuple(map(len, parts))
        sha256 = listing_sha256(key for part in parts for key in part)
    except DAMAGES:
        return False
    fits = lengths == header.parts and _wanted(header) in (None, sha256)
    return fits and is_as_written(content or b"")


def _wanted(header: Header) -> str | None:
    """The digest of all keys that a header was written for, if it says so."""
    dataset = header.made_of.get("dataset")
    wanted = dataset.get("listing_sha256") if isinstance(dataset, Mapping) else None
    return wanted if isinstance(wanted, str) else None
