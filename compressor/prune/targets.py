"""The settings of pruning, checked against each other."""

from __future__ import annotations

from compressor.errors import InputError
from compressor.prune.settings import Kind, Remove, Until, kinds_of
from compressor.train.settings import Train


def check_target(remove: Remove, until: Until) -> frozenset[Kind]:
    """The kinds that may go; InputError where there is none, or where one of them would change nothing that counts."""
    try:
        return kinds_of(remove, until)
    except ValueError as error:
        raise InputError(str(error)) from error


def share_of_train(train: Train, steps: int) -> Train:
    """The training of one recovery out of `steps`.

    >>> share_of_train(Train(epochs=3.0), 2).epochs
    1.5
    """
    if train.steps is not None:
        return train.model_copy(update={"steps": max(1, train.steps // steps)})
    return train.model_copy(update={"epochs": (3.0 if train.epochs is None else train.epochs) / steps})
