"""The factor on all learning rates at a step of a run."""

from __future__ import annotations

import math

from ..experiment.config import RunConfig

_ONE_CYCLE_RISE, _ONE_CYCLE_START = 0.3, 1 / 25  # as torch's OneCycleLR


def rate_factor(config: RunConfig, step: int, total: int, epoch: int) -> float:
    """What the rates of a step are multiplied by.

    Args:
        config: Its ``schedule``, ``drops``, ``drop_factor`` and ``warmup`` say how.
        step: Counted from 0.
        total: Steps of the run.
        epoch: Of the step, counted from 0.
    """
    done = step / max(total, 1)
    if config.schedule == "steps":
        factor = config.drop_factor ** sum(drop <= epoch for drop in config.drops)
    elif config.schedule == "cosine":
        factor = (1 + math.cos(math.pi * done)) / 2
    elif config.schedule == "linear":
        factor = 1 - done
    elif done < _ONE_CYCLE_RISE:
        factor = _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * done / _ONE_CYCLE_RISE
    else:
        factor = (1 + math.cos(math.pi * (done - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE))) / 2
    if config.warmup:
        factor *= min(1.0, (step + 1) * config.epochs / (config.warmup * total))
    return factor
