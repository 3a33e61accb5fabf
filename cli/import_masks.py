"""`samprior import-masks`: make a store of masks that exist already."""

from pathlib import Path

import click

from samprior.cli.options import (
    DATASETS,
    PathOption,
    completes,
    json_option,
    open_dataset,
    print_json,
)
from samprior.cli.precompute import report
from samprior.cli.progress import progress


@click.command("import-masks")
@click.option("--amg", type=PathOption, help="Folder that SAM's scripts/amg.py wrote.")
@click.option("--image", type=PathOption, help="The picture of that folder, if it is only one.")
@click.option("--images", type=PathOption, help="Pictures that --amg has a folder each for.")
@click.option("--sa1b", type=PathOption, help="Folder of SA-1B: sa_N.jpg beside sa_N.json.")
@click.option("--coco", type=PathOption, help="COCO instances file; its pictures are in --images.")
@click.option(
    "--dataset",
    metavar="NAME",
    help="Dataset whose images --amg has a folder each for.",
    shell_complete=completes(*DATASETS),
)
@click.option("--root", type=PathOption, help="That dataset's folder.")
@click.option("--split", help="That dataset's split.")
@click.option("--variant", help="That dataset's layout, where a root has several.")
@click.option("--degraded-pattern", metavar="PATTERN", help="As for precompute.")
@click.option("--clean-pattern", metavar="PATTERN", help="As for precompute.")
@click.option("-o", "--out", required=True, type=PathOption, help="The store's folder.")
@click.option("--allow-quarantine", is_flag=True, help="Exit 0 even if images were unusable.")
@json_option
def command(  # one argument per option
    amg: Path | None,
    image: Path | None,
    images: Path | None,
    sa1b: Path | None,
    coco: Path | None,
    dataset: str | None,
    root: Path | None,
    split: str | None,
    variant: str | None,
    degraded_pattern: str | None,
    clean_pattern: str | None,
    out: Path,
    allow_quarantine: bool,
    as_json: bool,
) -> None:
    """Make a store of ready masks, bit for bit.

    With --dataset, AMG/<key> or AMG/<last part of the key> is the folder of each clean image and
    the store can be trained on. Images alone make a store to look at and to export.

    \b
    samprior import-masks --amg out/dog --image dog.jpg --out stores/dog
    samprior import-masks --amg masks --images images --out stores/mine
    samprior import-masks --amg out --dataset rain --root Rain13K --split train --out stores/rain
    samprior import-masks --sa1b sa_000020 --out stores/sa1b
    samprior import-masks --coco instances_val2017.json --images val2017 --out stores/coco
    """
    from samprior.pipeline.imports import (
        amg_dataset,
        amg_image,
        amg_pictures,
        coco_pictures,
        sa1b_folder,
    )
    from samprior.pipeline.precompute import import_pictures, precompute
    from samprior.storage.errors import UsageError

    of_dataset = (root, split, variant, degraded_pattern, clean_pattern)
    values = {"amg": amg, "image": image, "images": images, "sa1b": sa1b, "coco": coco}
    given = {name for name, value in values.items() if value}
    given |= {"dataset"} if dataset or any(of_dataset) else set()
    with progress("importing", "image") as advance:
        if given == {"amg", "dataset"} and amg and dataset and root:
            found = open_dataset(dataset, root, *of_dataset[1:])
            maker = amg_dataset(amg, found.pairs)
            result = precompute(found, out, maker, workers=0, progress=advance)
        elif given == {"amg", "image"} and amg and image:
            result = import_pictures(*amg_image(amg, image), out=out, progress=advance)
        elif given == {"amg", "images"} and amg and images:
            result = import_pictures(*amg_pictures(amg, images), out=out, progress=advance)
        elif given == {"sa1b"} and sa1b:
            result = import_pictures(*sa1b_folder(sa1b), out=out, progress=advance)
        elif given == {"coco", "images"} and coco and images:
            result = import_pictures(*coco_pictures(coco, images), out=out, progress=advance)
        else:
            raise UsageError(
                "give --amg with --image, or with --images, or with --dataset and --root; or "
                "--sa1b alone; or --coco with --images"
            )
    if as_json:
        print_json({"out": out, **vars(result)})
    report(result, out, allow_quarantine=allow_quarantine, as_json=as_json)
