"""`samprior`: the list of commands. Each is imported only when it is used, so help is quick."""

import difflib
import importlib
import logging
import os
import signal
import sys
import traceback
from importlib.metadata import version

import click

COMMANDS = {
    "precompute": ("precompute", "Segment a dataset once and keep all masks in a store."),
    "import-masks": ("import_masks", "Make a store of masks of amg.py, SA-1B or COCO."),
    "status": ("status", "Say how far a store is, and whether its job runs."),
    "verify": ("verify", "Check every byte of a store; --repair makes broken shards anew."),
    "migrate": ("migrate", "Copy a store of an older format to the present one."),
    "inspect": ("inspect", "Look at a store's masks: a report, or page by page in a browser."),
    "export": ("export", "Write a store as webdataset tars, COCO, SA-1B or PNG."),
    "init": ("init", "Write a first configuration for a data set or a store."),
    "presets": ("presets", "List the training recipes that ship, or print one."),
    "train": ("train", "Train a network and distil the masks into it."),
    "evaluate": ("evaluate", "Score a checkpoint on a dataset, before and after."),
    "restore": ("restore", "Restore pictures with a checkpoint."),
    "export-model": ("export_model", "Write a network for torch.export, ONNX or as weights."),
    "import-checkpoint": (
        "import_checkpoint",
        "Take in the weights that a network's authors published.",
    ),
    "doctor": ("doctor", "Say what this machine has and what is missing."),
    "demo": ("demo", "Run the whole path on embedded photographs."),
    "completion": ("completion", "Print the completion script of a shell."),
}
"""Command: module below samprior.cli, one line of help (kept here so that help imports nothing)."""


def _be_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("samprior").setLevel(logging.DEBUG)
    return value


VERBOSE = click.Option(
    ["-v", "--verbose"],
    is_flag=True,
    expose_value=False,
    callback=_be_verbose,
    help="Say more on stderr: single events, and where in the code an error came from.",
)
"""An option of every command."""


def is_verbose() -> bool:
    """Whether the command that runs was given -v."""
    return logging.getLogger("samprior").isEnabledFor(logging.DEBUG)


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of a name, imported now."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"samprior.cli.{COMMANDS[name][0]}")
        command: click.Command = module.command
        if VERBOSE not in command.params:
            command.params.append(VERBOSE)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was named; a name that isn't known is answered with the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0].lower(), COMMANDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            ctx.fail(f"unknown command {args[0]!r}{hint} Known: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: samprior demo",
)
@click.version_option(version("samprior"), prog_name="samprior")
def cli() -> None:
    """Run SAM once over a dataset, keep its masks, distil them into the network you ship.

    \b
    samprior precompute --dataset gopro --root GOPRO_Large --split train --out stores/gopro
    samprior train --config gopro.toml
    samprior evaluate runs/gopro --dataset gopro --root GOPRO_Large --split test

    Every command takes -v, and --json where it has something to report. Colours go to terminals
    only, and nowhere if NO_COLOR is set.
    """
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False


cli.params.append(VERBOSE)


def main() -> None:
    """Run the command line; a user's mistake becomes one line and its exit code."""
    logging.getLogger("samprior").setLevel(logging.WARNING)
    try:
        sys.exit(cli(prog_name="samprior", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        see = f" (see {context.command_path} --help)" if context else ""
        told = " ".join(error.format_message().split()).removesuffix(".")
        click.echo(f"samprior: {told}{see}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("samprior: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        if is_verbose():
            traceback.print_exception(error)
        click.echo(f"samprior: {error}", err=True)
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    """The exit code of errors that are no bugs of ours; None for the others."""
    # Here, not at the top: the store brings numpy and zarr along, which help has no use for.
    from samprior.storage.errors import SampriorError

    if isinstance(error, SampriorError):
        return error.exit_code
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported
        error.args = (f"{error.args[0].splitlines()[0]} Use --tile-px, or a smaller batch or crop",)
        return 1
    # A full disk, a read-only folder: the system's own words name the file.
    return 1 if isinstance(error, OSError) else None
