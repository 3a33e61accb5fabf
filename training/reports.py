"""What a stage leaves behind as it runs: scores, logs, pictures, states and its best weights.

All ranks call in step; rank 0 alone writes. Scores are looked up in the log, so a resumed stage
knows what an unbroken one knows.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from samprior.storage import MaskStore
from samprior.storage.files import remove_drafts, write_bytes
from samprior.training.best import FOLDER, best_file, best_steps, remove_others
from samprior.training.data import content_digest
from samprior.training.logs import Board, Log, write_png
from samprior.training.schedule import samples_before
from samprior.training.stage_run import StageRun
from samprior.training.stages import Losses
from samprior.training.validation import validate

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with (stage, steps done, steps in all, last losses and score); empty between."""

KeepWeights = Callable[[Path, dict[str, Tensor], int, float], None]
"""Writes weights that reached a PSNR in dB at a step."""


@dataclass(frozen=True)
class StageResult:
    """How a stage ended."""

    psnr_db: float | None
    """Mean over the validation images; None without validation data."""
    start_psnr_db: float | None
    """The same before the stage's first step."""
    best_psnr_db: float | None = None
    """The highest on the way, the start aside; picked on these images, so it flatters."""
    best_step: int | None = None
    """The step that reached it, the first of equals."""


def weak_teacher(results: Mapping[str, StageResult]) -> str | None:
    """What to do about a teacher that scores no better than network 1 does without it, or None.

    SPD can't lift network 1 above what it follows (docs/distillation.md).
    """
    teacher = results["fusion"].psnr_db if "fusion" in results else None
    rival = "control" if "control" in results else "base"
    plain = results[rival].psnr_db if rival in results else None
    if teacher is None or plain is None or teacher > plain:
        return None
    return (
        f"the teacher (fusion, {teacher:.2f} dB) is no better than {rival} ({plain:.2f} dB), so "
        "following it may hold network 1 back: train it longer (stages.fusion), give it a "
        'larger network ([network2]); loss.spd_target = "teacher_where_better" lessens the harm'
    )


class Reports:
    """What a stage tells and keeps; close it at the end."""

    def __init__(
        self,
        run: StageRun,
        validation: MaskStore | None,
        folder: Path,
        *,
        keep_weights: KeepWeights,
        progress: Progress | None,
    ) -> None:
        self.run, self.store, self.folder = run, validation, folder
        self.keep_weights, self.progress = keep_weights, progress
        self.digest = content_digest(validation) if validation else ""
        self.board: Board | None = None
        self.scored: dict[str, float] = {}
        with run.team.together():
            if run.team.leads:
                self.log = Log(folder / "metrics.jsonl", run.step)
                for place in (folder / FOLDER, folder / "pictures"):
                    remove_drafts(place)
                self._tidy()
                if run.config.tensorboard:
                    self.board = Board(folder / "tensorboard", run.step)
            self._show({})

    def close(self) -> None:
        """Finish the files of TensorBoard."""
        if self.board:
            self.board.close()

    def score(self) -> None:
        """Score the averaged weights; the learning ones are put back.

        The score and its pictures are written, and the weights if they are among the best.
        """
        if self.store is None:
            return
        run = self.run
        with run.averaged():
            psnr_db, strips = validate(
                run.stage, self.store, run.config, run.device,
                team=run.team, pictures=run.config.validation_pictures,
            )  # fmt: skip
        with run.team.together():
            if not run.team.leads:
                return
            for number, strip in enumerate(strips):
                name = f"{number:03d}-step-{run.step:06d}.png"
                write_png(self.folder / "pictures" / name, strip)
            line: dict[str, float | str] = {
                "step": run.step,
                "validation_psnr_db": psnr_db,
                "validation_sha256": self.digest,
            }
            if run.step in best_steps([*self.log.lines(), line], run.config.keep_best):
                file = best_file(self.folder, run.step, psnr_db)
                self.keep_weights(file, run.average, run.step, psnr_db)
            self.log.write(**line)
            self.scored = {"psnr_db": psnr_db}
            if self.board:
                self.board.write(run.step, {"validation_psnr_db": psnr_db})

    def after_step(
        self, losses: Losses, learning_rate: float, *, state_file: Path, record: dict[str, Any]
    ) -> None:
        """Write what is due after a step that had these mean losses and this learning rate."""
        run, config = self.run, self.run.config
        is_last = run.step == run.stage.iterations
        values: dict[str, float] = {}
        with run.team.together():
            if run.team.leads and (run.step % config.log_every == 0 or is_last):
                values = {name: loss.item() for name, loss in losses.items()}
                self._log_losses({**values, "lr": learning_rate})
        if run.step % config.validate_every == 0 or is_last:
            self.score()
        with run.team.together():
            if run.team.leads and (run.step % config.save_every == 0 or is_last):
                run.save(state_file, record)
                self._tidy()
            self._show(values)

    def conclude(self) -> StageResult:
        """Score the end if it was not yet, and write result.json."""
        # A stage without steps, or one that ended before there were these images.
        if self.run.team.share(lambda: self._at(self.run.stage.iterations) is None):
            self.score()
        return self.run.team.share(self._result)

    def _result(self) -> StageResult:
        lines = [line for line in self.log.lines() if line.get("validation_sha256") == self.digest]
        best = next(iter(best_steps(lines, 1).items()), (None, None))
        result = StageResult(self._at(self.run.stage.iterations), self._at(0), best[1], best[0])
        write_bytes(self.folder / "result.json", json.dumps(vars(result)).encode() + b"\n")
        return result

    def _at(self, step: int) -> float | None:
        """The score that was taken at a step on the images at hand, or None."""
        found: list[float] = [
            line["validation_psnr_db"]
            for line in self.log.lines()
            if line["step"] == step and line.get("validation_sha256") == self.digest
        ]
        return found[-1] if found else None

    def _log_losses(self, values: dict[str, float]) -> None:
        step = self.run.step
        self.log.write(step=step, **values)
        if self.board:
            self.board.write(step, values)
            self.board.write_speed(step, samples_before(self.run.stage.phases, step))

    def _tidy(self) -> None:
        """Remove weights that are among the best no more; only once a later state is safe."""
        remove_others(self.folder, best_steps(self.log.lines(), self.run.config.keep_best))

    def _show(self, values: dict[str, float]) -> None:
        if self.progress and self.run.team.leads:
            stage = self.run.stage
            self.progress(stage.name, self.run.step, stage.iterations, values | self.scored)
            self.scored = {}
