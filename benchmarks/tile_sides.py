"""The side of the atoms' tiles: bytes against the time of a crop that was not read before."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import ours
import rounds
from windows import Window

from samprior.storage import MaskStore, Record

SIDES = (128, 256, 512, 1024)


def table(
    folder: Path,
    records: Sequence[Record],
    windows: Mapping[str, Sequence[Window]],
    *,
    runs: int,
) -> list[dict[str, object]]:
    """A row for each side: bytes of a picture's atoms, ms of a crop's masks, nothing kept."""
    stores: dict[str, MaskStore] = {}
    rows: dict[str, dict[str, object]] = {}
    for side in SIDES:
        root = folder / f"side-{side}"
        with mock.patch("samprior.storage.writer.ATOMS_TILE_PX", side):
            ours.write_store(root, records)
        stores[str(side)] = MaskStore.open(root, cache_bytes=0)
        held = ours.mask_bytes(root)["atoms"] / len(records)
        rows[str(side)] = {"tile side": side, "bytes of atoms": held}
    for kind, drawn in windows.items():
        works = {name: _cropping(store, drawn) for name, store in stores.items()}
        for name, timing in rounds.time_in_turn(works, runs=runs).items():
            rows[name][f"{kind} crop ms"] = timing.median_s / len(drawn) * 1e3
    return list(rows.values())


def _cropping(store: MaskStore, windows: Sequence[Window]) -> Callable[[], None]:
    def work() -> None:
        for window in windows:
            store.masks(window.image, window.y, window.x, window.side, window.side)

    return work
