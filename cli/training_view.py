"""What `samprior train` shows while it runs: all stages on a terminal, plain lines elsewhere.

On a terminal each stage has its bar, with the newest losses and scores below, and the course of the
loss as a row of blocks. Elsewhere every stage tells in lines how far it is.
"""

import sys
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from samprior.cli.progress import Advance, Pace, progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID

    from samprior.training.outlook import Outlook

BLOCKS = "▁▂▃▄▅▆▇█"
_COURSE = 60
"""Logged losses that the row of blocks shows."""


class TrainingView:
    """Call `announce` once and the view itself as training goes on; leaving the stack ends it."""

    def __init__(self, stack: ExitStack, *, console: "Console | None" = None) -> None:
        self.stack = stack
        self.console = console
        self.board: _Board | None = None
        self.lines: dict[str, Advance] = {}

    def announce(self, outlook: "Outlook") -> None:
        """Say what is about to be done."""
        for line in outlook.lines():
            click.echo(line, err=True)
        if self.console is None and sys.stderr.isatty():
            from rich.console import Console

            self.console = Console(stderr=True)
        if self.console is not None:
            self.board = self.stack.enter_context(_Board(self.console, outlook.stages))

    def __call__(self, stage: str, step: int, total: int, values: dict[str, Any]) -> None:
        """Show how far a stage is; `values` are empty but for steps that are logged or scored."""
        if self.board is not None:
            self.board.show(stage, step, values)
            return
        if stage not in self.lines:
            self.stack.pop_all().close()
            self.lines[stage] = self.stack.enter_context(progress(f"{stage:<8}", "step"))
        self.lines[stage](step, total, _told(values))


class _Board:
    """Bars of all stages and the newest values, redrawn in place."""

    def __init__(self, console: "Console", stages: dict[str, int]) -> None:
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.bars = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[score]}", style="bold"),
            console=console,
            auto_refresh=False,
        )
        self.tasks: dict[str, TaskID] = {
            name: self.bars.add_task(name, total=steps, start=False, rate="", score="")
            for name, steps in stages.items()
        }
        self.paces: dict[str, Pace] = {}
        self.course: deque[float] = deque(maxlen=_COURSE)
        self.stage = ""
        """Whose losses the row of blocks shows."""
        self.told = ""
        self.live = Live(
            get_renderable=self._drawn, console=console, refresh_per_second=4, transient=False
        )

    def __enter__(self) -> "_Board":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Take in how far a stage is."""
        task = self.tasks[stage]
        if stage not in self.paces:
            self.paces[stage] = Pace()
            self.bars.start_task(task)
        rate = self.paces[stage].per_second(step)
        self.bars.update(task, completed=step, rate=f"{rate:.2f} step/s" if rate else "")
        if "psnr_db" in values:
            self.bars.update(task, score=f"{values['psnr_db']:.2f} dB")
        losses = {name: value for name, value in values.items() if name != "psnr_db"}
        if "total" in losses:
            if self.stage != stage:  # the losses of the last stage stay until there are newer ones
                self.stage = stage
                self.course.clear()
            self.course.append(float(losses["total"]))
            self.told = _told(losses)

    def _drawn(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        return Group(self.bars, Text(f"{self.stage:<8} {blocks(self.course)} {self.told}".rstrip()))


def blocks(values: "deque[float] | list[float]") -> str:
    """Numbers as a row of blocks between the smallest and the largest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in values)


def _told(values: dict[str, Any]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
