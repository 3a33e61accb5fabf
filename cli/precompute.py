"""`samprior precompute`: segment a dataset once and keep the masks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from samprior.cli.job_view import job_view
from samprior.cli.options import (
    PathOption,
    PathOrUrlOption,
    completes,
    crew_options,
    dataset_options,
    open_dataset,
    print_json,
)
from samprior.cli.progress import progress

if TYPE_CHECKING:
    from samprior.pipeline.job import JobResult
    from samprior.pipeline.makers import Segmented
    from samprior.pipeline.plan import Source
    from samprior.pipeline.targets import Target


@click.command("precompute", short_help="Segment a dataset once and keep all masks.")
@dataset_options
@click.option(
    "-o",
    "--out",
    required=True,
    type=PathOrUrlOption,
    help="The store's folder, or its s3://, gs:// or az:// URL.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["zarr", "webdataset"]),
    default="zarr",
    show_default=True,
    help="A store, or tars to stream from.",
)
@click.option(
    "--segmenter",
    default="sam",
    show_default=True,
    help="sam or superpixel.",
    shell_complete=completes("sam", "superpixel"),
)
@click.option("--model", "--sam-model", "model", help="vit_h, vit_l or vit_b.  [default: vit_h]")
@click.option(
    "--checkpoint",
    "--sam-checkpoint",
    "checkpoint",
    type=PathOption,
    help="SAM's .pth file; else it is downloaded.",
)
@click.option("--device", help="auto, cpu, cuda, cuda:1 ...  [default: auto]")
@click.option("--engine", help="fast or official (the reference).  [default: fast]")
@click.option("--precision", help="float32, bfloat16 or float16.  [default: float32]")
@click.option(
    "--source",
    metavar="SIDE",
    default="clean",
    show_default=True,
    help="What is segmented: clean, degraded, or a FOLDER of restored pictures.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Segmenter setting, such as points_per_side=16.",
)
@click.option(
    "--images",
    type=click.Choice(["stored", "reference"]),
    default="stored",
    show_default=True,
    help="Keep the pictures, or only where they are.",
)
@click.option(
    "--masks", default="main", metavar="NAME", help="Add a further mask set to a complete store."
)
@click.option("--append", is_flag=True, help="Take images that the dataset has got since.")
@click.option("--images-per-shard", type=int, help="Images of a shard.  [default: 32]")
@click.option("--workers", type=int, help="Ray workers; 0 runs without Ray.")
@crew_options
@click.option("--retry-quarantined", is_flag=True, help="Try quarantined images again.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines (docs/jobs.md).")
@click.option("--dry-run", is_flag=True, help="Only say what it would take, from three probes.")
@click.option("--allow-quarantine", is_flag=True, help="Exit 0 even if images were unusable.")
def command(  # one argument per option
    dataset: str,
    root: Path,
    split: str | None,
    variant: str | None,
    degraded_pattern: str | None,
    clean_pattern: str | None,
    out: Path | str,
    form: Literal["zarr", "webdataset"],
    segmenter: str,
    model: str | None,
    checkpoint: Path | None,
    device: str | None,
    engine: str | None,
    precision: str | None,
    source: str,
    settings: tuple[str, ...],
    images: Literal["stored", "reference"],
    masks: str,
    append: bool,
    images_per_shard: int | None,
    workers: int | None,
    address: str | None,
    gpus_per_worker: float | None,
    cpus_per_worker: float | None,
    image_timeout: float | None,
    retry_quarantined: bool,
    as_json: bool,
    dry_run: bool,
    allow_quarantine: bool,
) -> None:
    """Segment every image of a dataset and keep the masks in a store.

    Run the same command again after any interruption: finished shards are kept. Ctrl-C and SIGTERM
    end it cleanly; `samprior status` says how far it is.

    \b
    samprior precompute --dataset gopro --root GOPRO_Large --split train --out stores/gopro
    samprior precompute --dataset rain --root Rain13K --split train --out stores/rain --dry-run
    samprior precompute --dataset folder --root my-data --out stores/mine \\
        --degraded-pattern 'noisy/{key}.png' --clean-pattern 'clean/{key}.png' \\
        --segmenter superpixel
    samprior precompute --dataset rain --root Rain13K --split train --out tars/rain \\
        --format webdataset
    samprior precompute --dataset gopro --root GOPRO_Large --split train --out stores/gopro \\
        --masks blurred --source degraded
    samprior precompute --dataset rain --root Rain13K --split train --out stores/rain \\
        --masks restored --source restored/rain
    samprior precompute --dataset rain --root Rain13K --split train --out s3://bucket/stores/rain

    Training and the other commands take a store. Tars are for training programs of your own; they
    are those that `samprior export` would write.
    """
    crew: dict[str, Any] = {
        "workers": workers,
        "address": address,
        "gpus_per_worker": gpus_per_worker,
        "cpus_per_worker": cpus_per_worker,
        "image_timeout_s": image_timeout,
    }
    sam = {
        "model": model,
        "checkpoint": checkpoint and str(checkpoint.absolute()),
        "device": None if device == "auto" else device,
        "engine": engine,
        "precision": precision,
    }
    with job_view(f"segmenting ({segmenter})", as_json=as_json) as view:
        from samprior.pipeline.crew import Crew
        from samprior.pipeline.job_record import JobRecord
        from samprior.pipeline.precompute import plan_target, precompute
        from samprior.pipeline.source_folder import maker_of_source

        chosen = Crew(**crew)
        found = open_dataset(dataset, root, split, variant, degraded_pattern, clean_pattern)
        given = {name: value for name, value in sam.items() if value}
        maker, side = maker_of_source(_maker(segmenter, settings, given), found, source)
        wanted: dict[str, Any] = {
            "form": form,
            "source": side,
            "images": images,
            "masks": masks,
            "append": append,
            "images_per_shard": images_per_shard,
        }
        if dry_run:
            target = plan_target(found, out, maker, **wanted)
            _dry_run(target, maker, side, out=out, as_json=as_json)
            return
        record = JobRecord(
            dataset=dataset,
            root=str(found.root),
            split=split,
            variant=variant,
            degraded_pattern=degraded_pattern,
            clean_pattern=clean_pattern,
            segmenter=segmenter,
            **given,
            settings=settings,
            source=source if side != "folder" else str(Path(source).absolute()),
            form=form,
            images=images,
            masks=masks,
            images_per_shard=images_per_shard,
        )
        result = precompute(
            found,
            out,
            maker,
            **wanted,
            workers=chosen,
            retry_quarantined=retry_quarantined,
            record=record,
            listen=view,
        )
    view.finished(result)
    idle = "nothing to append" if append else "nothing to do"
    where = out if masks == "main" else f"{out}, masks {masks}"
    report(result, where, allow_quarantine=allow_quarantine, idle=idle, as_json=as_json)


def _maker(segmenter: str, settings: tuple[str, ...], sam: dict[str, Any]) -> "Segmented":
    """The maker of masks; `sam` has the options for SAM that were given."""
    from samprior.pipeline.makers import segmenter_maker
    from samprior.storage.errors import UsageError

    if segmenter != "sam" and sam:
        raise UsageError(f"--{next(iter(sam))} goes with SAM, not with {segmenter}")
    if "checkpoint" in sam:
        sam = {**sam, "checkpoint": Path(sam["checkpoint"])}
    with progress(f"downloading {sam.get('model', 'vit_h')}", "byte") as download:
        return segmenter_maker(
            segmenter,
            settings=settings,
            progress=lambda done, total: download(done, total or done),
            **sam,
        )


def report(
    result: "JobResult",
    out: Path | str,
    *,
    allow_quarantine: bool,
    idle: str = "nothing to do",
    as_json: bool = False,
) -> None:
    """Print how a job ended; exit with 1 when images were quarantined and that isn't allowed.

    `idle` is said of a job that found all shards finished; with `as_json` nothing goes to stdout.
    """
    from samprior.storage.survey import counted

    written = result.shards_written
    images, shards = counted(result.num_images, "image"), counted(result.num_shards, "shard")
    if not as_json:
        click.echo(
            f"{out}: {images} in {shards}, {result.stored_bytes / 1e6:.1f} MB; "
            + (f"{counted(written, 'shard')} written now" if written else idle)
        )
    if not result.quarantined:
        return
    click.echo(f"{counted(len(result.quarantined), 'image')} quarantined:", err=True)
    for key, reason in result.quarantined.items():
        click.echo(f"  {key}: {reason}", err=True)
    if not allow_quarantine:
        click.echo(
            "samprior: the others are stored. Mend the files and run the same command again, or "
            "accept the loss with --allow-quarantine. --retry-quarantined tries all of them again",
            err=True,
        )
        raise click.exceptions.Exit(1)


def _dry_run(
    target: "Target", maker: "Segmented", source: "Source", *, out: Path | str, as_json: bool
) -> None:
    from samprior.pipeline.estimate import estimate
    from samprior.storage.survey import counted

    left = target.left()
    num_images = sum(len(shard.pairs) for shard in left)
    counts = {"event": "estimate", "num_images": num_images, "num_shards": len(left)}
    if not num_images:
        if as_json:
            print_json(counts)
        else:
            click.echo(f"{out} is finished: nothing to do")
        return
    guess = estimate(left, maker, source=source, paired=True, form=target.form)
    total_s = guess.seconds_per_image * num_images
    if as_json:
        print_json({**counts, **vars(guess)})
        return
    click.echo(
        f"{counted(num_images, 'image')} in {counted(len(left), 'shard')}\n"
        f"about {guess.seconds_per_image:.2f} s an image on one worker, "
        f"{_duration(total_s)} in all\n"
        f"about {guess.bytes_per_image * num_images / 1e6:.1f} MB in the store\n"
        f"(from {counted(guess.num_probes, 'probe image')}; no store was written)"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
