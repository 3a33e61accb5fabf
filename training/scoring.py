"""Score checkpoints on splits, one network in memory at a time, and write all that there is to say.

One network on one split leaves its files in the folder itself; of several, each has a folder of its
own, and their summary lies above.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samprior.storage.errors import UsageError
from samprior.training.checkpoint import load_network, what_it_lacks
from samprior.training.evaluate import Evaluation, Measure, evaluate, write_evaluation
from samprior.training.metrics import Space
from samprior.training.networks.tlc import with_local_pooling
from samprior.training.report import write_report
from samprior.training.restore import restore
from samprior.training.summary import Summary, write_summary

Progress = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]
"""A title and a unit to what is called with (done, to do)."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How networks are scored; see `samprior.training.evaluate.evaluate`."""

    device: torch.device
    space: Space = "rgb"
    border_px: int = 0
    tile_px: int | None = None
    overlap_px: int = 32
    tlc_px: int | None = None
    measures: Sequence[Measure] = ()


@dataclass(frozen=True)
class Split:
    """Pairs to score on."""

    name: str
    """A relative path such as test/Rain100L; "" for a data set without splits."""
    pairs: Sequence[tuple[str, Path, Path]]
    """(key, degraded file, clean file)."""
    description: str
    """What it is, in words."""


def score_checkpoints(
    checkpoints: Sequence[Path],
    splits: Sequence[Split],
    *,
    rules: Rules,
    progress: Progress,
    network: str | None = None,
    preset: str | None = None,
    out: Path | None = None,
) -> tuple[Summary, list[Path]]:
    """Score every checkpoint on every split.

    Args:
        checkpoints: see `samprior.training.checkpoint.load_network`; the first is what the others
            are compared with.
        splits: at least one.
        rules: the protocol.
        progress: shows what is going on.
        network: architecture of checkpoints that don't say what they are.
        preset: their shape.
        out: folder for all files; None writes none.

    Returns:
        The scores, and the files written.

    Raises:
        UsageError: the same checkpoint or split twice, or rules that a network can't follow.
        CheckpointError: a checkpoint is missing, damaged, or for another network.
        ImageError: a picture can't be read.
    """
    if doubled := [name for name, n in Counter(one.name for one in splits).items() if n > 1]:
        raise UsageError(f"split {doubled[0]} is given twice")
    names = name_checkpoints(checkpoints)
    lacks = [what_it_lacks(checkpoint) for checkpoint in checkpoints]  # all are there, or an error
    evaluations: dict[tuple[str, str], Evaluation] = {}
    reports: dict[tuple[str, str], str] = {}
    files: list[Path] = []
    for name, checkpoint, lack in zip(names, checkpoints, lacks, strict=True):
        # Of several, some may say what they are; alone, one that does is refused both options.
        asks, takes_shape = (True, True) if len(names) == 1 else lack
        model, record = load_network(
            checkpoint, name=network if asks else None, preset=preset if takes_shape else None
        )
        for split in splits:
            with progress(f"evaluating {name} {split.name}".rstrip(), "image") as advance:
                found = evaluate(model, split.pairs, progress=advance, **vars(rules))
            evaluations[name, split.name] = found
            if out is not None:
                parts = [name] * (len(names) > 1) + [split.name] * (len(splits) > 1)
                folder = out.joinpath(*parts)
                files += _write(found, split, folder, model, rules, checkpoint, record, progress)
                reports[name, split.name] = "/".join((*parts, "report.html"))
    summary = Summary(evaluations)
    if out is not None and len(evaluations) > 1:
        described = "; ".join(split.description for split in splits)
        files = write_summary(summary, out, dataset=described, reports=reports) + files
    return summary, files


def name_checkpoints(checkpoints: Sequence[Path]) -> list[str]:
    """Short names that tell checkpoints apart: as many last parts of their paths as it takes.

    Raises:
        UsageError: the same checkpoint twice.
    """
    paths = [_home(checkpoint) for checkpoint in checkpoints]
    if doubled := [path for path, number in Counter(paths).items() if number > 1]:
        raise UsageError(f"{doubled[0]} is given twice; a network needs no comparison with itself")
    for number in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[1:][-number:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path).lstrip("/") for path in paths]


def _home(checkpoint: Path) -> Path:
    """The folder of a run, or the file without its suffix."""
    path = Path(checkpoint).resolve()
    if path.is_dir():
        return path
    return path.parent if path.name == "model.safetensors" else path.with_suffix("")


def _write(
    found: Evaluation,
    split: Split,
    folder: Path,
    model: nn.Module,
    rules: Rules,
    checkpoint: Path,
    record: Mapping[str, Any],
    progress: Progress,
) -> list[Path]:
    """Write the scores and the report of one evaluation; return the files."""
    write_evaluation(found, folder, checkpoint=str(checkpoint), made=record)
    runner = model if rules.tlc_px is None else with_local_pooling(model, rules.tlc_px)
    again = partial(
        restore, runner, device=rules.device, tile_px=rules.tile_px, overlap_px=rules.overlap_px
    )
    with progress("drawing the report", "image") as advance:
        report = write_report(
            found,
            split.pairs,
            folder / "report.html",
            restorer=again,
            checkpoint=checkpoint,
            record=record,
            dataset=split.description,
            progress=advance,
        )
    return [folder / "scores.csv", folder / "scores.json", report]
