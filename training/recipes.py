"""The recipes that ship with samprior: one TOML file for each network and data set.

They lie in the folder `presets` beside this file and are found by name wherever samprior is
installed. The first line of each says the task and what it is.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from samprior.storage.choices import check_choice
from samprior.storage.errors import ConfigError

FOLDER = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class Recipe:
    """What the list of presets says of one."""

    name: str
    task: str
    """deblurring, denoising or deraining."""
    about: str
    network: str
    """Architecture and shape."""
    steps: int
    """Optimizer steps of the base stage."""


def preset_names() -> list[str]:
    """The presets that ship, by name."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def preset_text(name: str) -> str:
    """The file of a preset.

    Raises:
        UsageError: no preset of this name; the nearest is named.
    """
    check_choice("preset", name, preset_names())
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def read_recipe(name: str) -> Recipe:
    """What the list says of a preset; raises what `preset_text` does."""
    from samprior.training.config import load_config  # which looks for presets here

    headline = preset_text(name).partition("\n")[0]
    task, _, about = headline.removeprefix("# ").partition(": ")
    config = load_config(FOLDER / f"{name}.toml")
    made = config.network
    network = made.name if made.preset in (None, made.name) else f"{made.name} {made.preset}"
    return Recipe(name, task.lower(), about, network, config.stages.base)


def find_config(file: Path) -> Path:
    """The file itself, or the preset of that name where there is none.

    `gopro_nafnet_w32`, `gopro_nafnet_w32.toml` and `presets/gopro_nafnet_w32.toml` name one.

    Raises:
        ConfigError: neither is there.
    """
    if file.exists():
        return file
    names = preset_names()
    may_be_preset = file.parent in (Path(), Path("presets")) and file.suffix in ("", ".toml")
    if may_be_preset and file.stem in names:
        return FOLDER / f"{file.stem}.toml"
    near = difflib.get_close_matches(file.stem, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{file} does not exist; name a TOML file with --config, or one of `samprior presets`{hint}"
    )
