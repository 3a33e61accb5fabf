"""What the HTML reports share: the frame and style of a page, and words for how masks were made.

A page needs nothing but itself: its template extends `base.html.j2`, which holds the style and
refuses to load anything from elsewhere.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from samprior.storage.files import write_bytes

_HEX_DIGEST = re.compile(r"\b[0-9a-f]{40,128}\b")


def write_page(
    out: Path,
    values: Mapping[str, Any],
    *,
    package: str,
    template: str,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> Path:
    """Fill a template and write the page to `out`, whole or not at all; return `out`.

    The arguments after the HTML file `out` are those of `page_bytes`.
    """
    write_bytes(out, page_bytes(values, package=package, template=template, filters=filters))
    return out


def page_bytes(
    values: Mapping[str, Any],
    *,
    package: str,
    template: str,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> bytes:
    """Fill a template.

    Args:
        values: what the template names; one that is missing is an error.
        package: where the template lies, such as `samprior.training`.
        template: its file name; it may extend `base.html.j2`.
        filters: functions that the template uses, by name.
    """
    loader = ChoiceLoader([PackageLoader(room, "") for room in (package, "samprior.storage")])
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    page = environment.get_template(template).render(values)
    # Keys made from file names may hold lone surrogates, which UTF-8 can't.
    return page.encode("utf-8", "backslashreplace")


def told(value: object) -> str:
    """A value of a record in one line, digests cut short."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {told(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(told, value)) + ")"
    return "none" if value is None else _HEX_DIGEST.sub(lambda found: found[0][:12], str(value))


def told_segmenter(made_of: Mapping[str, Any]) -> str:
    """The segmenter of a store's `made_of` and its settings, in one line."""
    name, settings = _segmenter(made_of)
    if is_superpixel(made_of):
        name = "superpixel regions, not SAM"
    return f"{name} ({told(settings)})" if settings else name


def is_superpixel(made_of: Mapping[str, Any]) -> bool:
    """Whether the masks are the stand-in for SAM's, which every page must say."""
    return _segmenter(made_of)[0] == "superpixel"


def _segmenter(made_of: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and settings; older and imported stores record the name alone."""
    value = made_of.get("segmenter", "not recorded")
    if not isinstance(value, Mapping):
        return str(value), {}
    settings = {name: inner for name, inner in value.items() if name != "segmenter"}
    return str(value.get("segmenter", "not recorded")), settings
