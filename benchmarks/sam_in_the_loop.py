"""A stage-B step with the masks of a store, against one that runs SAM on its crops first.

    python benchmarks/sam_in_the_loop.py [--model vit_b] [--points-per-side 32] [--device cuda]

Both steps are the same: networks, batch, SPF, SPD and SGR. The batch is read beforehand, masks and
all, which loader.py measures. SAM is the official generator with its defaults, but for the number
of points, once for each crop of the batch; a second row has our mask engine in its place. Without
--checkpoint the weights are random and what the decoders say is replaced by a scene (sides.py).
The smaller the batch, the longer a step takes for each of its crops: that is to SAM's favour.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import distillation_cost
import everything
import measure
import torch
from sides import Subject

from samprior.storage.images import Rgb
from samprior.training.config import TrainConfig
from samprior.training.data import Batch
from samprior.training.restore import pick_device


@click.command()
@click.option("--model", type=click.Choice(everything.MODELS), default="vit_b", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Real weights of --model.")
@click.option("--points-per-side", default=32, show_default=True)
@click.option("--preset", default="tiny", show_default=True, help="Of the restoration network.")
@click.option("--crop-px", default=128, show_default=True)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--runs", default=2, show_default=True, help="Pairs of runs for each row.")
def main(
    model: str,
    checkpoint: Path | None,
    points_per_side: int,
    preset: str,
    crop_px: int,
    batch_size: int,
    device: str,
    runs: int,
) -> None:
    """Measure, print, and write benchmarks/results/sam_in_the_loop.json."""
    place = pick_device(device)
    gpu = torch.cuda.get_device_name() if place.type == "cuda" else None
    about = measure.machine("torch", "segment-anything", "numba", device=gpu)
    config = TrainConfig.model_validate(
        {
            "out": "unused",
            "data": {"train": "unused", "crop_px": crop_px, "batch_size": batch_size},
            "network": {"preset": preset},
            "loss": {"analyzer": "random-vgg"},
        }
    )
    batch = distillation_cost.read_batch(config, place)
    subject = Subject(
        model=model,
        checkpoint=checkpoint,
        photo=first_crop(batch),
        points_per_side=points_per_side,
        points_per_batch=64,
        device=place.type,
    )
    step = distillation_cost.distill_step(config, batch, place)
    measure.report(
        "sam_in_the_loop",
        about,
        compare_loops(step, subject, num_crops=batch_size, runs=runs),
        threads=torch.get_num_threads(),
        preset=preset,
        crop_px=crop_px,
        batch_size=batch_size,
        **subject.describe(),
    )


def compare_loops(
    step: Callable[[], None], subject: Subject, *, num_crops: int, runs: int
) -> list[measure.Row]:
    """The step alone, and after SAM has run on as many crops, by either side."""
    bench = subject.load()
    official, engine = bench.official(), bench.samprior()
    points = f"{subject.model}, {len(bench.crop.points)} points"
    sides: tuple[tuple[str, Callable[[Rgb], Any]], ...] = (
        ("official generator", official.generate),
        ("samprior's engine", engine),
    )
    # The rows alternate runs of seconds with runs of minutes: only the first needs a warm-up.
    step()
    return [
        everything.in_turn(
            "a stage-B step",
            step,
            f"a stage-B step with SAM in the loop ({name}, {points})",
            _after(step, segment, subject.photo, num_crops),
            bench=bench,
            runs=runs,
        )
        for name, segment in sides
    ]


def first_crop(batch: Batch) -> Rgb:
    """The first clean crop as bytes, (h, w, 3)."""
    crop = batch.clean[0].mul(255).round().clamp(0, 255).byte()
    return crop.permute(1, 2, 0).contiguous().cpu().numpy()


def _after(
    step: Callable[[], None], segment: Callable[[Rgb], Any], photo: Rgb, num_crops: int
) -> Callable[[], None]:
    def run() -> None:
        for _ in range(num_crops):
            segment(photo)
        step()

    return run


if __name__ == "__main__":
    main()
