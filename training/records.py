"""What the checkpoints of a run say about how they were made; a resumed run compares it.

Files of weights, pictures and stores are known by their content, so they may move.
"""

from pathlib import Path
from typing import Any

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError
from samprior.storage.files import sha256_of
from samprior.training.config import TrainConfig
from samprior.training.data import content_digest
from samprior.training.mixing import rain_layers_digest
from samprior.training.stages import STAGES_OF_MODE


def records_of(config: TrainConfig, store: MaskStore) -> dict[str, dict[str, Any]]:
    """The record of each stage of a run, in the order they run.

    The files of weights that the configuration names must be there.

    Raises:
        CheckpointError: the analyzer's weights can't be read.
    """
    of_store = {
        "masks": dict(store.header.made_of),
        "store_fingerprint": store.fingerprint,
        "store_sha256": content_digest(store),
    }
    return {
        stage: {"stage": stage, "config": _identity(config, stage), **of_store}
        for stage in STAGES_OF_MODE[config.mode]
    }


def _identity(config: TrainConfig, stage: str) -> dict[str, Any]:
    """The settings of a stage, with files known by content instead of by path."""
    identity = config.identity(stage)
    identity["network"]["init"] = _digest(config.network.init)
    identity["network"]["rain_kernels"] = _digest(config.network.rain_kernels)
    identity["data"]["rain_layers"] = rain_layers_digest(config.data.rain_layers)
    if "network2" in identity:
        identity["network2"]["init"] = _digest(config.network2.init)
    if "analyzer_weights" in identity["loss"]:
        identity["loss"]["analyzer_weights"] = _analyzer_digest(config)
    return identity


def _digest(file: Path | None) -> str | None:
    return sha256_of(file) if file is not None else None


def _analyzer_digest(config: TrainConfig) -> str | None:
    """What stands for analyzer_weights in the record; without SGR they play no part."""
    file = config.loss.analyzer_weights
    if file is None or config.loss.lambda_sgr == 0:
        return None
    try:
        return sha256_of(file)
    except OSError as error:
        raise CheckpointError(
            f"{file} can't be read ({error.strerror}); loss.analyzer_weights takes a file of "
            "torchvision's VGG weights, or leave it out to download them"
        ) from error
