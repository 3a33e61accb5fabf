"""The table of benchmarks/distillation.py: arms against the control, over seeds and pictures."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence

import numpy as np
import rounds
from scipy.stats import t as student

from samprior.training.paired import paired_difference

METHOD = (
    "PSNR in RGB of whole 8-bit test pictures, mean over pictures, then over seeds. Differences "
    "are to the control of the same seed. Interval over seeds: 95 %, Student's t over the seeds' "
    "mean differences. Interval and p over pictures: differences averaged over seeds, picture by "
    "picture; 95 % Student's t and two-sided Wilcoxon signed-rank test."
)
"""What the figures mean, in words."""

FOLDERS = {"--data": "DIR", "--out": "STUDY", "--train": "STORE", "--test": "STORE"}
"""Options whose values tell of one machine alone, and what is told instead."""

Scores = Mapping[str, Sequence[Sequence[float]]]
"""PSNR in dB of each picture, by arm and seed."""


def rows(scores: Scores) -> list[dict[str, object]]:
    """A row for each arm."""
    control = np.array(scores["control"])  # (seeds, pictures)
    return [_row(arm, np.array(values), control) for arm, values in scores.items()]


def _row(arm: str, values: np.ndarray, control: np.ndarray) -> dict[str, object]:
    differences = values - control
    by_seed = differences.mean(axis=1)
    row: dict[str, object] = {"arm": arm, "PSNR dB": f"{values.mean():.3f}"}
    if arm == "control":
        return row | dict.fromkeys(
            ("to control dB", "seeds", "95 % over seeds", "95 % over pictures", "p"), ""
        )
    pictures = paired_difference(values.mean(axis=0).tolist(), control.mean(axis=0).tolist())
    return row | {
        "to control dB": f"{by_seed.mean():+.3f}",
        "seeds": " ".join(f"{value:+.3f}" for value in by_seed),
        "95 % over seeds": _interval(by_seed),
        "95 % over pictures": f"{pictures.low:+.3f} to {pictures.high:+.3f}",
        "p": f"{pictures.p_value:.2g}",
    }


def _interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return ""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean() - half:+.3f} to {values.mean() + half:+.3f}"


def mask_rows(scores: Scores) -> list[dict[str, object]]:
    """What the right masks are worth: each arm against the same without masks, or with others'."""
    found = [(other.rpartition("-"), other) for other in scores]
    pairs = [
        (arm, other)
        for (arm, _, kind), other in found
        if kind in ("none", "shuffled") and arm in scores
    ]
    rows = []
    for arm, other in pairs:
        by_seed = (np.array(scores[arm]) - np.array(scores[other])).mean(axis=1)
        rows.append(
            {
                "arm": arm,
                "less": other,
                "dB": f"{by_seed.mean():+.3f}",
                "seeds": " ".join(f"{value:+.3f}" for value in by_seed),
                "95 % over seeds": _interval(by_seed),
            }
        )
    return rows


def show(title: str, table: Sequence[Mapping[str, object]]) -> None:
    """Print the rows as a table."""
    if table:
        rounds.print_table(f"{title}:", list(map(dict, table)))


def command(arguments: Sequence[str]) -> str:
    """What was typed, but for folders of this machine."""
    words = " ".join(shlex.quote(word) for word in arguments[1:])
    for option, told in FOLDERS.items():
        words = re.sub(rf"{option}[ =]('[^']*'|\S+)", f"{option} {told}", words)
    return f"python benchmarks/distillation.py {words}"
