"""`samprior train`: train a network and distil the masks into it."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from samprior.cli.options import (
    NETWORKS,
    PathOption,
    completes,
    json_option,
    offer_presets,
    print_json,
)
from samprior.cli.training_view import TrainingView

if TYPE_CHECKING:
    from samprior.training.config import TrainConfig
    from samprior.training.run import RunResult


@click.command("train")
@click.option(
    "--config",
    type=PathOption,
    help="TOML file, or one of `samprior presets` by its name.",
    shell_complete=offer_presets,
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@click.option(
    "--network",
    help="Short for --set network.name=..., such as my_package.nets:make.",
    shell_complete=completes(*NETWORKS),
)
@click.option(
    "--init", type=PathOption, help="Short for --set network.init=...: weights to start from."
)
@click.option(
    "--launcher",
    type=click.Choice(["here", "ray"]),
    default="here",
    show_default=True,
    help="here: this process, or the ranks that torchrun started; ray: workers of Ray Train.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Workers of --launcher ray.")
@click.option(
    "--gpus-per-worker",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    help="GPUs of each of these workers.",
)
@json_option
def command(
    config: Path | None,
    overrides: tuple[str, ...],
    network: str | None,
    init: Path | None,
    launcher: str,
    workers: int | None,
    gpus_per_worker: float,
    as_json: bool,
) -> None:
    """Train network 1, a teacher that sees the masks, and distil it back into network 1.

    Run the same command again to resume; the result is the same as without the break.

    \b
    samprior train --config gopro.toml
    samprior train --config gopro_nafnet_w32 --set data.train=stores/gopro
    samprior train --config gopro.toml --init NAFNet-GoPro-width32.pth --set stages.base=0
    samprior train --config gopro.toml --set loss.lambda_spd=0.1 --set out=runs/gopro-0.1
    samprior train --set data.train=stores/rain --set out=runs/rain --set mode=plain
    samprior train --config gopro.toml --set mode=joint
    samprior train --config gopro.toml --launcher ray --workers 8 --gpus-per-worker 1
    torchrun --nproc-per-node 8 -m samprior.cli train --config gopro.toml
    """
    if (workers is None) == (launcher == "ray"):
        raise click.UsageError("--launcher ray and --workers N go together")
    from samprior.storage.errors import UsageError
    from samprior.training.config import load_config

    if config is None and not overrides:
        raise UsageError(
            "give a file with --config; `samprior init` writes a first one, `samprior presets` "
            "lists those that ship"
        )
    short = {"network.name": network, "network.init": init}
    named = [f"{key}={value}" for key, value in short.items() if value is not None]
    settings = load_config(config, [*overrides, *named])
    if workers is not None:
        with ExitStack() as stack:
            result = _train_with_ray(settings, workers, gpus_per_worker, TrainingView(stack))
        _report(settings, result, as_json=as_json)
        return
    from samprior.training.parallel import is_leading_process
    from samprior.training.run import train

    with ExitStack() as stack:
        view = TrainingView(stack)
        result = train(settings, announce=view.announce, progress=view)
    if is_leading_process():
        _report(settings, result, as_json=as_json)


def _train_with_ray(
    settings: "TrainConfig", workers: int, gpus_per_worker: float, view: TrainingView
) -> "RunResult":
    from samprior.pipeline.ray_session import ray_session
    from samprior.training.ray_train import train_with_ray

    with ray_session(advice="try it without --launcher ray"):
        return train_with_ray(
            settings,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            announce=view.announce,
            progress=view,
        )


def _report(settings: "TrainConfig", result: "RunResult", *, as_json: bool) -> None:
    if as_json:
        print_json({"out": settings.out, **result.to_record()})
        return
    click.echo(f"{settings.out}:")
    for name, stage in result.stages.items():
        if stage.psnr_db is not None and stage.start_psnr_db is not None:
            click.echo(f"  {name:<8} {stage.start_psnr_db:6.2f} -> {stage.psnr_db:6.2f} dB")
    if result.gain_db is not None:
        click.echo(
            f"  distilled against a control trained equally long: {result.gain_db:+.3f} dB "
            "(one seed)"
        )
    if any(stage.psnr_db is not None for stage in result.stages.values()):
        click.echo(f"  ({result.protocol}; fusion is scored with masks, the others without)")
    for advice in result.advice:
        click.echo(f"  {advice}")
    click.echo(f"  ships: {result.shipped}")
    click.echo(f"  report: {result.report}")
