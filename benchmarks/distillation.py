"""Does distilling the masks help? A network trained on, with and without, over several seeds.

    python benchmarks/distillation.py --data DIR --task noise --masks human --out studies/noise
    python benchmarks/distillation.py --train stores/gopro --test stores/gopro-test \\
        --config gopro_nafnet_w32 --teacher preset=gopro_w64 --teacher init=width64.pth \\
        --out studies/gopro
    python benchmarks/distillation.py --data DIR --task rain --network efficientderain \\
        --teacher settings.width=24 --set stages.distill=3000 --seeds 5 --out studies/rain

Everything a study trains lies below --out, and the same command again goes on with it. Each seed
trains the network (base) and then, from its weights, on the same crops and equally long:

    control           further with its own loss: what the others are compared with
    spd               towards a teacher that sees the masks
    spd-sgr           the same, with the relation loss
    spd-sgr-shuffled  as spd-sgr, with masks of another picture in training and in SGR
    spd-none          as spd, with a teacher that sees no masks
    spd-where-better  as spd, following the teacher only where it is closer to the truth (ours)
    spd-start         as spd, the teacher refining the images of the first weights (ours)
    spd-unbounded     as spd, with the reconstruction loss as it is (other than spd for psnr alone)
    joint             as spd, the teacher learning in the same steps

and, with --teacher, towards a larger teacher that sees the degraded picture and the masks (ours):

    large               as spd, towards that teacher; lambda_spd is 4, spd_distance reconstruction
    large-lambda-1      the same, with lambda_spd 1
    large-where-better  as large, following the teacher only where it is closer to the truth
    large-sgr           as large, with the relation loss
    large-none          as large, with a teacher that sees no masks
    large-shuffled      as large, with masks of another picture

and scores the teachers themselves (refined, large-teacher and so on) with masks of the test
pictures. Masks that are made here are of the clean pictures: an upper bound. The last weights of
each stage count, none is chosen on the test pictures. (How the arms follow their teachers was, on
those of one task: docs/distillation.md.)
"""

import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import distillation_cost
import measure
import study_data
import study_table
import torch
from study_arms import NOWHERE, RUNS, TEACHERS, Run, check_all, chosen_runs

from samprior.storage import MaskStore
from samprior.storage.errors import SampriorError
from samprior.storage.files import sha256_of, write_bytes
from samprior.storage.mask_sets import MAIN
from samprior.training.checkpoint import load_checkpoint, load_strictly
from samprior.training.config import TrainConfig, load_config
from samprior.training.restore import pick_device
from samprior.training.run import train
from samprior.training.stages import base_stage, build_networks, fusion_stage
from samprior.training.validation import image_scores

SMALL = (
    "data.crop_px=64",
    "data.batch_size=8",
    "network.preset=tiny",
    "loss.analyzer=random-vgg",
    "stages.base=2000",
    "stages.fusion=1000",
    "stages.distill=1000",
    "validate_every=1000000",
    "save_every=500",
    "keep_best=0",
    "validation_pictures=0",
)
"""Settings that finish on a CPU, unless --config or --set say otherwise."""


FolderOption = click.Path(path_type=Path, exists=True, file_okay=False)

UNTOLD: Any = {"out": True, "seed": True, "data": {"train"}, "network": {"init"}}
"""Settings that are not the same for all runs, or only true of one machine."""


@click.command()
@click.option("--data", type=FolderOption, help="Where the data of --task lies.")
@click.option("--task", type=click.Choice(list(study_data.TASKS)))
@click.option("--masks", type=click.Choice(study_data.MASKS), default="human", show_default=True)
@click.option("--train", "train_store", type=FolderOption, help="Store, in place of --data.")
@click.option("--test", "test_store", type=FolderOption, help="Store of other pictures.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the study.")
@click.option("--network", help="Default: that of --config, or nafnet.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of `samprior train`.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@click.option(
    "--teacher",
    "teacher",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the larger teacher, a key below network2: settings.width=24.",
)
@click.option(
    "--teacher-steps", type=click.IntRange(min=1), help="Of the larger teacher; default: as base."
)
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([run.name for run in RUNS]),
    help="Runs besides control; default: all, those of the large teacher with --teacher only.",
)
@click.option("--name", help="Of the results' file; default: distillation_TASK_MASKS_NETWORK.")
def main(
    data: Path | None,
    task: str | None,
    masks: str,
    train_store: Path | None,
    test_store: Path | None,
    out: Path,
    network: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    teacher: tuple[str, ...],
    teacher_steps: int | None,
    seeds: int,
    only: tuple[str, ...],
    name: str | None,
) -> None:
    """Train, score, and write benchmarks/results/distillation_*.json with a table."""
    if teacher_steps and not teacher:
        raise click.UsageError("--teacher-steps goes with --teacher")
    chosen = chosen_runs(only, has_large=bool(teacher))
    small = () if config else SMALL
    named = () if network is None else (f"network.name={network}",)
    settings = (*small, *named, *overrides)
    larger = [f"network2.{each}" for each in teacher]
    base_steps = load_config(config, (*settings, *NOWHERE)).stages.base
    larger.append(f"stages.fusion={teacher_steps or base_steps}")
    check_all(chosen, config, settings, larger)
    if train_store and test_store and not data and not task:
        about_data, splits = train_store.name, {"train": train_store, "test": test_store}
    elif data and task and not train_store and not test_store:
        about_data, folder = f"{task}_{masks}", out / "stores" / f"{task}-{masks}"
        splits = study_data.make_splits(folder, data=data, task=task, masks=masks)
    else:
        raise click.UsageError("give --data and --task, or --train and --test")
    for root in splits.values():
        study_data.add_shuffled(root)
    scores = {"degraded": [study_data.degraded_psnr_db(splits["test"])] * seeds}
    for seed in range(seeds):
        study = SeedStudy(out / f"seed-{seed}", splits, config, (*settings, f"seed={seed}"), larger)
        for arm, values in study.scores(chosen).items():
            scores.setdefault(arm, []).append(values)
    plain = study.config("control", Run("control", "control"))
    about = measure.machine("torch", device=str(pick_device(plain.device)))
    rows, mask_rows = study_table.rows(scores), study_table.mask_rows(scores)
    study_table.show("Arms against the control", rows)
    study_table.show("What the right masks are worth", mask_rows)
    measure.report(
        name or f"distillation_{about_data}_{plain.network.name}",
        about,
        cost_rows(plain),
        command=study_table.command(sys.argv),
        data=about_data,
        seeds=seeds,
        base_steps=base_steps,
        commit=measure.commit(),
        settings=plain.model_dump(mode="json", exclude=UNTOLD),
        larger_teacher=larger if teacher else None,
        arms={run.name: run.settings for run in chosen},
        method=study_table.METHOD,
        table=rows,
        mask_table=mask_rows,
        scores=scores,
    )


