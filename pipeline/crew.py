"""The workers that a job asks of Ray, and which of them a maker of masks can use."""

import os
from dataclasses import dataclass

from samprior.storage.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many workers a job has, what each needs, and where they live."""

    workers: int | None = 1
    """Ray actors; 0 works in this process. None, on a cluster: as many as there is room for, also
    when machines join later."""
    gpus_per_worker: float | None = 0.0
    """GPUs reserved for each, also parts of one. None, on a cluster: 1 where there are any."""
    cpus_per_worker: float | None = None
    """Cores reserved for each. None: 1 on a cluster, else they share those of this machine."""
    address: str | None = None
    """Running Ray cluster to join, such as `auto` or `HOST:6379`; None: that of `RAY_ADDRESS`, or
    else a Ray of the job's own on this machine."""
    image_timeout_s: float | None = None
    """A worker that needs longer for one image is ended, and the image found; None: it may take
    as long as it likes."""

    def __post_init__(self) -> None:
        for option, value in (
            ("--gpus-per-worker", self.gpus_per_worker),
            ("--cpus-per-worker", self.cpus_per_worker),
        ):
            if value is not None and not 0 <= value < 2**16:
                raise UsageError(f"{option} must be a number of at least 0, got {value:g}")
        timeout_s = self.image_timeout_s
        if timeout_s is not None and not 0 < timeout_s < float("inf"):
            raise UsageError(f"--image-timeout must be seconds above 0, got {timeout_s:g}")
        if timeout_s is not None and self.workers == 0:
            raise UsageError(
                "--image-timeout ends the worker of an image, and --workers 0 has none; "
                "leave one of them out"
            )

    @property
    def cluster(self) -> str | None:
        """Address of the cluster that is joined; None: a Ray of the job's own."""
        return self.address or os.environ.get("RAY_ADDRESS") or None
