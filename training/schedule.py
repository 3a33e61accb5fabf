"""What a step is: its learning rate, the size of its crops, how many crops came before it.

Pure functions of the step, so a run goes on anywhere with the step alone.
"""

import math
from collections.abc import Iterator, Sequence

from samprior.training.config import OptimizerConfig, PhaseConfig, TrainConfig

Phases = Sequence[PhaseConfig]
"""The sizes of a stage; the last goes on for ever."""


def learning_rate(
    step: int, iterations: int, peak: float, settings: OptimizerConfig, *, schedule: str
) -> float:
    """Linear warm-up, then `schedule`; what falls would reach min_lr one step after the last.

    Args:
        step: counted from 0.
        iterations: steps of the stage.
        peak: highest rate of the stage.
        settings: warm-up, steps at the peak, drops and floor.
        schedule: cosine, constant_cosine, linear_decay or steps.
    """
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    floor = min(settings.min_lr, peak)
    if schedule == "steps":
        drops = step // settings.decay_every
        return max(floor, peak * settings.decay_factor**drops)
    held = 0 if schedule == "cosine" else settings.hold_steps
    begin = max(settings.warmup_steps, held)
    done = max(0.0, (step - begin) / max(1, iterations - begin))
    if schedule == "linear_decay":
        return peak + (floor - peak) * done
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def base_phases(config: TrainConfig) -> Phases:
    """The sizes of the base stage."""
    return config.data.phases or later_phases(config, config.stages.base)


def later_phases(config: TrainConfig, iterations: int) -> Phases:
    """The one size of a later stage."""
    data = config.data
    return (
        PhaseConfig(steps=max(1, iterations), crop_px=data.crop_px, batch_size=data.batch_size),
    )


def samples_before(phases: Phases, step: int) -> int:
    """Crops that a stage has seen before a step."""
    return sum(phase.batch_size * steps for phase, steps in pieces(phases, 0, step))


def pieces(phases: Phases, first: int, last: int) -> Iterator[tuple[PhaseConfig, int]]:
    """The phases of the steps from `first` to below `last`, each with its number of these steps."""
    begin = 0
    for number, phase in enumerate(phases, 1):
        end = begin + phase.steps if number < len(phases) else last
        if (steps := min(end, last) - max(begin, first)) > 0:
            yield phase, steps
        begin = end
