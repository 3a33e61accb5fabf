"""The page of the benchmarks says what the results say; what can't run or falls behind is shown."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from samprior.training.networks import PRESETS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("quantities", "parts", "scoreboard", "plots", "page", "run_all", "compare")
MACHINE = {"device": "x", "processor": "x", "cores": 2, "load_average": [0.5, 0, 0]}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts that measure nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield {name: importlib.import_module(name) for name in SCRIPTS}
    for name in SCRIPTS:
        sys.modules.pop(name, None)  # `benchmarks` may have removed it


def row(a: str, b: str, ratio: float, spread: tuple[float, float], runs: int = 3) -> dict[str, Any]:
    taken = {"a_s": 1.0, "b_s": ratio, "b_over_a": ratio, "spread": spread, "runs": runs}
    return {"a": a, "b": b, **taken, "cpu_b_over_a": ratio, "cpu_spread": spread}


def write(folder: Path, name: str, *rows: dict[str, Any], **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"machine": MACHINE, **more, "rows": rows}))
    return file


def call(command: Any, *arguments: object) -> Result:  # noqa: ANN401
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


def states(scripts: dict[str, ModuleType], folder: Path, what: str) -> list[str]:
    board = scripts["scoreboard"].lines(folder)
    return [line.state for line in board if what in line.entry.what]


def test_the_committed_page_is_what_the_committed_results_give(
    scripts: dict[str, ModuleType],
) -> None:
    """If not: python benchmarks/page.py."""
    docs = ROOT / "docs"
    files = scripts["page"].files(page=(docs / "benchmarks.md").read_text("utf-8"))
    assert "benchmarks.svg" in files
    for name, text in files.items():
        assert (docs / name).read_text("utf-8") == text, name
        if name.endswith(".svg"):
            ElementTree.fromstring(text)


def test_every_line_is_there_and_says_why_it_was_not_run(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    board = scripts["scoreboard"].lines(tmp_path)
    assert {line.entry.row.rstrip("abcd") for line in board} == {str(n) for n in range(1, 17)}
    assert all(line.state == "not run" and line.reason for line in board)
    reasons = {line.entry.row: line.reason for line in board}
    assert "DEVICE=cuda" in reasons["6a"]
    assert "CHECKPOINT=" in reasons["4c"]
    text, _ = scripts["page"].section(tmp_path, "page")
    assert text.count("| not run: ") == len(board)


def test_lines_look_at_parts_that_run(scripts: dict[str, ModuleType]) -> None:
    names = [part.name for part in scripts["parts"].PARTS]
    assert len(set(names)) == len(names)
    assert {entry.part for entry in scripts["scoreboard"].ENTRIES} == set(names)


@pytest.mark.parametrize("quick", [True, False])
def test_scripts_take_the_arguments_of_their_parts(
    scripts: dict[str, ModuleType],
    benchmarks: dict[str, ModuleType],
    tmp_path: Path,
    quick: bool,
) -> None:
    for part in scripts["parts"].PARTS:
        known = {"quick": quick, "device": "cpu", "checkpoint": tmp_path}
        script = part.script.removesuffix(".py")
        if script in benchmarks and not (quick and part.quick is None):
            benchmarks[script].main.make_context(script, part.arguments(**known))


@pytest.mark.parametrize(
    ("sign", "goal", "value", "spread", "state"),
    [
        ("≥", 25, 26, (25, 27), "met"),
        ("≥", 25, 26, (20, 27), "met, not in every run"),
        ("≥", 25, 2, (2, 2), "goal missed"),
        ("≥", 25, 0.9, (0.8, 30), "**behind peer**"),
        ("≤", 0.4, 0.39, (0.39, 0.39), "met"),
        ("≤", 0.4, 0.5, (0.5, 0.5), "goal missed"),
        ("≤", 0.4, 1.1, (1, 1.2), "**behind peer**"),
        ("=", 1, 1, (1, 1), "met"),
        ("=", 1, 1.01, (0.9, 1.2), "**behind peer**"),
        ("=", 1, 0.8, (0.8, 0.8), "goal missed"),
    ],
)
def test_goals_and_peers_decide_what_a_line_is(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    sign: str,
    goal: float,
    value: float,
    spread: tuple[float, float],
    state: str,
) -> None:
    board = scripts["scoreboard"]
    write(tmp_path, "student", row("ours", "theirs", value, spread))
    entry = board.Entry("1", "student", "what", "peer", "theirs / ours", board.Goal(sign, goal))
    (line,) = board.lines(tmp_path, [entry])
    assert scripts["page"].cells(line)[-1] == state


@pytest.mark.parametrize(
    ("value", "spread", "state"),
    [
        (1.01, (0.99, 1.015), "met"),
        (1.01, (0.9, 1.2), "met, not in every run"),
        (1.05, (0.9, 1.2), "**behind peer**"),
        (0.95, (0.9, 1.2), "goal missed"),
    ],
)
def test_equal_times_are_within_a_bound_and_not_within_their_noise(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    value: float,
    spread: tuple[float, float],
    state: str,
) -> None:
    write(tmp_path, "student", row("nafnet tiny, plain", "nafnet tiny, distilled", value, spread))
    board = scripts["scoreboard"].lines(tmp_path)
    (line,) = (line for line in board if line.entry.what == "latency of the student, nafnet")
    assert scripts["page"].cells(line)[-2:] == ("= 1 ± 0.02", state)


def test_a_cost_without_a_rival_is_never_behind(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    steps = row("a plain step of nafnet tiny", "a stage-B step of nafnet tiny", 5.0, (4.0, 6.0))
    write(tmp_path, "distillation_cost", steps)
    assert states(scripts, tmp_path, "a stage-B step, nafnet") == ["missed"]
    assert states(scripts, tmp_path, "a stage-B step, restormer") == ["not run"]


def test_a_longer_step_is_worse(scripts: dict[str, ModuleType]) -> None:
    steps = row("a plain step of nafnet tiny", "a stage-B step of nafnet tiny", 5.0, (4.0, 6.0))
    found = scripts["quantities"].quantities({"rows": [steps]})
    assert {each.better for each in found.values()} == {"lower"}


def test_every_network_has_its_lines_and_committed_results_fill_them(
    scripts: dict[str, ModuleType],
) -> None:
    board = scripts["scoreboard"]
    assert set(board.NETWORKS) == set(PRESETS)
    steps = [
        line for line in board.lines(ROOT / "benchmarks/results") if "12a" <= line.entry.row < "12c"
    ]
    assert len(steps) == 2 * len(PRESETS)
    assert all(line.found for line in steps)


def test_cpu_seconds_count_on_a_processor_and_the_clock_on_a_gpu(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    both = {**row("logits to masks (a)", "logits to masks (b)", 300.0, (300, 300))}
    both |= {"cpu_b_over_a": 150.0, "cpu_spread": (150, 150)}
    write(tmp_path, "everything_post", both)
    assert states(scripts, tmp_path, "post-processing") == ["missed"]
    write(tmp_path, "everything_post", both, machine={**MACHINE, "device": "a GPU"})
    assert states(scripts, tmp_path, "post-processing") == ["met"]


def test_a_peer_against_atoms_has_the_widest_spread_that_two_rows_allow(
    scripts: dict[str, ModuleType],
) -> None:
    planes, atoms = "8 crops, samprior, planes", "8 crops, samprior, atoms and members"
    rows = [row(planes, atoms, 0.5, (0.4, 0.8)), row(planes, "4 crops, tar", 10.0, (8.0, 12.0))]
    found = scripts["quantities"].quantities({"memcpy_s_a_crop": 1, "rows": rows})
    tar = found["tar / samprior, atoms and members"]
    assert (tar.value, tar.low, tar.high) == (20, 10, pytest.approx(30))


def test_a_missing_peer_says_how_to_get_it(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    missing = {"litdata of PNG + JSON": "no litdata; pip install litdata"}
    write(tmp_path, "loader_batches", memcpy_s_a_crop=1, not_measured=missing)
    board = scripts["scoreboard"].lines(tmp_path)
    reasons = [line.reason for line in board if line.entry.peer == "litdata of PNG + JSON"]
    assert reasons == ["no litdata; pip install litdata"] * 2


@pytest.fixture
def two_parts(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """run_all with one part that fails and one that can't run."""
    (tmp_path / "bad.py").write_text("import sys\nprint('about to')\nsys.exit('no [luck] today')")
    part = scripts["parts"].Part
    parts = (
        part(name="cli_start", script="bad.py", full="", quick=""),
        part(name="student", script="bad.py", full="", quick="", needs="cuda"),
    )
    for name in ("parts", "run_all"):
        monkeypatch.setattr(scripts[name], "SCRIPTS", tmp_path)
    monkeypatch.setattr(scripts["run_all"], "PARTS", parts)
    return lambda *arguments: call(
        scripts["run_all"].main, "--out", tmp_path / "results", *arguments
    )


