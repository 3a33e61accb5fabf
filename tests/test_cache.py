"""The cache never holds more than it may, and forgets what was not used longest."""

import gc
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samprior.storage.cache import BoundedCache


def made(value: int, num_bytes: int, calls: list[int]) -> Callable[[], tuple[int, int]]:
    def make() -> tuple[int, int]:
        calls.append(value)
        return value, num_bytes

    return make


def test_what_is_held_is_not_made_again() -> None:
    calls: list[int] = []
    cache: BoundedCache[int] = BoundedCache(100)
    for _ in range(3):
        assert cache.get("a", made(1, 10, calls)) == 1
        assert cache.get("b", made(2, 10, calls)) == 2
    assert calls == [1, 2]
    assert (len(cache), cache.num_bytes) == (2, 20)


def test_none_is_a_value() -> None:
    calls = []
    cache: BoundedCache[None] = BoundedCache(100)
    for _ in range(2):
        assert cache.get("nothing", lambda: calls.append(1) or (None, 64)) is None
    assert len(calls) == 1


def test_what_was_not_used_longest_goes_first() -> None:
    calls: list[int] = []
    cache: BoundedCache[int] = BoundedCache(30)
    for key in (1, 2, 3, 1, 4):
        cache.get(key, made(key, 10, calls))
    calls.clear()
    for key in (1, 3, 4):
        cache.get(key, made(key, 10, calls))
    assert calls == []
    cache.get(2, made(2, 10, calls))
    assert calls == [2]


def test_a_value_larger_than_the_cache_is_given_and_not_kept() -> None:
    calls: list[int] = []
    cache: BoundedCache[int] = BoundedCache(30)
    cache.get("small", made(1, 10, calls))
    for _ in range(2):
        assert cache.get("large", made(2, 31, calls)) == 2
        assert cache.num_bytes <= 30
    assert calls == [1, 2, 2]
    assert len(cache) == 0
    cache.get("fits", made(3, 30, calls))
    assert len(cache) == 1


def test_a_failure_is_not_kept() -> None:
    cache: BoundedCache[int] = BoundedCache(30)

    def fail() -> tuple[int, int]:
        raise OSError("damaged")

    for _ in range(2):
        with pytest.raises(OSError, match="damaged"):
            cache.get("a", fail)
    assert cache.get("a", lambda: (1, 1)) == 1


def test_values_that_are_forgotten_are_freed() -> None:
    cache: BoundedCache[np.ndarray] = BoundedCache(800)
    first = weakref.ref(cache.get(0, lambda: (np.zeros(100), 800)))
    assert first() is not None
    cache.get(1, lambda: (np.zeros(100), 800))
    gc.collect()
    assert first() is None


@given(
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), max_size=60),
)
def test_it_is_what_a_list_would_be(max_bytes: int, asked: list[tuple[int, int]]) -> None:
    """A list, most recent last, from which the first are dropped until the rest fits."""
    cache: BoundedCache[int] = BoundedCache(max_bytes)
    model: list[tuple[int, int]] = []
    for key, num_bytes in asked:
        calls: list[int] = []
        assert cache.get(key, made(key, num_bytes, calls)) == key
        held = [one for one in model if one[0] == key]
        assert bool(calls) != bool(held)
        model = [one for one in model if one[0] != key] + (held or [(key, num_bytes)])
        while sum(size for _, size in model) > max_bytes:
            model.pop(0)
        assert list(cache._held) == [key for key, _ in model]
        assert cache.num_bytes == sum(size for _, size in model) <= max_bytes


def test_threads_get_their_values_and_the_bound_holds() -> None:
    cache: BoundedCache[int] = BoundedCache(50)
    too_many = []

    def ask(seed: int) -> None:
        for key in np.random.default_rng(seed).integers(0, 30, 2000).tolist():
            assert cache.get(key, lambda key=key: (key * key, key)) == key * key
            if cache.num_bytes > 50 + 29 * 4:  # four threads may be between adding and dropping
                too_many.append(cache.num_bytes)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(4)))
    assert not too_many
    assert cache.num_bytes == sum(size for _, size in cache._held.values()) <= 50


def test_making_does_not_hold_up_other_threads() -> None:
    """While one value is being made others are had, and it may be made twice; one is kept."""
    cache: BoundedCache[int] = BoundedCache(50)
    begun, go_on = threading.Event(), threading.Event()

    def make_slowly() -> tuple[int, int]:
        begun.set()
        assert go_on.wait(60)
        return 1, 10

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(cache.get, "a", make_slowly)
        assert begun.wait(60)
        assert cache.get("b", lambda: (2, 10)) == 2
        assert cache.get("a", lambda: (3, 10)) == 3
        go_on.set()
        assert slow.result() == 1
    assert cache.get("a", lambda: (4, 10)) == 3
    assert cache.num_bytes == 20


def end_after(seconds: int) -> None:
    """End this process if it hangs: no child is left behind."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_is_inside() -> None:
    """That thread isn't there after the fork, and would never leave."""
    cache: BoundedCache[int] = BoundedCache(50)
    cache.get("a", lambda: (1, 10))
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with cache._lock:
        child = os.fork()
        if child == 0:
            try:
                end_after(50)
                sender.send((cache.num_bytes, cache.get("a", lambda: (2, 10)), cache.num_bytes))
            finally:
                os._exit(0)
    assert receiver.poll(60), "the forked process hangs"
    assert receiver.recv() == (0, 2, 10)
    os.waitpid(child, 0)
    assert cache.get("a", lambda: (3, 10)) == 1
