"""Write docs/config.md, the table of all training settings, from the models that check them.

python docs/config_reference.py
"""

from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from samprior.training.config import TrainConfig
from samprior.training.setting_words import is_section, told_values

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


def reference(model: type[BaseModel] = TrainConfig) -> str:
    """The whole page."""
    sections = [_section(model, "")]
    for name, field in model.model_fields.items():
        if is_section(field):
            assert isinstance(field.annotation, type)
            sections.append(_section(field.annotation, name))
    return "\n".join([_HEAD, *sections])


def _section(model: type[BaseModel], name: str) -> str:
    title = f"## [{name}]" if name else "## Top of the file"
    rows = [
        f"| `{key}` | {told_values(field)} | {_default(field)} | {field.description} |"
        for key, field in model.model_fields.items()
        if not is_section(field)
    ]
    head = "| key | values | default | meaning |\n|---|---|---|---|"
    return "\n".join([title, "", str(model.__doc__), "", head, *rows, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "none"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


if __name__ == "__main__":
    PAGE.write_text(reference())
