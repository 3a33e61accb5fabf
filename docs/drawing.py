"""What the drawn figures of docs/ share. Lengths are units of the view box."""

from collections.abc import Iterable

Place = tuple[float, float, float, float]
"""x, y, width and height."""


def sheet(size: tuple[int, int], label: str, *, style: str, fill: str, parts: Iterable[str]) -> str:
    """A whole SVG: the parts on a card of one colour, to be read on light and dark pages."""
    width, height = size
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}">',
        f"<style>{style}</style>",
        f'<rect width="{width}" height="{height}" rx="10" fill="{fill}" stroke="#c4ccd6"/>',
    )
    return "\n".join([*head, *parts, "</svg>", ""])


def rect(place: Place, look: str) -> str:
    """A rectangle; `look` holds its other attributes."""
    x, y, width, height = (f"{side:.1f}" for side in place)
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" {look}/>'
