"""What stops a training that has gone wrong: the first step at which a number was not finite, its term and its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from compressor.errors import StageError


def first_not_finite(terms: Mapping[str, float]) -> str | None:
    """Name of the first term that is NaN or infinite; None where all are finite.

    >>> first_not_finite({"labels": 0.5, "hidden": float("nan")})
    'hidden'
    """
    return next((name for name, value in terms.items() if not math.isfinite(value)), None)


@dataclass(frozen=True)
class Numbers:
    """What one step found, read from the device."""

    step: int
    """From 1."""
    main: Mapping[str, float]
    """The loss terms before their sum, then `loss` and `gradient`."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What terms are made of, named by the term and what it compares: `hidden 4:2`."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Each term's share of the gradient; empty where it was not measured."""


def refuse_not_finite(numbers: Numbers, *, what: str, rows: Callable[[], str]) -> None:
    """Nothing where every number is finite.

    Args:
        numbers: those of a step.
        what: the training, for the message.
        rows: says which rows the batch held, empty where that is unknown.
    Raises: StageError with the term, its part (layers), the rows and the step.
    """
    name = first_not_finite(numbers.main)
    if name is None:
        return
    mine = {part: value for part, value in numbers.parts.items() if part.split(" ")[0] == name}
    part = first_not_finite(mine)
    where = "" if part is None else f" (first in {part})"
    held = rows()
    raise StageError(
        f"{what}: {name}{where} became {numbers.main[name]} at step {numbers.step}{held and f', a batch of {held}'}; "
        "the last checkpoint before it is kept. Lower train.learning_rate, set train.clip, or look at these rows."
    )


ROWS_NAMED = 12
"""Rows of a pool that an error names."""


def rows_in_words(batch: object) -> str:
    """The rows of a batch by their positions in their pools, from 0; empty for a batch without `rows`.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> rows_in_words(SimpleNamespace(rows=torch.tensor([4, 7, 2]), unlabelled=torch.tensor([False, False, True])))
    'labelled rows 4, 7 and unlabelled rows 2'
    """
    rows = getattr(batch, "rows", None)
    if rows is None:
        return ""
    places: list[int] = rows.tolist()
    apart = getattr(batch, "unlabelled", None)
    flags: list[bool] = [False] * len(places) if apart is None else apart.tolist()
    said = []
    for kind, flag in (("labelled", False), ("unlabelled", True)):
        mine = [str(place) for place, other in zip(places, flags, strict=True) if other is flag]
        if mine:
            more = f" and {len(mine) - ROWS_NAMED} more" if len(mine) > ROWS_NAMED else ""
            said.append(f"{kind} rows {', '.join(mine[:ROWS_NAMED])}{more}")
    return " and ".join(said)
