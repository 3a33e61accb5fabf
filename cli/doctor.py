"""`samprior doctor`: say what this machine has and what is missing."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import click

LIBRARIES = ("torch", "torchvision", "segment-anything", "ray", "zarr", "webdataset", "numpy")


@click.command("doctor")
def command() -> None:
    """Say what this machine has, what is missing, and what to do about it.

    \b
    samprior doctor
    """
    ok = True
    for good, line in _findings():
        click.echo(f"{'ok ' if good else 'NO '} {line}")
        ok = ok and good
    if not ok:
        raise click.exceptions.Exit(1)


def _findings() -> Iterator[tuple[bool, str]]:
    yield True, f"Python {platform.python_version()}, samprior {version('samprior')}"
    for library in LIBRARIES:
        try:
            yield True, f"{library} {version(library)}"
        except PackageNotFoundError:
            yield False, f"{library} is not installed; run: pip install -e ."
    yield True, f"{os.cpu_count()} CPU cores, {_memory_gib():.1f} GiB memory"
    yield True, _gpu()
    yield from _cache()


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no GPU: SAM ViT-H will be slow; superpixel needs none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{len(names)} GPU: {', '.join(names)}"


def _cache() -> Iterator[tuple[bool, str]]:
    from samprior.pipeline.checkpoints import CHECKPOINTS, default_cache

    folder = default_cache()
    place = folder
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place).free / 1e9
    yield os.access(place, os.W_OK), f"cache {folder}, {free_gb:.0f} GB free"
    for model, checkpoint in CHECKPOINTS.items():
        there = (folder / checkpoint.file).exists()
        yield True, f"SAM {model}: {'in the cache' if there else 'not yet downloaded'}"