class SeedStudy:
    """All runs of one seed, below one folder."""

    def __init__(
        self,
        folder: Path,
        splits: Mapping[str, Path],
        file: Path | None,
        settings: Sequence[str],
        larger: Sequence[str],
    ) -> None:
        self.folder = folder
        self.splits = splits
        self.file = file
        self.settings = settings
        self.larger = larger

    def scores(self, runs: Sequence[Run]) -> dict[str, list[float]]:
        """PSNR of each test picture, by arm; what was scored before is not scored again."""
        self._train(Run("base", "plain"))
        found = {"base": self._scored("base", "base", shuffled=False)}
        for run in runs:
            if run.teacher_of is not None:
                self._take_teacher(run, run.teacher_of)
            self._train(run)
            stage = run.mode  # control, distill and joint are named after their last stage
            found[run.name] = self._scored(run.name, stage, shuffled=run.shuffled)
        trained = {run.name: run for run in runs}
        for arm, name in TEACHERS.items():
            if name in trained:
                found[arm] = self._scored(name, "fusion", shuffled=trained[name].shuffled)
        return found

    def config(self, name: str, run: Run) -> TrainConfig:
        """The settings of a run; all but base start from base's weights."""
        start = () if name == "base" else (f"network.init={self._base}", "stages.base=0")
        return load_config(
            self.file,
            (
                *self.settings,
                *run.settings,
                *(self.larger if run.large else ()),
                f"out={self.folder / name}",
                f"mode={run.mode}",
                f"data.train={self.splits['train']}",
                f"data.masks={masks_of(run.shuffled)}",
                *start,
            ),
        )

    @property
    def _base(self) -> Path:
        return self.folder / "base" / "model.safetensors"

    def _train(self, run: Run) -> None:
        # What is finished is only loaded; what was trained with other settings is refused.
        click.echo(f"{self.folder.name}: {run.name}", err=True)
        train(self.config(run.name, run))

    def _take_teacher(self, run: Run, other: str) -> None:
        mine = self.folder / run.name / "fusion"
        if not mine.exists():
            draft = mine.with_name("fusion-draft")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(self.folder / other / "fusion", draft)
            draft.rename(mine)

    def _scored(self, name: str, stage: str, *, shuffled: bool) -> list[float]:
        file = self.folder / name / f"scores-{stage}.json"
        weights = sha256_of(self.folder / name / stage / "model.safetensors")
        found = json.loads(file.read_text()) if file.exists() else {}
        if found.get("weights") != weights:
            run = next((each for each in RUNS if each.name == name), Run("base", "plain"))
            store = MaskStore.open(self.splits["test"], masks=masks_of(shuffled))
            scores = score(self.config(name, run), stage, store)
            found = {"weights": weights, "psnr_db": scores}
            write_bytes(file, json.dumps(found).encode())
        values = found["psnr_db"]
        click.echo(f"{self.folder.name}: {name}/{stage} {statistics.mean(values):.3f} dB", err=True)
        return list(values)


def masks_of(shuffled: bool) -> str:
    """Name of the mask set."""
    return study_data.SHUFFLED if shuffled else MAIN


def score(config: TrainConfig, stage: str, store: MaskStore) -> list[float]:
    """PSNR in dB of each picture of a store, by the weights that a stage ended with."""
    network, teacher = build_networks(config)
    if stage == "fusion":
        if config.network.init is not None:
            load_strictly(network, load_checkpoint(config.network.init)[0], config.network.init)
        scored = fusion_stage(config, network, teacher)
    else:
        scored = base_stage(config, network)
    file = config.out / stage / "model.safetensors"
    load_strictly(scored.learns, load_checkpoint(file)[0], file)
    device = pick_device(config.device)
    for module in (scored.learns, *scored.frozen):
        module.eval().to(device)
    with torch.inference_mode():
        return image_scores(scored, store, config, device)


def cost_rows(config: TrainConfig) -> list[measure.Row]:
    """What a stage-B step costs against a plain step, with this network and batch."""
    device = pick_device(config.device)
    batch = distillation_cost.read_batch(config, device)
    return distillation_cost.compare_steps(config, batch, device, runs=5)


if __name__ == "__main__":
    try:
        main()
    except SampriorError as error:
        raise SystemExit(f"distillation.py: {error}") from error
