"""One pass over a store, over one of its mask sets, or over the tars of a job; and its repair."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from samprior.storage.errors import StoreError, UnreachableError
from samprior.storage.files import is_draft
from samprior.storage.growth import LISTING
from samprior.storage.header import HEADER_COPY, JOB
from samprior.storage.locks import LOCK
from samprior.storage.manifest import Receipt, receipt_name, receipt_shards, shard_name
from samprior.storage.mask_sets import FOLDER
from samprior.storage.places import Place, joined
from samprior.storage.references import picture_problems, resolved_root
from samprior.storage.status import Writer
from samprior.storage.tar_job import HEADER, tar_entry
from samprior.storage.tars import INDEX, TarEntry, index_json, tar_name
from samprior.storage.verify_metadata import Listing, Metadata, check_job, has_listing
from samprior.storage.verify_shards import misfits, plan_problems, shard_problems, whole_receipt
from samprior.storage.verify_tars import tar_problems


@dataclass
class Verification:
    """What `verify_store` found."""

    num_images: int = 0
    num_masks: int = 0
    num_shards: int = 0
    planned_shards: int = 0
    stored_bytes: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    broken: dict[int, list[str]] = field(default_factory=dict)
    """What is wrong, by shard."""
    sound: set[int] = field(default_factory=set, repr=False)
    """Shards with nothing wrong."""
    unchecked: list[int] = field(default_factory=list)
    """Shards that another process finished meanwhile: nothing is known of them."""
    metadata: list[str] = field(default_factory=list)
    """What is wrong with the files that describe the store as a whole."""
    rewrites: dict[str, bytes] = field(default_factory=dict, repr=False)
    """What such files ought to hold, by name below the store; a repair writes it."""
    pictures: list[str] = field(default_factory=list)
    """What is wrong with pictures that the store only refers to; a repair leaves them alone."""
    leftovers: list[str] = field(default_factory=list)
    """Names below the store of drafts of killed writers and of shards without a receipt: they
    don't count as data, and a repair removes them."""
    writer: Writer | None = None
    """Who writes while the store is checked, or may do so from another machine."""
    strangers: list[str] = field(default_factory=list)
    """Names below the store of what samprior never wrote; a repair leaves it alone."""
    mask_sets: dict[str, "Verification"] = field(default_factory=dict)
    """The same for each further mask set, by name."""

    @property
    def ok(self) -> bool:
        """Whether every shard of the plan is there and whole, and those of all mask sets."""
        whole = not (self.broken or self.unchecked or self.metadata or self.pictures)
        whole = whole and self.num_shards == self.planned_shards
        return whole and all(found.ok for found in self.mask_sets.values())

    @property
    def needs_job(self) -> bool:
        """Whether a job has to make something again, mask sets aside; a repair writes the rest."""
        has_all_shards = not self.broken and self.num_shards == self.planned_shards
        return not has_all_shards or len(self.metadata) != len(self.rewrites)

    @property
    def mendable(self) -> bool:
        """Whether a repair makes all of it whole, or has done so, and leaves nothing to a job."""
        whole = not (self.needs_job or self.unchecked or self.pictures)
        return whole and all(found.mendable for found in self.mask_sets.values())

    def to_record(self) -> dict[str, Any]:
        """What was found, as JSON."""
        return {
            "ok": self.ok,
            "num_images": self.num_images,
            "num_masks": self.num_masks,
            "num_shards": self.num_shards,
            "planned_shards": self.planned_shards,
            "stored_bytes": self.stored_bytes,
            "quarantined": self.quarantined,
            "broken": self.broken,
            "unchecked": self.unchecked,
            "metadata": self.metadata,
            "pictures": self.pictures,
            "leftovers": self.leftovers,
            "writer": None if self.writer is None else asdict(self.writer),
            "strangers": self.strangers,
            "mask_sets": {name: one.to_record() for name, one in self.mask_sets.items()},
        }

    def lines(self) -> Iterator[str]:
        """What is wrong or odd, but for mask sets, in lines for people."""
        yield from self.metadata
        for shard, problems in self.broken.items():
            yield from (f"shard {shard}: {problem}" for problem in problems)
        for shard in self.unchecked:
            yield (
                f"shard {shard}: another process finished it meanwhile, so it was not checked; run "
                "`samprior verify` again"
            )
        yield from self.pictures
        if self.writer is not None:
            yield f"{_told(self.writer)}; run `samprior verify` again when it has ended"
        whose = "a killed writer" if self.writer is None else "that job, or of a killed one"
        yield from (f"leftover of {whose}: {name}" for name in self.leftovers)
        yield from (f"not of samprior, left alone: {name}" for name in self.strangers)


