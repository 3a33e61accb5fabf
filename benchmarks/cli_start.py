"""How long `samprior --help` takes, against what SAM's own script imports before it reads a word.

    python benchmarks/cli_start.py [--runs 7]

Each run is a fresh process of the same Python. The peer is what scripts/amg.py of segment-anything
does before its arguments are parsed, and thus before its --help; OpenCV, which it imports too, is
left out. A Python that does nothing is the floor for both. CPU seconds are not those of the
processes that are started, and mean nothing here.
"""

import subprocess
import sys
from collections.abc import Callable

import click
import measure

OURS = "from samprior.cli.main import main; main()"
"""What the installed script does."""

THEIRS = "from segment_anything import SamAutomaticMaskGenerator, sam_model_registry"


@click.command()
@click.option("--runs", default=7, show_default=True, help="Pairs of runs for each row.")
def main(runs: int) -> None:
    """Measure, print, and write benchmarks/results/cli_start.json."""
    about = measure.machine("click", "torch", "segment-anything")
    help_text = "samprior --help"
    mine = started(OURS, "--help")
    rows = [
        measure.compare(
            help_text, mine, "importing segment_anything, as scripts/amg.py does", started(THEIRS),
            runs=runs,
        ),
        measure.compare(
            help_text, mine, "a Python that does nothing", started("pass"),
            runs=runs,
        ),
    ]  # fmt: skip
    measure.report("cli_start", about, rows)


def started(program: str, *arguments: str) -> Callable[[], object]:
    """Run a program in a fresh Python to its end; what it prints is thrown away."""
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
