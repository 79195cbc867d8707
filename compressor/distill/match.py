"""The terms of `match` in Python, in the recipe's words: `match.logits("kl", temperature=ramp(4, 1))`."""

from __future__ import annotations

from typing import Literal

from compressor.distill.settings import HiddenMatch, LabelsMatch, LogitsMatch
from compressor.settings import Number
from compressor.stage import settings_of


def logits(loss: Literal["kl", "mse", "ce"] = "kl", *, temperature: Number = 1.0, weight: Number = 1.0) -> LogitsMatch:
    """The teacher's answers, on all rows.

    >>> logits("kl", temperature=4.0).temperature
    4.0
    """
    given = {"loss": loss, "temperature": temperature, "weight": weight}
    return settings_of(LogitsMatch, given, "match.logits")


def labels(loss: Literal["ce"] = "ce", *, weight: Number = 1.0) -> LabelsMatch:
    """The rows' own labels, on labelled rows only.

    >>> labels(weight=0.3).weight
    0.3
    """
    return settings_of(LabelsMatch, {"loss": loss, "weight": weight}, "match.labels")


def hidden(loss: Literal["mse", "cosine"] = "mse", *, map: str = "uniform", weight: Number = 1.0) -> HiddenMatch:  # noqa: A002 - the recipe's word
    """The teacher's hidden states, at every token that is not padding.

    >>> hidden("cosine", map="3:1 6:2").map
    '3:1 6:2'
    """
    return settings_of(HiddenMatch, {"loss": loss, "map": map, "weight": weight}, "match.hidden")
