"""Laws of what work costs by images and shards: fitted, told, followed beyond what was measured.

A row is what one phase of a job took: images, shards, phase, and its CPU seconds and bytes. Laws
have no part below 0, and are fitted with relative errors as weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import rounds
from scipy.optimize import nnls

Row = dict[str, Any]

FAR = (10**4, 10**6, 10**8)
"""Images for which the laws are told."""


def laws_of(rows: Sequence[Row]) -> list[Row]:
    """What fits the rows of each phase best, for its seconds and its bytes."""
    found = []
    for phase in dict.fromkeys(row["phase"] for row in rows):
        mine = [row for row in rows if row["phase"] == phase]
        found += [
            {"phase": phase, "of": name, **law(mine, name)}
            for name in ("CPU s", "bytes")
            if name in mine[0]
        ]
    return found


def law(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Fixed part, and parts per image and per shard, none of them below 0."""
    terms = np.array([[1.0, row["images"], row["shards"]] for row in rows])
    values = np.array([row[name] for row in rows], np.float64)
    weights = 1 / np.maximum(values, 1e-9)
    fitted, _ = nnls(terms * weights[:, None], values * weights)
    error = float(np.max(np.abs(terms @ fitted - values) * weights))
    fixed, per_image, per_shard = fitted.tolist()
    return {"fixed": fixed, "per image": per_image, "per shard": per_shard, "worst error": error}


def by_laws(found: Sequence[Row], *, images_per_shard: int) -> list[Row]:
    """The laws at `FAR`."""
    return [
        {
            "images": count,
            "shards": (shards := -(-count // images_per_shard)),
            "phase": one["phase"],
            "of": one["of"],
            "value": one["fixed"] + one["per image"] * count + one["per shard"] * shards,
        }
        for count in FAR
        for one in found
    ]


def print_measured(title: str, rows: Sequence[Row]) -> None:
    """Print measured rows; memory in MB."""
    shown = [
        {
            "images": f"{row['images']:,}",
            "shards": f"{row['shards']:,}",
            "phase": row["phase"],
            "CPU s": row.get("CPU s", ""),
            "s by the clock": row.get("s by the clock", ""),
            "MB": row["bytes"] / 1e6,
        }
        for row in rows
    ]
    rounds.print_table(title, shown)


def print_laws(found: Sequence[Row], far: Sequence[Row]) -> None:
    """Print laws in microseconds and bytes, and what they say in seconds and MB."""
    shown = []
    for one in found:
        small, large, scale = ("us", "s", 1e6) if one["of"] == "CPU s" else ("bytes", "MB", 1.0)
        fixed = one["fixed"] if large == "s" else one["fixed"] / 1e6
        shown.append(
            {
                "phase": one["phase"],
                "fixed": f"{fixed:.3g} {large}",
                "per image": f"{one['per image'] * scale:.3g} {small}",
                "per shard": f"{one['per shard'] * scale:.3g} {small}",
                "worst error": f"{one['worst error']:.0%}",
            }
        )
    rounds.print_table("Laws", shown)
    told = [
        {
            "images": f"{row['images']:,}",
            "phase": row["phase"],
            "value": f"{row['value']:.3g} s"
            if row["of"] == "CPU s"
            else f"{row['value'] / 1e6:.3g} MB",
        }
        for row in far
    ]
    rounds.print_table("By these laws", told)
