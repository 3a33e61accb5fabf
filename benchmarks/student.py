"""Latency of a distilled student against the plain network of its kind: nothing was added to it.

    python benchmarks/student.py [--network nafnet --preset gopro_w32] [--device cuda]

The student comes from a real run of all stages, of one step each; what it has learnt plays no part.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import measure
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from samprior.pipeline import build_segmenter
from samprior.pipeline.synthetic import camera_noise
from samprior.training.checkpoint import load_network
from samprior.training.config import TrainConfig
from samprior.training.networks import PRESETS, build_network
from samprior.training.restore import pick_device
from samprior.training.run import train


@click.command()
@click.option("--network", "names", multiple=True, help="Default: all that samprior has.")
@click.option("--preset", default="tiny", show_default=True)
@click.option("--image-px", default=256, show_default=True, help="Side of the image.")
@click.option("--device", default="auto", show_default=True)
@click.option("--runs", default=15, show_default=True, help="Pairs of runs for each row.")
def main(names: tuple[str, ...], preset: str, image_px: int, device: str, runs: int) -> None:
    """Measure, print, and write benchmarks/results/student.json."""
    place = pick_device(device)
    gpu = torch.cuda.get_device_name() if place.type == "cuda" else None
    about = measure.machine("torch", device=gpu)
    image = torch.rand(1, 3, image_px, image_px, device=place)
    rows, parameters, macs = [], {}, {}
    for name in names or tuple(PRESETS):
        plain = build_network(name, preset=preset).eval()
        student = distilled(name, preset)
        parameters[name] = same_shape(plain, student)
        macs[name] = {"plain": macs_of(plain, image), "distilled": macs_of(student, image)}
        rows.append(
            measure.compare(
                f"{name} {preset}, plain", restoring(plain, image),
                f"{name} {preset}, distilled", restoring(student, image),
                runs=runs,
            )
        )  # fmt: skip
    measure.report(
        "student",
        about,
        rows,
        threads=torch.get_num_threads(),
        preset=preset,
        image_px=image_px,
        parameters=parameters,
        macs=macs,
    )


def distilled(name: str, preset: str) -> nn.Module:
    """The network that a run with every stage ships."""
    rng, segment = np.random.default_rng(0), build_segmenter("superpixel")
    photos = [photo[:64, :64] for photo in measure.photographs()]
    with tempfile.TemporaryDirectory() as folder:
        pictures = [(camera_noise(photo, rng), photo) for photo in photos]
        store = Path(folder, "store")
        measure.write_store(store, pictures, [segment(photo) for photo in photos])
        config = TrainConfig.model_validate(
            {
                "out": Path(folder, "run"),
                "mode": "distill",
                "device": "cpu",
                "data": {"train": str(store), "crop_px": 32, "batch_size": 1},
                "network": {"name": name, "preset": preset},
                "loss": {"analyzer": "random-vgg"},
                "stages": {"base": 1, "fusion": 1, "distill": 1},
            }
        )
        return load_network(train(config).shipped)[0]


def same_shape(plain: nn.Module, student: nn.Module) -> int:
    """The parameters of both; an error unless their keys and shapes are equal."""
    ours, theirs = (
        {key: value.shape for key, value in network.state_dict().items()}
        for network in (student, plain)
    )
    if ours != theirs:
        raise SystemExit("the student has other keys or shapes than the plain network")
    return sum(parameter.numel() for parameter in student.parameters())


def macs_of(network: nn.Module, image: torch.Tensor) -> int:
    """Multiply-accumulates of one forward pass, as PyTorch counts them."""
    with torch.inference_mode(), FlopCounterMode(display=False) as seen:
        network.to(image.device)(image)
    return int(seen.get_total_flops()) // 2


def restoring(network: nn.Module, image: torch.Tensor) -> Callable[[], None]:
    """One forward pass."""
    network = network.to(image.device)

    @torch.inference_mode()
    def restore() -> None:
        network(image)
        if image.device.type == "cuda":
            torch.cuda.synchronize()

    return restore


if __name__ == "__main__":
    main()
