"""The Ray that a job runs on.

One that this process has started already, or a running cluster (`--address`, `RAY_ADDRESS`), is
used as it is. Otherwise a small private instance lives as long as the job, and ends with it however
that ends.
"""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from samprior.storage.errors import StoreError

OBJECT_STORE_BYTES = 256 * 2**20
"""Counts and keys are all that travels; Ray's default would take a large part of the memory."""

_VITAL = {"raylet", "gcs_server"}
"""Processes of a private Ray without which nothing goes on."""


class RayGoneError(Exception):
    """Ray itself has ended under a job; a new one has to be started."""


@dataclass(frozen=True)
class Session:
    """A Ray that is up."""

    is_private: bool
    """Whether it was started for this session alone."""
    is_ours: bool
    """Whether it was started or joined for this session, so that it can be anew."""

    @property
    def is_gone(self) -> bool:
        """Whether a private Ray has lost a process of its own."""
        node: Any = ray._private.worker._global_node if self.is_private else None
        return node is not None and any(name in _VITAL for name, _ in node.dead_processes())

    def check(self) -> None:
        """Raise RayGoneError if `is_gone`."""
        if self.is_gone:
            raise RayGoneError("a process of Ray itself was killed, or has crashed")

    def has_node(self, node: str) -> bool:
        """Whether a machine is still part of the cluster.

        Raises:
            RayGoneError: this machine isn't.
        """
        # Ray has no types.
        machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {machine["NodeID"] for machine in machines if machine["Alive"]}
        if ray.get_runtime_context().get_node_id() not in alive:
            raise RayGoneError("the cluster has lost this machine")
        return node in alive


@contextmanager
def ray_session(
    *, address: str | None = None, advice: str = "try --workers 0"
) -> Iterator[Session]:
    """Have a Ray inside the block.

    Args:
        address: cluster to join; None: that of `RAY_ADDRESS`, or a private Ray.
        advice: what errors end with.

    Raises:
        StoreError: Ray can't be started or reached, or fails inside the block.
    """
    if ray.is_initialized():
        yield Session(is_private=False, is_ours=False)
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    with _private_settings(address), _without_messages():
        try:
            with _signals_wait():
                _start_ray(address, advice)
            yield Session(is_private=address is None, is_ours=True)
        except RayError as error:
            raise StoreError(f"Ray failed ({first_line(error)}); {advice}") from error
        finally:
            with _signals_wait():
                ray.shutdown()


def first_line(error: Exception) -> str:
    """The first line of an error's text; Ray adds logs and advice below."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _start_ray(address: str | None, advice: str) -> None:
    try:
        if address:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            # Without an address Ray would join the last cluster that anybody started on this
            # machine (`ray_current_cluster` below its folder of temporary files), dead or alive.
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
            )
    except Exception as error:
        # A node that doesn't come up in time is told by a bare Exception.
        if type(error) is not Exception and not isinstance(
            error, RayError | OSError | RuntimeError | ValueError
        ):
            raise
        at = f" at {address}" if address else ""
        raise StoreError(
            f"Ray can't be started or reached{at} ({first_line(error)}); {advice}"
        ) from error


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block's end, while Ray starts or ends.

    An exception in the middle of either crashes the process later. Ray sets handlers of its own for
    SIGTERM, which end the process at once with exit code 1 or 15: they are not wanted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    utils: Any = ray._private.utils
    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda number, _: came.append(signal.Signals(number)))
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            handler = before[number]
            assert callable(handler)
            handler(number, None)


@contextmanager
def _without_messages() -> Iterator[None]:
    """Keep Ray from printing to stdout what became of its processes; the job tells what matters.

    `log_to_driver=False` is about the output of workers only, and Ray has no other public switch.
    """
    module: Any = ray._private.worker
    before = getattr(module, "_worker_logs_enabled", True)
    module._worker_logs_enabled = False
    try:
        yield
    finally:
        module._worker_logs_enabled = before


@contextmanager
def _private_settings(address: str | None) -> Iterator[None]:
    """Environment of a private Ray: no usage statistics, nothing written below the home folder.

    Ray's ports are open to the network, so its authentication is not switched off. Without a
    token in the environment Ray would write one to ~/.ray. The token stays there for the rest of
    the process, because Ray remembers it as well and its next instance must have the same.
    """
    if address:
        yield
        return
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")}
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
