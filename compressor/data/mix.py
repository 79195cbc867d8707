"""The words of a recipe's `mix`, for Python."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from compressor.data.settings import Augment, Keep, Mix
from compressor.errors import InputError
from compressor.settings import Number, mistakes


def unlabelled(
    ratio: Number,
    *,
    weight: Number = 1.0,
    keep: Keep | Mapping[str, float | bool] | None = None,
    augment: Augment | Mapping[str, float | int] | None = None,
) -> Mix:
    """Batches of which `ratio` are unlabelled rows.

    Args:
        ratio: unlabelled share of the rows in a batch, in [0, 1); a number or `ramp(...)`.
        weight: factor of the unlabelled rows' terms; a number or `ramp(...)`.
        keep: which rows are used, such as {"confidence": 0.8}; all unless given.
        augment: changes to all rows, such as {"mask": 0.1}; none unless given.
    Raises: InputError naming each value that cannot be used.

    >>> unlabelled(0.7, keep={"confidence": 0.8}).unlabelled.keep.confidence
    0.8
    """
    batch = {"ratio": ratio, "weight": weight, "keep": keep or {}}
    try:
        return Mix.model_validate({"unlabelled": batch, "augment": augment or {}})
    except ValidationError as problem:
        raise InputError(mistakes(problem, "mix")) from problem
