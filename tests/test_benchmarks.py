"""The benchmarks run, compare equal work, and say which side took longer."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from samprior.storage import MaskStore

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = ("measure", "masks", "distillation_cost", "scenes", "sides", "outputs", "everything")
TINY_SAM = ("--model", "tiny", "--points-per-side", "4", "--size", "160", "90")
WITHOUT_MEMORY = ("--only", "decoder", "--only", "post", "--only", "rest", "--only", "whole")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; results and photographs are small and apart."""
    monkeypatch.syspath_prepend(FOLDER)
    modules = {name: importlib.import_module(name) for name in NAMES}
    whole = modules["measure"].photographs()
    monkeypatch.setattr(modules["measure"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        modules["measure"], "photographs", lambda: [photo[80:160, 100:196] for photo in whole]
    )
    yield modules
    for name in NAMES:
        del sys.modules[name]


def run(script: ModuleType, *arguments: str) -> Result:
    result = CliRunner().invoke(script.main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result


# pycocotools' compiled part converts arrays in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "arguments", "num_rows"),
    [
        ("everything", (*TINY_SAM, *WITHOUT_MEMORY, "--precision", "bfloat16"), 6),
        ("masks", ("--crop-px", "32", "--crops-per-image", "1"), 3),
        ("distillation_cost", ("--crop-px", "16", "--batch-size", "1", "--device", "cpu"), 2),
    ],
)
def test_a_benchmark_prints_what_it_writes(
    benchmarks: dict[str, ModuleType], name: str, arguments: tuple[str, ...], num_rows: int
) -> None:
    printed = run(benchmarks[name], "--runs", "1", *arguments).output
    record: dict[str, Any] = json.loads(
        (benchmarks["measure"].RESULTS / f"{name}.json").read_text()
    )
    assert len(record["rows"]) == num_rows
    assert {"device", "cores", "load_average"} <= record["machine"].keys()
    for row in record["rows"]:
        assert row["result"] in printed
        assert f"| {row['a']} | {row['b']} |" in printed


# pycocotools' compiled part converts arrays in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_sides_read_the_same_masks(
    benchmarks: dict[str, ModuleType], tmp_path: Path, make_store: Callable[..., MaskStore]
) -> None:
    masks = benchmarks["masks"]
    store = make_store(tmp_path / "store", [(40, 56), (56, 40), (33, 70), (64, 64)])
    sets = [record.masks for record in store]
    files = masks.write_json(tmp_path, sets)
    shapes = [each.shape for each in sets]
    windows = list(masks.draw_windows(shapes, 16, 6, np.random.default_rng(0)))
    assert len({(window.y, window.x) for window in windows}) > 20
    num_met = 0
    for window in windows:
        ours, theirs = masks.read_store(store, window), masks.read_json(files, window)
        np.testing.assert_array_equal(ours, theirs)
        num_met += len(ours)
    assert num_met > 0


def test_both_engines_keep_the_same_masks_of_a_scene(benchmarks: dict[str, ModuleType]) -> None:
    run(benchmarks["everything"], *TINY_SAM, "--runs", "1", "--only", "post")
    record = json.loads((benchmarks["measure"].RESULTS / "everything.json").read_text())
    masks = record["masks"]
    assert masks["candidates"] == 4 * 4 * 3
    assert masks["candidates"] > masks["above_predicted_iou"] > masks["and_stable"] > 1
    assert masks["kept_by_official"] == masks["kept_by_samprior"] > 1
    assert masks["same_masks_in_order"]
    assert (masks["pixels_compared"], masks["pixels_different"]) == (
        masks["kept_by_official"] * 160 * 90,
        0,
    )


def test_without_a_scene_both_engines_get_what_the_network_says(
    benchmarks: dict[str, ModuleType],
) -> None:
    bench = tiny_bench(benchmarks).with_network_outputs()
    masks = benchmarks["outputs"].compare_masks(bench.without_encoder().without_decoder())
    assert masks["kept_by_official"] > 0
    assert masks["same_masks_in_order"]
    assert masks["pixels_different"] == 0


def test_an_engine_agrees_with_itself(benchmarks: dict[str, ModuleType]) -> None:
    told = benchmarks["outputs"].agreement(tiny_bench(benchmarks), {"precision": "float32"})
    assert told["masks"] == told["masks_in_float32"] > 0
    assert (told["share_above_iou_0.9"], told["mean_iou"]) == (1, 1)


def test_a_profile_replaces_the_rows(benchmarks: dict[str, ModuleType]) -> None:
    printed = run(benchmarks["everything"], *TINY_SAM, "--profile").output
    assert "aten::bmm" in printed
    assert not benchmarks["measure"].RESULTS.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_both_sides(benchmarks: dict[str, ModuleType]) -> None:
    script = benchmarks["everything"]
    (settings,) = script.engine_settings(["float32"], compile=False, images_at_once=2)
    for side in (None, settings):
        told = script.peak_of(tiny_subject(benchmarks), side)
        assert told["above_start_bytes"] == told["peak_bytes"] - told["start_bytes"] >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_was_given_back(benchmarks: dict[str, ModuleType]) -> None:
    start, peak = benchmarks["measure"].peak_memory(lambda: np.ones(2**23))
    assert 60 * 2**20 < peak - start < 90 * 2**20


def tiny_bench(benchmarks: dict[str, ModuleType]) -> Any:  # noqa: ANN401
    return tiny_subject(benchmarks).load()


def tiny_subject(benchmarks: dict[str, ModuleType]) -> Any:  # noqa: ANN401
    photo = benchmarks["sides"].resized(benchmarks["measure"].photographs()[0], (160, 90))
    return benchmarks["sides"].Subject(
        model="tiny",
        checkpoint=None,
        photo=photo,
        points_per_side=6,
        points_per_batch=64,
        device="cpu",
    )


def test_the_ratio_is_the_second_over_the_first(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = benchmarks["measure"]
    # Uncounted runs don't look at the clock; then a takes 1, 1, 2 seconds and b 3, 5, 4.
    clock = iter(np.cumsum([0, 1, 0, 3, 0, 1, 0, 5, 0, 2, 0, 4]).tolist())
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    row = measure.compare("a step", lambda: None, "two steps", lambda: None, runs=3)
    assert (row.a_s, row.b_s, row.b_over_a, row.spread) == (1, 4, 3, (2, 5))
    assert row.sentence.startswith("two steps takes 3.00 times as long as a step (2.00 to 5.00")
