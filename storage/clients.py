"""The clients of object stores: obstore's, one per bucket and process, also after a fork.

obstore and not fsspec: with eight threads and ranges of 16 KiB from a server on the same machine it
read 12,000 to 19,000 a second, and s3fs 800 to 1,100, which holds Python's lock meanwhile; it is
imported in 0.01 s, s3fs in 0.45 s. Its price is that it hangs in a forked process if it was used
before the fork: the threads of its runtime are not there. So a forked process loads a second copy
of its extension module, which has a runtime of its own (`_renew_obstore`).

Clients are made on first use, anew in each process, and never travel. Credentials are those of the
process that reads; they are no part of a bucket.
"""

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
import weakref
from datetime import timedelta
from importlib.machinery import ExtensionFileLoader
from types import ModuleType
from typing import Any

from samprior.storage.errors import UsageError

MAX_RETRIES = 7
"""Of reading, after dropped connections, timeouts, and answers of 500 to 599; the pauses between
them double from 0.1 s, some 10 s in all."""

MAX_WRITE_RETRIES = 20
"""Of writing: a job that nobody watches sits out a failure of some minutes. Pauses grow to 15 s."""

WRITE_RETRY_TIME = timedelta(minutes=4.5)
"""No new attempt is made after that; signed requests end at 5 minutes."""

WRITE_TIMEOUT_S = 120
"""Of one request with one part of a file; slow lines take their time."""

_EXTENSION = "obstore._obstore"


class Bucket:
    """A bucket and its clients: one to read and one to write per process, shared by all threads.

    The address of the server, if the environment names one, is taken when the bucket is opened
    and travels with it, since it is a part of where the data lies.
    """

    def __init__(self, scheme: str, name: str) -> None:
        self.scheme = scheme
        self.name = name
        self.endpoint = _s3_endpoint() if scheme == "s3" else None
        self._clients: dict[bool, object] = {}
        _buckets.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clients": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _buckets.add(self)

    @property
    def url(self) -> str:
        """`SCHEME://NAME`."""
        return f"{self.scheme}://{self.name}"

    def client(self, obstore: ModuleType, *, is_patient: bool = False) -> object:
        """This process's client. Two threads may make one each at first; either will do."""
        if is_patient not in self._clients:
            retries: dict[str, Any] = {
                "max_retries": MAX_WRITE_RETRIES if is_patient else MAX_RETRIES,
                "backoff": {"init_backoff": timedelta(seconds=0.1)},
            }
            options: dict[str, Any] = {"retry_config": retries}
            if is_patient:
                retries["retry_timeout"] = WRITE_RETRY_TIME
                # Not among the client options, which would put aside those of the environment.
                options["timeout"] = f"{WRITE_TIMEOUT_S} seconds"
            if self.endpoint is not None:
                options["endpoint"] = self.endpoint
                if self.endpoint.startswith("http://"):
                    options["client_options"] = {"allow_http": True}
            makers = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
            make = getattr(obstore.store, makers[self.scheme])
            self._clients[is_patient] = make(self.name, **options)
        return self._clients[is_patient]

    def leave_client(self) -> None:
        """In a forked process: forget the clients of the parent, without ever ending them.

        Their sockets and their event queue are shared with the parent, which still reads by them.
        """
        _inherited.extend(self._clients.values())
        self._clients = {}


def _s3_endpoint() -> str | None:
    """The server that the environment names instead of AWS."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


# A process that was forked

_lock = threading.Lock()
_is_inherited = False
"""Whether the loaded obstore is that of the process which this one was forked from."""
_buckets: "weakref.WeakSet[Bucket]" = weakref.WeakSet()
_inherited: list[Any] = []
"""Clients and modules of the parent, kept so that nothing of them is ever torn down."""


def _after_fork() -> None:
    global _lock, _is_inherited
    _lock = threading.Lock()  # another thread may have held it
    _is_inherited = _EXTENSION in sys.modules
    for bucket in _buckets:
        bucket.leave_client()


os.register_at_fork(after_in_child=_after_fork)


def load_obstore(scheme: str) -> ModuleType:
    """The library, fit for this process.

    Raises:
        UsageError: it isn't installed, or can't be used in this forked process.
    """
    global _is_inherited
    with _lock:
        if _is_inherited:
            _renew_obstore()
            _is_inherited = False
    try:
        return importlib.import_module("obstore")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{scheme}:// needs obstore; run: pip install 'samprior[remote]'"
        ) from error


def _renew_obstore() -> None:
    """Put a second copy of obstore's extension module, and a new obstore, in place of the old.

    A library is loaded once per file: the copy is another file, and so gets a runtime of its own.
    It takes some 25 ms and the memory of the file (15 MB), once per forked process.
    """
    old = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_of_obstore(name)}
    _inherited.append(old)
    original = str(old[_EXTENSION].__file__)
    try:
        # The name of the folder is new, too: Python remembers extension modules by their path.
        with tempfile.TemporaryDirectory(prefix="samprior-") as folder:
            copy = shutil.copy(original, folder)
            loader = ExtensionFileLoader(_EXTENSION, copy)
            spec = importlib.util.spec_from_file_location(_EXTENSION, copy, loader=loader)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[_EXTENSION] = module
            loader.exec_module(module)
    except (OSError, ImportError) as error:
        sys.modules.update(old)
        raise UsageError(
            f"a forked process can't load obstore a second time ({error}); start the workers with "
            "`spawn` or `forkserver`, or point TMPDIR to a folder that libraries may be loaded from"
        ) from error
    module.__file__ = original  # for the copy of a process that is forked from this one


def _is_of_obstore(module: str) -> bool:
    return module.partition(".")[0] == "obstore"
