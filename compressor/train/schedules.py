"""How the learning rate moves while training. Pure numbers, nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable

from compressor.train.settings import Train


def warmup_steps(total: int, warmup: float) -> int:
    """Steps in which the learning rate rises: `warmup` (a share, 0 to 1) of `total`, rounded up.

    >>> warmup_steps(25, 0.1)
    3
    """
    return min(total, math.ceil(total * warmup - 1e-9))


def rate_factor(schedule: str, step: int, total: int, *, warmup: float = 0.0) -> float:
    """What the peak learning rate is multiplied by at one step, in (0, 1].

    No step is wasted: the first one of the warm-up has 1/n of the peak, and the last one is still above zero.

    Args:
        schedule: a name in SCHEDULES.
        step: from 0 to total - 1.
        total: steps planned, at least 1.
        warmup: share of the steps (0 to 1) in which the rate rises in a straight line.
    Raises: ValueError when the step is not among the planned ones or the schedule is unknown.

    >>> [rate_factor("linear", step, 4) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if not 0 <= step < total:
        raise ValueError(f"step must be from 0 to {total - 1} (got {step})")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)} (got {schedule!r})")
    rising = warmup_steps(total, warmup)
    if step < rising:
        return (step + 1) / rising
    return SCHEDULES[schedule]((step - rising) / (total - rising))


def planned_steps(train: Train, batches: Callable[[int], int], *, limit: int | None = None) -> int:
    """Optimizer steps of a training, at least 1; 3 epochs where the settings name neither epochs nor steps.

    Args:
        train: the settings.
        batches: number of batches in an epoch, given the epoch's number from 0.
        limit: most steps; None for no limit.

    >>> planned_steps(Train(epochs=2.5), lambda epoch: 10)
    25
    """
    if train.steps is not None:
        total = train.steps
    else:
        epochs = 3.0 if train.epochs is None else train.epochs
        whole = int(epochs)
        total = sum(batches(epoch) for epoch in range(whole))
        if epochs > whole:
            total += round((epochs - whole) * batches(whole))
    return max(1, total if limit is None else min(total, limit))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2.0,
}
"""Name to the factor after a share (0 to 1, excluded) of the steps that follow the warm-up."""
