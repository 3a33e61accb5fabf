"""`make benchmark`: every line of the scoreboard, one page of results.

    python benchmarks/run_all.py [--quick] [--device cuda] [--checkpoint sam_vit_h_4b8939.pth]
    python benchmarks/run_all.py --only storage_rows --only loader_batches
    python benchmarks/run_all.py --table

Runs the scripts of parts.py one after the other, each in a process of its own, in which both sides
take turns; with --table none, and nothing is written. Results go to benchmarks/results (with
--device cuda to benchmarks/results/cuda), and docs/benchmarks.md is written from them; with --quick
all goes to build/benchmarks/quick, since small sizes say that everything works and not what it
costs. What can't run is listed with the reason, and so is what failed; then the exit code is 1.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
import page
from parts import PARTS, SCRIPTS, Part
from quantities import RUNS_FILE
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scoreboard import Line, State, lines, runs_of

NAMES = [part.name for part in PARTS]
QUICK = page.ROOT / "build" / "benchmarks" / "quick"
STYLES: dict[State, str] = {"met": "green", "missed": "yellow", "behind": "red", "not run": "dim"}


@click.command()
@click.option("--quick", is_flag=True, help="Small sizes, some minutes: does everything work?")
@click.option("--device", default="cpu", show_default=True, help="cuda: networks run on a GPU.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="SAM's own weights of ViT-H; one more row.",
)
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Parts; the others stay.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--table", "shows_table", is_flag=True, help="Run nothing, show what there is.")
def main(
    quick: bool,
    device: str,
    checkpoint: Path | None,
    only: Sequence[str],
    out: Path | None,
    shows_table: bool,
) -> None:
    """Run the scoreboard, show it, and write its page."""
    console = Console()
    folder = (out or usual_folder(quick=quick, device=device)).resolve()
    if shows_table:
        show(console, lines(folder), quick=quick)
        return
    require_device(device)
    require_writable(folder)
    failed = []
    for number, part in enumerate(PARTS, 1):
        if only and part.name not in only:
            continue
        console.print(
            f"\\[{number}/{len(PARTS)}] {part.name}", highlight=False, soft_wrap=True, end=" … "
        )
        run = take(part, folder, quick=quick, device=device, checkpoint=checkpoint)
        told = run.get("reason") or f"{run['seconds']:.0f} s"
        if run["state"] == "left out" and (folder / f"{part.name}.json").exists():
            told += "; its earlier results stay"
        else:
            note(folder, part, run)
        failed += [part.name] if run["state"] == "failed" else []
        console.print(f"{run['state']}: {escape(told)}", highlight=False, soft_wrap=True)
    show(console, lines(folder), quick=quick)
    console.print(f"written: {write_page(folder, quick=quick)}", highlight=False, soft_wrap=True)
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}; see {folder / 'logs'}")


def usual_folder(*, quick: bool, device: str) -> Path:
    """Where results go if nobody says."""
    root = QUICK if quick else page.RESULTS
    return root / page.GPU if device.startswith("cuda") else root


def require_device(device: str) -> None:
    """An error if there is no such device, before anything has run."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise click.UsageError(f"got DEVICE={device}, wanted cpu or cuda")
    if device == "cpu":
        return
    import torch

    number = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available():
        raise click.UsageError("PyTorch sees no GPU on this machine: leave DEVICE out")
    if number >= torch.cuda.device_count():
        raise click.UsageError(f"got {device}, but PyTorch sees {torch.cuda.device_count()} GPUs")


def require_writable(folder: Path) -> None:
    """An error if results can't be written, before anything has run."""
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise click.UsageError(
            f"results can't be written to {folder} ({error.strerror}); name a folder with --out"
        ) from error


def take(
    part: Part, folder: Path, *, quick: bool, device: str, checkpoint: Path | None
) -> dict[str, Any]:
    """Run a part, or say why not; its output goes to a log beside the results."""
    known = {"quick": quick, "device": device, "checkpoint": checkpoint}
    reason = part.left_out(**known) or part.missing()
    if reason is not None:
        return {"state": "left out", "reason": reason}
    arguments = part.arguments(**known)
    log = folder / "logs" / f"{part.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / part.script), *arguments],
            env={**os.environ, "BENCHMARK_RESULTS": str(folder)},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    run = {
        "state": "done" if done.returncode == 0 else "failed",
        "command": shlex.join([part.script, *arguments]),
        "seconds": round(time.monotonic() - started, 1),
    }
    if done.returncode:
        told = log.read_text("utf-8", errors="replace")
        said = [line.strip() for line in told.splitlines() if line.strip()]
        run["reason"] = f"{ending(done.returncode)}: {said[-1] if said else 'it said nothing'}"
    return run


def ending(code: int) -> str:
    """How a process ended, in words; signal 9 is the kernel's too, when memory is short."""
    return f"exit code {code}" if code > 0 else f"signal {-code} ({signal.strsignal(-code)})"


def note(folder: Path, part: Part, run: dict[str, Any]) -> None:
    """Keep how a part's run ended."""
    noted = {**runs_of(folder), part.name: run}
    ordered = {name: noted[name] for name in NAMES if name in noted}
    (folder / RUNS_FILE).write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")


def show(console: Console, board: Sequence[Line], *, quick: bool) -> None:
    """Print the scoreboard, and how many lines are in which state."""
    console.print(terminal_table(board, quick=quick))
    console.print(page.summary(board).replace("**", ""), highlight=False)


def terminal_table(board: Sequence[Line], *, quick: bool) -> Table:
    """The scoreboard for the terminal."""
    note = "quick: small sizes, that say nothing about goals" if quick else "ratios of medians"
    table = Table(title=f"samprior against its peers ({note})", box=SIMPLE_HEAD, pad_edge=False)
    for head in ("#", "what", "peer", "ratio (spread)", "goal", ""):
        justify: Literal["left", "right"] = (
            "right" if head in ("ratio (spread)", "goal") else "left"
        )
        table.add_column(head, justify=justify, overflow="fold")
    for line in board:
        told = [escape(cell.replace("**", "")) for cell in page.cells(line)]
        told[-1] = f"[{STYLES[line.state]}]{told[-1]}[/]"
        table.add_row(*told)
    return table


def write_page(folder: Path, *, quick: bool) -> Path:
    """The page of the usual results, or a page beside results that lie elsewhere."""
    if folder in (page.RESULTS, page.RESULTS / page.GPU):
        page.main()
        return page.PAGE
    told = "Quick: small sizes and a SAM of a few layers, that say nothing about goals.\n\n"
    head = f"# Results of {folder.name}\n\n{told if quick else ''}{page.BEGIN}{page.END}"
    for name, text in page.files(folder, page=head).items():
        (folder / name).write_text(text, "utf-8")
    return folder / "benchmarks.md"


if __name__ == "__main__":
    main()
