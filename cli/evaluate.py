"""`samprior evaluate`: score checkpoints on a dataset."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from samprior.cli.options import (
    NETWORKS,
    PathOption,
    completes,
    datasets_options,
    json_option,
    open_dataset,
    print_json,
    tlc_options,
    tlc_window,
)
from samprior.cli.progress import progress

if TYPE_CHECKING:
    import torch

    from samprior.training.evaluate import Measure


@click.command("evaluate")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", type=PathOption)
@datasets_options
@click.option(
    "--protocol",
    metavar="NAME",
    help="gopro, sensenoise, rain or rain-matlab; default: the dataset's, RGB for folders.",
)
@click.option("--space", type=click.Choice(["rgb", "y", "y8"]), help="Scored channels.")
@click.option("--border-px", default=0, show_default=True, help="Border left out of the scores.")
@click.option("--tile-px", type=int, help="Restore in tiles of this side; default: whole images.")
@click.option("--overlap-px", default=32, show_default=True, help="Overlap of tiles.")
@tlc_options
@click.option("--lpips", is_flag=True, help="Score LPIPS, too (needs samprior[lpips]).")
@click.option(
    "--consistency",
    metavar="SEGMENTER",
    help="superpixel or sam: compare masks with those of the clean pictures.",
)
@click.option("--sam-model", help="SAM for --consistency.  [default: vit_h]")
@click.option("--sam-checkpoint", type=PathOption, help="SAM's .pth file; else it is downloaded.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of that segmenter."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option(
    "--network",
    help="Architecture of an official .pth file, or your own factory.",
    shell_complete=completes(*NETWORKS),
)
@click.option("--preset", help="Shape of an official .pth checkpoint, such as gopro_w32.")
@click.option(
    "-o", "--out", type=PathOption, help="Folder for tables (CSV, JSON) and pages (HTML)."
)
@json_option
def command(  # one argument per option
    checkpoints: tuple[Path, ...],
    dataset: str,
    root: Path,
    split: tuple[str, ...],
    variant: str | None,
    degraded_pattern: str | None,
    clean_pattern: str | None,
    protocol: str | None,
    space: Literal["rgb", "y", "y8"] | None,
    border_px: int,
    tile_px: int | None,
    overlap_px: int,
    tlc: bool,
    tlc_px: int | None,
    lpips: bool,
    consistency: str | None,
    sam_model: str | None,
    sam_checkpoint: Path | None,
    settings: tuple[str, ...],
    device: str,
    network: str | None,
    preset: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Restore every picture of a dataset and score it before and after.

    Several checkpoints are compared image by image with the first. --split may be repeated.

    \b
    samprior evaluate runs/gopro --dataset gopro --root GOPRO_Large --split test
    samprior evaluate NAFNet-GoPro-width32.pth --network nafnet --preset gopro_w32 --tlc \\
        --dataset gopro --root GOPRO_Large --split test --out scores
    samprior evaluate runs/rain/control runs/rain --dataset rain --root Rain13K \\
        --split test/Rain100L --split test/Rain100H --out scores
    """
    from samprior.pipeline.datasets import require_good_pairs
    from samprior.training.evaluate import space_of
    from samprior.training.restore import pick_device
    from samprior.training.scoring import Rules, Split, score_checkpoints

    wanted = space or space_of(protocol, dataset=dataset)
    splits = []
    for name in split or (None,):
        found = open_dataset(dataset, root, name, variant, degraded_pattern, clean_pattern)
        require_good_pairs(found)
        pairs = [(pair.key, pair.degraded, pair.clean) for pair in found.pairs]
        title = f"{found.name} {found.split or ''}".rstrip()
        splits.append(Split(found.split or "", pairs, f"{title}: {found.describe()}"))
    chosen = pick_device(device)
    rules = Rules(
        device=chosen,
        space=wanted,
        border_px=border_px,
        tile_px=tile_px,
        overlap_px=overlap_px,
        tlc_px=tlc_window(tlc, tlc_px),
        measures=[
            *_lpips(lpips, chosen),
            *_consistency(consistency, settings, sam_model, sam_checkpoint, device),
        ],
    )
    summary, files = score_checkpoints(
        checkpoints,
        splits,
        rules=rules,
        progress=progress,
        network=network,
        preset=preset,
        out=out,
    )
    if as_json:
        print_json({**json.loads(summary.to_json()), "files": files})
        return
    for line in summary.lines():
        click.echo(line)
    if files:
        click.echo(", ".join(map(str, files)))


def _lpips(is_wanted: bool, device: "torch.device") -> "list[Measure]":
    if not is_wanted:
        return []
    from samprior.training.perceptual import LpipsMeasure, build_lpips

    return [LpipsMeasure(build_lpips(), device=device)]


def _consistency(
    segmenter: str | None,
    settings: tuple[str, ...],
    model: str | None,
    checkpoint: Path | None,
    device: str,
) -> "list[Measure]":
    from samprior.storage.errors import UsageError

    if segmenter is None:
        if settings or checkpoint is not None or model is not None:
            raise UsageError(
                "--set, --sam-model and --sam-checkpoint are for the segmenter of --consistency: "
                "add --consistency sam, or leave them out"
            )
        return []
    model = model or "vit_h"
    from samprior.pipeline.makers import segmenter_maker
    from samprior.storage.pages import told_segmenter
    from samprior.training.consistency import ConsistencyMeasure

    with progress(f"downloading {model}", "byte") as download:
        maker = segmenter_maker(
            segmenter,
            settings=settings,
            model=model,
            checkpoint=checkpoint,
            device=None if device == "auto" else device,
            progress=lambda done, total: download(done, total or done),
        )
    name = told_segmenter({"segmenter": maker.describe()})
    return [ConsistencyMeasure(maker.settings.build(), name=name)]
