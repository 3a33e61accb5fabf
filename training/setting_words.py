"""What a setting takes, in words: kinds, limits and defaults, from the models that check them.

The table of docs/config.md and the comments that `samprior init` writes say the same.
"""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_PLAIN = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "string",
    Path: "path",
}


def is_section(field: FieldInfo) -> bool:
    """Whether a field holds settings of its own."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def told_values(field: FieldInfo, *, quote: str = "`") -> str:
    """What a field takes, such as "whole number, at least 1"; `quote` goes around literal text."""
    return _kind(field.annotation, field.metadata, quote)


def _kind(annotation: Any, limits: Sequence[object], quote: str) -> str:  # noqa: ANN401  # any type
    """A type in words, with the limits that its metadata sets."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], [limit for part in inner[1:] for limit in _limits(part)], quote)
    if origin is Literal:
        return ", ".join(f'{quote}"{choice}"{quote}' for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part, (), quote) for part in inner if part is not type(None))
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {_kind(inner[0], (), quote)}"
    if origin is tuple:
        return f"list of {len(inner)}: {_kind(inner[0], (), quote)}"
    if origin is list:
        return f"list of {_kind(inner[0], (), quote)}"
    if origin is dict:
        return f"table of {_kind(inner[1], (), quote)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        keys = (
            f"{quote}{key}{quote} ({told_values(field, quote=quote)})"
            for key, field in annotation.model_fields.items()
        )
        return f"tables of {', '.join(keys)}"
    return ", ".join([_PLAIN[annotation], *map(_limit, limits)])


def _limits(part: object) -> Sequence[object]:
    return part.metadata if isinstance(part, FieldInfo) else [part]


def _limit(limit: object) -> str:
    match limit:
        case Ge(ge=low):
            return f"at least {_number(low)}"
        case Gt(gt=low):
            return f"above {_number(low)}"
        case Le(le=high):
            return f"at most {_number(high)}"
        case Lt(lt=high):
            return f"below {_number(high)}"
        case MultipleOf(multiple_of=step):
            return f"a multiple of {_number(step)}"
    raise AssertionError(f"no words for the limit {limit!r}")


def _number(value: Any) -> str:  # noqa: ANN401  # what a limit compares with
    return "2^63" if value == 2**63 else f"{value:g}"
