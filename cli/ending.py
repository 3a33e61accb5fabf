"""SIGTERM and Ctrl-C end a command cleanly: one line, exit code 143 or 130, nothing left behind."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click


class Ending:
    """The signal that ends the command, once it has come."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if the signal has come. Call this now and then.

        The exception that the signal raises is lost if it meets code that can't pass it on, such
        as a finalizer.
        """
        if self.signal is not None:
            raise KeyboardInterrupt

    def _take(self, number: int, frame: FrameType | None) -> None:
        # Only the first ends anything: a second one would disturb the clearing up.
        if self.signal is None:
            self.signal = signal.Signals(number)
            # Of all exceptions this is the one that Ray passes on from its own loops.
            raise KeyboardInterrupt


@contextmanager
def clean_ending(say: Callable[[signal.Signals], None]) -> Iterator[Ending]:
    """End the block at SIGTERM and SIGINT; `say` is called when it has cleared up.

    Raises:
        click.exceptions.Exit: with 128 and the signal's number.
    """
    ending = Ending()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # `nohup` and background jobs of scripts want that
            signal.signal(number, ending._take)
    try:
        yield ending
    except KeyboardInterrupt:
        number = ending.signal or signal.SIGINT
        say(number)
        raise click.exceptions.Exit(128 + number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
