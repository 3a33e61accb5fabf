"""Write tars of samples, and the index that makes a folder of them whole.

A tar has one sample per image (`samples`). `index.json` beside the tars is written last and says of
each what it holds: equal content gives equal bytes, since times and owners in tars are constant.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from samprior.storage.errors import StoreError, UsageError
from samprior.storage.exports import check_keys
from samprior.storage.files import staged_file
from samprior.storage.manifest import Json
from samprior.storage.places import Place, open_place
from samprior.storage.samples import CLEAN, MaskForm, sample_of
from samprior.storage.writer import Record

INDEX = "index.json"
MAX_INDEX_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class TarEntry:
    """What the index says of a tar."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    """Hex, of the whole file."""
    keys: tuple[str, ...] = ()
    """Keys of the samples, in order."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Height and width of each, pixels."""

    def to_json(self) -> Json:
        """The entry as `index.json` has it."""
        return {
            "name": self.name,
            "num_samples": self.num_samples,
            "bytes": self.num_bytes,
            "sha256": self.sha256,
            "keys": list(self.keys),
            "sizes": [list(size) for size in self.sizes],
        }


def tar_name(number: int) -> str:
    """File name of the tar of a number."""
    return f"{number:06d}.tar"


def check_tar_keys(keys: Iterable[str]) -> None:
    """Raise UsageError for a key under which webdataset would not find the sample again."""
    from webdataset.tariterators import base_plus_ext

    keys = tuple(keys)
    check_keys(keys)
    for key in keys:
        if base_plus_ext(f"{key}.{CLEAN}") != (key, CLEAN):
            raise UsageError(
                f"key {key!r} can't be exported: webdataset ends a name at its first dot"
            )
        first, slash, _ = key.partition("/")
        if slash and first.startswith("__") and first.endswith("__"):
            raise UsageError(f"key {key!r} can't be exported: webdataset passes over {first}/")


def write_tar(
    tar: Path, records: Iterable[Record], *, paired: bool, masks: MaskForm = "atoms"
) -> None:
    """Write the samples of records (of checked keys) as a tar, whole or not at all."""
    from webdataset import TarWriter

    with (
        staged_file(tar) as stream,
        # pax, the one format with names of any length; the same bytes as ustar for short ones.
        TarWriter(stream, encoder=False, mtime=0, format="PAX_FORMAT") as sink,
    ):
        for record in records:
            sink.write(sample_of(record, paired=paired, masks=masks))


def write_index(
    folder: Path | Place,
    entries: Sequence[TarEntry],
    *,
    fingerprint: str,
    masks: MaskForm = "atoms",
) -> None:
    """Write the index; `fingerprint` is that of the store the tars hold."""
    content = index_json(entries, fingerprint=fingerprint, masks=masks)
    place = open_place(folder)
    try:
        is_there = place.read(INDEX) == content
    except FileNotFoundError:
        is_there = False
    if not is_there:
        place.write(INDEX, content)


def index_json(
    entries: Sequence[TarEntry], *, fingerprint: str, masks: MaskForm = "atoms"
) -> bytes:
    """The content of the index."""
    index = {
        "fingerprint": fingerprint,
        "masks": masks,
        "num_samples": sum(entry.num_samples for entry in entries),
        "shards": [entry.to_json() for entry in entries],
    }
    return json.dumps(index, indent=1).encode() + b"\n"


def read_members(tar: Path | BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Name and content of each plain file in a tar; nothing is written, so names may be any.

    Links, devices and folders are passed over.

    Raises:
        OSError, ValueError, tarfile.TarError: it is damaged, compressed, or would be read as more
            bytes than it has.
    """
    with tar.open("rb") if isinstance(tar, Path) else nullcontext(tar) as stream:
        num_bytes = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as members:
            last = -1
            for member in members:
                # Holes of a sparse file, and sizes below 0, which lead back to where it was before.
                end = member.offset_data + member.size
                if member.issparse() or not last < member.offset_data <= end <= num_bytes:
                    raise tarfile.ReadError(f"it ends before all of {member.name!r:.80}")
                last = member.offset
                if content := members.extractfile(member) if member.isreg() else None:
                    yield member.name, content.read()
                # What was read is not asked for again; type checkers don't know of the list.
                members.members = []  # type: ignore[attr-defined]


def read_index(folder: Path) -> list[TarEntry]:
    """What the index says of the tars, in order, without the names of their samples.

    Raises:
        StoreError: there is no index, or it is damaged.
    """
    try:
        with (folder / INDEX).open("rb") as stream:
            content = stream.read(MAX_INDEX_BYTES + 1)
        if len(content) > MAX_INDEX_BYTES:
            raise ValueError(f"{INDEX} has more than {MAX_INDEX_BYTES >> 20} MiB")
        return [_entry(fields) for fields in json.loads(content)["shards"]]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{folder} holds no finished export ({error}); run `samprior export` again, or the "
            "same `samprior precompute --format webdataset`"
        ) from error


def _entry(fields: Json) -> TarEntry:
    entry = TarEntry(
        name=Path(fields["name"]).name,
        num_samples=int(fields["num_samples"]),
        num_bytes=int(fields["bytes"]),
        sha256=str(fields["sha256"]),
    )
    if entry.num_samples < 1:
        raise ValueError(f"{entry.name} with {entry.num_samples} samples")
    return entry