class Check(ABC):
    """What all passes share; `StoreCheck` and `TarCheck` know the files."""

    header_file: ClassVar[str]
    """The file that tells what the folder is; workers of a job hold it."""

    def __init__(self, place: Place, metadata: Metadata, parent: "Check | None" = None) -> None:
        self.place = place
        self.parent = parent
        self.header = metadata.header
        # A set that was not brought up to a store that has grown isn't whole.
        planned = (parent or self).header.num_shards
        self.found = Verification(
            planned_shards=planned, metadata=metadata.problems, rewrites=metadata.rewrites
        )
        self._metadata = metadata
        self._listing = Listing(place, self.header)

    def run(self, rng: np.random.Generator, advance: Callable[[], None], trusted: Set[int]) -> None:
        """Check all shards, what holds them together, and what doesn't belong there.

        Of shards that are `trusted` only the receipts are read.
        """
        shards = set(receipt_shards(self.place))
        for shard in range(self.header.num_shards):
            if shard in shards:
                self._check_shard(shard, rng, is_trusted=shard in trusted)
            advance()
        for shard in sorted(shards):
            if shard >= self.header.num_shards:
                origin = joined(self.place.url, receipt_name(shard))
                self.found.broken[shard] = [f"{origin} is no shard of the plan"]
        self._listing.check(self._metadata)
        check_job(self.place, self._metadata)
        held = {folder: self.place.names(folder) for folder in self._known(shards)}
        # Listed after the data: a writer leaves the receipt last.
        now = set(receipt_shards(self.place))
        self.found.unchecked = sorted(now - shards)
        for folder, known in self._known(shards | now).items():
            self._check_names(folder, held[folder], known)

    def repair(self) -> None:
        """Write what can be told, and remove what is broken; the receipt of a shard goes first."""
        for shard in self.found.broken:
            self._drop(receipt_name(shard))
            self._drop(self._data_of(shard))
        self._spare_what_was_finished()
        for name in self.found.leftovers:
            self._drop(name)
        for name, content in self.found.rewrites.items():
            self.place.write(name, content)

    def _spare_what_was_finished(self) -> None:
        """Take shards that have their receipt by now out of the leftovers."""
        if all(is_draft(_last(name)) for name in self.found.leftovers):
            return
        for shard in receipt_shards(self.place):
            if self._data_of(shard) in self.found.leftovers:
                self.found.leftovers.remove(self._data_of(shard))
                self.found.unchecked.append(shard)

    def _known(self, shards: set[int]) -> dict[str, set[str]]:
        """What may lie directly in the folder and in those below it; `shards` have receipts."""
        return {"receipts": {_last(receipt_name(shard)) for shard in shards}}

    @abstractmethod
    def _data_of(self, shard: int) -> str:
        """File or folder of a shard's data, below the store."""

    @abstractmethod
    def _problems(self, receipt: Receipt, row: int | None) -> list[str]:
        """What is wrong with the data of a shard, of which the image of a row is decoded."""

    def _check_shard(self, shard: int, rng: np.random.Generator, *, is_trusted: bool) -> None:
        try:
            receipt = whole_receipt(self.place, shard)
        except UnreachableError:
            raise
        except StoreError as error:
            self.found.broken[shard] = [str(error)]
            return
        self._listing.add(receipt)
        if is_trusted:
            self._count(receipt)
            return
        row = int(rng.integers(len(receipt.keys))) if receipt.keys else None
        problems = self._problems(receipt, row) + plan_problems(self.place, self.header, receipt)
        if self.parent is not None:
            problems += misfits(self.parent.place, receipt)
        if problems:
            self.found.broken[shard] = problems
        else:
            self._count(receipt)
            self._check_pictures(receipt)

    def _count(self, receipt: Receipt) -> None:
        """Add a shard that is whole to what was found."""
        self.found.num_shards += 1
        self.found.sound.add(receipt.shard)
        self.found.num_images += len(receipt.keys)
        self.found.num_masks += sum(receipt.num_masks)
        self.found.stored_bytes += receipt.stored_bytes
        self.found.quarantined |= receipt.quarantined

    def _check_pictures(self, receipt: Receipt) -> None:
        if self.header.images == "reference":
            root = resolved_root(self.header, None, where=self.place.url)
            assert root is not None
            self.found.pictures += picture_problems(root, receipt)

    def _check_names(self, folder: str, held: Sequence[str], known: set[str]) -> None:
        """Sort what a folder held and isn't known into leftovers and strangers."""
        for last in held:
            name = joined(folder, last)
            if is_draft(last) or (last not in known and self._is_ours(name)):
                self.found.leftovers.append(name)
            elif last not in known:
                self.found.strangers.append(name)

    def _is_ours(self, name: str) -> bool:
        """Whether an unknown name is that of something which a writer leaves that was killed."""
        number = "".join(filter(str.isdigit, name))
        return bool(number) and name == self._data_of(int(number))

    def _drop(self, name: str) -> None:
        """Remove a file or a folder, whichever it is."""
        file = self.place.local and self.place.local / name
        is_folder = file is not None and file.is_dir() and not file.is_symlink()
        if file is None or is_folder:
            self.place.remove_folder(name)
        if not is_folder:
            self.place.remove(name)


