"""The report on an evaluation: one HTML page with the scores, and pictures of the extremes.

The page needs nothing but itself: pictures, styles and script are inside. It holds no time, so
one evaluation gives one page. The few images that it shows are restored once more, so that an
evaluation never holds more than one picture.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samprior.storage.charts import histogram_svg
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb
from samprior.storage.pages import is_superpixel, told, told_segmenter, write_page
from samprior.storage.survey import counted
from samprior.training.columns import Column, columns_of, plain, signed
from samprior.training.comparison import WHOLE_PX, Comparison, compare
from samprior.training.evaluate import Evaluation, ImageScore
from samprior.training.metrics import PROTOCOL

Floats = npt.NDArray[np.float64]

MAX_ROWS = 500
"""Evaluations of more images list only the extremes."""

NUM_EXTREMES = 50
"""Rows at each end of a long evaluation, and images named as worse at most."""

_MAX_BARS = 24
_SECTIONS = (
    ("Best changes", "The largest gain in PSNR, or the smallest loss, first."),
    ("Worst changes", "The largest loss in PSNR, or the smallest gain, first."),
)


@dataclass(frozen=True)
class _Cell:
    text: str
    value: float
    """What the page's script sorts by."""
    is_worse: bool = False


@dataclass(frozen=True)
class _Row:
    key: str
    cells: list[_Cell]
    """Before, after and gain of each column."""


