"""A whole run: its stages in order, the files it leaves, and the comparison that counts."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samprior.storage import MaskStore
from samprior.storage.errors import CheckpointError, ConfigError
from samprior.storage.files import remove_drafts, write_bytes
from samprior.storage.locks import only_writer
from samprior.training.best import best_file
from samprior.training.building import (
    Teacher,
    build_networks,
    build_relation,
    load_initial_weights,
    starts_as_network_1,
)
from samprior.training.checkpoint import (
    load_checkpoint,
    load_strictly,
    read_record,
    require_same_settings,
    save_checkpoint,
)
from samprior.training.config import TrainConfig
from samprior.training.data import require_croppable
from samprior.training.logs import require_tensorboard
from samprior.training.loop import run_stage
from samprior.training.mixing import open_rain_layers
from samprior.training.model_card import CARD, Shipped, model_card, model_record
from samprior.training.outlook import Outlook, outlook
from samprior.training.parallel import Team, joined
from samprior.training.priors import RelationLoss
from samprior.training.records import records_of
from samprior.training.reports import Progress, StageResult, weak_teacher
from samprior.training.restore import pick_device
from samprior.training.run_report import REPORT, write_run_report
from samprior.training.stages import (
    STAGES_OF_MODE,
    Stage,
    base_stage,
    control_stage,
    distill_stage,
    fusion_stage,
    joint_stage,
)
from samprior.training.toml_text import to_toml
from samprior.training.validation import protocol_of


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    stages: dict[str, StageResult]
    shipped: Path
    """The network that ships: distilled if the run distils, else the last one trained."""
    protocol: str
    """What the stages' PSNR means."""
    advice: tuple[str, ...] = ()
    """What to do where the comparison that the mode asks for is missing, or could not be won."""

    @property
    def gain_db(self) -> float | None:
        """Distilled against control, both trained equally long; None unless both were scored."""
        distilled, control = self.stages.get("distill"), self.stages.get("control")
        if distilled is None or control is None:
            return None
        if distilled.psnr_db is None or control.psnr_db is None:
            return None
        return distilled.psnr_db - control.psnr_db

    @property
    def report(self) -> Path:
        """The page with curves and pictures."""
        return self.shipped.with_name(REPORT)

    def to_record(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
            "gain_over_control_db": self.gain_db,
            "protocol": self.protocol,
            "ships": str(self.shipped),
            "report": str(self.report),
            "advice": list(self.advice),
        }


def read_result(config: TrainConfig) -> RunResult:
    """How a finished run ended, from its folder."""
    summary = json.loads((config.out / "summary.json").read_text(encoding="utf-8"))
    stages = {name: StageResult(**values) for name, values in summary["stages"].items()}
    shipped = config.out / "model.safetensors"
    return RunResult(stages, shipped, summary["protocol"], _advice(config, stages))


@dataclass(frozen=True)
class _Prepared:
    """What a run needs, checked before anything is written."""

    store: MaskStore
    validation: MaskStore | None
    network: nn.Module
    teacher: Teacher
    relation: RelationLoss | None
    records: dict[str, dict[str, Any]]
    """What the checkpoints of each stage say about how they were made."""

    @property
    def num_validated(self) -> int:
        return len(self.validation) if self.validation else 0


