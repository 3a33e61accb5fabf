"""Masks of a crop between the thresholds and NMS, in memory that does not grow with the prompts.

NMS can only decide when all candidates are there, but a candidate that a better one suppresses now
is hardly ever kept in the end. So when the logits held reach a limit, those of candidates that
NMS would drop so far are let go; should one of them be kept after all, it is drawn again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torchvision.ops import batched_nms

HELD_BYTES = 64 * 2**20
"""Logits that are held before NMS looks for some to let go."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Candidates, one row each, on the CPU."""

    prompts: Tensor
    """int64 (M,): row of the prompt among the crop's."""
    channels: Tensor
    """int64 (M,): which of the prompt's masks."""
    predicted_iou: Tensor
    """float32 (M,)"""
    stability: Tensor
    """float32 (M,)"""
    boxes: Tensor
    """int64 (M, 4): x0, y0, x1, y1 in pixels of the crop, x1 and y1 inside the mask."""

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: Tensor) -> Self:
        """Some of the rows, by index or boolean."""
        return type(self)(*(column[rows] for column in self._columns()))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, at least one, in order."""
        columns = zip(*(part._columns() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.prompts, self.channels, self.predicted_iou, self.stability, self.boxes


class _Held(NamedTuple):
    """Logits at hand."""

    rows: Tensor
    """int64 (M,): the candidates they are of."""
    places: Tensor
    """int64 (M,): where each has its own."""
    logits: Tensor
    """(L, h, w), maybe of other masks too."""

    def select(self, wanted: Tensor) -> "_Held":
        """Only some of the candidates, boolean (M,), and only their logits."""
        if len(self.logits) == len(wanted) and bool(wanted.all()):
            return self
        logits = _planes(self.logits, self.places[wanted])
        return _Held(self.rows[wanted], torch.arange(len(logits)), logits)


def _planes(logits: Tensor, places: Tensor) -> Tensor:
    """Some of the logits (L, h, w), copied."""
    if logits.device.type == "cpu":
        # By NumPy: for so little PyTorch would wake its threads, which then wait in a busy loop.
        return torch.from_numpy(logits.numpy()[places.numpy()])
    return logits[places.to(logits.device)]


class Candidates:
    """Collects candidates; `kept` gives those that NMS keeps, with their logits."""

    def __init__(self, *, nms_thresh: float, held_bytes: int) -> None:
        self._nms_thresh = nms_thresh
        self._limit_bytes = held_bytes
        self._parts: list[Scored] = []
        self._count = 0
        self._held: list[_Held] = []
        self.held_bytes = 0
        """Bytes of all logits at hand."""

    def add(self, scored: Scored, logits: Tensor, places: Tensor) -> None:
        """More candidates in the official order, whose logits are some `places` of (L, h, w)."""
        rows = torch.arange(self._count, self._count + len(scored))
        self._parts.append(scored)
        self._count += len(scored)
        self._held.append(_Held(rows, places, logits))
        self.held_bytes += logits.nbytes
        if self.held_bytes > self._limit_bytes:
            self._let_go()

    def kept(self, redraw: Callable[[Tensor, Tensor], Tensor]) -> tuple[Scored, list[Tensor]]:
        """What NMS keeps, best first, and the logits (h, w) of each.

        `redraw` gives the logits (M, h, w) of prompts (M,) and channels (M,), for those that were
        let go.
        """
        scored = Scored.joined(self._parts)
        keep = self._surviving(scored)
        logits = {
            row: held.logits[place]
            for held in self._held
            for row, place in zip(held.rows.tolist(), held.places.tolist(), strict=True)
        }
        missing = [row for row in keep.tolist() if row not in logits]
        if missing:
            lost = scored.select(torch.tensor(missing))
            logits.update(zip(missing, redraw(lost.prompts, lost.channels), strict=True))
        return scored.select(keep), [logits[row] for row in keep.tolist()]

    def _surviving(self, scored: Scored) -> Tensor:
        """Rows that NMS keeps of all so far, best first; the official call."""
        rows: Tensor = batched_nms(
            scored.boxes.float(),
            scored.predicted_iou,
            torch.zeros(len(scored)),
            iou_threshold=self._nms_thresh,
        )
        return rows

    def _let_go(self) -> None:
        keep = self._surviving(Scored.joined(self._parts))
        self._held = [held.select(torch.isin(held.rows, keep)) for held in self._held]
        self.held_bytes = sum(held.logits.nbytes for held in self._held)
        # What is left is no duplicate; looking again before as much has come would find little.
        self._limit_bytes = max(self._limit_bytes, 2 * self.held_bytes)
