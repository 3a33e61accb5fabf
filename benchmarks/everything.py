"""The mask engine against the official SamAutomaticMaskGenerator: time, memory, equal masks.

    python benchmarks/everything.py [--points-per-side 32] [--model vit_b] [--only post]
    python benchmarks/everything.py --model vit_h --checkpoint sam_vit_h.pth --image photo.jpg
    python benchmarks/everything.py --device cuda --points-per-side 32 --precision float32 \
        --precision bfloat16 --compile

Weights are random without --checkpoint. Both sides then do all their arithmetic, and what their
decoders say is replaced by a scene (scenes.py), masks of plausible number and size whose slopes
spread the stability around its threshold, so that what follows has real work to do. With
--checkpoint nothing is replaced. The official generator has its defaults, but for the number of
points, and ends with its own output.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import measure
import torch
from outputs import agreement, compare_masks, write_json, write_masks
from sides import Bench, Subject, read_photo, resized
from torch.profiler import ProfilerActivity, profile

from samprior.pipeline.sam import SHAPES

MODELS = ("tiny", *SHAPES.values())
PARTS = ("decoder", "post", "rest", "whole", "memory")
OFFICIAL_BEST_BATCH = 8
"""Points at once with which the official decoder is fastest on a CPU; its default is 64."""

Settings = dict[str, Any]
"""Arguments of an EverythingEngine."""


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="vit_b", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Real weights of --model.")
@click.option("--image", type=click.Path(path_type=Path), help="Your photograph, at its own size.")
@click.option(
    "--size", type=(int, int), default=(1280, 720), show_default=True, help="Of our photograph."
)
@click.option("--points-per-side", default=6, show_default=True, help="The generator's own: 32.")
@click.option("--points-per-batch", default=64, show_default=True)
@click.option("--images-at-once", default=1, show_default=True, help="Of the whole and memory.")
@click.option("--precision", multiple=True, default=("float32",), show_default=True)
@click.option("--compile", is_flag=True, help="One more row: the last precision, compiled.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--runs", default=2, show_default=True, help="Pairs of runs for each row.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option("--name", default="everything", show_default=True, help="Of the results' file.")
@click.option("--profile", "shows_profile", is_flag=True, help="Time of each operation, no rows.")
def main(
    image: Path | None,
    size: tuple[int, int],
    images_at_once: int,
    precision: Sequence[str],
    compile: bool,
    runs: int,
    only: Sequence[str],
    name: str,
    shows_profile: bool,
    **subject_options: Any,  # noqa: ANN401
) -> None:
    """Measure, print, and write benchmarks/results/NAME.json."""
    # pycocotools 2.0.11 handles arrays in ways that NumPy 2 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    photo = resized(measure.photographs()[0], size) if image is None else read_photo(image)
    subject = Subject(photo=photo, **subject_options)
    gpu = torch.cuda.get_device_name() if subject.on_gpu else None
    about = measure.machine("torch", "segment-anything", "numba", device=gpu)
    engines = engine_settings(precision, compile=compile, images_at_once=images_at_once)
    if shows_profile:
        show_profile(subject.load(), engines[-1])
        return
    rows, more = timings(subject, engines, only, runs=runs)
    if "memory" in only:
        more["memory"] = memory(subject, engines)
    for what, told in more.items():
        print(f"{what}: {json.dumps(told)}")
    measure.report(
        name,
        about,
        rows,
        threads=torch.get_num_threads(),
        **subject.describe(),
        images_at_once=images_at_once,
        **more,
    )


def engine_settings(
    precision: Sequence[str], *, compile: bool, images_at_once: int
) -> list[Settings]:
    """One engine for each precision, and if asked for one of the last precision, compiled."""
    engines = [(name, False) for name in precision]
    if compile:
        engines.append((precision[-1], True))
    return [
        {"precision": name, "compile": compiled, "images_at_once": images_at_once}
        for name, compiled in engines
    ]


def timings(
    subject: Subject, engines: Sequence[Settings], only: Sequence[str], *, runs: int
) -> tuple[list[measure.Row], dict[str, Any]]:
    """The rows of the parts asked for, and what was found beside them."""
    rows: list[measure.Row] = []
    more: dict[str, Any] = {}
    if not {"decoder", "post", "rest", "whole"} & set(only):
        return rows, more
    tell(f"loading {subject.model} and encoding once")
    bench = subject.load()
    given = bench.without_encoder()
    if "decoder" in only:
        rows += decoder_rows(given, runs=runs)
    if "post" in only:
        tell("comparing the masks of both")
        logits = given.without_decoder()
        more["masks"] = compare_masks(logits)
        rows.append(rest_row("logits", logits, runs=runs))
    if "rest" in only:
        rows.append(rest_row("embedding", given, runs=runs))
    if "whole" in only:
        whole = [whole_row(bench, settings, runs=runs) for settings in engines]
        rows += whole
        more["images_per_s"] = [per_second(*pair) for pair in zip(engines, whole, strict=True)]
        inexact = [settings for settings in engines if settings["precision"] != "float32"]
        more["agreement"] = [agreement(bench.with_network_outputs(), each) for each in inexact]
    return rows, more


def decoder_rows(bench: Bench, *, runs: int) -> list[measure.Row]:
    """Prompts to low-resolution logits and predicted IoUs, from an embedding."""
    points, default = len(bench.crop.points), bench.amg.points_per_batch
    every = "all masks drawn", bench.samprior_decoding(threshold=0)
    passing = (
        "only masks above the predicted-IoU threshold drawn",
        bench.samprior_decoding(threshold=bench.amg.pred_iou_thresh),
    )
    return [
        in_turn(
            f"decoding {points} points, {drawn} (samprior)",
            decode,
            f"decoding {points} points in batches of {at_once} (official)",
            bench.official_decoding(at_once=at_once),
            bench=bench,
            runs=runs,
        )
        for (drawn, decode), at_once in [
            (every, default),
            (every, OFFICIAL_BEST_BATCH),
            (passing, OFFICIAL_BEST_BATCH),
        ]
    ]


def rest_row(given: str, bench: Bench, *, runs: int) -> measure.Row:
    """From what is `given`, logits or an embedding, to masks at full size."""
    engine, official = bench.samprior(), bench.official()
    points = len(bench.crop.points)
    return in_turn(
        f"{given} to masks, {points} points (samprior, MaskSet)",
        lambda: engine(bench.photo),
        f"{given} to masks, {points} points (official, boolean planes)",
        lambda: official.generate(bench.photo),
        bench=bench,
        runs=runs,
    )


def whole_row(bench: Bench, settings: Settings, *, runs: int) -> measure.Row:
    """Pixels to stored masks: a shard of our store, which has the picture too, or SA-1B's JSON."""
    ours, theirs = bench.samprior(**settings), bench.official(output_mode="coco_rle")
    photos = [bench.photo] * settings["images_at_once"]
    what = f"{len(photos)} x image to stored masks, {len(bench.crop.points)} points"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return in_turn(
            f"{what} (samprior, shard, {title(settings)})",
            lambda: write_masks(folder, photos, ours.many(photos)),
            f"{what} (official, JSON, float32)",
            lambda: [write_json(folder / "0.json", theirs.generate(photo)) for photo in photos],
            bench=bench,
            runs=runs,
        )


