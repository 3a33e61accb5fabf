"""Check the tars of a job (`precompute --format webdataset`) against their receipts."""

import io
import tarfile
from typing import Any, BinaryIO

from samprior.storage.errors import UnreachableError
from samprior.storage.manifest import Receipt
from samprior.storage.places import Place, joined
from samprior.storage.samples import UNREADABLE, record_of
from samprior.storage.tars import read_members, tar_name
from samprior.storage.verify_shards import digest_problems


def tar_problems(place: Place, receipt: Receipt, row: int | None) -> list[str]:
    """What is wrong with the tar of a receipt; the sample of a row is decoded, too."""
    name = tar_name(receipt.shard)
    if receipt.digests.keys() != ({name} if receipt.keys else set()):
        return [f"the receipt of shard {receipt.shard} is not that of {name}"]
    sizes = {one: place.size(one) for one in receipt.digests if _is_there(place, one)}
    problems = digest_problems(place, receipt, sizes)
    return problems if problems or row is None else _sample_problems(place, name, receipt, row)


def _is_there(place: Place, name: str) -> bool:
    return place.local is None or (place.local / name).is_file()


def _sample_problems(place: Place, name: str, receipt: Receipt, row: int) -> list[str]:
    key = receipt.keys[row]
    try:
        keys, sample = _read_sample(io.BufferedReader(_PlaceFile(place, name)), key)
        record = record_of(sample)
    except UnreachableError:
        raise
    except (*UNREADABLE, tarfile.TarError) as error:
        return [f"{key} of {joined(place.url, name)} can't be decoded: {error!r}"]
    told = (receipt.keys, receipt.sizes[row], receipt.num_masks[row])
    if (keys, record.masks.shape, len(record.masks)) != told:
        return [f"{joined(place.url, name)} has not the samples of its receipt"]
    return []


def _read_sample(stream: BinaryIO, key: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The keys of all samples, in order, and the members of one of them."""
    keys: dict[str, None] = {}
    sample: dict[str, Any] = {"__key__": key}
    for name, content in read_members(stream):
        folder, slash, last = name.rpartition("/")
        stem, _, suffix = last.partition(".")
        keys[f"{folder}{slash}{stem}"] = None
        if f"{folder}{slash}{stem}" == key:
            sample[suffix] = content
    return tuple(keys), sample


class _PlaceFile(io.RawIOBase):
    """A file of a place, for readers that seek."""

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self._name = name
        self._size = place.size(name)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # a writable buffer
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        content = self._place.read_ranges(self._name, [(self._at, stop)])[0]
        buffer[: len(content)] = content
        self._at = stop
        return len(content)
