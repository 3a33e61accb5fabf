"""What a stage tells while it runs: metrics.jsonl, TensorBoard, and pictures of its validation.

metrics.jsonl holds only what is the same for a run that was broken off and one that was not; speed
goes to TensorBoard.
"""

import io
import json
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samprior.storage.errors import ConfigError
from samprior.storage.files import write_bytes

Picture = npt.NDArray[np.uint8]

STRIP_PX = 256
"""Largest side of each picture of a strip: whole ones of a long run would take gigabytes."""


class Log:
    """metrics.jsonl: one JSON object per line; lines after the resumed step are dropped."""

    def __init__(self, file: Path, step: int) -> None:
        self.file = file
        kept = [line for line in self.lines() if line["step"] <= step] if step else []
        write_bytes(file, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines."""
        if not self.file.exists():
            return []
        whole = self.file.read_text().rpartition("\n")[0]  # a kill may cut the last line short
        return [json.loads(line) for line in whole.splitlines()]

    def write(self, **values: float | str) -> None:
        """Add a line."""
        with self.file.open("a") as stream:
            stream.write(json.dumps(values) + "\n")


class Board:
    """TensorBoard's curves of a stage, below `folder`; those of undone steps are taken back."""

    def __init__(self, folder: Path, step: int) -> None:
        # Here, not at the top: it takes seconds, and the library is an extra.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        self._last: tuple[int, float] | None = None

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add points to curves by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_speed(self, step: int, samples: int) -> None:
        """Add the speed since the last call, given all samples seen; scoring and saving count."""
        now = time.monotonic()
        if self._last:
            before, then = self._last
            self.write(step, {"samples_per_s": (samples - before) / max(now - then, 1e-9)})
        self._last = samples, now


def require_tensorboard() -> None:
    """Do nothing if TensorBoard is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard = true needs the tensorboard package; run: "
            'pip install "samprior[tensorboard]"'
        )


def strip_of(degraded: Picture, restored: Picture, clean: Picture) -> Picture:
    """The middles of three (H, W, 3) pictures side by side, at most STRIP_PX high each."""
    height, width = (min(side, STRIP_PX) for side in clean.shape[:2])
    top, left = (clean.shape[0] - height) // 2, (clean.shape[1] - width) // 2
    part = np.s_[top : top + height, left : left + width]
    return np.concatenate([degraded[part], restored[part], clean[part]], axis=1)


def write_png(file: Path, picture: Picture) -> None:
    """Write a uint8 (H, W, 3) picture as PNG, whole or not at all."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    write_bytes(file, stream.getvalue())