def write_report(
    evaluation: Evaluation,
    pairs: Sequence[tuple[str, Path, Path]],
    out: Path,
    *,
    restorer: Callable[[Rgb], Rgb],
    checkpoint: Path,
    record: Mapping[str, Any],
    dataset: str,
    num_pictures: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the report on an evaluation to the HTML file `out`, and return `out`.

    Args:
        evaluation: of at least one image.
        pairs: what was evaluated, as (key, degraded file, clean file).
        out: written whole or not at all.
        restorer: what the pairs were scored with, from a degraded picture to a restored one.
        checkpoint: where the network came from.
        record: the checkpoint's, see `samprior.training.checkpoint.load_network`.
        dataset: what was evaluated, in words.
        num_pictures: images shown of the largest gains, and as many of the smallest.
        progress: called with (images drawn, images to draw).

    Raises:
        UsageError: no image was evaluated, or num_pictures is below 0.
        ImageError: a picture that was scored can't be read any more.
    """
    if not evaluation.images:
        raise UsageError("there is nothing to report on: no image was evaluated")
    if num_pictures < 0:
        raise UsageError(f"the number of images to show must be 0 or more, got {num_pictures}")
    gains = np.array([psnr_gain(image) for image in evaluation.images])
    groups = _draw(evaluation, pairs, choose_extremes(gains, num_pictures), restorer, progress)
    page = {
        "name": record.get("origin") or "/".join(checkpoint.absolute().parts[-2:]),
        "dataset": dataset,
        "facts": [("Checkpoint", str(checkpoint)), *_facts(record), ("Evaluated on", dataset)],
        "superpixel": _uses_masks(record) and is_superpixel(record["masks"]),
        "sections": [(*titled, group) for titled, group in zip(_SECTIONS, groups, strict=True)],
        "how": PROTOCOL,
        "whole_px": WHOLE_PX,
        **_numbers(evaluation, gains),
    }
    return write_page(
        out,
        page,
        package="samprior.training",
        template="report.html.j2",
        filters={"signed": signed, "plain": plain, "gain": psnr_gain},
    )


def _draw(
    evaluation: Evaluation,
    pairs: Sequence[tuple[str, Path, Path]],
    chosen: tuple[Sequence[int], Sequence[int]],
    restorer: Callable[[Rgb], Rgb],
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Comparison], list[Comparison]]:
    """The images of the largest and of the smallest gains."""
    files = {key: (degraded, clean) for key, degraded, clean in pairs}
    num_drawn, total = 0, sum(map(len, chosen))
    groups: tuple[list[Comparison], list[Comparison]] = ([], [])
    for group, indices, best in zip(groups, chosen, (True, False), strict=True):
        for index in indices:
            score = evaluation.images[index]
            group.append(
                compare(score, files[score.key], restorer=restorer, protocol=evaluation, best=best)
            )
            num_drawn += 1
            if progress:
                progress(num_drawn, total)
    return groups


def psnr_gain(score: ImageScore) -> float:
    """Gain in dB; 0 where both pictures are identical to the clean one (inf dB)."""
    before, after = score.psnr_before_db, score.psnr_after_db
    return 0.0 if before == after else after - before


def choose_extremes(gains: Floats, number: int) -> tuple[list[int], list[int]]:
    """Up to `number` images of the largest and of the smallest gains, the most extreme first.

    No image is in both: of few images the better half is in the first.
    """
    ranking = np.argsort(-gains, kind="stable").tolist()
    num_best = min(number, -(-len(ranking) // 2))
    num_worst = min(number, len(ranking) - num_best)
    return ranking[:num_best], ranking[::-1][:num_worst]


def _numbers(evaluation: Evaluation, gains: Floats) -> dict[str, Any]:
    """All that the page says in figures."""
    mean, images = evaluation.mean(), evaluation.images
    worse = [images[index].key for index in np.argsort(gains, kind="stable") if gains[index] < 0]
    num_below = sum(image.ssim_after < image.ssim_before for image in images)
    return {
        "protocol": evaluation.protocol,
        "space": "RGB" if evaluation.space == "rgb" else "Y",
        "columns": columns_of(mean.row()),
        "further": _further(mean),
        "num_images": len(images),
        "num_images_text": counted(len(images), "image"),
        "mean": mean,
        "mean_row": _row(mean, is_mean=True),
        "worse": worse[:NUM_EXTREMES],
        "num_worse": len(worse),
        "num_ssim_worse": num_below,
        "median_gain": float(np.median(gains)) if np.isfinite(gains).all() else None,
        "gain_range": (float(gains.min()), float(gains.max())),
        "has_infinite": any(math.isinf(i.psnr_before_db + i.psnr_after_db) for i in images),
        "chart": _gains_chart(gains),
        "num_infinite_gains": int(np.isinf(gains).sum()),
        "tables": _tables(images, gains),
    }


def _tables(images: Sequence[ImageScore], gains: Floats) -> list[tuple[str, list[_Row]]]:
    """The rows to list, below a title for each group."""
    if len(images) <= MAX_ROWS:
        groups = {"": sorted(range(len(images)), key=lambda index: images[index].key)}
    else:
        best, worst = choose_extremes(gains, NUM_EXTREMES)
        groups = {
            f"The {NUM_EXTREMES} largest gains": best,
            f"The {NUM_EXTREMES} smallest gains, or largest losses": worst,
        }
    return [(title, [_row(images[index]) for index in group]) for title, group in groups.items()]


def _row(score: ImageScore, *, is_mean: bool = False) -> _Row:
    values = score.row()
    return _Row(
        score.key,
        [
            cell
            for column in columns_of(values)
            for cell in _cells(column, values[column.before], values[column.after], is_mean)
        ],
    )


def _cells(column: Column, before: float, after: float, is_mean: bool) -> list[_Cell]:
    # Two pictures that both equal the clean one differ by nothing; two infinite means may.
    change = 0.0 if before == after and not is_mean else after - before
    return [
        _Cell(plain(before, column.digits), before),
        _Cell(plain(after, column.digits), after),
        _Cell(signed(change, column.digits), change, column.is_worse(change)),
    ]


def _further(mean: ImageScore) -> list[tuple[str, str, str, str]]:
    """Name, means before and after, and their difference, of all further values."""
    pairs = zip(list(mean.further.items())[::2], list(mean.further.items())[1::2], strict=True)
    return [
        (
            name.removesuffix("_before").replace("_", " "),
            plain(before, 4),
            plain(after, 4),
            signed(after - before, 4),
        )
        for (name, before), (_, after) in pairs
    ]


def _gains_chart(gains: Floats) -> str:
    """Histogram of the finite gains as SVG; no bar holds both gains and losses."""
    held = gains[np.isfinite(gains)]
    if not len(held):
        return ""
    step = _bar_width(float(np.ptp(held)))
    places = np.floor(held / step).astype(int)
    first = int(places.min())
    counts = np.bincount(places - first)
    edges = [(first + number) * step for number in range(len(counts) + 1)]
    every = -(-len(edges) // 6)
    median = float(np.median(held))
    return histogram_svg(
        counts,
        names=[
            f"{signed(low)} to {signed(low + step)} dB: {counted(count, 'image')}"
            for low, count in zip(edges, counts, strict=False)
        ],
        # Labels at multiples of their distance, so that 0 has one where it is in sight.
        ticks=[
            (number, signed(edge))
            for number, edge in enumerate(edges)
            if (first + number) % every == 0
        ],
        description=f"Images by gain in PSNR; the median is {signed(median, 2)} dB",
        marker=(median / step - first, f"median {signed(median, 2)} dB"),
    )


def _bar_width(spread: float) -> float:
    """The smallest of 0.01, 0.02, 0.05, 0.1, ... dB that needs no more than the bars there are."""
    steps = (factor * 10.0**power for power in range(-2, 4) for factor in (1, 2, 5))
    return next(step for step in steps if spread / step < _MAX_BARS - 1)


def _uses_masks(record: Mapping[str, Any]) -> bool:
    """Whether the network learnt from masks; the other stages only carry their record."""
    return record.get("stage") in ("distill", "joint")


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the network was made, as far as its checkpoint tells."""
    details = {name: value for name, value in record["network"].items() if value}
    name = details.pop("name")
    facts = [("Network", f"{name}, {told(details)}" if details else name)]
    if "stage" not in record:
        return [*facts, ("Training", "not recorded: published weights")]
    dataset = record["masks"].get("dataset", "not recorded")
    if isinstance(dataset, Mapping):
        dataset = " ".join(dataset[name] for name in ("name", "split") if dataset.get(name))
    facts += [("Stage", record["stage"]), ("Trained on", dataset)]
    if not _uses_masks(record):
        return [*facts, ("Masks", "none: this stage trains without")]
    return [
        *facts,
        ("Segmenter", told_segmenter(record["masks"])),
        ("Masks made from", f"{told(record['masks'].get('source', 'not recorded'))} pictures"),
        ("Teacher", _teacher(record)),
        ("Analyzer", record["analyzer"] or "none: trained without SGR"),
    ]


def _teacher(record: Mapping[str, Any]) -> str:
    """What the network learnt from."""
    config = record.get("config", {})
    network2, fusion = config.get("network2"), config.get("fusion")
    if network2 is None or fusion is None:
        return "not recorded"
    shape = {name: value for name, value in network2.items() if value and name != "init"}
    masks = "" if fusion["use_masks"] else ", no masks"
    return f"{told(shape)}, sees {fusion['image']} pictures{masks}"
