"""The Ray that a job runs on.

One that this process has started already, or the running cluster of `RAY_ADDRESS`, is used as it
is. Otherwise a small private instance lives as long as the job.
"""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from samprior.storage.errors import StoreError

OBJECT_STORE_BYTES = 256 * 2**20
"""Receipts are all that travels; Ray's default would take a large part of the memory."""


@contextmanager
def ray_session(*, advice: str = "try --workers 0") -> Iterator[None]:
    """Have a Ray inside the block. `advice` is what its errors end with.

    Raises:
        StoreError: Ray can't be started or reached, or fails inside the block.
    """
    if ray.is_initialized():
        yield
        return
    with _private_settings():
        try:
            _start_ray(advice)
            yield
        except RayError as error:
            raise StoreError(f"Ray failed ({first_line(error)}); {advice}") from error
        finally:
            ray.shutdown()


def first_line(error: Exception) -> str:
    """The first line of an error's text; Ray adds logs and advice below."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _start_ray(advice: str) -> None:
    try:
        if address := os.environ.get("RAY_ADDRESS"):
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
    except (RayError, OSError, RuntimeError, ValueError) as error:
        at = f" at RAY_ADDRESS={address}" if address else ""
        raise StoreError(
            f"Ray can't be started or reached{at} ({first_line(error)}); {advice}"
        ) from error


@contextmanager
def _private_settings() -> Iterator[None]:
    """Environment of a private Ray: no usage statistics, nothing written below the home folder.

    Ray's ports are open to the network, so its authentication is not switched off. Without a
    token in the environment Ray would write one to ~/.ray. The token stays there for the rest of
    the process, because Ray remembers it as well and its next instance must have the same.
    """
    if os.environ.get("RAY_ADDRESS"):
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