def train(
    config: TrainConfig,
    *,
    announce: Callable[[Outlook], None] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Run every stage of `config.mode`; finished stages are loaded, unfinished ones go on.

    Writes below `config.out`: resolved.toml, one folder per stage, model.safetensors (the network
    that ships), its model_card.md, summary.json and report.html. Among the ranks of torchrun or Ray
    Train, all call this, rank 0 writes, and all get the same result. On rank 0 `announce` is told
    what is about to be done, once all is checked.

    Raises:
        ConfigError, StoreError, CheckpointError: settings, stores and files that don't fit.
        TrainingError: the loss is no longer finite, or another rank failed.
    """
    with joined(pick_device(config.device)) as (team, device):
        with team.together():
            run = _prepare(config, device, team)
            if announce is not None and team.leads:
                announce(_outlook(config, run, device, team))
        with _writing(config, team, run):
            results: dict[str, StageResult] = {}
            for name, record in run.records.items():
                with team.together():
                    stage = _stage(name, config, run.network, run.teacher, run.relation)
                results[name] = run_stage(
                    stage, config, run.store, run.validation, device,
                    record=record, team=team, progress=progress,
                )  # fmt: skip
                # Not compared on resume: its name tells of a file that may be renamed, see
                # `samprior.training.records`.
                record["analyzer"] = stage.analyzer
                with team.together():  # the next stage reads it on all ranks
                    if team.leads:
                        about = model_record(record, stage, asdict(results[name]), run.validation)
                        weights = stage.result_of(stage.learns.state_dict())
                        save_checkpoint(_model_file(config, name), weights, about)
            return team.share(lambda: _conclude(config, results, run))


def _prepare(config: TrainConfig, device: torch.device, team: Team) -> _Prepared:
    """Open and build everything, and refuse what can't be trained."""
    if config.precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a GPU, the device is {device}; use bf16 or fp32")
    if config.sync_batchnorm and device.type != "cuda":
        raise ConfigError(f"sync_batchnorm needs GPUs, the device is {device}; leave it out")
    if config.tensorboard:
        require_tensorboard()
    for batch_size in (config.data.batch_size, *(phase.batch_size for phase in config.data.phases)):
        team.share_of_batch(batch_size, config.accumulate)
    store = MaskStore.open(config.data.train, masks=config.data.masks)
    require_croppable(store, config.data.largest_crop_px)
    open_rain_layers(config.data.rain_layers, config.data.largest_crop_px, seed=config.seed)
    validation = _validation_store(config.data.validation)
    teaches = not {"distill", "joint"}.isdisjoint(STAGES_OF_MODE[config.mode])
    network, teacher = build_networks(config)
    if config.network.init is not None:
        load_initial_weights(network, config.network.init)
    if config.network2.init is not None and teaches:
        load_initial_weights(teacher.network2, config.network2.init)
    records = records_of(config, store)
    _refuse_other_settings(config.out, records)
    # Before the first stage: a run must not end after days for want of a download.
    relation = build_relation(config.loss) if teaches else None
    return _Prepared(store, validation, network, teacher, relation, records)


def _outlook(config: TrainConfig, run: _Prepared, device: torch.device, team: Team) -> Outlook:
    return outlook(
        config,
        run.network,
        run.teacher,
        run.relation,
        num_images=len(run.store),
        num_validated=run.num_validated,
        device=device,
        ranks=team.size,
    )


@contextmanager
def _writing(config: TrainConfig, team: Team, run: _Prepared) -> Iterator[None]:
    """Rank 0 holds the run's folder, tidied, with the settings in it."""
    with ExitStack() as stack:
        with team.together():
            if team.leads:
                stack.enter_context(only_writer(config.out))
                for folder in (config.out, *(config.out / name for name in run.records)):
                    remove_drafts(folder)  # a killed run leaves one as large as a checkpoint
                settings = to_toml(config.model_dump(mode="json"))
                write_bytes(config.out / "resolved.toml", settings.encode())
        yield


def _conclude(config: TrainConfig, results: dict[str, StageResult], run: _Prepared) -> RunResult:
    """Write the network that ships, its card, and the summary."""
    last = "distill" if "distill" in results else STAGES_OF_MODE[config.mode][-1]
    model, chosen = config.out / "model.safetensors", _chosen_file(config, last, results[last])
    write_bytes(model, chosen.read_bytes())
    result = RunResult(results, model, protocol_of(run.num_validated), _advice(config, results))
    num_parameters = sum(parameter.numel() for parameter in run.network.parameters())
    card = model_card(
        Shipped(read_record(model), num_parameters, results, result.gain_db, len(run.store))
    )
    write_bytes(config.out / CARD, card.encode())
    write_run_report(
        config,
        results,
        gain_db=result.gain_db,
        protocol=result.protocol,
        num_parameters=num_parameters,
        num_images=len(run.store),
        made_of=run.store.header.made_of,
    )
    ships = chosen.relative_to(config.out).as_posix()
    write_bytes(
        config.out / "summary.json", _summary(result, run.records[last], ships=ships).encode()
    )
    return result


def _chosen_file(config: TrainConfig, stage: str, result: StageResult) -> Path:
    """The weights of a stage that ship."""
    if config.ship == "last" or result.best_step is None or result.best_psnr_db is None:
        return _model_file(config, stage)
    file = best_file(config.out / stage, result.best_step, result.best_psnr_db)
    if not file.exists():
        raise CheckpointError(
            f"{file} was not kept, so ship = best has nothing to ship; set ship = last, or remove "
            f"{config.out / stage} to train that stage anew"
        )
    return file


def _advice(config: TrainConfig, results: Mapping[str, StageResult]) -> tuple[str, ...]:
    return tuple(filter(None, (_on_comparing(config), weak_teacher(results))))


def _on_comparing(config: TrainConfig) -> str | None:
    control, last = config.out / "control", config.out / STAGES_OF_MODE[config.mode][-1]
    compare = f"score {control} and {last} with `samprior evaluate` to compare them"
    if config.mode == "compare" and config.data.validation is None:
        return f"no data.validation: {compare}"
    if config.mode in ("distill", "joint") and not (control / "model.safetensors").exists():
        return f"no control to compare with: run this again with mode=control, then {compare}"
    return None


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
    if name == "distill":
        return distill_stage(config, network, teacher, relation)
    if starts_as_network_1(config, network, teacher):
        # The teacher's network starts as the one it is to refine: self-distillation.
        teacher.network2.load_state_dict(network.state_dict())
    if name == "fusion":
        return fusion_stage(config, network, teacher)
    return joint_stage(config, network, teacher, relation)


def _summary(result: RunResult, record: dict[str, Any], *, ships: str) -> str:
    summary = {
        **record,
        "stages": {name: asdict(stage) for name, stage in result.stages.items()},
        "gain_over_control_db": result.gain_db,
        "protocol": result.protocol,
        "ships": ships,
    }
    return json.dumps(summary, indent=1) + "\n"
