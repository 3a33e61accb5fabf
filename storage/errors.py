"""The one error tree of samprior: every mistake of a user or of their data ends in one of these.

Each class also derives from the built-in a caller would catch anyway. The message says what was
got, what was wanted, and what to do next; the command line prints it as one line and exits with
`exit_code`, never with a traceback.
"""


class SampriorError(Exception):
    """Base of all errors that samprior raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one line of plain text: a file's name may hold an end of line, bytes that
        are no text, or what a terminal would obey."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


class UsageError(SampriorError, ValueError):
    """An argument or a setting that can't be used as given."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file with an unknown key or a value outside its range."""


class LayoutError(SampriorError, FileNotFoundError):
    """A dataset folder that doesn't have the layout it was said to have."""

    exit_code = 2

    def __init__(self, message: str, *, num_pairs: int = 0, num_degraded: int = 0) -> None:
        super().__init__(message)
        self.num_pairs = num_pairs
        """Pairs that it holds nevertheless."""
        self.num_degraded = num_degraded
        """Degraded files of it that have no clean side."""


class ImageError(SampriorError, ValueError):
    """An image file that can't be read as the RGB picture a viewer shows."""


class MaskFormatError(SampriorError, ValueError):
    """Ready-made masks (amg.py folder, SA-1B JSON) that don't say what they should."""


class CheckpointError(SampriorError, ValueError):
    """A checkpoint that is missing, damaged or made for something else."""


class StoreError(SampriorError, ValueError):
    """A mask store that is missing, damaged, unfinished or made with other settings."""


class BusyError(SampriorError, BlockingIOError):
    """A folder that another process is writing to."""


class TrainingError(SampriorError, RuntimeError):
    """Training that can't go on, such as a loss that is no longer finite."""


class UnreachableError(StoreError, OSError):
    """An object store that didn't answer, or refused. It says nothing of the data: try again."""


class MachineError(SampriorError, OSError):
    """The machine lacks something at the moment: space, the right to write, open files, a disk."""
