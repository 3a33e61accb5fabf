"""Several networks on several splits: means, and paired differences to the first network.

Means over splits give each split the same weight, however many images it has, as papers do.
Differences are taken image by image, see `samprior.training.paired`.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samprior.storage.errors import UsageError
from samprior.storage.files import write_bytes
from samprior.storage.pages import write_page
from samprior.training.columns import COLUMNS, Column, columns_of, plain, signed
from samprior.training.evaluate import Evaluation, ImageScore
from samprior.training.paired import METHOD, PairedDifference, paired_difference

ALL_SPLITS = "mean of splits"

ALL_IMAGES = "images of all splits"

_AFTER = {column.after: column for column in COLUMNS}


@dataclass(frozen=True)
class Summary:
    """Evaluations by (network, split): every network on every split, under one protocol."""

    evaluations: Mapping[tuple[str, str], Evaluation]
    """In the order they were made; the first network is what the others are compared with."""

    def __post_init__(self) -> None:
        for network in self.networks:
            for split in self.splits:
                ours = self.evaluations.get((network, split))
                first = self.evaluations[self.networks[0], split]
                if ours is None or _keys(ours) != _keys(first):
                    raise UsageError(
                        f"{network} was not scored on the same images of {split or 'the data set'} "
                        f"as {self.networks[0]}; score all networks at once"
                    )

    @property
    def networks(self) -> list[str]:
        """All networks, the first one first."""
        return list(dict.fromkeys(network for network, _ in self.evaluations))

    @property
    def splits(self) -> list[str]:
        """All splits; "" stands for a data set without."""
        return list(dict.fromkeys(split for _, split in self.evaluations))

    def means(self) -> Iterator[tuple[str, str, ImageScore]]:
        """(network, split, mean over images), and of several splits the mean of these."""
        for network in self.networks:
            scores = [self.evaluations[network, split].mean() for split in self.splits]
            for split, score in zip(self.splits, scores, strict=True):
                yield network, split, score
            if len(scores) > 1:
                yield network, ALL_SPLITS, _mean(scores)

    def differences(self) -> Iterator[tuple[str, str, str, PairedDifference]]:
        """(network, split, value, its difference to the first network) for every value after
        restoring; of several splits, the images of all together come last.
        """
        groups = {split: [split] for split in self.splits}
        if len(groups) > 1:
            groups[ALL_IMAGES] = self.splits
        for network in self.networks[1:]:
            for title, splits in groups.items():
                ours, theirs = self._rows(network, splits), self._rows(self.networks[0], splits)
                for value in (name for name in ours[0] if name.endswith(("_after", "_after_db"))):
                    difference = paired_difference(
                        [row[value] for row in ours], [row[value] for row in theirs]
                    )
                    yield network, title, value, difference

    def to_csv(self) -> str:
        """One line of means per network and split."""
        rows = [
            {"network": network, "split": split, **_without_key(score)}
            for network, split, score in self.means()
        ]
        return _csv(rows)

    def differences_csv(self) -> str:
        """One line per network, split and value; the first network is the baseline."""
        rows = [
            {"network": network, "baseline": self.networks[0], "split": split, "value": value}
            | asdict(difference)
            for network, split, value, difference in self.differences()
        ]
        return _csv(rows)

    def to_json(self) -> str:
        """Means, differences and protocols; JSON has no infinity and no NaN, so both are null."""
        record = {
            "baseline": self.networks[0],
            "protocols": {split: self.protocol(split) for split in self.splits},
            "means": [
                {"network": network, "split": split, **_finite(_without_key(score))}
                for network, split, score in self.means()
            ],
            "method": METHOD,
            "differences": [
                {"network": network, "split": split, "value": value} | _finite(asdict(difference))
                for network, split, value, difference in self.differences()
            ],
        }
        return json.dumps(record, indent=1, allow_nan=False) + "\n"

    def protocol(self, split: str) -> str:
        """How the scores of a split were taken, in words."""
        return self.evaluations[self.networks[0], split].protocol

    def lines(self) -> Iterator[str]:
        """The tables as text for a terminal, the protocol last."""
        is_table = len(self.evaluations) > 1
        for network, split, score in self.means():
            if is_table:
                yield f"{network} {split}".rstrip()
            yield from _told_scores(score)
        for network, split, value, found in self.differences():
            if column := _AFTER.get(value):
                digits = column.digits
                yield (
                    f"{network} - {self.networks[0]}, {split}".rstrip(", ")
                    + f": {column.title} {found.mean:+.{digits}f} {column.unit}".rstrip()
                    + f" (95 % {found.low:+.{digits}f} to {found.high:+.{digits}f}), better on "
                    f"{_wins(found, column)} of {found.num_images}, p {_told_p(found.p_value)}"
                )
        for split in self.splits:
            yield f"({self.protocol(split)})" if not split else f"({split}: {self.protocol(split)})"

    def _rows(self, network: str, splits: Sequence[str]) -> list[dict[str, Any]]:
        """The values of all images of some splits."""
        return [
            image.row() for split in splits for image in self.evaluations[network, split].images
        ]


def write_summary(
    summary: Summary, folder: Path, *, dataset: str, reports: Mapping[tuple[str, str], str]
) -> list[Path]:
    """Write summary.csv, .json and .html below `folder`, and differences.csv of several networks.

    Args:
        summary: at least one evaluation.
        folder: made if it isn't there.
        dataset: what was evaluated, in words.
        reports: the page of each (network, split), relative to `folder`.

    Returns:
        The files written.
    """
    texts = {"summary.csv": summary.to_csv(), "summary.json": summary.to_json()}
    if len(summary.networks) > 1:
        texts["differences.csv"] = summary.differences_csv()
    for name, text in texts.items():
        write_bytes(folder / name, text.encode("utf-8", "backslashreplace"))
    means = list(summary.means())
    page = {
        "dataset": dataset,
        "networks": summary.networks,
        "num_splits": len(summary.splits),
        "protocols": [(split, summary.protocol(split)) for split in summary.splits],
        "columns": columns_of(means[0][2].row()),
        "means": [
            (network, split, _cells(score), reports.get((network, split)))
            for network, split, score in means
        ],
        "differences": [
            (network, split, _AFTER[value], found)
            for network, split, value, found in summary.differences()
            if value in _AFTER
        ],
        "method": METHOD,
    }
    filters: dict[str, Callable[..., Any]] = {
        "signed": signed,
        "wins": _wins,
        "p": _told_p,
    }
    write_page(
        folder / "summary.html",
        page,
        package="samprior.training",
        template="summary.html.j2",
        filters=filters,
    )
    return [folder / name for name in (*texts, "summary.html")]


def _cells(score: ImageScore) -> list[tuple[str, bool]]:
    """Before, after and gain of each column, as text and whether it is a loss."""
    values = score.row()
    cells = []
    for column in columns_of(values):
        before, after = values[column.before], values[column.after]
        cells += [
            (plain(before, column.digits), False),
            (plain(after, column.digits), False),
            (signed(after - before, column.digits), column.is_worse(after - before)),
        ]
    return cells


def _told_scores(score: ImageScore) -> Iterator[str]:
    values = score.row()
    for column in columns_of(values):
        before, after = (
            f"{values[side]:7.{column.digits}f}" for side in (column.before, column.after)
        )
        yield f"{column.title} {before} -> {after} {column.unit}".rstrip()


def _wins(found: PairedDifference, column: Column) -> int:
    return found.num_higher if column.higher_is_better else found.num_lower


def _told_p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"


def _mean(scores: Sequence[ImageScore]) -> ImageScore:
    """The mean of means, each with the same weight."""
    rows = [_without_key(score) for score in scores]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    own = {name: means.pop(name) for name in list(means)[:4]}
    return ImageScore("mean", **own, further=means)


def _keys(evaluation: Evaluation) -> list[str]:
    return [image.key for image in evaluation.images]


def _without_key(score: ImageScore) -> dict[str, float]:
    return {name: value for name, value in score.row().items() if name != "key"}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for what JSON has no number for."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
