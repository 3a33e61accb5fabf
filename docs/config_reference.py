"""Write docs/config.md, the table of all training settings, from the models that check them.

python docs/config_reference.py
"""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from samprior.training.config import TrainConfig

PAGE = Path(__file__).with_name("config.md")

_HEAD = """\
# Training settings

Every key of the TOML file that `samprior train --config` takes, and of `--set section.key=value`.
Values after `--set` are TOML; what isn't is taken as a string. An unknown key or a value outside
its range is an error that names the key. TOML has no None: leave a key out where its default is
none. [training.md](training.md) says what the stages do.

This page is written by `python docs/config_reference.py` from `training/config.py` and
`training/sections.py`.
"""

_PLAIN = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "string",
    Path: "path",
}


def reference(model: type[BaseModel] = TrainConfig) -> str:
    """The whole page."""
    sections = [_section(model, "")]
    for name, field in model.model_fields.items():
        if _is_section(field):
            assert isinstance(field.annotation, type)
            sections.append(_section(field.annotation, name))
    return "\n".join([_HEAD, *sections])


def _section(model: type[BaseModel], name: str) -> str:
    title = f"## [{name}]" if name else "## Top of the file"
    rows = [
        f"| `{key}` | {_values(field)} | {_default(field)} | {field.description} |"
        for key, field in model.model_fields.items()
        if not _is_section(field)
    ]
    head = "| key | values | default | meaning |\n|---|---|---|---|"
    return "\n".join([title, "", str(model.__doc__), "", head, *rows, ""])


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "none"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


def _values(field: FieldInfo) -> str:
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, limits: Sequence[object] = ()) -> str:  # noqa: ANN401  # any type
    """A type in words, with the limits that its metadata sets."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], [limit for part in inner[1:] for limit in _limits(part)])
    if origin is Literal:
        return ", ".join(f'`"{choice}"`' for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in inner if part is not type(None))
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {_kind(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}: {_kind(inner[0])}"
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"table of {_kind(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        keys = (
            f"`{key}` ({_kind(field.annotation, field.metadata)})"
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


if __name__ == "__main__":
    PAGE.write_text(reference())
