"""`samprior import-masks`: make a store of masks that exist already."""

from pathlib import Path

import click

from samprior.cli.options import PathOption, open_dataset
from samprior.cli.precompute import report
from samprior.cli.progress import progress


@click.command("import-masks")
@click.option("--amg", type=PathOption, help="Folder that SAM's scripts/amg.py wrote.")
@click.option("--image", type=PathOption, help="The picture of that folder, if it is only one.")
@click.option("--sa1b", type=PathOption, help="Folder of SA-1B: sa_N.jpg beside sa_N.json.")
@click.option("--dataset", metavar="NAME", help="Dataset whose images --amg has a folder each for.")
@click.option("--root", type=PathOption, help="That dataset's folder.")
@click.option("--split", help="That dataset's split.")
@click.option("--variant", help="That dataset's layout, where a root has several.")
@click.option("--degraded-pattern", metavar="PATTERN", help="As for precompute.")
@click.option("--clean-pattern", metavar="PATTERN", help="As for precompute.")
@click.option("--out", required=True, type=PathOption, help="The store's folder.")
@click.option("--allow-quarantine", is_flag=True, help="Exit 0 even if images were unusable.")
def command(  # one argument per option
    amg: Path | None,
    image: Path | None,
    sa1b: Path | None,
    dataset: str | None,
    root: Path | None,
    split: str | None,
    variant: str | None,
    degraded_pattern: str | None,
    clean_pattern: str | None,
    out: Path,
    allow_quarantine: bool,
) -> None:
    """Make a store of ready masks, bit for bit.

    With --dataset, AMG/<key> or AMG/<last part of the key> is the folder of each clean image and
    the store can be trained on. Images alone make a store to look at and to export.

    \b
    samprior import-masks --amg out/dog --image dog.jpg --out stores/dog
    samprior import-masks --sa1b sa_000020 --out stores/sa1b
    samprior import-masks --amg out --dataset rain --root Rain13K --split train --out stores/rain
    """
    from samprior.pipeline.makers import amg_dataset, amg_image, sa1b_folder
    from samprior.pipeline.precompute import import_pictures, precompute
    from samprior.storage.errors import UsageError

    of_dataset = (root, split, variant, degraded_pattern, clean_pattern)
    with progress("importing", "image") as advance:
        if amg and dataset and root and not (image or sa1b):
            found = open_dataset(dataset, root, *of_dataset[1:])
            maker = amg_dataset(amg, found.pairs)
            result = precompute(found, out, maker, workers=0, progress=advance)
        elif amg and image and not (sa1b or dataset or any(of_dataset)):
            pairs, one = amg_image(amg, image)
            result = import_pictures(pairs, out, one, progress=advance)
        elif sa1b and not (amg or image or dataset or any(of_dataset)):
            pairs, many = sa1b_folder(sa1b)
            result = import_pictures(pairs, out, many, progress=advance)
        else:
            raise UsageError(
                "give --amg with --image, or --amg with --dataset and --root, or --sa1b alone"
            )
    report(result, out, allow_quarantine=allow_quarantine)
