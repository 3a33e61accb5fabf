"""Which data set a folder is, found out by its layout and its name."""

import re
from pathlib import Path

from samprior.pipeline.datasets import Dataset, find_dataset
from samprior.pipeline.folders import existing_folder, named, subfolders
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
    found: dict[str, Dataset] = {}
    reasons = []
    for name in LAYOUTS:
        try:
            found[name] = find_dataset(name, folder, split=split)
        except LayoutError as error:
            reasons.append(str(error))
    if not found:
        raise LayoutError(_none_fits(folder, reasons))
    if len(found) > 1:
        found.pop(ANY_PAIRS, None)
    meant = [name for name in found if re.search(rf"(?<![a-z]){name}", folder.name.lower())]
    if len(found) > 1 and len(meant) != 1:
        raise UsageError(
            f"{folder} may be {' or '.join(found)} by its layout; say which with --dataset, or "
            f"--dataset {ANY_PAIRS} for any other pairs"
        )
    return found[meant[0]] if meant else next(iter(found.values()))


def _none_fits(folder: Path, reasons: list[str]) -> str:
    # Pairs that are not whole say more of a folder than a layout that isn't there at all, and most
    # those of which the degraded side was found: clean/ belongs to several layouts.
    begun = [reason for reason in reasons if ", read as " in reason]
    if begun:
        return max(begun, key=lambda reason: "without clean side" in reason)
    return (
        f"{folder} is no samprior store, and has the layout of no data set that is known "
        f"({', '.join(LAYOUTS)}); it holds {named(subfolders(folder))}. Name its pairs with "
        "--degraded-pattern and --clean-pattern, or see docs/datasets.md"
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
