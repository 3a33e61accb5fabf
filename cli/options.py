"""Options that several commands share, under one name each."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from click.shell_completion import CompletionItem

    from samprior.pipeline.datasets import Dataset

    F = TypeVar("F", bound=Callable[..., Any])


class _LocalPath(click.Path):
    """A path; URLs, which a path would silently become, are refused."""

    def convert(
        self,
        value: "str | os.PathLike[str]",
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> "str | bytes | os.PathLike[str]":
        """Turn a word of the command line into a path."""
        if "://" in str(value):
            self.fail(
                f"{value} is a URL, and this command works on folders; copy it to one first",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


PathOption = _LocalPath(path_type=Path)


NETWORKS = ("nafnet", "restormer", "uformer", "rcdnet", "efficientderain")
"""Known here as well: a shell that completes can't wait for torch."""

DATASETS = ("gopro", "sensenoise", "rain", "folder")


def completes(
    *names: str, files: bool = False
) -> "Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]":
    """What a shell offers for an option: names, and files if these are taken too."""

    def offer(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem[str]]":
        from click.shell_completion import CompletionItem

        items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return items + ([CompletionItem(incomplete, type="file")] if files else [])

    return offer


def offer_presets(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem[str]]":
    """The recipes that ship, by the names of their files, and files."""
    folder = Path(__file__).resolve().parents[1] / "training" / "presets"
    names = sorted(file.stem for file in folder.glob("*.toml"))
    return completes(*names, files=param.name == "config")(ctx, param, incomplete)


class _PathOrUrl(click.Path):
    """A path, or the URL of a folder in an object store as it was given."""

    def convert(
        self,
        value: "str | os.PathLike[str]",
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> "str | bytes | os.PathLike[str]":
        """Turn a word of the command line into a path, unless it is a URL."""
        return value if "://" in str(value) else super().convert(value, param, ctx)


PathOrUrlOption = _PathOrUrl(path_type=Path)


def json_option(function: "F") -> "F":
    """--json, for commands that report something: one JSON object on stdout and nothing else."""
    option = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
    )
    return option(function)


def print_json(record: "Mapping[str, Any]") -> None:
    """Print what `--json` asks for; paths become strings."""
    click.echo(json.dumps(record, default=str))


def dataset_options(function: "F") -> "F":
    """--dataset, --root, --split and the patterns of free layouts."""
    split = click.option("--split", help="train or test, where the layout has splits.")
    return _dataset_options(function, split)


def datasets_options(function: "F") -> "F":
    """The same with a --split that may be repeated, for commands that take several."""
    split = click.option(
        "--split", multiple=True, help="train or test, where the layout has splits; repeatable."
    )
    return _dataset_options(function, split)


def crew_options(function: "F") -> "F":
    """What each worker needs, and where the workers live."""
    for option in (
        click.option(
            "--image-timeout",
            type=float,
            metavar="SECONDS",
            help="Quarantine an image that takes longer.  [default: never]",
        ),
        click.option("--cpus-per-worker", type=float, help="Cores reserved for each worker."),
        click.option("--gpus-per-worker", type=float, help="GPUs reserved for each; 0.5 is half."),
        click.option(
            "--address",
            metavar="HOST:PORT",
            help="Ray cluster to join, or auto.  [default: RAY_ADDRESS, else none]",
        ),
    ):
        function = option(function)
    return function


def tlc_options(function: "F") -> "F":
    """--tlc and --tlc-px."""
    for option in (
        click.option(
            "--tlc-px",
            type=click.IntRange(min=1),
            help="Window of --tlc in pixels of the picture.  [default: 384]",
        ),
        click.option("--tlc", is_flag=True, help="Average locally (TLC, for nafnet)."),
    ):
        function = option(function)
    return function


def tlc_window(tlc: bool, tlc_px: int | None) -> int | None:
    """The window that `tlc_options` ask for; None for none."""
    if tlc and tlc_px is None:
        from samprior.training.networks.tlc import WINDOW_PX

        return WINDOW_PX
    return tlc_px


def _dataset_options(function: "F", split: "Callable[[F], F]") -> "F":
    for option in reversed(
        (
            click.option(
                "--dataset",
                required=True,
                metavar="NAME",
                help="gopro, sensenoise, rain or folder.",
                shell_complete=completes(*DATASETS),
            ),
            click.option("--root", required=True, type=PathOption, help="The dataset's folder."),
            split,
            click.option(
                "--variant", help="Which of several layouts of a root, such as blur_gamma."
            ),
            click.option(
                "--degraded-pattern",
                metavar="PATTERN",
                help="Where degraded files lie below the root, such as 'noisy/{key}.png'.",
            ),
            click.option(
                "--clean-pattern",
                metavar="PATTERN",
                help="Where clean files lie, such as 'clean/{key}_gt.png'.",
            ),
        )
    ):
        function = option(function)
    return function


def open_dataset(
    dataset: str,
    root: Path,
    split: str | None,
    variant: str | None,
    degraded_pattern: str | None,
    clean_pattern: str | None,
) -> "Dataset":
    """Find the dataset that `dataset_options` name, and say on stderr what was found."""
    from samprior.pipeline.datasets import find_dataset

    found = find_dataset(
        dataset,
        root,
        split=split,
        variant=variant,
        degraded_pattern=degraded_pattern,
        clean_pattern=clean_pattern,
    )
    click.echo(f"{found.name}: {found.describe()}", err=True)
    return found
