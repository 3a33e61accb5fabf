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
def progress(title: str, unit: str) -> Iterator[Advance]:
    """Show the progress of one long piece of work on stderr."""
    if not sys.stderr.isatty():
        yield _Lines(title, unit)
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
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, rate="", remark="")
        started = time.monotonic()

        def advance(done: int, total: int, remark: str = "") -> None:
            rate = f"{done / max(time.monotonic() - started, 1e-9):.2f} {unit}/s"
            bar.update(task, completed=done, total=total, rate=rate)
            if remark:
                bar.update(task, remark=remark)

        yield advance


class _Lines:
    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit
        self.started = time.monotonic()
        self.said = self.started
        self.remark = ""

    def __call__(self, done: int, total: int, remark: str = "") -> None:
        self.remark = remark or self.remark
        now = time.monotonic()
        if done < total and now - self.said < LINE_EVERY_S:
            return
        self.said = now
        elapsed_s = max(now - self.started, 1e-9)
        rate = done / elapsed_s
        left_s = (total - done) / rate if rate else 0.0
        print(
            f"{self.title}: {done}/{total} {self.unit}s, {rate:.2f}/s, "
            f"{left_s:.0f} s left {self.remark}".rstrip(),
            file=sys.stderr,
            flush=True,
        )
