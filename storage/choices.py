"""One way to refuse a name that isn't known: say which names are, and the nearest of them."""

import difflib
from collections.abc import Iterable

from samprior.storage.errors import UsageError


def check_choice(what: str, got: str, known: Iterable[str]) -> None:
    """Do nothing if `got` is one of `known`.

    Raises:
        UsageError: it isn't; the message lists the known names and the nearest match, if any.
    """
    names = list(known)
    if got in names:
        return
    near = difflib.get_close_matches(str(got).lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UsageError(f"unknown {what} {got!r}{hint} Known: {', '.join(names)}")
