"""`samprior demo`: the whole path, from photographs to better restored pictures.

Each step is a `samprior` command that is printed before it runs, so that it can be copied.
"""

import json
import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click

from samprior.cli.options import PathOption, json_option, print_json

TASKS = {
    "rain": ("deraining", "rain"),
    "gopro": ("deblurring", "gopro/GOPRO_Large"),
    "sensenoise": ("denoising", "sensenoise"),
}
"""Dataset: what is done with it, and its root below the demo's data folder."""

# The recipe of a demonstration, not of a paper: a tiny network, minutes of training on two cores.
# NAFNet's own loss and clipping need many more steps to show anything.
DEMO_CONFIG: dict[str, Any] = {
    "mode": "compare",
    "log_every": 25,
    "validate_every": 300,
    "save_every": 100,
    "data": {"crop_px": 64, "batch_size": 4},
    "network": {"name": "nafnet", "preset": "tiny"},
    "optimizer": {"lr": 1e-3, "extra_lr_share": 0.5, "clip_norm": 1.0, "ema_decay": 0.99},
    "loss": {
        "reconstruction": "charbonnier",
        "lambda_spd": 0.2,
        "lambda_sgr": 0.1,
        "analyzer": "random-vgg",
    },
    "stages": {"base": 600, "fusion": 240, "distill": 120},
}


@click.command("demo")
@click.option(
    "-o",
    "--out",
    default="demo-output",
    show_default=True,
    type=PathOption,
    help="Folder of all that is made.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(list(TASKS)),
    help="Only this task; may be repeated. Default: all three.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the degradations.")
@json_option
def command(out: Path, tasks: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Run the whole path on photographs that ship with scikit-image, degraded by known recipes.

    Masks come from the superpixel segmenter, which is not SAM: SAM's ViT-H weighs 2.6 GB and
    is slow without a GPU. Run it again and finished steps are kept.

    \b
    samprior demo
    samprior demo --task rain --out /tmp/demo
    """
    started = time.monotonic()
    # What the steps print is no part of the JSON.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        _write_data(out / "data", seed)
        rows = [_run_task(task, out) for task in tasks or TASKS]
    elapsed_s = time.monotonic() - started
    if as_json:
        print_json({"out": out, "tasks": rows, "elapsed_s": round(elapsed_s, 1)})
        return
    click.echo(_table(rows))
    click.echo(f"all of it in {elapsed_s / 60:.1f} minutes")


def _write_data(data: Path, seed: int) -> None:
    """The degraded photographs and the seed they were made with, whole or not at all."""
    from samprior.pipeline.synthetic import write_demo_datasets
    from samprior.storage.errors import UsageError
    from samprior.storage.files import remove_drafts, staged_folder

    note = data / "seed.txt"
    if note.exists():
        if note.read_text() != str(seed):
            raise UsageError(
                f"{data} was made with --seed {note.read_text()}; choose another --out"
            )
        return
    click.echo(f"degrading scikit-image's photographs into {data}")
    data.parent.mkdir(parents=True, exist_ok=True)
    remove_drafts(data.parent)
    with staged_folder(data) as draft:
        write_demo_datasets(draft, seed=seed)
        (draft / note.name).write_text(str(seed))


def _run_task(task: str, out: Path) -> dict[str, Any]:
    """All steps of one dataset; returns what the table shows."""
    root = out / "data" / TASKS[task][1]
    place = out / task
    dataset = ["--dataset", task, "--root", str(root)]
    stores = {split: str(place / f"store-{split}") for split in ("train", "test")}
    for split, store in stores.items():
        _samprior(
            "precompute", *dataset, "--split", split, "--segmenter", "superpixel", "--out", store
        )
    _samprior("inspect", stores["train"], "-o", str(place / "masks.html"))
    _samprior("train", "--config", str(_write_config(place, stores)))
    run = str(place / "run")
    scores = place / "scores"
    _samprior("evaluate", run, *dataset, "--split", "test", "--out", str(scores))
    degraded = {"rain": "test/input", "gopro": "test/chelsea/blur", "sensenoise": "test/noisy"}[
        task
    ]
    restored = place / "restored"
    _samprior("restore", run, str(root / degraded), str(restored))
    mean = json.loads((scores / "scores.json").read_text())["mean"]
    summary = json.loads((place / "run" / "summary.json").read_text())
    return {**mean, "task": task, "place": place, "gain_db": summary["gain_over_control_db"]}


def _write_config(place: Path, stores: dict[str, str]) -> Path:
    from samprior.storage.files import write_bytes
    from samprior.training.toml_text import to_toml

    data = {**DEMO_CONFIG["data"], "train": stores["train"], "validation": stores["test"]}
    config = {**DEMO_CONFIG, "out": str(place / "run"), "data": data}
    file = place / "train.toml"
    write_bytes(file, to_toml(config).encode())
    return file


def _samprior(*arguments: str) -> None:
    """Run a command of ours in this process, after saying which."""
    from samprior.cli.main import cli

    click.secho("\n$ samprior " + " ".join(arguments), bold=True)
    # Outside of its standalone mode click returns the exit code of commands that end with one.
    if code := cli.main(args=list(arguments), standalone_mode=False):
        raise click.exceptions.Exit(int(code))


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "",
        "test pictures          PSNR dB             SSIM              distilled against a control",
        "                  before -> after     before -> after       trained equally long",
    ]
    for row in rows:
        space = "Y" if row["task"] == "rain" else "RGB"
        lines.append(
            f"{TASKS[row['task']][0]:<10} ({space:<3})"
            f"  {row['psnr_before_db']:6.2f} -> {row['psnr_after_db']:5.2f}"
            f"     {row['ssim_before']:.4f} -> {row['ssim_after']:.4f}"
            f"      {row['gain_db']:+.2f} dB (one seed)"
        )
    lines.append(
        "A tiny network, minutes of training, superpixel masks: this shows that it runs, not what "
        "SAM is worth."
    )
    for row in rows:
        place = row["place"]
        lines += [
            f"\n{TASKS[row['task']][0]}:",
            f"  restored pictures  {place / 'restored'}",
            f"  report, to look at {place / 'scores' / 'report.html'}",
            f"  masks, to look at  {place / 'masks.html'}",
            f"  network that ships {place / 'run' / 'model.safetensors'}",
        ]
    return "\n".join(lines)
