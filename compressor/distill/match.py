"""The terms of `match` in Python, in the recipe's words: `match.logits("kl", temperature=ramp(4, 1))`.

A weight is a number, a schedule, `"auto"` or `{"auto": 0.5}`. Mistakes raise InputError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from compressor.distill.settings import (
    AttentionMatch,
    EmbeddingsMatch,
    HiddenMatch,
    LabelsMatch,
    LogitsMatch,
    RelationsMatch,
)
from compressor.settings import AutoWeight, Number
from compressor.stage import settings_of

Weight = Number | AutoWeight | Literal["auto"] | Mapping[Literal["auto"], float]
"""What a term's weight may be."""


def logits(
    loss: Literal["kl", "mse", "ce", "decoupled", "gce"] = "kl",
    *,
    temperature: Number = 1.0,
    beta: float = 8.0,
    weight: Weight = 1.0,
) -> LogitsMatch:
    """The teacher's answers, on all rows that it answered.

    >>> logits("kl", temperature=4.0).temperature
    4.0
    """
    given = {"loss": loss, "temperature": temperature, "beta": beta, "weight": weight}
    return settings_of(LogitsMatch, given, "match.logits")


def labels(
    loss: Literal["ce", "focal", "gce"] = "ce", *, gamma: float = 2.0, smoothing: float = 0.0, weight: Weight = 1.0
) -> LabelsMatch:
    """The rows' own labels, on labelled rows only.

    >>> labels(weight=0.3).weight
    0.3
    """
    given = {"loss": loss, "gamma": gamma, "smoothing": smoothing, "weight": weight}
    return settings_of(LabelsMatch, given, "match.labels")


def hidden(
    loss: Literal["mse", "cosine", "pkd", "mmd", "gram"] = "mse",
    *,
    map: str = "uniform",  # noqa: A002 - the recipe's word
    weight: Weight = 1.0,
) -> HiddenMatch:
    """The teacher's hidden states, at every token that is not padding.

    >>> hidden("cosine", map="3:1 6:2").map
    '3:1 6:2'
    """
    return settings_of(HiddenMatch, {"loss": loss, "map": map, "weight": weight}, "match.hidden")


def attention(
    loss: Literal["mse", "kl"] = "kl",
    *,
    map: str = "uniform",  # noqa: A002 - the recipe's word
    weight: Weight = 1.0,
) -> AttentionMatch:
    """Where each token looks, averaged over heads where their counts differ.

    >>> attention(weight="auto").weight
    AutoWeight(auto=1.0)
    """
    return settings_of(AttentionMatch, {"loss": loss, "map": map, "weight": weight}, "match.attention")


def relations(
    loss: Literal["kl"] = "kl",
    *,
    pairs: Sequence[Literal["qq", "kk", "vv"]] = ("qq", "kk", "vv"),
    heads: int | None = None,
    map: str = "last",  # noqa: A002 - the recipe's word
    weight: Weight = 1.0,
) -> RelationsMatch:
    """Relations among queries, among keys and among values of one layer (MiniLMv2), whatever the head counts.

    >>> relations(pairs=["vv"], heads=12).pairs
    ['vv']
    """
    given = {"loss": loss, "pairs": list(pairs), "heads": heads, "map": map, "weight": weight}
    return settings_of(RelationsMatch, given, "match.relations")


def embeddings(loss: Literal["mse", "cosine"] = "mse", *, weight: Weight = 1.0) -> EmbeddingsMatch:
    """The output of the embeddings, layer 0.

    >>> embeddings("cosine").loss
    'cosine'
    """
    return settings_of(EmbeddingsMatch, {"loss": loss, "weight": weight}, "match.embeddings")
