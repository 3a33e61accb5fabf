"""Write docs/api.md, the Python interface, from its signatures and docstrings.

python docs/api_reference.py
"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")

MODULES = {
    "samprior.storage": ("MaskStore", "MaskSet", "Record"),
    "samprior.storage.shards": ("export_webdataset", "read_webdataset"),
    "samprior.storage.verify": ("verify_store",),
    "samprior.storage.status": ("store_status",),
    "samprior.pipeline": ("find_dataset", "Dataset", "Pair", "build_segmenter", "Segmenter"),
    "samprior.pipeline.precompute": ("precompute",),
    "samprior.training.data": ("Crops", "Batch"),
    "samprior.training.loader": ("CropLoader", "CropDataset"),
    "samprior.training.networks": ("build_network", "RestorationNetwork"),
    "samprior.training.priors": (
        "RegionBatch",
        "SemanticPriorFusion",
        "RelationLoss",
        "build_analyzer",
        "spd_loss",
        "bounded_psnr",
    ),
    "samprior.training.config": ("load_config",),
    "samprior.training.run": ("train", "RunResult"),
    "samprior.training.checkpoint": ("load_network",),
    "samprior.training.restore": ("restore",),
    "samprior.training.metrics": ("psnr", "ssim"),
}
"""What programs of users call. Other modules are ours and may change."""

_HEAD = """\
# Python

What programs call, with shapes, units and errors. Errors derive from `samprior.storage.errors.
SampriorError` and from the built-in that fits. [own-loop.md](own-loop.md) puts the parts together.

This page is written by `python docs/api_reference.py` from the docstrings.
"""


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for module, names in MODULES.items():
        found = importlib.import_module(module)
        about = (inspect.getdoc(found) or "").partition("\n\n")[0].replace("\n", " ")
        parts += [f"## {module}", "", about, ""]
        for name in names:
            parts += _entry(name, getattr(found, name))
    return "\n".join(parts)


def _entry(name: str, value: Any) -> Iterator[str]:  # noqa: ANN401  # a class or a function
    yield from (f"### {name}", "")
    yield from _code(name, value)
    if not inspect.isclass(value):
        return
    for member, inner in sorted(vars(value).items()):
        if member.startswith("_") or not inspect.getdoc(inner):
            continue
        if isinstance(inner, property):
            yield from (f"**`{name}.{member}`**", "", *_doc(inner.fget))
        elif isinstance(inner, classmethod | staticmethod):
            yield from _code(f"{name}.{member}", inner.__func__)
        elif inspect.isfunction(inner):
            yield from _code(f"{name}.{member}", inner)


def _code(name: str, value: Any) -> Iterator[str]:  # noqa: ANN401  # a class or a function
    yield from ("```text", f"{name}{_signature(value)}", "```", "", *_doc(value))


def _signature(value: Any) -> str:  # noqa: ANN401  # a class or a function
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    kept = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    parts = [_parameter(each) for each in kept if not each.name.startswith("_")]
    stars = [at for at, each in enumerate(kept) if each.kind is inspect.Parameter.KEYWORD_ONLY]
    if stars and not any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in kept):
        parts.insert(stars[0], "*")
    text = ", ".join(parts)
    return f"({text})" if len(text) < 80 else "(\n    " + ",\n    ".join(parts) + ",\n)"


def _parameter(parameter: inspect.Parameter) -> str:
    """A parameter with its default, and without its type: the docstring says more."""
    name = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }.get(parameter.kind, "") + parameter.name
    default = parameter.default
    if default is inspect.Parameter.empty:
        return name
    plain = default is None or isinstance(default, bool | int | float | str | tuple)
    return f"{name}={default!r}" if plain else f"{name}=..."


def _doc(value: Any) -> Iterator[str]:  # noqa: ANN401  # a class or a function
    text = inspect.getdoc(value)
    if text:
        yield from ("```text", text, "```", "")


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
