"""Copying the channels, heads and neurons that matter most into a model of the same or smaller width."""

# D hidden, H heads, d head size, F neurons

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.model.importance import Channels
from compressor.model.parts import Anatomy, Layer


def copy_channels(source: Anatomy, goal: Anatomy, chosen: Sequence[int], channels: Channels) -> None:
    """Fill `goal` with the layers `chosen` of `source`, of each matrix what scores highest, in the source's order.

    Exact where the goal is as wide as the source. Of a whole head the query-key products are scaled so that scores keep
    their size.
    """
    hidden = largest(channels.hidden, goal.classifier.in_features)
    _copy_ends(source, goal, hidden)
    for index, new in zip(chosen, goal.layers, strict=True):
        old = source.layers[index]
        kept = attention_channels(old, new, channels.queries[index], channels.values[index])
        _copy(old.query, new.query, kept.queries, hidden, kept.factor)
        _copy(old.key, new.key, kept.queries, hidden)
        _copy(old.value, new.value, kept.values, hidden)
        _copy(old.attention_output, new.attention_output, hidden, kept.values)
        _copy(old.attention_norm, new.attention_norm, hidden)
        neurons = largest(channels.neurons[index], new.neurons)
        _copy(old.up, new.up, neurons, hidden)
        _copy(old.down, new.down, hidden, neurons)
        _copy(old.norm, new.norm, hidden)


def largest(scores: Tensor, count: int) -> Tensor:
    """Places of the `count` largest scores, ascending; ties go to the lower place.

    >>> largest(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist()
    [1, 2]
    """
    return torch.sort(torch.sort(scores, descending=True, stable=True).indices[:count]).values


@dataclass(frozen=True)
class InnerChannels:
    """Which q/k and v channels the student's attention keeps, and a factor that keeps the scores' scale."""

    queries: Tensor
    values: Tensor
    factor: float


def attention_channels(old: Layer, new: Layer, queries: Tensor, values: Tensor) -> InnerChannels:
    """Whole heads and the strongest channels in each; flat channels where the student's heads are wider or more.

    Args:
        queries: score of each of the source's q/k channels, shape (H * d,).
        values: the same of the v channels.
    """
    if new.heads > old.heads or new.head_size > old.head_size:
        width = new.heads * new.head_size
        return InnerChannels(largest(queries, width), largest(values, width), 1.0)
    heads = largest((queries + values).view(old.heads, -1).sum(1), new.heads)

    def within(scores: Tensor) -> Tensor:
        by_head = scores.view(old.heads, old.head_size)
        return torch.cat([head * old.head_size + largest(by_head[head], new.head_size) for head in heads])

    return InnerChannels(within(queries), within(values), math.sqrt(new.head_size / old.head_size))


def _copy_ends(source: Anatomy, goal: Anatomy, hidden: Tensor) -> None:
    embedded = hidden
    if source.projection is not None:
        embedded = torch.arange(source.projection.in_features, device=hidden.device)
        _copy(source.projection, goal.projection, hidden, embedded)
    for old, new in zip(source.tables, goal.tables, strict=True):
        new.weight.copy_(old.weight[:, embedded])
    _copy(source.embedding_norm, goal.embedding_norm, embedded)
    copy_relative(source, goal)
    _copy(source.pooler, goal.pooler, hidden, hidden)
    every = torch.arange(source.classifier.out_features, device=hidden.device)
    _copy(source.classifier, goal.classifier, every, hidden)


def copy_relative(source: Anatomy, goal: Anatomy) -> None:
    """Copy the bias by distance, where the family has one, for models of the same heads."""
    if source.relative is not None and goal.relative is not None:
        goal.relative.relative_attention_bias.weight.copy_(source.relative.relative_attention_bias.weight)


def _copy(old: Any, new: Any, rows: Tensor, columns: Tensor | None = None, factor: float = 1.0) -> None:
    """Copy the chosen output rows (and input columns) of a projection or norm with its bias."""
    weight = old.weight[rows]
    new.weight.copy_((weight if columns is None else weight[:, columns]) * factor)
    new.bias.copy_(old.bias[rows] * factor)