def per_second(settings: Settings, row: measure.Row) -> dict[str, Any]:
    """Images per second of the whole, with the official generator's beside it."""
    images = settings["images_at_once"]
    return {**settings, "samprior": images / row.a_s, "official": images / row.b_s}


def memory(subject: Subject, engines: Sequence[Settings]) -> list[dict[str, Any]]:
    """Peak memory of the whole, each side in a fresh process with nothing but itself."""
    if sys.platform != "linux":
        raise click.UsageError("peak memory is read from Linux's /proc; leave it out with --only")
    told = []
    for settings in (None, *engines):
        name = "official" if settings is None else f"samprior, {title(settings)}"
        tell(f"peak memory: {name}")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            told.append({"engine": name, **process.submit(peak_of, subject, settings).result()})
    return told


def peak_of(subject: Subject, settings: Settings | None) -> dict[str, int]:
    """Bytes that making and running one side takes; None: the official one."""
    bench = subject.load()

    def work() -> None:
        if settings is None:
            bench.official().generate(bench.photo)
        else:
            list(bench.samprior(**settings).many([bench.photo] * settings["images_at_once"]))

    if subject.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start, peak = measure.peak_memory(work)
    told = {"start_bytes": start, "peak_bytes": peak, "above_start_bytes": peak - start}
    if subject.on_gpu:
        told["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    return told


def show_profile(bench: Bench, settings: Settings) -> None:
    """Print the operations of the whole engine, those that take longest first."""
    engine = bench.samprior(**settings)
    photos = [bench.photo] * settings["images_at_once"]
    list(engine.many(photos))
    activities = [ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if bench.sam.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        order = "self_device_time_total"
    with profile(activities=activities) as seen:
        list(engine.many(photos))
    print(seen.key_averages().table(sort_by=order, row_limit=40))


def in_turn(
    a: str,
    work_a: Callable[[], object],
    b: str,
    work_b: Callable[[], object],
    *,
    bench: Bench,
    runs: int,
) -> measure.Row:
    """`measure.compare`, which on a GPU waits until the work is done.

    Runs on a CPU take seconds to minutes and are not preceded by uncounted ones.
    """
    tell(f"{a}; {b}")
    if bench.sam.device.type != "cuda":
        return measure.compare(a, work_a, b, work_b, runs=runs, warm_up=False)
    return measure.compare(a, finished(work_a), b, finished(work_b), runs=runs)


def finished(work: Callable[[], object]) -> Callable[[], None]:
    """Work that ends when the GPU has done it."""

    def run() -> None:
        work()
        torch.cuda.synchronize()

    return run


def title(settings: Settings) -> str:
    """Precision, and whether it is compiled."""
    return settings["precision"] + (", compiled" if settings["compile"] else "")


def tell(what: str) -> None:
    """Say on the error stream what runs now."""
    click.echo(f"... {what}", err=True)


if __name__ == "__main__":
    main()
