"""The scores that tables show, in their order: names, units, digits, and which way is better."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Column:
    """One score, before and after."""

    before: str
    after: str
    """Names of the values in `ImageScore.row()`."""
    title: str
    unit: str
    digits: int
    higher_is_better: bool = True
    in_space: bool = False
    """Whether it is taken in the scored channels; other scores have a protocol of their own."""

    def is_worse(self, change: float) -> bool:
        """Whether a change is a loss."""
        return change < 0 if self.higher_is_better else change > 0


COLUMNS = (
    Column("psnr_before_db", "psnr_after_db", "PSNR", "dB", 3, in_space=True),
    Column("ssim_before", "ssim_after", "SSIM", "", 4, in_space=True),
    Column("lpips_before", "lpips_after", "LPIPS", "", 4, higher_is_better=False),
    Column("mask_iou_before", "mask_iou_after", "mask IoU", "", 4),
)
"""All other values are in the CSV and JSON files alone."""


def columns_of(row: Mapping[str, object]) -> list[Column]:
    """The columns that a row has values for."""
    return [column for column in COLUMNS if column.before in row]


def signed(value: float, digits: int | None = None) -> str:
    """A difference with its sign, typographic; as short as it can be without `digits`."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "+∞" if value > 0 else f"{_MINUS}∞"
    text = f"{value:+.4g}" if digits is None else f"{value:+.{digits}f}"
    return text.replace("-", _MINUS) if float(text) else text.lstrip("+-")


def plain(value: float, digits: int) -> str:
    """A number without sign, ∞ where there is no end."""
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"
