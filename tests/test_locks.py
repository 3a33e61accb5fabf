"""Locks: one writer at a time, in folders and buckets; what holders say; locks left behind."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samprior.storage import lock_cells
from samprior.storage.errors import BusyError, StoreError, UnreachableError
from samprior.storage.holders import Holder
from samprior.storage.locks import LOCK, holder_of, only_writer, only_writer_of
from samprior.storage.places import Place, open_place
from samprior.storage.remote import RemoteFolder

ELSEWHERE = replace(
    Holder.this(), host="node7", pid=4711, machine="another boot", held_s=7530, token="theirs"
)
"""A holder on another machine."""


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        (tmp_path / "out").mkdir()
        return open_place(tmp_path / "out")
    return open_place(request.getfixturevalue("bucket_url"))


@pytest.fixture
def other_process(place: Place) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Start a process that takes the lock, and holds it until it is killed."""
    code = (
        "import sys, time\n"
        "from samprior.storage.locks import only_writer_of\n"
        "from samprior.storage.places import open_place\n"
        "with only_writer_of(open_place(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with ExitStack() as stack:

        def start() -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", code, place.url]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            assert process.stdout.readline() == "held\n"
            return process

        yield start


def put(place: Place, holder: Holder) -> None:
    """Write a lock as another machine would, which no flock of ours keeps from it."""
    if place.local is None:
        place.write(LOCK, holder.to_json())
    else:
        (place.local / LOCK).write_bytes(holder.to_json())


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing happened for 30 s")


# Held and free


def test_the_lock_says_who_holds_it(place: Place) -> None:
    with only_writer_of(place):
        record = json.loads(place.read(LOCK))
        assert (record["host"], record["pid"]) == (os.uname().nodename, os.getpid())
        assert record["started"].endswith("+00:00")
        assert record["command"] == " ".join(sys.argv)[:1000]
        held = holder_of(place)
        assert held is not None
        assert held.is_here
        assert not held.is_gone
    assert holder_of(place) is None
    assert place.sizes() in ({}, {LOCK: 0}), "a bucket keeps none, a folder an empty file"
    with only_writer_of(place):
        pass


def test_it_is_given_back_after_an_error(place: Place) -> None:
    with pytest.raises(KeyboardInterrupt), only_writer_of(place):
        raise KeyboardInterrupt
    assert holder_of(place) is None


def test_a_second_writer_learns_who_the_first_is(
    place: Place, other_process: Callable[[], "subprocess.Popen[str]"]
) -> None:
    process = other_process()
    said = (
        rf"another process writes to .* \(host {os.uname().nodename}, process {process.pid}, since"
    )
    with pytest.raises(BusyError, match=said), only_writer_of(place):
        pass


def test_the_lock_of_a_killed_process_is_free_at_once(
    place: Place, other_process: Callable[[], "subprocess.Popen[str]"]
) -> None:
    process = other_process()
    process.kill()
    process.wait()
    holder = holder_of(place)
    assert holder is not None
    assert holder.is_gone
    with only_writer_of(place, stale_s=1e6):
        pass


def test_one_of_many_gets_it(place: Place) -> None:
    """Threads stand for processes: neither flock nor a bucket tells them apart."""
    start, done = threading.Barrier(8), threading.Barrier(8)
    won = []

    def contend(number: int) -> None:
        start.wait(60)
        try:
            with only_writer_of(place):
                won.append(number)
                done.wait(60)
        except BusyError:
            done.wait(60)

    threads = [threading.Thread(target=contend, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert holder_of(place) is None


def test_a_forked_process_does_not_give_it_back(tmp_path: Path) -> None:
    with only_writer(tmp_path) as hold:
        content = (tmp_path / LOCK).read_bytes()
        hold._me = replace(hold._me, pid=-1)  # as a child sees its parent's
    assert (tmp_path / LOCK).read_bytes() == content


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(lock_cells.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_cells.fcntl, "flock", no_locks)
    with pytest.raises(StoreError, match="without locks"), only_writer(tmp_path):
        pass


# Locks of other machines


def test_a_lock_that_beats_elsewhere_is_refused(place: Place) -> None:
    put(place, ELSEWHERE)
    timer = threading.Timer(0.2, put, [place, replace(ELSEWHERE, beats=1, held_s=7550)])
    timer.start()
    said = r"host node7, process 4711, since 2 h 5 min\); wait"
    with pytest.raises(BusyError, match=said), only_writer_of(place, stale_s=12):
        pass
    timer.join()
    holder = holder_of(place)
    assert holder is not None
    assert holder.token == "theirs"


def test_a_lock_that_stands_still_is_taken_over(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    put(place, ELSEWHERE)
    started = time.monotonic()
    with only_writer_of(place, stale_s=0.5) as hold:
        assert time.monotonic() - started >= 0.5
        hold.check()
        holder = holder_of(place)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert "host node7, process 4711, since 2 h 5 min" in caplog.text
    assert holder_of(place) is None


def test_a_lock_that_is_given_back_meanwhile_is_free(place: Place) -> None:
    put(place, ELSEWHERE)

    def give_back() -> None:
        if place.local is None:
            place.remove(LOCK)
        else:
            os.truncate(place.local / LOCK, 0)

    timer = threading.Timer(0.2, give_back)
    timer.start()
    with only_writer_of(place, stale_s=12):
        pass
    timer.join()


def test_a_lock_nobody_can_read_is_watched_too(place: Place) -> None:
    place.write(LOCK, b'{"host": ')
    with only_writer_of(place, stale_s=0.2):
        pass


def test_clocks_are_not_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file from the year 2100, read by a machine in 1970, and the other way round."""
    for year in ("2100", "1970"):
        put(place, replace(ELSEWHERE, started=f"{year}-01-01T00:00:00+00:00"))
        monkeypatch.setattr(time, "time", lambda: 0.0)
        with only_writer_of(place, stale_s=0.2) as hold:
            hold.check()


# Beats


def test_a_holder_says_that_it_lives(place: Place) -> None:
    with only_writer_of(place, beat_s=0.02) as hold:
        contents = []

        def more() -> bool:
            content = place.read(LOCK)
            if content not in contents:
                contents.append(content)
            return len(contents) >= 4

        wait_until(more)
        hold.check()
    holders = [Holder.from_json(content) for content in contents]
    whole = [holder for holder in holders if holder is not None]
    assert len({holder.token for holder in whole}) == 1
    assert sorted(holder.beats for holder in whole) == [holder.beats for holder in whole]


def test_a_holder_that_was_taken_over_stops(place: Place) -> None:
    def hold_too_long() -> None:
        with only_writer_of(place, beat_s=0.02) as hold:
            hold.check()
            put(place, ELSEWHERE)
            wait_until(lambda: hold._new_holder is not None)
            hold.check()

    with pytest.raises(BusyError, match=r"taken over \(host node7, process 4711"):
        hold_too_long()
    holder = holder_of(place)
    assert holder is not None
    assert holder.token == "theirs", "it doesn't give back what isn't its own"


def test_even_one_that_never_checks_hears_of_it(place: Place) -> None:
    def never_check() -> None:
        with only_writer_of(place, beat_s=0.02) as hold:
            put(place, ELSEWHERE)
            wait_until(lambda: hold._new_holder is not None)

    with pytest.raises(BusyError, match="taken over"):
        never_check()


def test_a_holder_whose_lock_was_removed_stops(bucket_url: str) -> None:
    def lose_it() -> None:
        place = open_place(bucket_url)
        with only_writer_of(place, beat_s=0.02) as hold:
            place.remove(LOCK)
            wait_until(lambda: hold._new_holder is not None)
            hold.check()

    with pytest.raises(BusyError, match="file was removed"):
        lose_it()


def test_a_beat_that_fails_is_no_loss(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    cell: Any = lock_cells.ObjectCell if place.local is None else lock_cells.FileCell
    swap = cell.swap
    failures = []

    def failing(self: object, content: bytes, expected: object) -> object:
        if len(failures) < 3 and holder_of(place) is not None:
            failures.append(1)
            raise UnreachableError("the network is gone")
        return swap(self, content, expected)

    with only_writer_of(place, beat_s=0.02) as hold:
        before = place.read(LOCK)
        monkeypatch.setattr(cell, "swap", failing)
        wait_until(lambda: len(failures) == 3 and place.read(LOCK) != before)
        hold.check()


# Buckets


def test_an_answer_that_was_lost_does_not_lose_the_lock(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt is carried out, its answer lost, and the second one refused."""
    swap = RemoteFolder.swap
    lost = []

    def twice(self: RemoteFolder, name: str, content: bytes, expected: Any) -> Any:  # noqa: ANN401
        if len(lost) < 4:
            lost.append(swap(self, name, content, expected))
        return swap(self, name, content, expected)

    monkeypatch.setattr(RemoteFolder, "swap", twice)
    place = open_place(bucket_url)
    with only_writer_of(place, beat_s=0.02) as hold:
        wait_until(lambda: len(lost) == 4)
        before = place.read(LOCK)
        wait_until(lambda: place.read(LOCK) != before)
        hold.check()
    assert place.names() == []


def test_a_server_that_ignores_conditions_is_refused(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(self: RemoteFolder, name: str, content: bytes, expected: object) -> dict[str, str]:
        self.write(name, content)
        return {"e_tag": "any"}

    monkeypatch.setattr(RemoteFolder, "swap", always)
    place = open_place(bucket_url)
    with pytest.raises(StoreError, match="If-None-Match"), only_writer_of(place):
        pass
    assert place.names() == []


# What the file says


def test_a_holder_comes_back_from_its_file() -> None:
    holder = Holder.this()
    assert Holder.from_json(holder.to_json()) == holder
    later = [holder]
    for _ in range(12):
        later.append(later[-1].after(time.monotonic() - 10 ** len(later)))
    sizes = [len(one.to_json()) for one in later]
    assert sizes == sorted(sizes)
    assert len({one.to_json() for one in later}) == len(later)


@pytest.mark.parametrize(
    ("held_s", "said"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min"), (7530, "2 h 5 min"), (360000, "100 h 0 min")],
)
def test_the_age_is_told(held_s: int, said: str) -> None:
    assert str(replace(ELSEWHERE, held_s=held_s)) == f"host node7, process 4711, since {said}"


@given(st.binary(max_size=50) | st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_anything_else_is_no_holder(content: Any) -> None:  # noqa: ANN401
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    assert Holder.from_json(raw) is None


@pytest.mark.parametrize("value", [None, [], "x", 1e400, {"a": 1}, "9" * 5000])
@pytest.mark.parametrize("field", ["pid", "held_s", "beats", "host"])
def test_odd_values_raise_nothing(field: str, value: object) -> None:
    record = {**json.loads(ELSEWHERE.to_json()), field: value}
    holder = Holder.from_json(json.dumps(record).encode())
    assert holder is None or "\n" not in str(holder)


def test_a_name_of_many_lines_stays_in_one() -> None:
    holder = Holder.from_json(replace(ELSEWHERE, host="a\nb\x1b[31m" + "c" * 5000).to_json())
    assert holder is None or ("\n" not in str(holder) and "\x1b" not in str(holder))


def test_a_pid_that_was_used_again_is_another_process() -> None:
    here = Holder.this()
    assert not here.is_gone
    assert replace(here, process="1").is_gone
    assert replace(here, pid=2**22 + 1).is_gone
    assert not replace(here, host="node7", process="1").is_gone, "nobody here can tell"
