"""What a step of distillation (stage B) costs against a plain training step.

    python benchmarks/distillation_cost.py [--preset gopro_w32] [--crop-px 256] [--device cuda]

The batch is read beforehand: this is the cost of the networks, SPF, SPD and SGR, not of loading.
"""

import tempfile
from pathlib import Path

import click
import measure
import numpy as np
import torch

from samprior.pipeline import build_segmenter
from samprior.pipeline.synthetic import camera_noise
from samprior.storage import MaskStore, Record
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard
from samprior.training.config import TrainConfig
from samprior.training.data import Crops
from samprior.training.loop import StageRun
from samprior.training.restore import pick_device
from samprior.training.stages import base_stage, build_networks, build_relation, distill_stage


@click.command()
@click.option("--preset", default="tiny", show_default=True)
@click.option("--crop-px", default=128, show_default=True)
@click.option("--batch-size", default=4, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--runs", default=7, show_default=True)
def main(preset: str, crop_px: int, batch_size: int, device: str, runs: int) -> None:
    """Measure, print, and write benchmarks/results/distillation_cost.json."""
    place = pick_device(device)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder))
        config = TrainConfig.model_validate(
            {
                "out": "unused",
                "data": {"train": folder, "crop_px": crop_px, "batch_size": batch_size},
                "network": {"preset": preset},
                "loss": {"analyzer": "random-vgg"},
            }
        )
        crops = Crops(store=store, crop_px=crop_px, seed=0)
        batch = crops.batch(0, batch_size, strides=(4, 8)).to(place)
    network, teacher = build_networks(config)
    plain = StageRun(base_stage(config, network), config, place)
    other, teacher = build_networks(config)
    distill = StageRun(
        distill_stage(config, other, teacher, build_relation(config.loss)), config, place
    )
    sgr_free = config.model_copy(update={"loss": config.loss.model_copy(update={"lambda_sgr": 0})})
    third, teacher = build_networks(sgr_free)
    without_sgr = StageRun(distill_stage(sgr_free, third, teacher, None), sgr_free, place)

    def step(run: StageRun) -> None:
        run.advance(batch)
        if place.type == "cuda":
            torch.cuda.synchronize()

    rows = [
        measure.against(
            "plain step", lambda: step(plain), name, lambda run=run: step(run), runs=runs
        )
        for name, run in (("stage-B step", distill), ("stage-B step without SGR", without_sgr))
    ]
    for row in rows:
        measure.show(row)
    measure.write(
        "distillation_cost",
        rows,
        machine=measure.machine("torch"),
        device=torch.cuda.get_device_name() if place.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        preset=preset,
        crop_px=crop_px,
        batch_size=batch_size,
    )


def write_store(root: Path) -> MaskStore:
    """Noisy photographs with their superpixel masks."""
    import skimage.data

    rng = np.random.default_rng(0)
    photos = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea")]
    segment = build_segmenter("superpixel")
    count = len(photos)
    header = Header(num_images=count, num_shards=1, images_per_shard=count, paired=True, made_of={})
    write_header(root, header)
    records = [
        Record(str(number), camera_noise(photo, rng), photo, segment(photo))
        for number, photo in enumerate(photos)
    ]
    write_shard(root, 0, records, paired=True)
    return MaskStore.open(root)


if __name__ == "__main__":
    main()
