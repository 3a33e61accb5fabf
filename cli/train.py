"""`samprior train`: train a network and distil the masks into it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from samprior.cli.options import PathOption
from samprior.cli.progress import Advance, progress


@click.command("train")
@click.option("--config", type=PathOption, help="TOML file; needed are out and data.train.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
def command(config: Path | None, overrides: tuple[str, ...]) -> None:
    """Train network 1, a teacher that sees the masks, and distil it back into network 1.

    Run the same command again to resume; the result is the same as without the break.

    \b
    samprior train --config gopro.toml
    samprior train --config gopro.toml --set loss.lambda_spd=0.1 --set out=runs/gopro-0.1
    samprior train --set data.train=stores/rain --set out=runs/rain --set mode=plain
    """
    from samprior.training.config import load_config
    from samprior.training.run import train

    settings = load_config(config, overrides)
    with ExitStack() as stack:
        result = train(settings, progress=_StageBars(stack))
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
    if result.advice:
        click.echo(f"  {result.advice}")
    click.echo(f"  ships: {result.shipped}")


class _StageBars:
    """One progress display per stage, opened when the stage starts."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.bars: dict[str, Advance] = {}

    def __call__(self, stage: str, step: int, total: int, losses: dict[str, Any]) -> None:
        if stage not in self.bars:
            self.stack.pop_all().close()
            self.bars[stage] = self.stack.enter_context(progress(f"{stage:<8}", "step"))
        remark = " ".join(f"{name} {value:.4g}" for name, value in losses.items())
        self.bars[stage](step, total, remark)