class StoreCheck(Check):
    """One pass over a zarr store, or over the mask set of the store of `parent`."""

    header_file = "zarr.json"

    def _known(self, shards: set[int]) -> dict[str, set[str]]:
        root = {self.header_file, HEADER_COPY, JOB, "shards", "receipts", LOCK}
        if self.parent is None:
            root.add(FOLDER)
        if has_listing(self.header):
            root.add(LISTING)
        data = {_last(shard_name(shard)) for shard in shards}
        return {"": root, "shards": {"zarr.json", *data}} | super()._known(shards)

    def _data_of(self, shard: int) -> str:
        return shard_name(shard)

    def _problems(self, receipt: Receipt, row: int | None) -> list[str]:
        return shard_problems(self.place, self.header, receipt, row)

    def _is_ours(self, name: str) -> bool:
        # The listing is written before the header that counts what was appended.
        return super()._is_ours(name) or (name == LISTING and self.parent is None)


class TarCheck(Check):
    """One pass over the tars of a job."""

    header_file = HEADER

    def __init__(self, place: Place, metadata: Metadata) -> None:
        super().__init__(place, metadata)
        self._entries: list[TarEntry] = []

    def run(self, rng: np.random.Generator, advance: Callable[[], None], trusted: Set[int]) -> None:
        """See `Check`; the index is compared with the one that the receipts make."""
        super().run(rng, advance, trusted)
        if self._is_whole:
            index = index_json(self._entries, fingerprint=self.header.fingerprint)
            self._metadata.compare(self.place, INDEX, index)

    def repair(self) -> None:
        """See `Check`; an index would say that all tars are there."""
        if not self._is_whole:
            self.place.remove(INDEX)
        super().repair()

    @property
    def _is_whole(self) -> bool:
        return not self.found.broken and self.found.num_shards == self.header.num_shards

    def _known(self, shards: set[int]) -> dict[str, set[str]]:
        root = {HEADER, HEADER_COPY, JOB, INDEX, "receipts", LOCK}
        return {"": root | set(map(tar_name, shards))} | super()._known(shards)

    def _data_of(self, shard: int) -> str:
        return tar_name(shard)

    def _problems(self, receipt: Receipt, row: int | None) -> list[str]:
        return tar_problems(self.place, receipt, row)

    def _count(self, receipt: Receipt) -> None:
        super()._count(receipt)
        if receipt.keys:
            self._entries.append(tar_entry(receipt))


def _told(writer: Writer) -> str:
    runs = "a job writes to it" if writer.is_alive else "a job of another machine may write to it"
    return runs if writer.host is None else f"{runs} (host {writer.host}, process {writer.pid})"


def _last(name: str) -> str:
    """A name without its folder."""
    return name.rpartition("/")[2]
