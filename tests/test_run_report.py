"""The live view and the report of a run: what happened, in curves that are drawn right."""

import io
import json
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from samprior.cli.training_view import TrainingView, blocks
from samprior.training.curves import Curve, curves_svg
from samprior.training.reports import StageResult, weak_teacher

Samprior = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("one_thread")


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]
        for found in re.findall(r'points="([^"]*)"', svg)
    ]


def test_curves_go_where_the_numbers_are() -> None:
    svg = curves_svg(
        [Curve("a <b>", [(0, 20.0), (50, 30.0), (100, 25.0)]), Curve("one point", [(0, 1.0)])],
        description="d",
        unit=" dB",
    )
    assert "a &lt;b&gt;" in svg
    (drawn,) = points_of(svg)
    xs, ys = zip(*drawn, strict=True)
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2)
    assert ys[1] < ys[2] < ys[0]  # the y axis of SVG points down
    assert ys[2] == pytest.approx((ys[0] + ys[1]) / 2)
    assert curves_svg([Curve("empty", [])], description="d") == ""


def test_what_is_not_finite_is_left_out_of_a_chart() -> None:
    """Equal pictures have an infinite PSNR; a run that has scored some ends with its report."""
    whole = Curve("b", [(0, 20.0), (1, math.inf), (2, 30.0)])
    svg = curves_svg([Curve("a", [(0, math.inf), (1, math.inf)]), whole], description="")
    (drawn,) = points_of(svg)
    assert len(drawn) == 2
    assert "curve-1" in svg
    assert "inf" not in svg


def test_long_and_flat_curves_are_drawn_too() -> None:
    (drawn,) = points_of(
        curves_svg([Curve("long", [(x, 1.0) for x in range(9999)])], description="")
    )
    assert len(drawn) <= 402
    assert drawn[0][0] < drawn[-1][0]
    assert blocks([]) == ""
    assert blocks([1.0, 2.0, 3.0])[0] == "▁"
    assert blocks([1.0, 2.0, 3.0])[-1] == "█"
    assert len(blocks([5.0, 5.0])) == 2


class Outlook:
    stages = {"base": 100, "distill": 50}  # noqa: RUF012  # what the view looks at

    def lines(self) -> list[str]:
        return ["told"]


def test_a_terminal_shows_all_stages_scores_and_losses() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, no_color=True)
    with ExitStack() as stack:
        view = TrainingView(stack, console=console)
        view.announce(Outlook())  # type: ignore[arg-type]
        for step in (0, 50, 100):
            view("base", step, 100, {"total": 1.0 / (step + 1), "psnr_db": 20.0 + step / 10})
        view("distill", 1, 50, {})
    shown = stream.getvalue()
    last = shown[shown.rindex("100/100") :]
    assert "30.00 dB" in last
    assert "1/50" in last
    assert "total 0.0099" in shown


def test_a_run_leaves_its_report(
    samprior: Samprior, make_store: Callable[..., object], tmp_path: Path
) -> None:
    for name, seed in (("train", 0), ("test", 9)):
        make_store(
            tmp_path / name, [(40, 56)] * 2, seed=seed, made_of={"segmenter": {"segmenter": "x<y"}}
        )
    settings = (
        f"data.train={tmp_path}/train", f"data.validation={tmp_path}/test", f"out={tmp_path}/run",
        "data.crop_px=32", "data.batch_size=2", "loss.reconstruction=charbonnier", "log_every=1",
        "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
        "loss.lambda_sgr=0", "stages.base=2", "stages.fusion=2", "stages.distill=2",
    )  # fmt: skip
    arguments = [part for setting in settings for part in ("--set", setting)]
    code, out, err = samprior("train", *arguments)
    assert code == 0, err
    report = tmp_path / "run" / "report.html"
    assert f"report: {report}" in out
    page = report.read_text("utf-8")
    for word in ("Validation PSNR", "Losses of distill", "distilled against a control", "base"):
        assert word in page
    assert "x<y" not in page
    for place in (out, page):
        assert ("is no better than control" in place) == bool(weak_teacher(scores_of(report)))
    assert page.count("data:image/jpeg") == 2
    assert str(tmp_path) not in page
    before = report.read_bytes()
    assert samprior("train", *arguments)[0] == 0
    assert report.read_bytes() == before


def scores_of(report: Path) -> dict[str, StageResult]:
    stages = json.loads(report.with_name("summary.json").read_text("utf-8"))["stages"]
    return {name: StageResult(**values) for name, values in stages.items()}


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({"base": 28.0, "control": 29.2, "fusion": 28.7}, "28.70 dB) is no better than control (2"),
        ({"base": 28.0, "control": 29.2, "fusion": 29.2}, "29.20 dB) is no better than control (2"),
        ({"base": 28.0, "fusion": 27.0, "distill": 29.0}, "is no better than base (28.00 dB)"),
        ({"base": 28.0, "control": 29.2, "fusion": 29.3}, None),
        ({"base": None, "control": None, "fusion": None}, None),
        ({"base": 28.0, "control": 29.2}, None),
    ],
)
def test_a_teacher_that_can_only_hold_back_is_told(
    scores: dict[str, float | None], told: str | None
) -> None:
    advice = weak_teacher({name: StageResult(db, None) for name, db in scores.items()})
    assert (advice is None) if told is None else (told in str(advice))


def test_the_report_of_a_run_without_scores_has_none(
    samprior: Samprior, make_store: Callable[..., object], tmp_path: Path
) -> None:
    make_store(tmp_path / "train", [(40, 56)] * 2)
    settings = (
        f"data.train={tmp_path}/train", f"out={tmp_path}/run", "mode=plain", "stages.base=2",
        "data.crop_px=32", "data.batch_size=2", "log_every=1",
        "network.settings={width = 4, enc_blocks = [1], middle_blocks = 1, dec_blocks = [1]}",
    )  # fmt: skip
    code, _, err = samprior("train", *(part for one in settings for part in ("--set", one)))
    assert code == 0, err
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Losses of base" in page
    assert "had no data.validation" in page
    assert "PSNR" not in page
