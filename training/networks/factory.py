"""A network of the user's own: `package.module:factory`, any callable that makes an `nn.Module`.

Naming a factory runs its code, so the name must come from the user, never from a file alone:
`load_network` refuses checkpoints of a factory that the command doesn't name.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from samprior.storage.choices import check_choice
from samprior.storage.errors import UsageError


def is_factory(name: object) -> bool:
    """Whether a network's name is that of a factory, not of one of samprior's networks."""
    return isinstance(name, str) and ":" in name


def build_from_factory(name: str, settings: dict[str, Any]) -> nn.Module:
    """Make a network by the callable that `name` stands for.

    A network without `padding_multiple` gets 1, as an attribute of this one object: it then has to
    take any size. State-dict keys are the module's own.

    Raises:
        UsageError: no such module or callable, settings that it doesn't take, or no `nn.Module`.
    """
    maker = _import(name)
    parameters = inspect.signature(maker).parameters
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        for setting in settings:
            check_choice(f"setting of {name}", setting, parameters)
    network = maker(**settings)
    if not isinstance(network, nn.Module):
        raise UsageError(f"{name} gave {type(network).__name__}, and a network is an nn.Module")
    if not hasattr(network, "padding_multiple"):
        network.padding_multiple = 1  # type: ignore[assignment]  # not a tensor or module
    return network


def _import(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    # A console command doesn't look in the current folder by itself; last, so it shadows nothing.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        # A module that is there and lacks one of its own is the user's bug, told with a traceback.
        if getattr(error, "name", None) not in _parents(module_name):
            raise
        raise UsageError(
            f"network {name!r}: there is no module {module_name!r}; install it, or run samprior in "
            "its folder"
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UsageError(
            f"network {name!r}: {module_name} has no callable {attribute!r}; write it as "
            "package.module:factory"
        )
    maker: Callable[..., Any] = found
    return maker


def _parents(module_name: str) -> set[str | None]:
    """a, a.b and a.b.c for a.b.c, and None: the errors of a name that can't be one."""
    parts = module_name.split(".")
    return {None, *(".".join(parts[:end]) for end in range(1, len(parts) + 1))}
