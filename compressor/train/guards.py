"""What stops a training that has gone wrong: the first term, and the step, at which a number was not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from compressor.errors import StageError


def first_not_finite(terms: Mapping[str, float]) -> str | None:
    """Name of the first term that is NaN or infinite; None where all are finite.

    >>> first_not_finite({"labels": 0.5, "hidden": float("nan")})
    'hidden'
    """
    return next((name for name, value in terms.items() if not math.isfinite(value)), None)


def refuse_not_finite(steps: Iterable[tuple[int, Mapping[str, float]]], *, what: str) -> None:
    """Nothing where every number is finite.

    Args:
        steps: step number (from 1) and its numbers, the loss terms before their sum, then `loss` and `gradient`.
        what: the training, for the message.
    Raises: StageError with the term and the step.
    """
    for step, terms in steps:
        name = first_not_finite(terms)
        if name is not None:
            raise StageError(
                f"{what}: {name} became {terms[name]} at step {step}; the last checkpoint before it is kept. "
                "Lower train.learning_rate, set train.clip, or look at the rows of that step."
            )
