"""A bounded memory of what was read last; safe in several threads, and across a fork."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Keeps values until they take more than `max_bytes`; what was not used longest goes first.

    A forked process begins with an empty one.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._forget()
        _caches.add(self)

    def _forget(self) -> None:
        self.num_bytes = 0
        self._held: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], tuple[Value, int]]) -> Value:
        """The value of a key; `make` gives it and its bytes where it isn't held.

        Two threads may make the same value at once: making is not done under the lock.
        """
        with self._lock:
            if (held := self._held.get(key)) is not None:
                self._held.move_to_end(key)
                return held[0]
        value, num_bytes = make()
        with self._lock:
            if key not in self._held:
                self._keep(key, value, num_bytes)
        return value

    def put(self, key: Hashable, value: Value, num_bytes: int) -> None:
        """Hold a value, in place of the one that was there."""
        with self._lock:
            self._keep(key, value, num_bytes)

    def _keep(self, key: Hashable, value: Value, num_bytes: int) -> None:
        _, freed = self._held.pop(key, (None, 0))
        self._held[key] = value, num_bytes
        self.num_bytes += num_bytes - freed
        while self.num_bytes > self.max_bytes:
            _, (_, freed) = self._held.popitem(last=False)
            self.num_bytes -= freed


_caches: "weakref.WeakSet[BoundedCache[Any]]" = weakref.WeakSet()


def _after_fork() -> None:
    """Another thread may have held a lock, which would stay so forever, with half a change made."""
    for cache in _caches:
        cache._forget()


os.register_at_fork(after_in_child=_after_fork)
