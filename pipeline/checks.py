"""Checks that the settings of this room share; each raises a `UsageError` of one line."""

import difflib
import math
from collections.abc import Iterable

from samprior.storage.errors import UsageError


def check_int(name: str, value: object, low: int) -> None:
    """Raise UsageError unless `value` is a whole number of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UsageError(f"{name} must be a whole number of at least {low}, got {value!r}")


def check_float(name: str, value: object, low: float) -> None:
    """Raise UsageError unless `value` is a finite number of at least `low`."""
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or value < low:  # type: ignore[arg-type, operator]
        wanted = "finite" if low == -math.inf else f"at least {low:g}"
        raise UsageError(f"{name} must be a number, {wanted}, got {value!r}")


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise UsageError, with the nearest right name if one is near, unless `name` is known."""
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UsageError(f"no {kind} {name!r}{hint}; there are {', '.join(names)}")
