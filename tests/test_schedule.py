"""Learning rates and sizes of crops: pure functions of the step, as published."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samprior.training.config import OptimizerConfig, PhaseConfig, TrainConfig, load_config
from samprior.training.schedule import (
    base_phases,
    later_phases,
    learning_rate,
    pieces,
    samples_before,
)
from samprior.training.stages import base_stage, build_networks, control_stage

NEEDED = ("out=run", "data.train=store")


def rates_of(settings: OptimizerConfig, iterations: int, peak: float = 1e-3) -> list[float]:
    return [
        learning_rate(step, iterations, peak, settings, schedule=settings.schedule)
        for step in range(iterations + 1)
    ]


def test_cosine_warms_up_and_falls() -> None:
    rates = rates_of(OptimizerConfig(warmup_steps=4, min_lr=1e-6), 24)
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4] == 1e-3
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[14] == pytest.approx((1e-3 + 1e-6) / 2)
    assert rates[24] == 1e-6


def test_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-7)
    for ours in rates_of(OptimizerConfig(min_lr=1e-7), 30, 0.5)[:30]:
        assert math.isclose(ours, schedule.get_last_lr()[0], rel_tol=1e-6)
        optimizer.step()
        schedule.step()


def test_constant_cosine_holds_first() -> None:
    settings = OptimizerConfig(schedule="constant_cosine", hold_steps=10, min_lr=1e-6)
    rates = rates_of(settings, 30)
    assert set(rates[:11]) == {1e-3}
    assert rates[10:] == rates_of(OptimizerConfig(min_lr=1e-6), 20)


def test_linear_decay_holds_and_falls_to_nothing() -> None:
    settings = OptimizerConfig(schedule="linear_decay", hold_steps=10, min_lr=0)
    rates = rates_of(settings, 30)
    assert set(rates[:11]) == {1e-3}
    assert rates[20] == pytest.approx(0.5e-3)
    assert rates[30] == pytest.approx(0, abs=1e-18)
    assert all(a - b == pytest.approx(1e-3 / 20) for a, b in pairwise(rates[10:]))


def test_steps_is_that_of_torch() -> None:
    settings = OptimizerConfig(schedule="steps", decay_every=5, decay_factor=0.2, min_lr=0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.2)
    for ours in rates_of(settings, 22)[:22]:
        assert math.isclose(ours, schedule.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        schedule.step()
    assert min(rates_of(settings.model_copy(update={"min_lr": 1e-4}), 22)) == 1e-4


@pytest.mark.parametrize("schedule", ["cosine", "constant_cosine", "linear_decay", "steps"])
@pytest.mark.parametrize(("iterations", "warmup_steps"), [(1, 0), (1, 5), (5, 5), (3, 100)])
def test_short_stages_have_a_learning_rate(
    schedule: str, iterations: int, warmup_steps: int
) -> None:
    settings = OptimizerConfig.model_validate({"schedule": schedule, "warmup_steps": warmup_steps})
    assert all(0 < rate <= 1e-3 for rate in rates_of(settings, iterations)[:iterations])


def test_a_peak_below_the_floor_stays() -> None:
    assert set(rates_of(OptimizerConfig(min_lr=1e-3), 10, 1e-4)) == {1e-4}


# ---- sizes


def phases_of(*rows: tuple[int, int, int]) -> list[PhaseConfig]:
    return [PhaseConfig(steps=s, crop_px=c, batch_size=b) for s, c, b in rows]


rows = st.tuples(st.integers(1, 9), st.just(8), st.integers(1, 5))


@given(st.lists(rows, min_size=1, max_size=4), st.integers(0, 40), st.integers(0, 40))
def test_phases_follow_each_other_and_the_last_goes_on(
    sizes: list[tuple[int, int, int]], first: int, length: int
) -> None:
    phases = phases_of(*sizes)
    each = [phase for phase in phases for _ in range(phase.steps)]
    each += [phases[-1]] * (first + length)
    found = [phase for phase, steps in pieces(phases, first, first + length) for _ in range(steps)]
    assert found == each[first : first + length]
    assert samples_before(phases, first) == sum(phase.batch_size for phase in each[:first])


def configured(*overrides: str) -> TrainConfig:
    tiny = ("network.preset=tiny", "stages.base=7")
    return load_config(None, [*NEEDED, *tiny, *overrides])


PHASES = (
    "data.phases=[{steps = 3, crop_px = 16, batch_size = 4}, "
    "{steps = 2, crop_px = 24, batch_size = 2}]"
)


def test_later_stages_take_the_last_size_and_go_on_where_base_ended() -> None:
    config = configured(PHASES, "optimizer.schedule=linear_decay")
    network, _ = build_networks(config)
    base, control = base_stage(config, network), control_stage(config, network)
    assert base.phases == base_phases(config) == config.data.phases
    assert base.schedule == "linear_decay"
    (phase,) = control.phases
    assert (phase.crop_px, phase.batch_size) == (24, 2)
    assert control.schedule == "cosine"
    assert control.first_sample == 3 * 4 + 4 * 2
    assert config.data.largest_crop_px == 24


def test_later_stages_take_a_size_that_is_given() -> None:
    config = configured(PHASES, "data.crop_px=32", "data.batch_size=1")
    (phase,) = later_phases(config, 5)
    assert (phase.crop_px, phase.batch_size) == (32, 1)
    assert config.data.largest_crop_px == 32
    assert [phase.crop_px for phase in base_phases(config)] == [16, 24]


def test_without_phases_a_stage_has_one_size() -> None:
    config = configured("data.crop_px=32", "data.batch_size=3")
    assert [(p.crop_px, p.batch_size) for p in base_phases(config)] == [(32, 3)]
    assert samples_before(base_phases(config), 5) == 15


def test_the_base_network_does_not_depend_on_sizes_it_never_sees() -> None:
    one, other = (configured(PHASES, *more) for more in ((), ("data.crop_px=32",)))
    assert one.identity("base") == other.identity("base")
    assert one.identity("control") != other.identity("control")
    longer = configured(PHASES.replace("steps = 3", "steps = 4"))
    assert one.identity("base") != longer.identity("base")
