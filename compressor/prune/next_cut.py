"""What a cut took by the scores it followed, and what a further one would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressor.model.importance import Scores
from compressor.model.manifest import Shapes
from compressor.model.surgery import Kept, keep_all, kept_shapes
from compressor.prune.settings import Kind
from compressor.prune.targets import Amounts, amount_left, choose_parts, least_left


@dataclass(frozen=True)
class Taken:
    """What a cut takes, those in whole layers included, and the sum of its scores."""

    heads: int
    ffn: int
    layers: int
    hidden: int
    """Channels of the hidden states."""
    amount: float
    """In the unit of the prices."""
    score: float


def taken(sizes: Shapes, kept: Kept, prices: Amounts, *, score: float) -> Taken:
    """What a cut to `kept` takes from a model of these shapes."""
    after = kept_shapes(sizes, kept)
    left = after.layers
    return Taken(
        heads=sum(layer.heads for layer in sizes.layers) - sum(layer.heads for layer in left),
        ffn=sum(layer.ffn for layer in sizes.layers) - sum(layer.ffn for layer in left),
        layers=len(sizes.layers) - len(left),
        hidden=sizes.hidden - after.hidden,
        amount=round(amount_left(prices, sizes) - amount_left(prices, after), 4),
        score=score,
    )


def next_taken(
    sizes: Shapes, kept: Kept, scores: Scores, prices: Amounts, *, remove: frozenset[Kind], amount: float
) -> Taken | None:
    """What would go next, by the same scores: the units or channels that `choose_parts` would take for `amount` less.

    Or as many as there are while each layer keeps one of each; where layers or halves alone may go, the least one.

    Args:
        sizes: of the model before the cut, which `scores` count in.
        kept: what the cut leaves.
    Returns: None where nothing more may go.
    """
    left, rest = kept_shapes(sizes, kept), scores_of(scores, kept)
    units: frozenset[Kind] = remove - {"layers", "halves"}
    if not units:
        return _next_block(left, rest, prices, remove)
    total, least = amount_left(prices, left), least_left(left, prices, units)
    if total <= least:
        return None
    choice = choose_parts(
        left, rest, remove=units, prices=prices, budget=max(least, total - amount), loss_with=lambda _kept: 0.0
    )
    return taken(left, choice.kept, prices, score=choice.lost)


def _next_block(sizes: Shapes, scores: Scores, prices: Amounts, remove: frozenset[Kind]) -> Taken | None:
    """The layer or half of least score per price; None where it is the last one."""
    whole, found = keep_all(sizes), list[Taken]()
    for number in range(len(sizes.layers)):
        if "layers" in remove and len(sizes.layers) > 1:
            rest = tuple(each for each in whole.layers if each != number)
            found.append(taken(sizes, replace(whole, layers=rest), prices, score=float(scores.layers[number])))
        if "halves" in remove:
            attention, feed_forward = scores.halves[number].tolist()
            without = replace(whole, heads=_emptied(whole.heads, number))
            found.append(taken(sizes, without, prices, score=attention))
            without = replace(whole, neurons=_emptied(whole.neurons, number))
            found.append(taken(sizes, without, prices, score=feed_forward))
    most = amount_left(prices, sizes) - least_left(sizes, prices, remove)
    free = [each for each in found if 0 < each.amount <= most]
    return min(free, key=lambda each: each.score / each.amount, default=None)


def _emptied(parts: tuple[tuple[int, ...], ...], number: int) -> tuple[tuple[int, ...], ...]:
    return (*parts[:number], (), *parts[number + 1 :])


def scores_of(scores: Scores, kept: Kept) -> Scores:
    """The scores of the parts that are kept, as the cut model counts them."""

    def picked(parts: Sequence[Tensor], indices: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        return tuple(parts[layer][torch.tensor(indices[layer], dtype=torch.long)] for layer in kept.layers)

    layers = scores.layers[torch.tensor(kept.layers, dtype=torch.long)]
    halves = scores.halves[torch.tensor(kept.layers, dtype=torch.long)] if len(scores.halves) else scores.halves
    if kept.hidden is not None:  # channels go alone, and nothing else was scored
        return replace(scores, hidden=scores.hidden[list(kept.hidden)])
    return Scores(picked(scores.heads, kept.heads), picked(scores.neurons, kept.neurons), layers, halves)
