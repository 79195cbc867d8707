"""The settings of pruning, checked against each other."""

from __future__ import annotations

from typing import cast

from compressor.errors import InputError
from compressor.prune.schedule import Kind
from compressor.prune.settings import Remove, Until
from compressor.settings import parse_kept_share
from compressor.train.settings import Train


def check_target(remove: Remove, until: Until) -> frozenset[Kind]:
    """The kinds that may go; InputError where there is none, or where one of them would change nothing that counts."""
    kinds = cast(frozenset[Kind], frozenset(kind for kind in ("heads", "ffn", "layers") if getattr(remove, kind)))
    quantity, text = until.target
    if not kinds:
        raise InputError("remove names nothing; give a criterion for heads, ffn or layers, such as heads: taylor")
    for counted, other in (("heads", "ffn"), ("ffn", "heads")):
        if quantity == counted and other in kinds:
            raise InputError(
                f"until.{counted} counts {counted} alone, so remove.{other} would do nothing; "
                f"drop remove.{other}, or write until.macs"
            )
        if quantity == counted and not kinds & {counted, "layers"}:
            raise InputError(f"until.{counted} can be reached only with remove.{counted} or remove.layers")
    if parse_kept_share(text) == 1.0:
        raise InputError(f"until.{quantity} must be below 1x (got {text}); 1x would remove nothing")
    return kinds


def share_of_train(train: Train, steps: int) -> Train:
    """The training of one recovery out of `steps`.

    >>> share_of_train(Train(epochs=3.0), 2).epochs
    1.5
    """
    if train.steps is not None:
        return train.model_copy(update={"steps": max(1, train.steps // steps)})
    return train.model_copy(update={"epochs": (3.0 if train.epochs is None else train.epochs) / steps})
