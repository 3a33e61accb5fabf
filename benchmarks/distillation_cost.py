"""What a step of distillation (stage B) costs against a plain training step.

    python benchmarks/distillation_cost.py [--network nafnet --preset gopro_w64] [--device cuda]

The batch is read beforehand: this is the cost of the networks, SPF, SPD and SGR, not of loading.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import measure
import numpy as np
import torch

from samprior.pipeline import build_segmenter
from samprior.pipeline.synthetic import camera_noise
from samprior.training.config import TrainConfig
from samprior.training.data import Batch, Crops
from samprior.training.loader import CropLoader
from samprior.training.loop import StageRun
from samprior.training.networks import PRESETS
from samprior.training.restore import pick_device
from samprior.training.stages import base_stage, build_networks, build_relation, distill_stage

PUBLISHED = {
    "nafnet": "gopro_w32",
    "restormer": "deraining",
    "uformer": "b",
    "rcdnet": "rcdnet",
    "efficientderain": "k3",
}
"""A preset that the network's authors published, for each network."""


@click.command()
@click.option("--network", "names", multiple=True, help="Default: all that samprior has.")
@click.option("--preset", help="Default: a size that the network's authors published.")
@click.option("--crop-px", default=128, show_default=True)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--runs", default=5, show_default=True, help="Pairs of runs for each row.")
def main(
    names: tuple[str, ...],
    preset: str | None,
    crop_px: int,
    batch_size: int,
    device: str,
    runs: int,
) -> None:
    """Measure, print, and write benchmarks/results/distillation_cost.json."""
    place = pick_device(device)
    gpu = torch.cuda.get_device_name() if place.type == "cuda" else None
    about = measure.machine("torch", device=gpu)
    rows = []
    presets = {name: preset or PUBLISHED[name] for name in names or PRESETS}
    for name, size in presets.items():
        config = TrainConfig.model_validate(
            {
                "out": "unused",
                "data": {"train": "unused", "crop_px": crop_px, "batch_size": batch_size},
                "network": {"name": name, "preset": size},
                "loss": {"analyzer": "random-vgg"},
            }
        )
        batch = read_batch(config, place)
        rows += compare_steps(config, batch, place, runs=runs, name=f"{name} {size}")
    measure.report(
        "distillation_cost",
        about,
        rows,
        threads=torch.get_num_threads(),
        presets=presets,
        crop_px=crop_px,
        batch_size=batch_size,
    )


def compare_steps(
    config: TrainConfig, batch: Batch, place: torch.device, *, runs: int, name: str = ""
) -> list[measure.Row]:
    """A plain step against one of stage B, with and without SGR."""
    of = f" of {name}" if name else ""
    return [
        measure.compare(
            f"a plain step{of}", plain_step(config, batch, place),
            f"a stage-B step{of}", distill_step(config, batch, place),
            runs=runs,
        ),
        measure.compare(
            f"a plain step{of}", plain_step(config, batch, place),
            f"a stage-B step{of} without SGR", distill_step(without_sgr(config), batch, place),
            runs=runs,
        ),
    ]  # fmt: skip


def read_batch(config: TrainConfig, place: torch.device) -> Batch:
    """Crops of noisy photographs with their superpixel masks."""
    rng = np.random.default_rng(0)
    photos = measure.photographs()
    segment = build_segmenter("superpixel")
    with tempfile.TemporaryDirectory() as folder:
        pictures = [(camera_noise(photo, rng), photo) for photo in photos]
        store = measure.write_store(Path(folder), pictures, [segment(photo) for photo in photos])
        crops = Crops(store=store, crop_px=config.data.crop_px, seed=0)
        loader = CropLoader(
            crops=crops, batch_size=config.data.batch_size, strides=(4, 8), threads=0
        )
        return next(iter(loader)).to(place)


def plain_step(config: TrainConfig, batch: Batch, place: torch.device) -> Callable[[], None]:
    """One optimizer step of network 1 alone."""
    network, _ = build_networks(config)
    return _step(StageRun(base_stage(config, network), config, place), batch)


def distill_step(config: TrainConfig, batch: Batch, place: torch.device) -> Callable[[], None]:
    """One optimizer step of network 1 with SPD, and with SGR if it has a weight."""
    network, teacher = build_networks(config)
    stage = distill_stage(config, network, teacher, build_relation(config.loss))
    return _step(StageRun(stage, config, place), batch)


def without_sgr(config: TrainConfig) -> TrainConfig:
    """The same settings with SGR's weight at 0."""
    return config.model_copy(update={"loss": config.loss.model_copy(update={"lambda_sgr": 0.0})})


def _step(run: StageRun, batch: Batch) -> Callable[[], None]:
    def step() -> None:
        run.advance(batch)
        if run.device.type == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
