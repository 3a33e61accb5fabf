"""What moved, beyond noise, between two commits: compare their results.

    python benchmarks/compare.py OLD.json NEW.json
    python benchmarks/compare.py OLD_FOLDER NEW_FOLDER [--fail-on-worse]

A ratio moved if the spreads of its runs do not overlap, and by more than --least. Ratios are those
against the peer in the same run, so a slower machine alone moves little; yet the spread of a few
runs does not have what changes from hour to hour on a machine with other work. Ratios of a single
run, or without a noted spread, are `unsure` where they differ. Numbers that are counted (bytes,
masks, parameters) have no noise. What only one side has is new or gone. Files of equal names are
compared; if their settings differ, none of it is.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
from quantities import Quantity, Record, files_of, quantities

Verdict = Literal["worse", "improved", "unsure", "new", "gone", "same"]

ORDER: tuple[Verdict, ...] = ("worse", "improved", "unsure", "new", "gone", "same")

FOUND = (
    "machine", "versions", "masks", "seeds", "commit", "memcpy_s_a_crop", "runs", "not_measured",
)  # fmt: skip
"""Keys of a file that are no settings."""


@dataclass(frozen=True)
class Change:
    """One quantity, before and after."""

    file: str
    verdict: Verdict
    name: str
    old: Quantity | None
    new: Quantity | None

    @property
    def sentence(self) -> str:
        """In words."""
        old, new = (each.text if each else "-" for each in (self.old, self.new))
        return f"{self.file}: {self.name}: {old} -> {new}"


@click.command()
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.argument("new", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--least",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="Smallest share that counts.",
)
@click.option("--fail-on-worse", is_flag=True, help="Exit code 1 if something got worse.")
@click.option("--all", "shows_all", is_flag=True, help="List what did not move, too.")
def main(old: Path, new: Path, least: float, fail_on_worse: bool, shows_all: bool) -> None:
    """Say what moved from OLD to NEW, two files of results or two folders of them."""
    if old.is_dir() != new.is_dir():
        raise click.UsageError("compare two files or two folders, not one with the other")
    before, after = read(old, new)
    for given, records in ((old, before), (new, after)):
        if not records:
            raise click.UsageError(f"{given} has no results; a folder of them: benchmarks/results")
    for remark in remarks(before, after):
        click.echo(remark)
    changes = list(compare(before, after, least=least))
    for verdict in ORDER:
        those = [change for change in changes if change.verdict == verdict]
        click.echo(f"{verdict}: {len(those)}")
        if verdict != "same" or shows_all:
            for change in those:
                click.echo(f"  {change.sentence}")
    if fail_on_worse and any(change.verdict == "worse" for change in changes):
        raise click.exceptions.Exit(1)


def read(old: Path, new: Path) -> tuple[dict[str, Record], dict[str, Record]]:
    """The results of both; two files count as one, whatever their names."""
    if old.is_dir():
        return records_of(old), records_of(new)
    before, after = (records_of(file)[file.stem] for file in (old, new))
    return {new.stem: before}, {new.stem: after}


def records_of(given: Path) -> dict[str, Record]:
    """The results of a folder or of a single file, by stem.

    Raises:
        click.UsageError: a file is no JSON, or no results.
    """
    found: dict[str, Record] = {}
    files = files_of(given) if given.is_dir() else [given]
    for file in files:
        try:
            found[file.stem] = json.loads(file.read_text("utf-8"))
            quantities(found[file.stem]), found[file.stem]["machine"]["load_average"][0]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise click.UsageError(
                f"{file} is no file of results; one is benchmarks/results/storage_rows.json"
            ) from error
    return found


def compare(
    before: Mapping[str, Record], after: Mapping[str, Record], *, least: float
) -> Iterator[Change]:
    """Every quantity of files that both have, and of files that only one has."""
    for stem in sorted({*before, *after}):
        pair = before.get(stem), after.get(stem)
        if pair[0] and pair[1] and different_settings(*pair):
            continue
        old, new = (quantities(record) if record else {} for record in pair)
        for name in dict.fromkeys((*old, *new)):
            one, other = old.get(name), new.get(name)
            yield Change(stem, verdict(one, other, least=least), name, one, other)


def verdict(old: Quantity | None, new: Quantity | None, *, least: float) -> Verdict:
    """Whether a quantity moved beyond noise, and where to."""
    if old is None or new is None:
        return "new" if old is None else "gone"
    if abs(new.value - old.value) <= least * abs(old.value):
        return "same"
    rose = new.value > old.value
    better = rose == (new.better == "higher")
    moved: Verdict = "improved" if better else "worse"
    if not old.runs and not new.runs:
        return moved
    if min(old.runs, new.runs) < 2 or None in (old.low, old.high, new.low, new.high):
        return "unsure"
    assert old.low is not None and old.high is not None  # noqa: PT018 - for the type checker
    assert new.low is not None and new.high is not None  # noqa: PT018
    apart = new.low > old.high if rose else new.high < old.low
    return moved if apart else "same"


def different_settings(old: Record, new: Record) -> list[str]:
    """Settings that both files have and that are not equal, in words."""
    return [
        f"{key} {old[key]} and {new[key]}"
        for key in old.keys() & new.keys()
        if key not in FOUND and not isinstance(old[key], dict | list) and old[key] != new[key]
    ]


def remarks(before: Mapping[str, Record], after: Mapping[str, Record]) -> Iterator[str]:
    """What makes two files hard to compare, or impossible."""
    for stem in sorted(before.keys() & after.keys()):
        if settings := different_settings(before[stem], after[stem]):
            yield f"{stem}: not compared, other settings: {'; '.join(sorted(settings))}"
        old, new = (each[stem]["machine"] for each in (before, after))
        if (old["device"], old["cores"]) != (new["device"], new["cores"]):
            yield f"{stem}: other machines: {old['device']} and {new['device']}"
        if old.get("commit") and new.get("commit"):
            yield f"{stem}: commits {old['commit']} and {new['commit']}"
        yield f"{stem}: load {old['load_average'][0]:.2f} and {new['load_average'][0]:.2f}"


if __name__ == "__main__":
    main()
