"""Train on the workers of a Ray cluster: Ray Train starts the ranks, the loop is the same.

The run's folder, the stores and the folder where the command was given must be reachable under the
same paths from all nodes. Ray needs the extra `samprior[ray-train]`.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samprior.storage.errors import ConfigError, SampriorError, TrainingError, UsageError
from samprior.training.config import TrainConfig
from samprior.training.outlook import Outlook
from samprior.training.reports import Progress
from samprior.training.run import RunResult, read_result, train

_TELL_EVERY_S = 0.5
"""Pace at which rank 0 tells of steps that were neither logged nor scored."""

_LISTEN_S = 0.2


def train_with_ray(
    config: TrainConfig,
    *,
    workers: int,
    gpus_per_worker: float = 0.0,
    announce: Callable[[Outlook], None] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Do what `train` does, on so many workers of the Ray that this process is connected to.

    Args:
        config: the run; all workers together take each batch.
        workers: ranks, each with a CPU.
        gpus_per_worker: GPUs of each; 0 trains on CPUs.
        announce: called here, in another thread, with what rank 0 announces.
        progress: the same with how far rank 0 is, not for every step.

    Raises:
        ConfigError: Ray Train is not installed.
        UsageError: no worker, or a negative number of GPUs.
        SampriorError: whatever `train` raises.
        TrainingError: Ray lost a worker.
    """
    if workers < 1 or gpus_per_worker < 0:
        raise UsageError(
            "Ray needs at least 1 worker and 0 or more GPUs for each, got "
            f"{workers} and {gpus_per_worker:g}"
        )
    # ray.train imports them, and says only that "some dependencies" are missing.
    if missing := [name for name in ("pyarrow", "pandas", "tensorboardX") if not find_spec(name)]:
        raise ConfigError(
            f'Ray Train needs {", ".join(missing)}; run: pip install "samprior[ray-train]"'
        )
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources = {"CPU": 1.0}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    # Ray Train wants a folder of its own for what it notes; ours holds all that a run leaves.
    with (
        tempfile.TemporaryDirectory(prefix="samprior-ray-") as notes,
        _heard(announce, progress) as news,
    ):
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "settings": config.model_dump(mode="json"),
                "folder": str(Path.cwd()),
                "news": news,
            },
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(name="samprior", storage_path=notes),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _own_error(error) from error
    return read_result(config)


def _work(task: dict[str, Any]) -> None:
    """What each worker does; Ray has made the process group."""
    from ray.train.torch import get_device

    # Ray Train starts its workers in a folder of its own; relative paths are meant from ours.
    os.chdir(task["folder"])
    device = str(get_device())
    news, told = task["news"], 0.0

    def announce(outlook: Outlook) -> None:
        news.put(("announce", (outlook,)))

    def progress(stage: str, step: int, total: int, values: dict[str, Any]) -> None:
        nonlocal told
        if values or step == total or time.monotonic() - told > _TELL_EVERY_S:
            news.put(("progress", (stage, step, total, values)))
            told = time.monotonic()

    config = TrainConfig.model_validate({**task["settings"], "device": device})
    train(config, announce=announce, progress=progress)


@contextmanager
def _heard(announce: Callable[[Outlook], None] | None, progress: Progress | None) -> Iterator[Any]:
    """A queue of Ray's; what comes in it is passed on while the block runs."""
    from ray.exceptions import RayError
    from ray.util.queue import Empty, Queue

    news = Queue(actor_options={"num_cpus": 0})
    listeners = {"announce": announce, "progress": progress}
    ended = threading.Event()

    def listen() -> None:
        while True:
            try:
                name, told = news.get(timeout=_LISTEN_S)
            except Empty:
                if ended.is_set():
                    return
                continue
            except RayError:  # Ray has gone, which the block learns as well
                return
            listener = listeners[name]
            if listener is not None:
                listener(*told)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield news
    finally:
        ended.set()
        thread.join()
        news.shutdown()


def _own_error(error: Exception) -> SampriorError:
    """The error of ours that ended the workers, or one that says that Ray failed."""
    failures: dict[int, BaseException | None] = getattr(error, "worker_failures", {})
    for _, failure in sorted(failures.items()):
        while failure is not None:
            if isinstance(failure, SampriorError):
                return failure
            failure = failure.__cause__ or failure.__context__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return TrainingError(
        f"Ray Train failed: {lines[-1].strip() if lines else type(error).__name__}"
    )
