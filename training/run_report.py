"""The report on a run: one HTML page with its curves, scores and pictures, in the run's folder.

It is drawn from what the run left (metrics.jsonl, the results of the stages, validation pictures)
and holds no times and no paths, so equal runs give equal pages.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samprior.storage.drawing import data_uri
from samprior.storage.images import read_rgb
from samprior.storage.pages import is_superpixel, told_segmenter, write_page
from samprior.training.config import TrainConfig
from samprior.training.curves import Curve, curves_svg
from samprior.training.reports import StageResult, weak_teacher

REPORT = "report.html"

_CONTINUES = ("control", "fusion", "distill", "joint")
"""Stages that begin where base has ended."""
_NO_LOSSES = {"step", "lr", "validation_psnr_db", "validation_sha256"}
_PLACES: Any = {
    "out": True,
    "device": True,
    "data": {"train", "validation", "rain_layers"},
    "network": {"init", "rain_kernels"},
    "network2": {"init"},
    "loss": {"analyzer_weights"},
}
"""Settings that say where things lie, not what they are."""
_MEANING = {
    "base": "network 1 alone",
    "control": "network 1, further: what a distilled one is compared with",
    "fusion": "the teacher, scored with masks",
    "distill": "network 1, distilled",
    "joint": "network 1 and its teacher at once",
}
_UNSCORED = "The run had no data.validation; samprior evaluate scores its networks."


@dataclass(frozen=True)
class _Chart:
    title: str
    note: str
    names: list[str]
    """Of the curves, by their number; empty where too few points were taken to draw it."""
    svg: str


def write_run_report(
    config: TrainConfig,
    results: Mapping[str, StageResult],
    *,
    gain_db: float | None,
    protocol: str,
    num_parameters: int,
    num_images: int,
    made_of: Mapping[str, Any],
) -> Path:
    """Write the report of a run that has ended; return its file.

    Args:
        config: the run.
        results: of its stages, in the order they ran.
        gain_db: distilled against control, if both were scored.
        protocol: what PSNR means here.
        num_parameters: of the network that ships.
        num_images: pairs of the training store.
        made_of: how its masks were made.
    """
    logs = {name: _lines(config.out / name / "metrics.jsonl") for name in results}
    lengths = {name: getattr(config.stages, name, config.stages.distill) for name in results}
    begins = {name: lengths.get("base", 0) if name in _CONTINUES else 0 for name in results}
    scored = any(result.psnr_db is not None for result in results.values())
    page = {
        "network": " ".join(filter(None, (config.network.name, config.network.preset))),
        "num_parameters": f"{num_parameters:,}",
        "num_images": f"{num_images:,}",
        "segmenter": told_segmenter(made_of),
        "superpixel": is_superpixel(made_of),
        "gain": None if gain_db is None else f"{gain_db:+.3f} dB",
        "scored": scored,
        "weak_teacher": weak_teacher(results),
        "protocol": protocol if scored else _UNSCORED,
        "rows": [
            {
                "name": name,
                "meaning": _MEANING[name],
                "steps": f"{lengths[name]:,}",
                "start": _db(result.start_psnr_db),
                "end": _db(result.psnr_db),
                "best": _db(result.best_psnr_db),
                "best_step": f"{result.best_step:,}" if result.best_step is not None else "",
            }
            for name, result in results.items()
        ],
        "charts": [chart for chart in _charts(logs, begins) if chart.svg],
        "pictures": _pictures(config.out, list(results)),
        "settings": json.dumps(config.model_dump(mode="json", exclude=_PLACES), indent=2),
    }
    return write_page(
        config.out / REPORT, page, package="samprior.training", template="run.html.j2"
    )


def _charts(logs: Mapping[str, list[dict[str, Any]]], begins: Mapping[str, int]) -> list[_Chart]:
    scores = [
        Curve(name, _points(lines, "validation_psnr_db", begins[name]))
        for name, lines in logs.items()
    ]
    charts = [
        _chart(
            "Validation PSNR",
            "Over the steps of the run; later stages begin where base ended. fusion sees masks.",
            scores,
            unit=" dB",
        )
    ]
    for name, lines in logs.items():
        terms = dict.fromkeys(key for line in lines for key in line if key not in _NO_LOSSES)
        curves = [Curve(term, _points(lines, term, 0)) for term in terms]
        charts.append(
            _chart(
                f"Losses of {name}",
                "Over the steps of the stage: the total, and its terms before they are weighted.",
                curves,
            )
        )
    rates = [Curve(name, _points(lines, "lr", begins[name])) for name, lines in logs.items()]
    return [*charts, _chart("Learning rate", "Over the steps of the run.", rates)]


def _chart(title: str, note: str, curves: list[Curve], *, unit: str = "") -> _Chart:
    svg = curves_svg(curves, description=f"{title}: {note}", unit=unit)
    names = [curve.name if curve.drawn else "" for curve in curves]
    return _Chart(title, note, names, svg)


def _points(lines: list[dict[str, Any]], key: str, begin: int) -> list[tuple[float, float]]:
    """(step of the run, value), of several at one step the last."""
    values = {begin + line["step"]: float(line[key]) for line in lines if key in line}
    return sorted(values.items())


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _pictures(out: Path, stages: list[str]) -> list[tuple[str, str]]:
    """The last strips of the stage that ran last and has some: what it is, and a data URI."""
    for stage in reversed(stages):
        newest: dict[str, Path] = {}
        for file in sorted((out / stage / "pictures").glob("*-step-*.png")):
            newest[file.name.partition("-")[0]] = file
        if newest:
            return [
                (f"{stage}, validation image {int(number) + 1}", data_uri(read_rgb(file)))
                for number, file in newest.items()
            ]
    return []


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
