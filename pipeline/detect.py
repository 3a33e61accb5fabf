"""Which data set a folder is, found out by its layout and its name."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from samprior.pipeline.datasets import Dataset, find_dataset
from samprior.pipeline.folders import better_root, existing_folder, named, split_folder, subfolders
from samprior.pipeline.job_record import JobRecord
from samprior.pipeline.layouts import LAYOUTS
from samprior.storage.errors import LayoutError, UsageError

ANY_PAIRS = "folder"
"""The data set that stands for pairs of any kind: it is taken only if no other fits."""


def detect_dataset(root: Path, *, split: str | None = None) -> Dataset:
    """The data set whose layout a folder has. Of several, the one that the folder is named after.

    Without `split` the folder train is taken where there is one, else the root itself.

    Raises:
        LayoutError: none fits; the message says what was looked for.
        UsageError: several fit, and the name of the folder doesn't tell which is meant.
    """
    folder = existing_folder(root)
    if split is None and (folder / "train").is_dir():
        split = "train"
    known = [layout for layouts in LAYOUTS.values() for layout in layouts]
    base, _ = split_folder(folder, split, layouts=known, by_pattern=False)
    tried = {name: _tried(name, folder, split) for name in LAYOUTS}
    # Pairs that can't be used as they are count as well: to pass over them would be a guess.
    found = {name: one for name, one in tried.items() if isinstance(one, Dataset) or one.num_pairs}
    if ANY_PAIRS in found and _has_pairs_of(found[ANY_PAIRS], found, but=ANY_PAIRS):
        del found[ANY_PAIRS]
    errors = [one for one in tried.values() if isinstance(one, LayoutError)]
    if all(isinstance(one, LayoutError) for one in found.values()):
        raise _closest(errors) or LayoutError(_none_fits(folder, better_root(base, known)))
    meant = [name for name in found if re.search(rf"(?<![a-z]){name}", folder.name.lower())]
    if len(found) > 1 and len(meant) != 1:
        raise UsageError(
            f"{folder} may be {' or '.join(found)} by its layout; say which with --dataset, or "
            f"--dataset {ANY_PAIRS} for any other pairs"
        )
    one = found[meant[0]] if meant else next(iter(found.values()))
    if isinstance(one, LayoutError):
        raise one
    return one


def _tried(name: str, folder: Path, split: str | None) -> Dataset | LayoutError:
    try:
        return find_dataset(name, folder, split=split)
    except LayoutError as error:
        return error


def _has_pairs_of(
    one: Dataset | LayoutError, found: Mapping[str, Dataset | LayoutError], *, but: str
) -> bool:
    """Whether another data set has all pairs of this one."""
    return isinstance(one, Dataset) and any(
        set(one.pairs) <= set(other.pairs)
        for name, other in found.items()
        if name != but and isinstance(other, Dataset)
    )


def _closest(errors: Sequence[LayoutError]) -> LayoutError | None:
    """Of what is wrong with each data set, the one that has most pairs, then most halves of them.

    Clean files alone say nothing: clean/ belongs to several layouts.
    """
    begun = [error for error in errors if error.num_pairs or error.num_degraded]
    return max(begun, key=lambda error: (error.num_pairs, error.num_degraded), default=None)


def _none_fits(folder: Path, hint: str) -> str:
    advice = ". Name its pairs with --degraded-pattern and --clean-pattern, or see docs/datasets.md"
    return (
        f"{folder} is no samprior store, and has the layout of no data set that is known "
        f"({', '.join(LAYOUTS)}); it holds {named(subfolders(folder))}{hint or advice}"
    )


def precompute_command(
    dataset: Dataset, out: str, *, degraded_pattern: str | None, clean_pattern: str | None
) -> str:
    """The command that makes the store of a data set that was found, to be typed."""
    on_request = {layout.name for layout in LAYOUTS[dataset.name] if layout.on_request}
    record = JobRecord(
        dataset=dataset.name,
        root=str(dataset.root),
        split=dataset.split,
        variant=dataset.layout if dataset.layout in on_request else None,
        degraded_pattern=degraded_pattern,
        clean_pattern=clean_pattern,
    )
    return record.shell_command(out)
