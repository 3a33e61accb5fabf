"""The scoreboard: what is compared with whom, which goal was set, and what the results say.

    lines(Path("benchmarks/results")) -> a `Line` for each entry, those that could not run too

Nothing is measured here, and only the standard library is needed. A line is `met`; `missed`, when
its goal is not reached; `behind`, when the peer does better than we; or `not run`, with the reason.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parts import PARTS
from quantities import ATOMS, CPU, PLANES, RUNS_FILE, Quantity, Record, load, quantities

State = Literal["met", "missed", "behind", "not run"]


@dataclass(frozen=True)
class Goal:
    """What a quantity should be."""

    sign: Literal["≥", "≤", "="]
    value: float
    rival: bool = True
    """Whether 1 is as good as the peer; not for costs and shares, where the peer is an ideal."""
    within: float = 0.0
    """How far from an equal value still counts as equal: times are never quite the same."""

    def __str__(self) -> str:
        return f"{self.sign} {self.value:,g}" + (f" ± {self.within:g}" if self.within else "")

    def reached(self, found: Quantity) -> bool:
        """Whether the median reaches it."""
        return self._reached(found.value)

    def always_reached(self, found: Quantity) -> bool:
        """Whether every run reaches it."""
        return all(map(self._reached, found.spread))

    def loses(self, found: Quantity) -> bool:
        """Whether the peer does better than we."""
        if not self.rival:
            return False
        return found.value < 1 if self.sign == "≥" else found.value > 1 + self.within

    def _reached(self, value: float) -> bool:
        if self.sign == "=":
            return abs(value - self.value) <= self.within
        return value >= self.value if self.sign == "≥" else value <= self.value

    def share(self, found: Quantity) -> float | None:
        """How many times the goal is reached, 1: just; None where a ratio says nothing."""
        if not self.value or not found.value:
            return None
        return found.value / self.value if self.sign == "≥" else self.value / found.value


@dataclass(frozen=True)
class Entry:
    """One line of the scoreboard, before anything is measured."""

    row: str
    """Number, and a letter where a row has several lines."""
    part: str
    """File of results."""
    what: str
    peer: str
    pattern: str
    """Regular expression for the whole name of a quantity; of several that fit the last counts."""
    goal: Goal
    cpu: bool = False
    """CPU seconds are asked for, but for work on a GPU."""


@dataclass(frozen=True)
class Line:
    """One line of the scoreboard."""

    entry: Entry
    state: State
    found: Quantity | None
    reason: str = ""
    """Why it was not run."""

    @property
    def verdict(self) -> str:
        """The state in words."""
        if self.state == "met" and self.found and not self.entry.goal.always_reached(self.found):
            return "met, not in every run"
        return {"behind": "behind peer", "missed": "goal missed"}.get(self.state, self.state)


PARITY = Goal("≥", 1)
"""Where no goal was set: not behind the peer."""


def _peers_of_the_loader() -> tuple[Entry, ...]:
    png = "PIL, 2 PNG + JSON, all masks decoded"
    named = (
        (png, Goal("≥", 1200), Goal("≥", 900)),
        ("PIL, 2 PNG + JSON, only masks near", PARITY, PARITY),
        ("webdataset of PNG + JSON", PARITY, PARITY),
        ("MosaicML streaming of PNG + JSON", PARITY, PARITY),
        ("litdata of PNG + JSON", PARITY, PARITY),
        ("zarr-python on samprior's store", PARITY, PARITY),
        ("zarr-python, raw 256 tiles", Goal("≥", 100), PARITY),
        ("zarr-python + zarrs, raw 256 tiles", PARITY, PARITY),
        ("tensorstore, raw 128 tiles", PARITY, PARITY),
        ("tensorstore, raw 256 tiles", Goal("≥", 9), PARITY),
    )
    by_loader = f"{PLANES}, by DataLoader"
    with_workers = [(peer, batches) for peer, _, batches in named] + [(by_loader, Goal("≥", 16))]
    lines: list[Entry] = []
    for row, what, how, goals in (
        ("10", "crops as {}, one process", "", [(peer, one) for peer, one, _ in named]),
        ("11", "batches as {}, two workers", ", batches, workers: 2", with_workers),
    ):
        for form, shown in ((ATOMS, "atoms"), (PLANES, "planes")):
            lines += [
                Entry(
                    row,
                    "loader_batches",
                    what.format(shown),
                    peer.removeprefix("samprior, ").replace("planes, by", "the same reader by"),
                    r"(\d+ crops, )?" + re.escape(peer + how) + r" / (\d+ crops, )?"
                    + re.escape(form + how),
                    goal,
                )
                for peer, goal in goals
                if form == ATOMS or goal is not PARITY
            ]  # fmt: skip
    return tuple(lines)


NETWORKS = ("nafnet", "restormer", "uformer", "rcdnet", "efficientderain")
_OFFICIAL = "official generator"
_COCO = "pycocotools, only masks whose box meets the crop"

ENTRIES: tuple[Entry, ...] = (
    Entry("1", "everything_post", "post-processing, same logits, CPU time", _OFFICIAL,
          "logits to masks.*", Goal("≥", 200), cpu=True),
    Entry("2a", "everything_post", "masks kept, the same in the same order", _OFFICIAL,
          "masks kept.*", Goal("=", 1, rival=False)),
    Entry("2b", "everything_post", "share of pixels that differ", _OFFICIAL,
          "share of pixels.*", Goal("≤", 1e-6, rival=False)),
    Entry("3a", "everything_decoder", "decoder, CPU time", f"{_OFFICIAL}, batches of 64",
          "decoding.*batches of 64 .*all masks drawn.*", Goal("≥", 4), cpu=True),
    Entry("3b", "everything_decoder", "decoder, CPU time", f"{_OFFICIAL}, batches of 8, its best",
          "decoding.*batches of 8 .*all masks drawn.*", Goal("≥", 3.3), cpu=True),
    Entry("4a", "everything_vit_h", "image to stored masks, vit_h", f"{_OFFICIAL}, COCO JSON",
          ".*image to stored masks.*", Goal("≥", 2.7)),
    Entry("4b", "everything_whole", "image to stored masks, vit_b", f"{_OFFICIAL}, COCO JSON",
          ".*image to stored masks.*", PARITY),
    Entry("4c", "everything_weights", "the same with SAM's own weights, vit_h",
          f"{_OFFICIAL}, COCO JSON", ".*image to stored masks.*", Goal("≥", 2.7)),
    Entry("5", "everything_memory", "peak memory of the engine, vit_b", _OFFICIAL,
          "peak memory.*float32.*", Goal("≤", 0.4)),
    Entry("6a", "everything_gpu", "vit_h on a GPU, bfloat16", f"{_OFFICIAL}, float32",
          ".*image to stored masks.*bfloat16.*", Goal("≥", 10)),
    Entry("6b", "everything_gpu", "vit_h on a GPU, float32", f"{_OFFICIAL}, float32",
          r".*image to stored masks.*shard, float32\).*", Goal("≥", 3)),
    Entry("7a", "storage_rows", "bytes of masks", "SA-1B JSON (COCO run lengths)",
          "bytes of SA-1B JSON / .*", Goal("≥", 6)),
    Entry("7b", "storage_rows", "bytes of masks", "SA-1B JSON (COCO run lengths) + zstd-3",
          r"bytes of SA-1B JSON \+ zstd-3 / .*", Goal("≥", 2.4)),
    Entry("8a", "storage_rows", "encoding, from what the engine gives", "pycocotools + JSON",
          "planes to SA-1B JSON.* / MaskSets.*", Goal("≥", 25)),
    Entry("8b", "storage_rows", "encoding, from planes", "pycocotools + JSON",
          "planes to SA-1B JSON.* / planes to a shard.*", Goal("≥", 25)),
    Entry("9a", "storage_rows", "masks of a crop as atoms", _COCO,
          r".* / masks of \d+ aligned .*atoms and members.*", Goal("≥", 250)),
    Entry("9b", "storage_rows", "masks of a crop as planes", _COCO,
          r".*parsed JSON.* / masks of \d+ aligned .*from an open store \(samprior\)",
          Goal("≥", 250)),
    *_peers_of_the_loader(),
    *(
        Entry(row, "distillation_cost", f"a stage-B step{less}, {network}", "a plain step",
              f"a stage-B step of {network} [^ ]+{less} / .*", Goal("≤", 2, rival=False))
        for row, less in (("12a", ""), ("12b", " without SGR"))
        for network in NETWORKS
    ),
    Entry("12c", "sam_in_the_loop", "a stage-B step", "the same with SAM in the loop",
          r".*SAM in the loop \(official.*", Goal("≥", 100)),
    Entry("12d", "sam_in_the_loop", "a stage-B step", "the same with samprior's engine in the loop",
          r".*SAM in the loop \(samprior.*", PARITY),
    *(
        Entry("13", "student", f"{cost} of the student, {network}", "the plain network",
              pattern, Goal("=", 1, within=within))
        for network in NETWORKS
        for cost, pattern, within in (
            ("parameters", f"parameters of {network}, .*", 0),
            ("MACs", f"MACs of {network}, .*", 0),
            ("latency", f"{network} [^ ]+, distilled / .*, plain", 0.02),
        )
    ),
    Entry("14", "job_workers", "Ray, many workers that wait against one", "an ideal, 1",
          r"efficiency of \d+ workers", Goal("≥", 0.95, rival=False)),
    Entry("15", "cli_start", "samprior --help", "the imports of SAM's scripts/amg.py",
          "importing segment_anything.*", PARITY),
    Entry("16a", "worker_memory", "memory of the loader's process, last epoch against first",
          "no growth",
          "last epoch / first: samprior.*", Goal("≤", 1.02, rival=False)),
    Entry("16b", "worker_memory", "memory of the loader above the start",
          "DataLoader, annotations in a list", "memory above the start.*", PARITY),
)  # fmt: skip


def lines(folder: Path, entries: Sequence[Entry] = ENTRIES) -> list[Line]:
    """The scoreboard of a folder of results."""
    records, noted = load(folder), runs_of(folder)
    found = {stem: quantities(record) for stem, record in records.items()}
    return [
        _line(entry, records.get(entry.part), found.get(entry.part, {}), noted) for entry in entries
    ]


def runs_of(folder: Path) -> dict[str, Any]:
    """What run_all.py noted of its last run of each part."""
    file = folder / RUNS_FILE
    noted: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return noted


def _line(
    entry: Entry, record: Record | None, found: Mapping[str, Quantity], noted: Mapping[str, Any]
) -> Line:
    run = noted.get(entry.part, {})
    if run.get("state") == "failed" or (record is None and run):
        return Line(entry, "not run", None, run.get("reason", "it left no results"))
    if record is None:
        return Line(entry, "not run", None, _why_no_file(entry))
    on_gpu = record["machine"]["device"] != record["machine"]["processor"]
    by_cpu = entry.cpu and not on_gpu
    matching = [
        each
        for name, each in found.items()
        if name.endswith(CPU) == by_cpu and re.fullmatch(entry.pattern, name.removesuffix(CPU))
    ]
    if not matching:
        return Line(entry, "not run", None, _why_missing(entry, record))
    quantity, goal = matching[-1], entry.goal
    if goal.reached(quantity):
        return Line(entry, "met", quantity)
    return Line(entry, "behind" if goal.loses(quantity) else "missed", quantity)


def _why_no_file(entry: Entry) -> str:
    """For results of which nothing is noted."""
    (part,) = (part for part in PARTS if part.name == entry.part)
    reason = part.left_out(quick=False, device="cpu", checkpoint=None)
    return reason or "not measured yet: make benchmark"


def _why_missing(entry: Entry, record: Record) -> str:
    for peer, reason in record.get("not_measured", {}).items():
        if peer == entry.peer:
            return str(reason)
    return "the last run did not take this in"
