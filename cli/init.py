"""`samprior init`: write a first configuration for a data set or a store."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from samprior.cli.options import (
    DATASETS,
    PathOption,
    PathOrUrlOption,
    completes,
    json_option,
    print_json,
)

if TYPE_CHECKING:
    from samprior.pipeline.datasets import Dataset


@click.command("init")
@click.argument("data", type=PathOrUrlOption)
@click.option(
    "--dataset",
    metavar="NAME",
    help="gopro, sensenoise, rain or folder; else detected.",
    shell_complete=completes(*DATASETS),
)
@click.option("--split", help="Split of a data set to train on.  [default: train, if there is one]")
@click.option("--variant", help="Which of several layouts of a root, such as blur_gamma.")
@click.option("--degraded-pattern", metavar="PATTERN", help="As for precompute.")
@click.option("--clean-pattern", metavar="PATTERN", help="As for precompute.")
@click.option("--validation", metavar="STORE", help="Store that is scored during training.")
@click.option(
    "-o",
    "--out",
    default="train.toml",
    show_default=True,
    type=PathOption,
    help="The file; none is overwritten.",
)
@json_option
def command(
    data: Path | str,
    dataset: str | None,
    split: str | None,
    variant: str | None,
    degraded_pattern: str | None,
    clean_pattern: str | None,
    validation: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Write a configuration for DATA, a store or the folder of a data set, with all keys explained.

    Which data set a folder holds is found out by its layout. No file is overwritten.

    \b
    samprior init stores/gopro
    samprior init GOPRO_Large --out gopro.toml
    samprior init my-data --degraded-pattern 'noisy/{key}.png' --clean-pattern 'clean/{key}.png'
    """
    from samprior.storage.errors import UsageError
    from samprior.storage.files import write_bytes
    from samprior.training.starting import begin_with_dataset, begin_with_store, commented_config

    if out.exists():
        raise UsageError(f"{out} is there already; name another file with --out, or remove it")
    of_dataset = (dataset, split, variant, degraded_pattern, clean_pattern)
    steps = []
    if _is_store(data):
        if any(of_dataset):
            raise UsageError(f"{data} is a store; --dataset and its options go with a folder")
        begun = begin_with_store(data)
    else:
        from samprior.pipeline.detect import precompute_command

        found = _find(Path(data), *of_dataset)
        begun = begin_with_dataset(
            found.name, found.root, found.describe(), smallest_px=found.smallest_px
        )
        patterns = {"degraded_pattern": degraded_pattern, "clean_pattern": clean_pattern}
        steps.append(precompute_command(found, begun.settings["data.train"], **patterns))
    settings = {**begun.settings, **({"data.validation": validation} if validation else {})}
    steps.append(f"samprior train --config {shlex.quote(str(out))}")
    text = commented_config(settings, about=[f"{begun.about}.", "", *steps])
    write_bytes(out, text.encode())
    if as_json:
        print_json({"out": out, "about": begun.about, "set": settings, "next": steps})
        return
    click.echo(f"{out}: {begun.about}")
    for step in steps:
        click.echo(f"  {step}")


def _is_store(data: Path | str) -> bool:
    """Whether a place is for `MaskStore.open`, whatever that will say of it."""
    return isinstance(data, str) or (data / "zarr.json").exists()


def _find(
    root: Path,
    dataset: str | None,
    split: str | None,
    variant: str | None,
    degraded_pattern: str | None,
    clean_pattern: str | None,
) -> "Dataset":
    from samprior.pipeline.datasets import find_dataset
    from samprior.pipeline.detect import ANY_PAIRS, detect_dataset

    if not any((dataset, variant, degraded_pattern, clean_pattern)):
        return detect_dataset(root, split=split)
    return find_dataset(
        dataset or ANY_PAIRS,
        root,
        split=split,
        variant=variant,
        degraded_pattern=degraded_pattern,
        clean_pattern=clean_pattern,
    )
