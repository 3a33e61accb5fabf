"""The arms of benchmarks/distillation.py: what each run trains, by which settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samprior.storage.errors import UsageError
from samprior.training.config import load_config
from samprior.training.stages import build_networks


@dataclass(frozen=True)
class Run:
    """One training run of a seed."""

    name: str
    mode: str
    settings: tuple[str, ...] = ()
    shuffled: bool = False
    """Whether its masks are those of other pictures."""
    teacher_of: str | None = None
    """An earlier run whose teacher it takes: what teaches is the same."""
    large: bool = False
    """Whether its teacher has the shape that --teacher says."""


NOWHERE = ("out=unused", "data.train=unused")
"""Fills a configuration that is only looked at."""

LARGE = ("fusion.image=degraded", "loss.lambda_spd=4", "loss.spd_distance=reconstruction")
"""How a teacher that is better than the network is followed: closely."""

RUNS = (
    Run("control", "control"),
    Run("spd", "distill", ("loss.lambda_sgr=0",)),
    Run("spd-sgr", "distill", teacher_of="spd"),
    Run("spd-sgr-shuffled", "distill", shuffled=True),
    Run("spd-none", "distill", ("loss.lambda_sgr=0", "fusion.use_masks=false")),
    Run("spd-where-better", "distill",
        ("loss.lambda_sgr=0", "loss.spd_target=teacher_where_better"), teacher_of="spd"),
    Run("spd-start", "distill", ("loss.lambda_sgr=0", "loss.spd_input=start"), teacher_of="spd"),
    Run("spd-unbounded", "distill", ("loss.lambda_sgr=0", "loss.spd_distance=reconstruction"),
        teacher_of="spd"),
    Run("joint", "joint", ("loss.lambda_sgr=0",)),
    Run("large", "distill", ("loss.lambda_sgr=0", *LARGE), large=True),
    Run("large-lambda-1", "distill", ("loss.lambda_sgr=0", *LARGE, "loss.lambda_spd=1"),
        teacher_of="large", large=True),
    Run("large-where-better", "distill",
        ("loss.lambda_sgr=0", "loss.spd_target=teacher_where_better", *LARGE),
        teacher_of="large", large=True),
    Run("large-sgr", "distill", LARGE, teacher_of="large", large=True),
    Run("large-none", "distill", ("loss.lambda_sgr=0", "fusion.use_masks=false", *LARGE),
        large=True),
    Run("large-shuffled", "distill", ("loss.lambda_sgr=0", *LARGE), shuffled=True, large=True),
)  # fmt: skip

TEACHERS = {
    "refined": "spd",
    "refined-shuffled": "spd-sgr-shuffled",
    "refined-none": "spd-none",
    "large-teacher": "large",
    "large-teacher-none": "large-none",
    "large-teacher-shuffled": "large-shuffled",
}
"""What a teacher is called, and the run that trains it."""


def check_all(
    runs: Sequence[Run], file: Path | None, settings: Sequence[str], larger: Sequence[str]
) -> None:
    """Refuse settings of any run before the first is trained.

    Raises:
        ConfigError, UsageError: settings or networks that can't be, or that a run has of its own.
    """
    for run in runs:
        keys = {setting.partition("=")[0] for setting in settings}
        if taken := sorted(keys & {setting.partition("=")[0] for setting in run.settings}):
            raise UsageError(f"--set {taken[0]} would change what {run.name} is; see --help")
        theirs = larger if run.large else ()
        build_networks(load_config(file, (*settings, *run.settings, *theirs, *NOWHERE)))


def chosen_runs(only: Sequence[str], *, has_large: bool) -> list[Run]:
    """The runs of these names, the control, and those whose teachers they take.

    Raises:
        UsageError: one of them needs the larger teacher, and there is none.
    """
    if not only:
        return [run for run in RUNS if has_large or not run.large]
    for run in RUNS:
        if run.name in only and run.large and not has_large:
            raise UsageError(f"{run.name} needs --teacher, such as --teacher settings.width=24")
    teachers = {run.teacher_of for run in RUNS if run.name in only}
    return [run for run in RUNS if run.name in {"control", *only, *teachers}]
