"""Checks that the settings of this room share; each raises a `UsageError` of one line."""

import math

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


def check_bool(name: str, value: object) -> None:
    """Raise UsageError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {value!r}")
