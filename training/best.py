"""The best weights of a stage, kept beside its last ones: which they are follows from the log.

A file is written when its score is taken, and removed only after a later state was saved: a run
that is broken off in between finds all that it goes on from.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = "best"
"""Folder of a stage that holds them."""


def best_steps(lines: Iterable[Mapping[str, Any]], keep: int) -> dict[int, float]:
    """The `keep` steps with the highest PSNR in dB, best first, of all scores but the start's.

    Of equal ones the earlier is better. `lines` are those of metrics.jsonl, with other ones among
    them; scores on different validation images are ranked apart, and all that lead are given.
    """
    scores: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if "validation_psnr_db" in line and line["step"] > 0:
            scores[line["validation_sha256"]][line["step"]] = line["validation_psnr_db"]
    best: dict[int, float] = {}
    for taken in scores.values():
        ranked = sorted(taken.items(), key=lambda item: (-item[1], item[0]))
        best |= dict(ranked[:keep])
    return best


def best_file(stage_folder: Path, step: int, psnr_db: float) -> Path:
    """Where the weights of a score are kept."""
    return stage_folder / FOLDER / f"step-{step:06d}-{psnr_db:.3f}dB.safetensors"


def remove_others(stage_folder: Path, best: Mapping[int, float]) -> None:
    """Remove the files of a stage that are not among the best any more."""
    kept = {best_file(stage_folder, step, psnr_db) for step, psnr_db in best.items()}
    for file in (stage_folder / FOLDER).glob("step-*.safetensors"):
        if file not in kept:
            file.unlink()
