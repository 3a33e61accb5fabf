"""`samprior export`: write a store in another form."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from samprior.cli.options import PathOption, json_option, print_json
from samprior.cli.progress import progress

if TYPE_CHECKING:
    from samprior.storage import MaskStore
    from samprior.storage.exports import Progress


@click.command("export")
@click.argument("store", type=PathOption)
@click.option(
    "--to",
    type=click.Choice(["webdataset", "coco", "sa1b", "png"]),
    default="webdataset",
    show_default=True,
    help="Tars to train from; or files for other tools.",
)
@click.option(
    "--mask-format",
    type=click.Choice(["atoms", "rle"]),
    help="Masks in the tars: our arrays, or COCO run lengths as JSON.  [default: atoms]",
)
@click.option(
    "--images-per-tar", type=int, metavar="N", help="Images of a tar.  [default: the store's]"
)
@click.option(
    "--picture",
    type=click.Choice(["clean", "degraded"]),
    help="Picture of a pair that coco, sa1b and png get.  [default: clean]",
)
@click.argument("out", type=PathOption)
@json_option
def command(
    store: Path,
    to: str,
    mask_format: Literal["atoms", "rle"] | None,
    images_per_tar: int | None,
    picture: Literal["clean", "degraded"] | None,
    out: Path,
    as_json: bool,
) -> None:
    """Write a store as webdataset tars with an index, or for tools that read other formats.

    \b
    samprior export stores/gopro --to webdataset exports/gopro
    samprior export stores/gopro --to webdataset --mask-format rle exports/gopro-rle
    samprior export stores/gopro --to coco exports/gopro-coco
    samprior export stores/gopro --to sa1b exports/gopro-sa1b
    samprior export stores/gopro --to png exports/gopro-png --picture degraded

    coco writes annotations.json and images/, sa1b a JSON file beside each picture, png images/ and
    per picture a folder of masks/ as SAM's scripts/amg.py does. Run the same command again after
    an interruption.
    """
    from samprior.storage import MaskStore
    from samprior.storage.errors import UsageError
    from samprior.storage.survey import counted

    opened = MaskStore.open(store)
    is_tars = to == "webdataset"
    if picture and is_tars:
        raise UsageError("--picture goes with --to coco, sa1b and png; tars hold both pictures")
    if (mask_format or images_per_tar is not None) and not is_tars:
        raise UsageError(f"--mask-format and --images-per-tar go with --to webdataset, not {to}")
    with progress("exporting", "image") as advance:
        if is_tars:
            from samprior.storage.shards import export_webdataset

            tars = export_webdataset(
                opened,
                out,
                masks=mask_format or "atoms",
                images_per_tar=images_per_tar,
                progress=advance,
            )
        else:
            _interchange(opened, to, out, picture or "clean", advance)
    if as_json:
        files = list(tars) if is_tars else []
        print_json({"out": out, "to": to, "num_images": len(opened), "tars": files})
        return
    images = counted(len(opened), "image")
    if is_tars:
        num_bytes = sum(tar.stat().st_size for tar in tars)
        click.echo(f"{out}: {images} in {counted(len(tars), 'tar')}, {num_bytes / 1e6:.1f} MB")
    else:
        num_masks = sum(sum(receipt.num_masks) for receipt in opened.receipts.values())
        click.echo(f"{out}: {images} with {counted(num_masks, 'mask')}")


def _interchange(
    store: "MaskStore",
    to: str,
    out: Path,
    side: Literal["clean", "degraded"],
    advance: "Progress",
) -> None:
    from samprior.storage.interchange import export_coco, export_png, export_sa1b

    write = {"coco": export_coco, "sa1b": export_sa1b, "png": export_png}[to]
    write(store, out, side=side, progress=advance)
