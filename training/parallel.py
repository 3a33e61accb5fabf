"""Several processes that train one network, each on its share of every batch.

torchrun and Ray Train start the processes (ranks); the same loop runs in each. Rank 0 alone writes.
What goes wrong on one rank ends all of them: no rank waits for one that has stopped. A run of one
process sends nothing and needs none of this.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from samprior.storage.errors import ConfigError, TrainingError

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others: one may be writing a checkpoint to a slow disk."""


@dataclass(frozen=True)
class Team:
    """The ranks of a run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    """Number of ranks, the world size."""
    messages: dist.ProcessGroup | None = None
    """For small objects, on the CPU; gradients take the default group."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends well on all ranks or on none; all ranks must enter it.

        Raises:
            TrainingError: another rank failed; its own error where this one did.
        """
        if self.size == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        flag = torch.tensor([failed is not None], dtype=torch.int32)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.messages)
        if not flag.item():
            return
        told = self.gather(f"{type(failed).__name__}: {failed}" if failed else None)
        if failed is not None:
            raise failed
        rank, words = next((rank, words) for rank, words in enumerate(told) if words)
        raise TrainingError(f"rank {rank} of {self.size} stopped with {words}")

    def share(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, the only one to call it; raises as `together` does."""
        made: list[T | None] = [None]
        with self.together():
            if self.leads:
                made = [make()]
        if self.size > 1:
            dist.broadcast_object_list(made, src=0, group=self.messages)
        return made[0]  # type: ignore[return-value]  # filled by rank 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.messages)
        return values  # type: ignore[return-value]  # filled by all ranks

    def meet(self, where: str) -> None:
        """Wait until all ranks are here.

        Raises:
            TrainingError: some did not come in time; names them.
        """
        if self.size == 1:
            return
        try:
            dist.monitored_barrier(self.messages, PATIENCE, wait_all_ranks=True)
        except RuntimeError as error:
            raise TrainingError(f"not all ranks came to {where}: {error}") from error

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The means of scalars over all ranks, in one message."""
        if self.size == 1:
            return dict(values)
        stacked = torch.stack([value.detach().float() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.size, strict=True))

    def averaging(self, module: nn.Module, *, unused_parameters: bool) -> nn.Module:
        """`module`, whose backward pass also averages the gradients over all ranks.

        Args:
            module: its forward gives the losses of a rank's share of a batch.
            unused_parameters: whether some parameters never get a gradient.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=unused_parameters)

    def share_of_batch(self, batch_size: int, accumulate: int) -> int:
        """Crops that a rank computes at a time.

        Raises:
            ConfigError: the batch can't be split evenly, as means over it ask for.
        """
        if batch_size % (self.size * accumulate):
            raise ConfigError(
                f"a batch of {batch_size} crops can't be split evenly over {self.size} ranks of "
                f"{accumulate} parts each; set data.batch_size to a multiple of "
                f"{self.size * accumulate}, or change accumulate or the number of ranks"
            )
        return batch_size // (self.size * accumulate)


ALONE = Team()
"""A run of one process."""


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Team, torch.device]]:
    """The ranks that this process was started among, and its own device of that kind.

    A process group that exists already, as under Ray Train, is used and left in place; otherwise
    torchrun's variables (WORLD_SIZE, RANK, ...) say how to make one: gloo on CPUs, NCCL on GPUs.

    Raises:
        ConfigError: the variables are incomplete, or a rank has no GPU of its own.
    """
    found = dist.is_available() and dist.is_initialized()
    if not found and _number("WORLD_SIZE", 1) == 1:
        yield ALONE, device
        return
    if not found:
        device = _start_group(device)
    elif device == torch.device("cuda"):
        device = torch.device("cuda", torch.cuda.current_device())
    messages = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert not isinstance(messages, int)  # that is for processes outside the group
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), messages), device
    finally:
        dist.destroy_process_group(messages if found else None)


def without_averaging(module: nn.Module) -> AbstractContextManager[object]:
    """A context in which the gradients of `module` stay on their rank: all parts but the last."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def is_leading_process() -> bool:
    """Whether this process, by torchrun's variables, is the one that speaks to the user."""
    return _number("RANK", 0) == 0


def _start_group(device: torch.device) -> torch.device:
    """Meet the other ranks as torchrun's variables say; the device of this one."""
    rank, size = _number("RANK", None), _number("WORLD_SIZE", None)
    _number("MASTER_PORT", None)  # torch's own words for a missing one name no way out
    if device.type == "cuda":
        device = _own_gpu(_number("LOCAL_RANK", None))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=PATIENCE)
    return device


def _own_gpu(local_rank: int) -> torch.device:
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {local_rank} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; start fewer ranks or set device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _number(variable: str, default: int | None) -> int:
    """A variable that torchrun sets; needed where there is no default."""
    text = os.environ.get(variable)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit():
        raise ConfigError(
            f"{variable} is {text!r}, but a number is needed; start the ranks with torchrun"
        )
    return int(text)
