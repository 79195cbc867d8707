"""Copying a model into fewer hidden channels by a rotation of its stream, in place of a choice of channels."""

# V words, D hidden of the source, E hidden of the goal, H heads, d head size, F neurons

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.model.narrow import InnerChannels, attention_channels, copy_relative, largest
from compressor.model.parts import Anatomy, Layer

Affine = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,), float64."""


def copy_rotated(source: Anatomy, goal: Anatomy, chosen: Sequence[int]) -> None:
    """Fill `goal` with the layers `chosen` of `source`, its stream s being the projection P'h of the source's stream h.

    Neither may project its embeddings to the stream, of which the words would then not tell the directions.

    P, of orthonormal columns, spans the leading directions of the word embeddings, every word counting once.
    Whatever reads the stream is multiplied by P, whatever writes to it by P', so all of that is exact for states in the
    span of P. The removal of the mean is exact too, as P takes the goal's all-ones direction to the source's, and so is
    the division by the spread. Approximate are:

    - what lies outside the span, biases too;
    - the gain of each LayerNorm, a diagonal in the source's channels and a full matrix in the goal's, of which the
      diagonal is kept; exact where a norm's gain is the same for all channels;
    - narrower heads: of each head's query-key and value-output products the best of the smaller rank; exact where the
      head has no larger rank (where the goal's heads are more or wider, channels of largest norm are taken instead);
    - fewer neurons, and units of the pooler, in which nothing can be rotated: those of largest norm are kept.

    Carrying a rotation through norms and residuals is SliceGPT's (Ashkboos et al. 2024,
    https://arxiv.org/abs/2401.15024), there for RMSNorm without gain.
    """
    width = goal.classifier.in_features
    basis_DE = leading_directions(source.tables[0].weight, width, gain=_mean_gain(source, chosen))
    for table, rotated in zip(source.tables, goal.tables, strict=True):
        rotated.weight.copy_(_double(table.weight) @ basis_DE)
    _rotate_norm(source.embedding_norm, goal.embedding_norm, basis_DE)
    copy_relative(source, goal)
    for index, new in zip(chosen, goal.layers, strict=True):
        _rotate_attention(source.layers[index], new, basis_DE)
        _rotate_feed_forward(source.layers[index], new, basis_DE)
    _rotate_head(source, goal, basis_DE)


def leading_directions(words_VD: Tensor, count: int, *, gain: Tensor | None = None) -> Tensor:
    """P, shape (D, count), float64: orthonormal columns that span the all-ones direction and the leading singular ones.

    The singular directions are those of the table without each row's mean. P takes the unit vector of `count` equal
    numbers to that of D equal numbers.
    Within the span the columns are turned so that `gain`, shape (D,), is as near to a diagonal as it can be.
    P is the identity where `count` is D.

    >>> leading_directions(torch.eye(3), 3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    table, width = _double(words_VD), words_VD.shape[1]
    if count == width:
        return torch.eye(width, dtype=torch.float64, device=table.device)
    table = table - table.mean(1, keepdim=True)
    gram_DD = table.T @ table
    ones = torch.full((width,), width**-0.5, dtype=torch.float64, device=table.device)
    first = (1.0 + 2.0 * float(gram_DD.trace())) * torch.outer(ones, ones)  # so that ones is the leading vector
    others = torch.linalg.eigh(gram_DD + first).eigenvectors[:, -count:-1]
    if gain is not None:
        others = others @ torch.linalg.eigh(others.T @ (gain[:, None] * others)).eigenvectors
    columns = torch.cat([ones[:, None], others], dim=1)
    return columns @ _reflection(count).to(table.device)


def _reflection(size: int) -> Tensor:
    """The symmetric orthonormal matrix (Householder's) that exchanges the first axis and ones / sqrt(size)."""
    across = torch.full((size,), -(size**-0.5), dtype=torch.float64)
    across[0] += 1.0
    return torch.eye(size, dtype=torch.float64) - 2.0 * torch.outer(across, across) / across.square().sum()


def _mean_gain(source: Anatomy, chosen: Sequence[int]) -> Tensor:
    """Mean gain of each channel, shape (D,), over the norms that are copied."""
    layers = [source.layers[index] for index in chosen]
    norms = [source.embedding_norm, *(norm for layer in layers for norm in (layer.attention_norm, layer.norm))]
    return torch.stack([_double(norm.weight) for norm in norms]).mean(0)


def _rotate_norm(old: nn.LayerNorm, new: nn.LayerNorm, basis_DE: Tensor) -> None:
    """The spread over fewer channels is larger for a state of the same length, which the gain makes good."""
    wide, narrow = basis_DE.shape
    new.weight.copy_(basis_DE.square().T @ _double(old.weight) * math.sqrt(wide / narrow))
    new.bias.copy_(basis_DE.T @ _double(old.bias))


def _rotate_attention(old: Layer, new: Layer, basis_DE: Tensor) -> None:
    query, key, value = (_reading(part, basis_DE) for part in (old.query, old.key, old.value))
    output_EI = basis_DE.T @ _double(_weight(old.attention_output))
    strengths = _norms(query) * _norms(key), _norms(value) * output_EI.square().sum(0)
    kept = attention_channels(old, new, *strengths)
    if new.heads <= old.heads and new.head_size < old.head_size:
        whole = largest((strengths[0] + strengths[1]).view(old.heads, -1).sum(1), new.heads)
        query, key, value, output_EI = _lower_rank(query, key, value, output_EI, whole, old.head_size, new.head_size)
    else:
        query, key, value, output_EI = _picked(query, key, value, output_EI, kept)
    for part, made in ((new.query, query), (new.key, key), (new.value, value)):
        _fill(part, *made)
    _fill(new.attention_output, output_EI, basis_DE.T @ _double(_bias(old.attention_output)))
    _rotate_norm(old.attention_norm, new.attention_norm, basis_DE)


def _picked(
    query: Affine, key: Affine, value: Affine, output_EI: Tensor, kept: InnerChannels
) -> tuple[Affine, Affine, Affine, Tensor]:
    def rows(part: Affine, places: Tensor, factor: float = 1.0) -> Affine:
        return part[0][places] * factor, part[1][places] * factor

    picked = rows(query, kept.queries, kept.factor), rows(key, kept.queries), rows(value, kept.values)
    return *picked, output_EI[:, kept.values]


def _lower_rank(
    query: Affine, key: Affine, value: Affine, output_EI: Tensor, heads: Tensor, wide: int, narrow: int
) -> tuple[Affine, Affine, Affine, Tensor]:
    """The chosen heads, each with the best `narrow` of its `wide` inner directions, in scores and in values."""
    scale = (narrow / wide) ** 0.25  # on queries and on keys, as scores are divided by a smaller root
    halves: list[tuple[Tensor, ...]] = []
    for head in heads.tolist():
        place = slice(head * wide, (head + 1) * wide)
        keys, queries = _factors(_joined(key, place).T, _joined(query, place), narrow)
        outputs, values = _factors(output_EI[:, place], _joined(value, place), narrow)
        halves.append((queries * scale, keys.T * scale, values, outputs.T))
    queries, keys, values, outputs = (torch.cat(parts) for parts in zip(*halves, strict=True))
    return _split(queries), _split(keys), _split(values), outputs.T


def _factors(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Matrices (m, rank) and (rank, n) whose product is the nearest of that rank to `left @ right` (Eckart-Young)."""
    left_q, left_r = torch.linalg.qr(left)
    right_q, right_r = torch.linalg.qr(right.T)
    directions, sizes, others = torch.linalg.svd(left_r @ right_r.T)
    roots = sizes[:rank].sqrt()
    return left_q @ (directions[:, :rank] * roots), (roots[:, None] * others[:rank]) @ right_q.T


def _joined(part: Affine, rows: slice) -> Tensor:
    """Weight and, as a last column, bias of the chosen rows."""
    return torch.cat([part[0][rows], part[1][rows, None]], dim=1)


def _split(joined: Tensor) -> Affine:
    return joined[:, :-1], joined[:, -1]


def _rotate_feed_forward(old: Layer, new: Layer, basis_DE: Tensor) -> None:
    up, down_EF = _reading(old.up, basis_DE), basis_DE.T @ _double(_weight(old.down))
    neurons = largest(_norms(up) * down_EF.square().sum(0), new.neurons)
    _fill(new.up, up[0][neurons], up[1][neurons])
    _fill(new.down, down_EF[:, neurons], basis_DE.T @ _double(_bias(old.down)))
    _rotate_norm(old.norm, new.norm, basis_DE)


def _rotate_head(source: Anatomy, goal: Anatomy, basis_DE: Tensor) -> None:
    """Units of the pooler stand behind an activation, so they are kept or left out."""
    answers = _double(source.classifier.weight)
    pooler = _reading(source.pooler, basis_DE)
    units = largest(_norms(pooler) * answers.square().sum(0), goal.classifier.in_features)
    _fill(goal.pooler, pooler[0][units], pooler[1][units])
    _fill(goal.classifier, answers[:, units], _double(source.classifier.bias))


def _reading(part: Any, basis_DE: Tensor) -> Affine:
    """A projection that reads the goal's stream."""
    return _double(part.weight) @ basis_DE, _double(part.bias)


def _norms(part: Affine) -> Tensor:
    """Squared norm of each row with its bias."""
    return part[0].square().sum(1) + part[1].square()


def _fill(part: Any, weight: Tensor, bias: Tensor) -> None:
    part.weight.copy_(weight)
    part.bias.copy_(bias)


def _weight(part: Any) -> Tensor:
    weight: Tensor = part.weight
    return weight


def _bias(part: Any) -> Tensor:
    bias: Tensor = part.bias
    return bias


def _double(weight: Tensor) -> Tensor:
    return weight.detach().double()
