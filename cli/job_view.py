"""How a job's events are shown: a bar or plain lines on stderr, or JSON lines on stdout."""

import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from samprior.cli.ending import Ending, clean_ending
from samprior.cli.progress import Advance, Pace, progress

if TYPE_CHECKING:
    from samprior.pipeline.events import Event, Progressed
    from samprior.pipeline.job import JobResult

_log = logging.getLogger("samprior.job")

JSON_EVERY_S = 1.0
"""Pace of the `progress` events as JSON."""


class JobView:
    """A listener of a job that shows what happens, and knows how far the store is."""

    def __init__(self, *, as_json: bool) -> None:
        self.advance: Advance | None = None
        self.as_json = as_json
        self.ending: Ending | None = None
        self.state: dict[str, int] = {}
        """Shards and images: done, in finished shards, and of the whole plan. More may be done: a
        worker's shard counts when its answer was heard."""
        self.lost = 0
        self.pace = Pace(waits=True)
        self.said = 0.0

    def __call__(self, event: "Event") -> None:
        """Show an event; end the job if a signal has come."""
        from samprior.pipeline.events import Progressed, ShardWritten, Started, WorkerLost

        if self.ending is not None:
            self.ending.check()
        if isinstance(event, Started):
            self.state = vars(event).copy()
        elif isinstance(event, ShardWritten):
            self.state["shards_done"] += 1
            self.state["images_done"] += event.num_images
        elif isinstance(event, Progressed) and event.workers:
            self.pace.begin(event.images_done)  # loading the first worker is no part of the pace
        self.lost += isinstance(event, WorkerLost)
        if not isinstance(event, Progressed):
            told = (f"{name} {value}" for name, value in vars(event).items())
            _log.debug("%s: %s", event.name, ", ".join(told))
        if self.as_json:
            self._print(event)
        elif self.advance and isinstance(event, Progressed):
            self.advance(event.images_done, event.images_to_do, self._remark(event))

    def finished(self, result: "JobResult") -> None:
        """Say that the job has come to its end."""
        if self.as_json:
            counts = {
                name: getattr(result, name)
                for name in ("num_images", "num_shards", "shards_written", "stored_bytes")
            }
            _print_json("finished", {**counts, "num_quarantined": len(result.quarantined)})

    def interrupted(self, number: signal.Signals) -> None:
        """Say in one line how far the job came."""
        state = self.state
        if state:
            told = (
                f"at least {state['shards_done']} of {state['num_shards']} shards are done, "
                f"{state['images_done']} of {state['num_images']} images"
            )
        else:
            told = "nothing was begun"
        if self.as_json:
            _print_json("interrupted", {"signal": number.name, **state})
        click.echo(
            f"samprior: ended by {number.name}: {told}; run the same command again to go on",
            err=True,
        )

    def failed(self, error: Exception) -> None:
        """Say as JSON why the job has failed; people read it from stderr."""
        if self.as_json:
            told = str(error) or type(error).__name__
            _print_json("failed", {"message": told, **self.state})

    def _remark(self, event: "Progressed") -> str:
        told = [f"{_masks_per_image(event):.1f} masks/image"] if event.images_done else []
        told.append(f"{event.workers} worker{'' if event.workers == 1 else 's'}")
        told += [f"{self.lost} lost"] if self.lost else []
        told += [f"{event.num_quarantined} quarantined"] if event.num_quarantined else []
        return ", ".join(told)

    def _print(self, event: "Event") -> None:
        from samprior.pipeline.events import Progressed, to_record

        record = to_record(event)
        if isinstance(event, Progressed):
            rate = self.pace.per_second(event.images_done)
            now, left = time.monotonic(), event.images_to_do - event.images_done
            if now - self.said < JSON_EVERY_S and left:
                return
            self.said = now
            record["images_per_s"] = round(rate, 4)
            record["masks_per_image"] = round(_masks_per_image(event), 2)
            record["eta_s"] = round(left / rate, 1) if rate else None
        _print_json(record.pop("event"), record)


@contextmanager
def job_view(title: str, *, as_json: bool) -> Iterator[JobView]:
    """Show one job. SIGTERM and Ctrl-C end it with the state in one line; errors are passed on.

    Raises:
        click.exceptions.Exit: with 143 or 130.
    """
    view = JobView(as_json=as_json)
    with clean_ending(view.interrupted) as ending:
        view.ending = ending
        shown = nullcontext() if as_json else progress(title, "image", pace=view.pace)
        with shown as view.advance:
            try:
                yield view
            except Exception as error:
                view.failed(error)
                raise


def _masks_per_image(event: "Progressed") -> float:
    return event.num_masks / max(1, event.images_done - event.num_quarantined)


def _print_json(name: str, record: dict[str, Any]) -> None:
    click.echo(json.dumps({"event": name, **record}))
