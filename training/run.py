"""A whole run: its stages in order, the files it leaves, and the comparison that counts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError, ConfigError
from samprior.storage.files import only_writer, remove_drafts, sha256_of, write_bytes
from samprior.training.checkpoint import (
    load_checkpoint,
    load_strictly,
    read_official,
    read_record,
    require_same_settings,
    save_checkpoint,
)
from samprior.training.config import TrainConfig, to_toml
from samprior.training.data import content_digest, require_croppable
from samprior.training.loop import Progress, StageResult, run_stage
from samprior.training.priors import RelationLoss
from samprior.training.restore import pick_device
from samprior.training.stages import (
    STAGES_OF_MODE,
    Stage,
    Teacher,
    base_stage,
    build_networks,
    build_relation,
    control_stage,
    distill_stage,
    fusion_stage,
)


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    stages: dict[str, StageResult]
    shipped: Path
    """The network that ships: distilled if the run distils, else the last one trained."""
    protocol: str
    """What the stages' PSNR means."""
    advice: str | None = None
    """How to get the comparison that the mode asks for, where the run could not make it."""

    @property
    def gain_db(self) -> float | None:
        """Distilled against control, both trained equally long; None unless both were scored."""
        distilled, control = self.stages.get("distill"), self.stages.get("control")
        if distilled is None or control is None:
            return None
        if distilled.psnr_db is None or control.psnr_db is None:
            return None
        return distilled.psnr_db - control.psnr_db


def train(config: TrainConfig, *, progress: Progress | None = None) -> RunResult:
    """Run every stage of `config.mode`; finished stages are loaded, unfinished ones go on.

    Writes below `config.out`: resolved.toml, one folder per stage, model.safetensors (the network
    that ships) and summary.json.

    Raises:
        ConfigError, StoreError, CheckpointError: settings, stores and files that don't fit.
        TrainingError: the loss is no longer finite.
    """
    device = pick_device(config.device)
    if config.precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a GPU, the device is {device}; use bf16 or fp32")
    store = MaskStore.open(config.data.train, masks=config.data.masks)
    require_croppable(store, config.data.crop_px)
    validation = _validation_store(config.data.validation)
    network, teacher = build_networks(config)
    if config.network.init is not None:
        load_strictly(network, _initial_weights(config.network.init), config.network.init)
    records = _records(config, store)
    _refuse_other_settings(config.out, records)
    # Before the first stage: a run must not end after days for want of a download.
    distils = "distill" in STAGES_OF_MODE[config.mode]
    relation = build_relation(config.loss) if distils else None
    with only_writer(config.out):
        for folder in (config.out, *(config.out / name for name in records)):
            remove_drafts(folder)  # a killed run leaves one as large as a checkpoint
        settings = to_toml(config.model_dump(mode="json"))
        write_bytes(config.out / "resolved.toml", settings.encode())
        results: dict[str, StageResult] = {}
        for name, record in records.items():
            stage = _stage(name, config, network, teacher, relation)
            results[name] = run_stage(
                stage, config, store, validation, device, record=record, progress=progress
            )
            # Not compared on resume: its name tells of a file that may be renamed, see `_identity`.
            record["analyzer"] = stage.analyzer
            weights = stage.learns.state_dict()
            save_checkpoint(_model_file(config, name), weights, _model_record(record, stage))
        return _conclude(config, results, records, len(validation) if validation else 0)


def _conclude(
    config: TrainConfig,
    results: dict[str, StageResult],
    records: dict[str, dict[str, Any]],
    num_validated: int,
) -> RunResult:
    """Write the network that ships, and the summary."""
    last = "distill" if "distill" in results else STAGES_OF_MODE[config.mode][-1]
    model = config.out / "model.safetensors"
    write_bytes(model, _model_file(config, last).read_bytes())
    protocol = f"mean PSNR of {num_validated} whole validation images, RGB, 8 bit"
    result = RunResult(results, model, protocol, _advice(config))
    write_bytes(config.out / "summary.json", _summary(result, records[last]).encode())
    return result


def _advice(config: TrainConfig) -> str | None:
    if config.mode != "compare" or config.data.validation is not None:
        return None
    return (
        f"no data.validation: score {config.out / 'control'} and {config.out} with "
        "`samprior evaluate` to compare them"
    )


def _model_file(config: TrainConfig, stage: str) -> Path:
    """The finished weights of a stage."""
    return config.out / stage / "model.safetensors"


def _validation_store(root: str | None) -> MaskStore | None:
    if root is None:
        return None
    store = MaskStore.open(root).require_complete()
    if not store.paired:
        raise ConfigError(f"{root} holds images without degraded sides; data.validation needs both")
    return store


def _refuse_other_settings(out: Path, records: dict[str, dict[str, Any]]) -> None:
    """Check all stages before any goes on: a refusal must not come after days of training."""
    for name, record in records.items():
        file = out / name / "state.safetensors"
        if file.exists():
            require_same_settings(file, read_record(file), record)


def _stage(
    name: str,
    config: TrainConfig,
    network: nn.Module,
    teacher: Teacher,
    relation: RelationLoss | None,
) -> Stage:
    """The stage of a name; all but the first start from the base network's weights."""
    if name == "base":
        return base_stage(config, network)
    base = _model_file(config, "base")
    load_strictly(network, load_checkpoint(base)[0], base)
    if name == "control":
        return control_stage(config, network)
    if name == "fusion":
        # The teacher's network starts as the one it is to refine: self-distillation.
        teacher.network2.load_state_dict(network.state_dict())
        return fusion_stage(config, network, teacher)
    return distill_stage(config, network, teacher, relation)


def _initial_weights(file: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(file)[0] if file.suffix == ".safetensors" else read_official(file)


def _records(config: TrainConfig, store: MaskStore) -> dict[str, dict[str, Any]]:
    """What the checkpoints of each stage say about how they were made."""
    init = config.network.init
    init_sha256 = sha256_of(init) if init is not None else None
    of_store = {
        "masks": dict(store.header.made_of),
        "store_fingerprint": store.fingerprint,
        "store_sha256": content_digest(store),
    }
    return {
        stage: {"stage": stage, "config": _identity(config, stage, init_sha256), **of_store}
        for stage in STAGES_OF_MODE[config.mode]
    }


def _identity(config: TrainConfig, stage: str, init_sha256: str | None) -> dict[str, Any]:
    """The settings of a stage, with files of weights known by content instead of by path."""
    identity = config.identity(stage)
    identity["network"]["init"] = init_sha256
    if stage == "distill":
        identity["loss"]["analyzer_weights"] = _analyzer_digest(config)
    return identity


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


def _model_record(about: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """The record of finished weights; only those of network 1 say how to build it."""
    if stage.restores_with_masks:
        return about
    return {**about, "network": about["config"]["network"]}


def _summary(result: RunResult, record: dict[str, Any]) -> str:
    summary = {
        **record,
        "stages": {name: asdict(stage) for name, stage in result.stages.items()},
        "gain_over_control_db": result.gain_db,
        "protocol": result.protocol,
    }
    return json.dumps(summary, indent=1) + "\n"
