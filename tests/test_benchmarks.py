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
NAMES = ("measure", "masks", "distillation_cost")


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


@pytest.mark.parametrize(
    ("name", "arguments", "num_rows"),
    [
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
