"""A first configuration for a store: every key with what it does, few of them set.

What is set is what must be, and what the data call for; all else stands behind a # with its
default, so that the file shows what there is and `samprior train` still takes our defaults.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from samprior.storage import MaskStore
from samprior.storage.errors import ConfigError
from samprior.storage.survey import counted
from samprior.training.config import TrainConfig
from samprior.training.setting_words import is_section, told_values
from samprior.training.toml_text import toml_value

WIDTH = 96
"""Longest line of a comment, characters."""

_FOR_DATASET: Mapping[str, dict[str, Any]] = {
    "gopro": {"network.preset": "gopro_w32"},
    "sensenoise": {"network.preset": "sidd_w32"},
    "rain": {
        "network.preset": "gopro_w32",
        "loss.reconstruction": "charbonnier",
        "loss.lambda_spd": 1.0,
    },
}
"""What the README trains each data set with."""


@dataclass(frozen=True)
class Beginning:
    """What a first configuration says."""

    name: str
    """Of the data, and so of the run."""
    about: str
    """A line on the data."""
    settings: dict[str, Any]
    """What is set, by dotted key."""


def begin_with_store(url: Path | str) -> Beginning:
    """The beginning for a store.

    Raises:
        StoreError: no store there.
        ConfigError: its images have no degraded sides.
    """
    store = MaskStore.open(url)
    if not store.paired:
        raise ConfigError(f"{url} holds images without degraded sides; train on a paired data set")
    recorded = store.header.made_of.get("dataset")
    dataset = recorded.get("name") if isinstance(recorded, Mapping) else None
    sizes = [store.size(index) for index in range(len(store))]
    settings = settings_for(dataset, smallest_px=min(map(min, sizes), default=None))
    about = f"training on the store {url}, {counted(len(store), 'pair')}"
    about += f" of {dataset}" if dataset else ""
    settings |= {"data.train": str(url), "out": f"runs/{store.name}"}
    return Beginning(store.name, about, settings)


def begin_with_dataset(
    dataset: str, root: Path, contents: str, *, smallest_px: int | None
) -> Beginning:
    """The beginning for a data set whose store is still to be made.

    Args:
        dataset: its name, such as gopro.
        root: its folder.
        contents: what was found there, in one line.
        smallest_px: smallest side of its pictures, if that is known.
    """
    name = dataset if dataset in _FOR_DATASET else root.name
    about = f"training on {dataset} pairs of {root}: {contents}"
    settings = settings_for(dataset, smallest_px=smallest_px)
    settings |= {"data.train": f"stores/{name}", "out": f"runs/{name}"}
    return Beginning(name, about, settings)


def settings_for(dataset: str | None, *, smallest_px: int | None = None) -> dict[str, Any]:
    """What the data call for, by dotted key.

    Args:
        dataset: its name; None or any other name calls for nothing.
        smallest_px: smallest side of its pictures, if that is known: crops must fit in.

    Raises:
        ConfigError: no crop fits in.
    """
    settings = dict(_FOR_DATASET.get(dataset or "", {}))
    usual = TrainConfig.model_fields["data"].annotation
    assert isinstance(usual, type)
    assert issubclass(usual, BaseModel)
    crop_px = usual.model_fields["crop_px"].default
    if smallest_px is not None and smallest_px < 8:
        raise ConfigError(
            f"a picture has a side of {smallest_px} px, and crops have 8 or more; leave it out"
        )
    if smallest_px is not None and smallest_px < crop_px:
        settings["data.crop_px"] = smallest_px // 8 * 8
    return settings


def commented_config(settings: Mapping[str, Any], *, about: Sequence[str] = ()) -> str:
    """A TOML file of all keys; those of `settings` (dotted) are set, the others commented out.

    Args:
        settings: by dotted key; out and data.train must be among them.
        about: lines of the comment at the top.
    """
    lines = [f"# {_printable(line)}".rstrip() for line in about]
    lines += ["#", "# A key behind a # has the value that is shown, unless you set another."]
    lines += _section(TrainConfig, "", settings)
    for name, field in TrainConfig.model_fields.items():
        if is_section(field):
            assert isinstance(field.annotation, type)
            lines += ["", "", *_comment(str(field.annotation.__doc__)), f"[{name}]"]
            lines += _section(field.annotation, f"{name}.", settings)
    return "\n".join(lines) + "\n"


def _printable(line: str) -> str:
    """What a comment can hold: names of folders may have anything, line breaks among it."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in line
    )


def _section(model: type[BaseModel], prefix: str, settings: Mapping[str, Any]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if is_section(field):
            continue
        yield ""
        yield from _comment(f"{field.description} ({_range(field)})".replace("\n", " "))
        if prefix + name in settings:
            yield f"{name} = {toml_value(settings[prefix + name])}"
        elif field.default is None:
            yield f"# {name} ="
        else:
            yield f"# {name} = {toml_value(field.default)}"


def _range(field: FieldInfo) -> str:
    words = told_values(field, quote="")
    if field.is_required():
        return f"{words}; required"
    return f"{words}; default: none" if field.default is None else words


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
