"""What a network says of itself: a record inside its file, and a page beside it.

Both hold only what follows from data, settings and results: no dates and no paths, so equal runs
give equal files.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from samprior.storage import MaskStore
from samprior.training.reports import StageResult
from samprior.training.stages import Stage
from samprior.training.toml_text import to_toml
from samprior.training.validation import protocol_of

CARD = "model_card.md"

_LICENCE = (
    "samprior is under the Apache-2.0 licence. Which terms hold for these weights depends on the "
    "training pictures, on the segmenter's weights, on those that the networks started from and, "
    "for SGR, on the analyzer's: name yours."
)


def model_record(
    about: Mapping[str, Any],
    stage: Stage,
    scores: Mapping[str, Any],
    validation: MaskStore | None,
) -> dict[str, Any]:
    """The record of finished weights; only those of network 1 say how to build it.

    Args:
        about: the record of the stage's states: settings, store, masks.
        stage: the stage that made the weights.
        scores: by name, on the validation images.
        validation: these images.
    """
    record = {
        **about,
        "analyzer": stage.analyzer,
        "samprior": version("samprior"),
        "scores": dict(scores),
        "protocol": protocol_of(len(validation)) if validation else None,
    }
    if not stage.restores_with_masks:
        record["network"] = about["config"]["network"]
    return record


@dataclass(frozen=True)
class Shipped:
    """Which weights ship, and what they are compared with."""

    record: Mapping[str, Any]
    """That of the weights' own file, see `model_record`."""
    num_parameters: int
    stages: Mapping[str, StageResult]
    """All stages of the run."""
    gain_db: float | None
    """Distilled against control at the last step of both, both trained equally long."""
    num_images: int
    """Images of the training store."""


def model_card(shipped: Shipped) -> str:
    """The page as Markdown."""
    record = shipped.record
    network = record["network"]
    name = " ".join(filter(None, (network["name"], network["preset"])))
    parts = {
        "": f"# {name}, trained with samprior {record['samprior']}\n\n{_origin(record)}",
        "Network": _network(network, shipped.num_parameters) + _teacher(record["config"]),
        "Data and masks": _data(record, shipped.num_images),
        "Scores": _scores(shipped),
        "Settings": f"```toml\n{to_toml(record['config']).strip()}\n```",
        "Licence": _LICENCE,
    }
    return (
        "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in parts.items())
        + "\n"
    )


def _origin(record: Mapping[str, Any]) -> str:
    text = f"Weights of stage `{record['stage']}`, seed {record['config']['seed']}"
    if "step" in record["scores"]:
        text += (
            f", step {record['scores']['step']}: the best on the validation images, so the score "
            "there flatters"
        )
    if record["analyzer"]:
        text += f"; SGR's analyzer was {record['analyzer']}"
    return text + "."


def _network(network: Mapping[str, Any], num_parameters: int) -> str:
    return (
        f"{_shape(network)}: {num_parameters:,} parameters. Nothing of the "
        "masks, the teacher or the analyzer is inside: it takes a degraded picture alone."
    )


def _teacher(config: Mapping[str, Any]) -> str:
    """What it learnt from, if from a teacher."""
    if "network2" not in config:
        return ""
    image = "its restored" if config["fusion"]["image"] == "restored" else "the degraded"
    masks = " and their masks" if config["fusion"]["use_masks"] else ", without masks"
    given = " and started from given weights" if config["network2"]["init"] else ""
    return (
        f" It learnt from {_shape(config['network2'])}, which saw {image} pictures{masks}{given}."
    )


def _shape(network: Mapping[str, Any]) -> str:
    preset = f", preset `{network['preset']}`" if network["preset"] else ""
    settings = f", settings `{json.dumps(network['settings'])}`" if network["settings"] else ""
    return f"`{network['name']}`{preset}{settings}"


def _data(record: Mapping[str, Any], num_images: int) -> str:
    made_of = record["masks"]
    side = {
        "clean": "the clean pictures",
        "degraded": "the degraded pictures",
        "folder": "pictures of a folder, such as restored ones",
    }.get(str(made_of.get("source")), "not recorded")
    rows = {
        "training images": f"{num_images}",
        "store fingerprint": f"`{record['store_fingerprint']}`",
        "store content, SHA-256": f"`{record['store_sha256']}`",
        "side that was segmented": side,
        **{
            f"masks: {name}": f"`{json.dumps(value)}`"
            for name, value in made_of.items()
            if name != "source"
        },
    }
    return _table(("", ""), rows.items())


def _scores(shipped: Shipped) -> str:
    protocol = shipped.record["protocol"]
    if protocol is None:
        return "None were taken: the run had no validation images."
    rows = [
        (name, _decibels(result.start_psnr_db), _decibels(result.psnr_db),
         _decibels(result.best_psnr_db))
        for name, result in shipped.stages.items()
    ]  # fmt: skip
    text = f"PSNR in dB: {protocol}."
    if "fusion" in shipped.stages:
        text += " The stage `fusion` is scored with masks, the others without."
    text += "\n\n" + _table(("stage", "start", "end", "best"), rows)
    if shipped.gain_db is not None:
        text += (
            f"\n\nDistilled against a control trained equally long: {shipped.gain_db:+.3f} dB at "
            "the end of both. This is one seed; differences below the spread over seeds are none."
        )
    return text


def _table(head: tuple[str, ...], rows: Any) -> str:  # noqa: ANN401  # rows of strings
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
