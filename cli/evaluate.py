"""`samprior evaluate`: score a checkpoint on a dataset."""

from functools import partial
from pathlib import Path
from typing import Literal

import click

from samprior.cli.options import PathOption, dataset_options, open_dataset
from samprior.cli.progress import progress


@click.command("evaluate")
@click.argument("checkpoint", type=PathOption)
@dataset_options
@click.option(
    "--space",
    type=click.Choice(["rgb", "y"]),
    help="Scored channels; default: y for rain, rgb otherwise.",
)
@click.option("--border-px", default=0, show_default=True, help="Border left out of the scores.")
@click.option("--tile-px", type=int, help="Restore in tiles of this side; default: whole images.")
@click.option("--overlap-px", default=32, show_default=True, help="Overlap of tiles.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--network", help="Architecture of an official .pth checkpoint.")
@click.option("--preset", help="Shape of an official .pth checkpoint, such as gopro_w32.")
@click.option("--out", type=PathOption, help="Folder for scores.csv, scores.json and report.html.")
def command(  # one argument per option
    checkpoint: Path,
    dataset: str,
    root: Path,
    split: str | None,
    variant: str | None,
    degraded_pattern: str | None,
    clean_pattern: str | None,
    space: Literal["rgb", "y"] | None,
    border_px: int,
    tile_px: int | None,
    overlap_px: int,
    device: str,
    network: str | None,
    preset: str | None,
    out: Path | None,
) -> None:
    """Restore every picture of a dataset and score it before and after.

    \b
    samprior evaluate runs/gopro --dataset gopro --root GOPRO_Large --split test
    samprior evaluate NAFNet-GoPro-width32.pth --network nafnet --preset gopro_w32 \\
        --dataset gopro --root GOPRO_Large --split test --out scores
    """
    from samprior.pipeline.datasets import require_good_pairs
    from samprior.training.checkpoint import load_network
    from samprior.training.evaluate import evaluate, write_evaluation
    from samprior.training.report import write_report
    from samprior.training.restore import pick_device, restore

    found = open_dataset(dataset, root, split, variant, degraded_pattern, clean_pattern)
    require_good_pairs(found)
    model, record = load_network(checkpoint, name=network, preset=preset)
    pairs = [(pair.key, pair.degraded, pair.clean) for pair in found.pairs]
    chosen = pick_device(device)
    with progress("evaluating", "image") as advance:
        result = evaluate(
            model,
            pairs,
            device=chosen,
            space=space or ("y" if found.name == "rain" else "rgb"),
            border_px=border_px,
            tile_px=tile_px,
            overlap_px=overlap_px,
            progress=advance,
        )
    mean = result.mean()
    click.echo(f"PSNR {mean.psnr_before_db:7.3f} -> {mean.psnr_after_db:7.3f} dB")
    click.echo(f"SSIM {mean.ssim_before:7.4f} -> {mean.ssim_after:7.4f}")
    click.echo(f"({result.protocol})")
    if out is not None:
        write_evaluation(result, out, checkpoint=str(checkpoint), made=record)
        again = partial(restore, model, device=chosen, tile_px=tile_px, overlap_px=overlap_px)
        split_text = f" {found.split}" if found.split else ""
        with progress("drawing the report", "image") as advance:
            write_report(
                result,
                pairs,
                out / "report.html",
                restorer=again,
                checkpoint=checkpoint,
                record=record,
                dataset=f"{found.name}{split_text}: {found.describe()}",
                progress=advance,
            )
        click.echo(f"{out}/scores.csv, {out}/scores.json, {out}/report.html")
