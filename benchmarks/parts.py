"""The parts of `make benchmark`: which script runs with which arguments, in full and in quick.

Equal names of parts and of files of results: what a part finds is in benchmarks/results/NAME.json.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run of a script."""

    name: str
    script: str
    full: str
    """Arguments."""
    quick: str | None
    """Arguments of a run of some ten seconds; None: there is none."""
    takes_device: bool = False
    needs: Literal["cuda", "cpu", "checkpoint", None] = None
    peer: str | None = None
    """Library without which there is nothing to compare with; others' absence costs single rows."""

    def left_out(self, *, quick: bool, device: str, checkpoint: Path | None) -> str | None:
        """Why the part can't or needn't run; None: it does."""
        on_gpu = device.startswith("cuda")
        if not (SCRIPTS / self.script).exists():
            return f"benchmarks/{self.script} is not there"
        if self.needs == "cuda" and not on_gpu:
            return "no GPU was asked for: make benchmark DEVICE=cuda"
        if self.needs == "cpu" and on_gpu:
            return "a row of the processor: make benchmark without DEVICE"
        if self.needs == "checkpoint" and checkpoint is None:
            return "no weights: make benchmark CHECKPOINT=sam_vit_h_4b8939.pth"
        if quick and self.quick is None:
            return "takes minutes: make benchmark without QUICK"
        return None

    def missing(self) -> str | None:
        """Why nothing can be compared in this environment; None: it can."""
        if self.peer is None or find_spec(self.peer) is not None:
            return None
        return f"{self.peer} is not installed: .venv/bench/bin/python -m pip install {self.peer}"

    def arguments(self, *, quick: bool, device: str, checkpoint: Path | None) -> list[str]:
        """Arguments of the script."""
        assert not quick or self.quick is not None
        told = (self.quick if quick else self.full) or ""
        device_arguments = ["--device", device] if self.takes_device else []
        weights = ["--checkpoint", str(checkpoint)] if self.needs == "checkpoint" else []
        return [*told.split(), *device_arguments, *weights]


def _everything(name: str, full: str, quick: str | None, **more: object) -> Part:
    named = f"--name {name} "
    return Part(
        name=name,
        script="everything.py",
        full=named + full,
        quick=None if quick is None else named + quick,
        takes_device=True,
        **more,  # type: ignore[arg-type]
    )


PARTS = (
    _everything(
        "everything_post",
        "--only post --points-per-side 32 --runs 3",
        "--model tiny --only post --points-per-side 4 --runs 1",
    ),
    _everything(
        "everything_decoder",
        "--only decoder --points-per-side 32 --runs 2",
        "--model tiny --only decoder --points-per-side 4 --runs 1",
    ),
    _everything(
        "everything_whole",
        "--only whole --points-per-side 32 --runs 2",
        "--model tiny --only whole --points-per-side 4 --runs 1",
        peer="pycocotools",
    ),
    _everything(
        "everything_vit_h",
        "--model vit_h --only whole --points-per-side 32 --runs 2",
        None,
        needs="cpu",
        peer="pycocotools",
    ),
    _everything(
        "everything_gpu",
        "--model vit_h --only whole --points-per-side 32 --runs 5 "
        "--precision float32 --precision bfloat16",
        "--model vit_h --only whole --points-per-side 8 --runs 2 "
        "--precision float32 --precision bfloat16",
        needs="cuda",
        peer="pycocotools",
    ),
    _everything(
        "everything_weights",
        "--model vit_h --only post --only whole --points-per-side 32 --runs 2",
        None,
        needs="checkpoint",
        peer="pycocotools",
    ),
    _everything(
        "everything_memory",
        "--only memory --points-per-side 32",
        "--model tiny --only memory --points-per-side 4",
    ),
    Part(
        name="storage_rows",
        script="storage.py",
        full="--only encode --only crops --name storage_rows",
        quick="--quick --only encode --only crops --name storage_rows",
        peer="pycocotools",
    ),
    Part(
        name="loader_batches",
        script="loader.py",
        full="--only one --only batches --workers 2 --aligned --name loader_batches",
        quick="--quick --only one --only batches --workers 2 --aligned --name loader_batches",
        peer="pycocotools",
    ),
    Part(
        name="distillation_cost",
        script="distillation_cost.py",
        full="--runs 5",
        quick="--preset tiny --crop-px 64 --batch-size 2 --runs 1",
        takes_device=True,
    ),
    Part(
        name="sam_in_the_loop",
        script="sam_in_the_loop.py",
        full="--points-per-side 32 --runs 2",
        quick="--model tiny --points-per-side 8 --runs 1",
        takes_device=True,
    ),
    Part(
        name="student",
        script="student.py",
        full="--runs 41",
        quick="--image-px 64 --runs 3",
        takes_device=True,
    ),
    Part(
        name="job_workers",
        script="job_scale.py",
        full="--only workers",
        quick="--only workers --quick",
    ),
    Part(name="cli_start", script="cli_start.py", full="--runs 7", quick="--runs 1"),
    Part(
        name="worker_memory",
        script="worker_memory.py",
        full="--runs 3",
        quick="--pictures 4 --size 640 360 --runs 1",
        peer="pycocotools",
    ),
)
"""In the order they run."""