def test_what_fails_is_shown_and_does_not_stop_the_others(
    scripts: dict[str, ModuleType], two_parts: Callable[..., Result], tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    write(folder, "cli_start", row("samprior --help", "importing segment_anything, x", 9.0, (9, 9)))
    assert states(scripts, folder, "samprior --help") == ["met"]
    result = two_parts()
    assert result.exit_code == 1
    assert "failed: exit code 1: no [luck] today" in result.output
    assert "student … left out: no GPU was asked for" in result.output
    assert states(scripts, folder, "samprior --help") == ["not run"]
    assert "no [luck] today" in (folder / "benchmarks.md").read_text("utf-8")
    assert "about to" in (folder / "logs" / "cli_start.txt").read_text("utf-8")
    assert "say nothing about goals" not in (folder / "benchmarks.md").read_text("utf-8")
    two_parts("--quick")
    assert "say nothing about goals" in (folder / "benchmarks.md").read_text("utf-8")


def test_what_is_left_out_keeps_its_earlier_results(
    scripts: dict[str, ModuleType], two_parts: Callable[..., Result], tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    write(folder, "student", row("nafnet tiny, plain", "nafnet tiny, distilled", 1.0, (1, 1)))
    assert "its earlier results stay" in two_parts().output
    assert states(scripts, folder, "latency of the student, nafnet") == ["met"]


def test_a_gpu_that_is_not_there_is_told_before_anything_runs(
    two_parts: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = two_parts("--device", "cuda")
    assert result.exit_code == 2
    assert "leave DEVICE out" in result.output
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--device", "gpu"), "got DEVICE=gpu, wanted cpu or cuda"),
        (("--device", "cuda:x"), "wanted cpu or cuda"),
        (("--out", __file__), "results can't be written to"),
    ],
)
def test_bad_usage_is_told_before_anything_runs(
    two_parts: Callable[..., Result], tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    result = two_parts(*arguments)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
    assert not (tmp_path / "results").exists()


def test_the_table_runs_nothing_and_writes_nothing(
    two_parts: Callable[..., Result], tmp_path: Path
) -> None:
    result = two_parts("--table")
    assert result.exit_code == 0
    assert "lines 0 meet their goal" in result.output
    assert not (tmp_path / "results").exists()


def test_a_part_without_its_peer_is_left_out_with_the_reason(
    scripts: dict[str, ModuleType],
    two_parts: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = scripts["parts"].Part(
        name="storage_rows", script="bad.py", full="", quick="", peer="no_such_library"
    )
    monkeypatch.setattr(scripts["run_all"], "PARTS", (part,))
    result = two_parts()
    assert result.exit_code == 0
    assert "left out: no_such_library is not installed" in result.output


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_part_that_is_killed_is_told_of(two_parts: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import os\nprint('at work', flush=True)\nos.kill(os.getpid(), 9)"
    )
    result = two_parts()
    assert result.exit_code == 1
    assert "failed: signal 9 (Killed): at work" in result.output


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((10, 9, 11, 3), (10.1, 9, 11, 3), "same"),
        ((10, 9, 11, 3), (12, 10.5, 14, 3), "same"),
        ((10, 9, 11, 3), (14, 12, 15, 3), "improved"),
        ((10, 9, 11, 3), (7, 6, 8, 3), "worse"),
        ((10, 10, 10, 1), (7, 6, 8, 3), "unsure"),
        ((10, None, None, 3), (7, 6, 8, 3), "unsure"),
        ((10, None, None, 0), (7, None, None, 0), "worse"),
        (None, (7, 6, 8, 3), "new"),
        ((7, 6, 8, 3), None, "gone"),
    ],
)
def test_what_moved_beyond_noise(
    scripts: dict[str, ModuleType],
    old: tuple[Any, ...] | None,
    new: tuple[Any, ...] | None,
    verdict: str,
) -> None:
    """For a number of which more is better; of its opposite the words are exchanged."""
    opposite = {"improved": "worse", "worse": "improved"}
    for better in ("higher", "lower"):
        one, other = (
            told and scripts["quantities"].Quantity("q", told[0], better, *told[1:])
            for told in (old, new)
        )
        wanted = verdict if better == "higher" else opposite.get(verdict, verdict)
        assert scripts["compare"].verdict(one, other, least=0.05) == wanted


def test_two_folders_or_files_are_compared(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    compare = scripts["compare"].main
    old, new = tmp_path / "old", tmp_path / "new"
    steps = ("a plain step", "a stage-B step")
    before = write(old, "distillation_cost", row(*steps, 2.0, (1.9, 2.1)), preset="tiny")
    after = write(new, "distillation_cost", row(*steps, 3.0, (2.9, 3.1)), preset="tiny")
    write(old, "storage_rows", row("mine", "theirs", 5.0, (4, 6)))
    told = call(compare, old, new, "--fail-on-worse")
    assert told.exit_code == 1
    assert "worse: 2\n  distillation_cost: a stage-B step / a plain step: 2.00" in told.output
    assert "gone: 2\n  storage_rows: theirs / mine: 5.00 (4.00 to 6.00) -> -" in told.output
    assert call(compare, new, old, "--fail-on-worse").exit_code == 0
    assert call(compare, before, after).exit_code == 0
    assert call(compare, before, after, "--fail-on-worse").exit_code == 1
    assert call(compare, before, new).exit_code == 2


@pytest.mark.parametrize("content", ["no JSON", "[]", "{}", '{"cli_start": {"state": "done"}}'])
def test_a_file_that_is_no_result_is_named(
    scripts: dict[str, ModuleType], tmp_path: Path, content: str
) -> None:
    good = write(tmp_path, "student", row("mine", "theirs", 5.0, (4, 6)))
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    for old, new in ((good, bad), (bad, good), (tmp_path, tmp_path)):
        told = call(scripts["compare"].main, old, new)
        assert told.exit_code == 2
        assert "bad.json is no file of results" in " ".join(told.output.split())
    bad.unlink()
    (tmp_path / "empty").mkdir()
    told = call(scripts["compare"].main, tmp_path, tmp_path / "empty")
    assert told.exit_code == 2
    assert "has no results" in told.output


def test_commits_are_named_and_the_number_of_runs_is_no_setting(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    rows = row("mine", "theirs", 5.0, (4, 6))
    old, new = (
        write(tmp_path / name, "cost", rows, runs=runs, machine={**MACHINE, "commit": name})
        for name, runs in (("abc", 1), ("def", 3))
    )
    told = call(scripts["compare"].main, old, new).output
    assert "cost: commits abc and def" in told
    assert "same: 2" in told


def test_other_settings_are_not_compared(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    steps = row("a plain step", "a stage-B step", 2.0, (1.9, 2.1))
    old = write(tmp_path / "old", "cost", steps, preset="tiny")
    new = write(tmp_path / "new", "cost", steps, preset="gopro_w32")
    told = call(scripts["compare"].main, old, new).output
    assert "cost: not compared, other settings: preset tiny and gopro_w32" in told
    assert "same: 0" in told


def test_growth_and_memory_of_loaders(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    mib = 2**20
    loaders = [
        {
            "loader": name,
            "runs": [{"start_bytes": 100 * mib, "epoch_bytes": [e * mib for e in epochs]}],
        }
        for name, epochs in (("samprior, threads", (110, 110)), ("DataLoader", (150, 200)))
    ]
    write(tmp_path, "worker_memory", loaders=loaders)
    assert states(scripts, tmp_path, "memory of the loader") == ["met", "met"]
    _, drawn = scripts["page"].section(tmp_path, "page")
    assert "DataLoader" in drawn["page-memory.svg"]
    ElementTree.fromstring(drawn["page-memory.svg"])
