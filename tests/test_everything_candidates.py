"""Candidates: what NMS keeps, in memory that holds only what may be kept."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from samprior.pipeline.everything.candidates import Candidates, Scored


def some_scored(count: int, seed: int) -> Scored:
    """Boxes that overlap a lot; their rows number the prompts."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=generator)
    size = torch.randint(20, 30, (count, 2), generator=generator)
    return Scored(
        prompts=torch.arange(count),
        channels=torch.zeros(count, dtype=torch.int64),
        predicted_iou=torch.rand(count, generator=generator),
        stability=torch.rand(count, generator=generator),
        boxes=torch.cat([corner, corner + size], dim=1),
    )


def logits_of(prompts: Tensor) -> Tensor:
    """A plane (M, 4, 4) that tells its prompt."""
    return prompts[:, None, None].float().expand(-1, 4, 4).clone()


PLANE_BYTES = 4 * 4 * 4


def collect(scored: Scored, *, held_bytes: int) -> tuple[Scored, list[Tensor], list[int], int]:
    """What is kept, what was drawn again, and the most bytes held after any step."""
    found, again = Candidates(nms_thresh=0.5, held_bytes=held_bytes), []

    def redraw(prompts: Tensor, channels: Tensor) -> Tensor:
        again.extend(prompts.tolist())
        return logits_of(prompts)

    most = 0
    for start in range(0, len(scored), 7):
        part = scored.select(torch.arange(start, min(start + 7, len(scored))))
        found.add(part, logits_of(part.prompts), torch.arange(len(part)))
        most = max(most, found.held_bytes)
    return *found.kept(redraw), again, most


@pytest.mark.parametrize("seed", range(5))
def test_little_memory_keeps_the_same_masks(seed: int) -> None:
    scored = some_scored(300, seed)
    wanted = batched_nms(
        scored.boxes.float(), scored.predicted_iou, torch.zeros(300), iou_threshold=0.5
    )
    plenty, _, none_again, all_bytes = collect(scored, held_bytes=10**9)
    assert plenty.prompts.tolist() == wanted.tolist()
    assert none_again == []
    assert all_bytes == 300 * PLANE_BYTES
    scarce, logits, _, most = collect(scored, held_bytes=20 * PLANE_BYTES)
    assert scarce.prompts.tolist() == wanted.tolist()
    assert [int(plane[0, 0]) for plane in logits] == wanted.tolist()
    assert most < all_bytes / 3


def test_a_candidate_that_is_kept_after_all_is_drawn_again() -> None:
    # The second suppresses the first, and is itself suppressed by the third, which spares it.
    boxes = torch.tensor([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18], [50, 50, 60, 60]])
    scored = Scored(
        prompts=torch.arange(4),
        channels=torch.tensor([0, 1, 2, 0]),
        predicted_iou=torch.tensor([0.1, 0.2, 0.3, 0.4]),
        stability=torch.ones(4),
        boxes=boxes,
    )
    found, again = Candidates(nms_thresh=0.4, held_bytes=PLANE_BYTES), []
    for row in range(4):
        part = scored.select(torch.tensor([row]))
        found.add(part, logits_of(part.prompts), torch.arange(len(part)))

    def redraw(prompts: Tensor, channels: Tensor) -> Tensor:
        again.extend(zip(prompts.tolist(), channels.tolist(), strict=True))
        return logits_of(prompts)

    kept, logits = found.kept(redraw)
    assert kept.prompts.tolist() == [3, 2, 0]
    assert again == [(0, 0)]
    assert [int(plane[0, 0]) for plane in logits] == [3, 2, 0]


def test_nothing_found_is_a_result() -> None:
    found = Candidates(nms_thresh=0.5, held_bytes=10**9)
    found.add(some_scored(0, 0), torch.zeros(3, 4, 4), torch.arange(0))
    kept, logits = found.kept(lambda prompts, channels: torch.zeros(0, 4, 4))
    assert len(kept) == 0
    assert logits == []
