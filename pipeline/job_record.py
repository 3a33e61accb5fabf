"""`job.json`: the command that a store was made with, so that a repair can run it again.

It has no times, no number of workers and not the store's own place: the same command leaves the
same bytes. It is no part of the fingerprint; a command that differs in what it makes is refused by
that. Paths are absolute, as of the machine that ran the command last.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from samprior.storage.errors import StoreError
from samprior.storage.header import JOB, digest, readable_json
from samprior.storage.mask_sets import MAIN
from samprior.storage.places import Place, joined

_OPTIONS = {"form": "--format", "settings": "--set"}
"""Options of `samprior precompute` that aren't called as the field is."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """The arguments of a `samprior precompute`; None where an option was not given."""

    dataset: str
    root: str
    """Absolute."""
    split: str | None = None
    variant: str | None = None
    degraded_pattern: str | None = None
    clean_pattern: str | None = None
    segmenter: str = "sam"
    model: str | None = None
    checkpoint: str | None = None
    """Absolute."""
    device: str | None = None
    engine: str | None = None
    precision: str | None = None
    settings: tuple[str, ...] = ()
    """`key=value`, in the order given."""
    source: str = "clean"
    """`clean`, `degraded`, or an absolute folder."""
    form: str = "zarr"
    images: Literal["stored", "reference"] = "stored"
    masks: str = MAIN
    images_per_shard: int | None = None

    def to_json(self) -> bytes:
        """The record as a small readable JSON file that holds its own digest."""
        record = {**asdict(self), "settings": list(self.settings), "command": "precompute"}
        return readable_json({**record, "sha256": digest(record)})

    @classmethod
    def from_json(cls, content: bytes, origin: object) -> Self:
        """Read `to_json`'s bytes back.

        Raises:
            StoreError: they are no record, were altered, or are of a newer samprior.
        """
        try:
            record = json.loads(content)
            if record.pop("sha256") != digest(record) or record.pop("command") != "precompute":
                raise ValueError("its digest does not fit its content")
            if record.keys() != {field.name for field in fields(cls)}:
                raise ValueError("it has other fields")
            _check(record)
            return cls(**{**record, "settings": tuple(record["settings"])})
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise StoreError(
                f"{origin} is no record of a job ({error!r}); run the same `samprior precompute` "
                "as before, which writes it anew"
            ) from error

    def leave_in(self, place: Place) -> None:
        """Write the record, unless the one that is there is the same."""
        content = self.to_json()
        try:
            found = place.read(JOB)
        except FileNotFoundError:
            found = None
        if found != content:
            place.write(JOB, content)

    def shell_command(self, out: object) -> str:
        """The command, to be typed again."""
        words = ["samprior", "precompute"]
        defaults = {field.name: field.default for field in fields(self)}
        for name, value in asdict(self).items():
            if value != defaults[name]:
                option = _OPTIONS.get(name, "--" + name.replace("_", "-"))
                for one in value if isinstance(value, tuple) else (value,):
                    words += [option, str(one)]
        return shlex.join([*words, "--out", str(out)])


def read_record(place: Place) -> JobRecord | None:
    """The record that a job has left; None if none did, as for stores of imported masks.

    Raises:
        StoreError: it is damaged.
    """
    try:
        content = place.read(JOB)
    except FileNotFoundError:
        return None
    return JobRecord.from_json(content, joined(place.url, JOB))


def _check(record: Mapping[str, Any]) -> None:
    """Raise TypeError unless all values are of their fields' types."""
    texts = {"dataset", "root", "segmenter", "source", "form", "masks"}
    for name, value in record.items():
        if name == "settings":
            fits = isinstance(value, list) and all(isinstance(one, str) for one in value)
        elif name == "images_per_shard":
            fits = value is None or type(value) is int
        elif name == "images":
            fits = value in ("stored", "reference")
        else:
            fits = isinstance(value, str) or (value is None and name not in texts)
        if not fits:
            raise TypeError(f"{name} is {value!r}")
