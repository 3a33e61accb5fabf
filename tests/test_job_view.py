"""What a job shows while it works, by a clock of the test."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samprior.cli.job_view import job_view
from samprior.pipeline.events import Progressed, Started
from samprior.storage.errors import StoreError


class Clock:
    """Stands still until it is told to go."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("progress", "job_view"):
        monkeypatch.setattr(
            f"samprior.cli.{module}.time", SimpleNamespace(monotonic=clock.monotonic)
        )
    return clock


def begun(num_images: int) -> Started:
    return Started(num_shards=num_images, num_images=num_images, shards_done=0, images_done=0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def at(images_done: int, *, workers: int) -> Progressed:
    return Progressed(
        images_done=images_done, images_to_do=101, num_masks=0, num_quarantined=0, workers=workers
    )


def play(listen: Callable[[Any], None], clock: Clock) -> None:
    """A worker that loads for an hour, and then takes 10 s for each image."""
    listen(begun(101))
    for _ in range(6):
        clock.now_s += 600
        listen(at(0, workers=0))
    listen(at(0, workers=1))
    for done in (1, 2):
        clock.now_s += 10
        listen(at(done, workers=1))


def test_the_time_left_leaves_out_what_loading_took(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with job_view("segmenting", as_json=True) as view:
        play(view, clock)
    events = lines(capsys)
    assert [event.get("eta_s") for event in events] == [None] * 7 + [1000.0, 990.0]
    assert events[-1]["images_per_s"] == 0.1


def test_so_do_plain_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with job_view("segmenting", as_json=False) as view:
        play(view, clock)
    *loading, first, second = capsys.readouterr().err.splitlines()
    assert all("0/101 images, starting, 0 workers" in line for line in loading)
    assert "1/101 images, 0.10/s, 1000 s left" in first
    assert "2/101 images, 0.10/s, 990 s left" in second


def test_a_job_in_this_process_has_a_pace_from_its_second_image(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with job_view("segmenting", as_json=True) as view:
        view(begun(101))
        clock.now_s += 3600
        for done in (1, 2, 3):
            clock.now_s += 10
            view(at(done, workers=1))
    assert [event.get("eta_s") for event in lines(capsys)] == [None, None, 990.0, 980.0]


@pytest.mark.parametrize("error", [StoreError("2 shards given up"), OSError("the disk fails")])
def test_a_job_that_fails_says_so(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with job_view("segmenting", as_json=True) as view:
            view(begun(101))
            raise error

    with pytest.raises(type(error)):
        fail()
    assert lines(capsys)[-1] == {
        "event": "failed",
        "message": str(error),
        **{"num_shards": 101, "num_images": 101, "shards_done": 0, "images_done": 0},
    }


def test_also_before_anything_was_begun(samprior: Callable[..., Any], tmp_path: Path) -> None:
    of = ["precompute", "--dataset", "rain", "--segmenter", "superpixel", "--out", tmp_path / "out"]
    code, out, err = samprior(*of, "--root", tmp_path / "none", "--json")
    assert code == 2
    assert json.loads(out) == {"event": "failed", "message": err.strip().removeprefix("samprior: ")}
    _, out, _ = samprior(*of, "--root", tmp_path / "none")
    assert out == ""
