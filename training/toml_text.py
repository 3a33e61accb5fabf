"""Settings as TOML text, `key.sub=value` overrides, and mistakes in plain words.

Knows nothing of any particular setting: the model that checks them is passed in.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from samprior.storage.errors import ConfigError


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Nested settings as TOML text; None is left out."""
    lines = [
        f"{name} = {toml_value(value)}"
        for name, value in values.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    text = "".join(line + "\n" for line in lines)
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            text += f"\n[{prefix}{name}]\n" + to_toml(value, f"{prefix}{name}.")
    return text


def override(settings: dict[str, Any], text: str) -> None:
    """Lay `key.sub=value` over nested settings; a value that is no TOML is taken as a string.

    Raises:
        ConfigError: no key, no value, or a key below one that is no section.
    """
    name, equals, written = text.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key:
        raise ConfigError(f"--set takes key=value, got {text!r}; for example loss.lambda_spd=1")
    try:
        value = tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        value = written
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {text}: {section} is a value, not a section")
    settings[key] = value


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each mistake: the key, what was wanted and what was got."""
    lines = []
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {name!r}{_nearest(problem['loc'], model)}")
        elif problem["type"] == "missing":
            lines.append(f"{name} is missing")
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]))
        else:
            lines.append(f"{name}: {problem['msg'].lower()}, got {problem['input']!r}")
    return lines


def toml_value(value: Any) -> str:  # noqa: ANN401  # anything that a setting holds
    """A value on one line, a table inline.

    Raises:
        ConfigError: a path that is no UTF-8, which TOML has no way to write.
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name} = {toml_value(inner)}' for name, inner in value.items())}}}"
    # Not ASCII: JSON writes rare characters as two escapes, which TOML doesn't know. Of control
    # characters JSON leaves one as it is, which TOML refuses.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if not _is_unicode(text):
        raise ConfigError(f"{value!a} is no UTF-8 and can't be a setting; rename the folder")
    return text


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _nearest(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """A hint at the key that was meant: the nearest of its section, else of all sections."""
    # The place in a list of tables is no part of a key.
    *sections, key = (str(part) for part in location if not isinstance(part, int))
    keys = _dotted_keys(model)
    here = [name for name in keys if name.split(".")[:-1] == sections]
    for names in (here, keys):
        # Of keys alike the first, which is the one less deep.
        by_leaf = {name.rpartition(".")[2]: name for name in reversed(names)}
        if near := difflib.get_close_matches(key, by_leaf, n=1):
            return f"; did you mean {by_leaf[near[0]]!r}?"
    return f"; known here: {', '.join(here)}"


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names += _dotted_keys(part, f"{prefix}{name}.")
    return names
