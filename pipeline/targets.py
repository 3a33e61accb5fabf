"""What a job is to write, given what is there already: a store, its tars, or a further mask set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from samprior.pipeline.datasets import Dataset, Pair
from samprior.pipeline.forms import FORMS, ZARR, Form
from samprior.pipeline.growth import arrange_pairs
from samprior.pipeline.plan import (
    IMAGES_PER_SHARD,
    ShardPlan,
    Source,
    input_bytes,
    plan_header,
    plan_shards,
)
from samprior.pipeline.worker import MaskMaker
from samprior.storage import MaskStore
from samprior.storage.choices import check_choice
from samprior.storage.errors import StoreError, UsageError
from samprior.storage.growth import known_parts, listing_sha256
from samprior.storage.header import FORMAT_VERSION, Header
from samprior.storage.manifest import read_receipts, receipt_shards
from samprior.storage.mask_sets import check_name, set_name
from samprior.storage.places import Place, is_file, open_place
from samprior.storage.references import ReferenceWriter, relative_files
from samprior.storage.writer import write_shard

Arranged = tuple[Sequence[Pair], tuple[int, ...]]
"""Pairs in the order of the plan, and the images of each part that was appended."""


@dataclass(frozen=True)
class Target:
    """What a job is to write, and where."""

    out: Path | str | Place
    form: Form
    plan: list[ShardPlan]
    header: Header

    def left(self) -> list[ShardPlan]:
        """The shards that are not there yet."""
        there = {receipt.shard for receipt in self.form.each_receipt(open_place(self.out))}
        return [shard for shard in self.plan if shard.shard not in there]


def store_target(
    dataset: Dataset,
    out: Path | str,
    maker: MaskMaker,
    *,
    form: str = "zarr",
    source: Source = "clean",
    images: Literal["stored", "reference"] = "stored",
    append: bool = False,
    images_per_shard: int | None = None,
) -> Target:
    """The store or the tars of a dataset; see `precompute` for the arguments.

    Raises:
        UsageError: options that don't go together.
        StoreError: the dataset has other images than the store that is there.
    """
    check_choice("--format", form, FORMS)
    if form != "zarr" and (append or images != "stored"):
        raise UsageError(f"--append and --images reference go with stores, not --format {form}")
    chosen = FORMS[form]
    place = open_place(out)
    found = chosen.read_header(place) if is_file(place, chosen.header_files[0]) else None
    if images_per_shard is None:
        images_per_shard = found.images_per_shard if found else IMAGES_PER_SHARD
    arranged: Arranged = (dataset.pairs, ())
    if form == "zarr":
        arranged = _arranged(dataset, place, found, append=append)
    pairs, appended = arranged
    if images == "reference":
        files = {pair.key: (pair.degraded, pair.clean) for pair in pairs}
        writer = ReferenceWriter(relative_files(files, root=dataset.root))
        chosen = replace(chosen, write_shard=writer)
    plan = plan_shards(pairs, images_per_shard=images_per_shard, appended=appended)
    header = plan_header(
        plan,
        dataset=dataset.name,
        layout=dataset.layout,
        split=dataset.split,
        segmenter=maker.describe(),
        source=source,
        images_per_shard=images_per_shard,
        appended=appended,
        images=images,
        pictures_root=str(dataset.root) if images == "reference" else None,
    )
    return Target(out, chosen, plan, header)


def mask_set_target(
    dataset: Dataset,
    store: Path | str,
    name: str,
    maker: MaskMaker,
    *,
    source: Source = "clean",
    images_per_shard: int | None = None,
) -> Target:
    """A further set of masks for the pictures of a complete store, of the same dataset.

    Raises:
        UsageError: a name that can't be; other images per shard than the store's.
        StoreError: the store is unfinished or of an older format, or the dataset isn't that of
            the store, or has changed since.
    """
    check_name(name)
    parent = MaskStore.open(store).require_complete()
    theirs = parent.header
    if theirs.format_version != FORMAT_VERSION:
        raise StoreError(
            f"{store} has store format {theirs.format_version}, which is only read; copy it to the "
            f"present one with `samprior migrate {store} NEW`"
        )
    if images_per_shard not in (None, theirs.images_per_shard):
        raise UsageError(
            f"{store} has {theirs.images_per_shard} images per shard, and so have its mask sets; "
            f"got {images_per_shard}"
        )
    if not _is_of(theirs, dataset):
        raise StoreError(
            f"{store} is not of this dataset: it was made of {theirs.made_of.get('dataset')}, "
            f"wanted {dataset.name}, {dataset.layout}, {dataset.split}"
        )
    pairs, appended = arrange_pairs(
        dataset.pairs,
        known_parts(open_place(store), theirs, parent.receipts),
        where=store,
        append=False,
        hint="append them to the store first, by --append without --masks",
    )
    _require_same_pictures(parent, pairs)
    plan = plan_shards(pairs, images_per_shard=theirs.images_per_shard, appended=appended)
    header = plan_header(
        plan,
        dataset=dataset.name,
        layout=dataset.layout,
        split=dataset.split,
        segmenter=maker.describe(),
        source=source,
        images_per_shard=theirs.images_per_shard,
        paired=theirs.paired,
        appended=appended,
        images="parent",
    )
    form = replace(ZARR, noun="mask set", write_shard=partial(write_shard, images="parent"))
    return Target(open_place(store).below(set_name(name)), form, plan, header)


def _arranged(dataset: Dataset, out: Place, found: Header | None, *, append: bool) -> Arranged:
    """The pairs in the order of the store that is there; in their own if there is none.

    A store that isn't this dataset's at all is left to the job to refuse.
    """
    if found is None:
        if append:
            raise StoreError(
                f"{out.url} holds no store to append to; make it first, without --append"
            )
        return dataset.pairs, ()
    if found.format_version != FORMAT_VERSION or not _is_of(found, dataset):
        return dataset.pairs, ()
    if not found.appended and not append:
        keys = (pair.key for pair in dataset.pairs)
        is_same = found.made_of["dataset"]["listing_sha256"] == listing_sha256(keys)
        if is_same or len(receipt_shards(out)) < found.num_shards:
            return dataset.pairs, ()
    # With a listing they aren't needed, and reading all takes time and memory.
    receipts = {} if found.appended else read_receipts(out)
    return arrange_pairs(
        dataset.pairs,
        known_parts(out, found, receipts),
        where=out.url,
        append=append,
        hint="add them with --append, or choose another --out",
    )


def _is_of(header: Header, dataset: Dataset) -> bool:
    """Whether a store was made of this dataset, whatever images it had then."""
    theirs = header.made_of.get("dataset")
    ours = {"name": dataset.name, "layout": dataset.layout, "split": dataset.split}
    return isinstance(theirs, Mapping) and ours.items() <= theirs.items()


def _require_same_pictures(parent: MaskStore, pairs: Sequence[Pair]) -> None:
    """Raise StoreError if the dataset's files are not those that the store was made of."""
    inputs = {key: of for one in parent.receipts.values() for key, of in one.inputs.items()}
    for pair in pairs:
        if inputs.get(pair.key, ())[:2] != input_bytes(pair):
            raise StoreError(
                f"{pair.key} has changed since {parent.url} was made; run the `samprior "
                "precompute` of the store again first"
            )
