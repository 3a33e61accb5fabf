"""Errors that tell of the machine, and say nothing against the image at hand."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from samprior.pipeline.datasets import Pair
from samprior.storage.errors import MachineError, SampriorError

_MEMORY = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute",
)
"""What PyTorch's plain RuntimeErrors say when memory ran out: its own allocator, cuBLAS, cuDNN."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the CPU or of a GPU."""
    # torch's class by name, since most segmenters never import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY)


def is_of_the_gpu(error: BaseException) -> bool:
    """Whether a GPU failed, after which every call in this process fails."""
    if type(error).__name__ == "AcceleratorError":
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")


_WAYS_OUT = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EFBIG: "have the limit raised (ulimit -f)",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "see who may write there",
    errno.EPERM: "see who may write there",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs: the machine has too many open files",
    errno.EIO: "see whether the disk fails",
    errno.ESTALE: "see whether the network's folder is mounted",
    errno.ENOTCONN: "see whether the network's folder is mounted",
}
_OF_THE_PLACE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What another folder would help against."""


@contextmanager
def told_plainly(out: str, *, is_job: bool = True) -> Iterator[None]:
    """Say of the system's errors what to do.

    Args:
        out: the folder that is written to.
        is_job: whether another folder would do as well, and finished shards are kept.

    Raises:
        MachineError: in the place of an OSError that tells of the machine.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, SampriorError) or error.errno not in _WAYS_OUT:
            raise
        elsewhere = ", or choose another --out" if is_job and error.errno in _OF_THE_PLACE else ""
        raise MachineError(
            f"{error.strerror}: {error.filename or out}; {_WAYS_OUT[error.errno]}{elsewhere}, then "
            f"run the same command again{': finished shards are kept' if is_job else ''}"
        ) from error


def has_vanished(pair: Pair) -> bool:
    """Whether a folder of the pair's files is gone or empty, as when it is no longer mounted.

    They were there when the job was planned.
    """
    return any(
        not file.exists() and not (file.parent.is_dir() and any(file.parent.iterdir()))
        for file in (pair.degraded, pair.clean)
    )
