"""Progress with rate and time left: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_EVERY_S = 10.0
"""Pace of the plain lines."""


class Advance(Protocol):
    """Called with what is done, what there is to do, and a remark."""

    def __call__(self, done: int, total: int, remark: str = "") -> None:
        """Show the state."""


@contextmanager
def progress(title: str, unit: str, *, pace: "Pace | None" = None) -> Iterator[Advance]:
    """Show the progress of one long piece of work on stderr; with `pace`, at its rate."""
    pace = pace or Pace()
    if not sys.stderr.isatty():
        yield _Lines(title, unit, pace)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(title, total=None, rate="", remark="")

    def advance(done: int, total: int, remark: str = "") -> None:
        bar.start()  # with the first news: work that turns out not to be needed shows no bar
        rate = f"{pace.per_second(done):.2f} {unit}/s"
        bar.update(task, completed=done, total=total, rate=rate)
        if remark:
            bar.update(task, remark=remark)

    try:
        yield advance
    finally:
        bar.stop()


class Pace:
    """Rate since the first call; what an earlier run did is not counted.

    With `waits` nothing counts before `begin`: for work that has to be loaded first.
    """

    def __init__(self, *, waits: bool = False) -> None:
        self.created = time.monotonic()
        self.waits = waits
        self.first: tuple[float, int] | None = None

    def begin(self, done: int) -> None:
        """Count from now on, when `done` are done; later calls change nothing."""
        if self.first is None:
            self.first = (time.monotonic(), done)

    def per_second(self, done: int) -> float:
        """The rate, when `done` are done now."""
        now = time.monotonic()
        if self.first is None and self.waits:
            return 0.0
        if self.first is None:
            # A first call with more than one done tells where a resumed run starts.
            self.first = (self.created, 0) if done <= 1 else (now, done)
        started, there_before = self.first
        return (done - there_before) / max(now - started, 1e-3)


class _Lines:
    def __init__(self, title: str, unit: str, pace: Pace) -> None:
        self.title, self.unit = title, unit
        self.pace = pace
        self.said = time.monotonic()
        self.remark = ""
        self.ended = False

    def __call__(self, done: int, total: int, remark: str = "") -> None:
        self.remark = remark or self.remark
        now = time.monotonic()
        rate = self.pace.per_second(done)
        if self.ended or (done < total and now - self.said < LINE_EVERY_S):
            return
        self.said = now
        self.ended = done == total
        if rate:
            speed = f"{rate:.2f}/s, {(total - done) / rate:.0f} s left"
        else:
            # A pace that waits counts this run's work alone; one piece of it is no pace.
            before = "" if self.pace.waits else "done before"
            speed = before if self.ended else "starting"
        told = (f"{self.title}: {done}/{total} {self.unit}s", speed, self.remark)
        print(", ".join(filter(None, told)), file=sys.stderr, flush=True)
