"""What a cut took by the scores it followed, and what a further one would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.model.importance import Scores
from compressor.model.manifest import Shapes
from compressor.model.surgery import Kept, keep_all, kept_shapes
from compressor.prune.settings import Kind
from compressor.prune.targets import Amounts, choose_parts, least_left


@dataclass(frozen=True)
class Taken:
    """What a cut takes, those in whole layers included, and the sum of its scores."""

    heads: int
    ffn: int
    layers: int
    amount: float
    """In the unit of the prices."""
    score: float


def taken(sizes: Shapes, kept: Kept, prices: Amounts, *, score: float) -> Taken:
    """What a cut to `kept` takes from a model of these shapes."""
    left = kept_shapes(sizes, kept).layers
    return Taken(
        heads=sum(layer.heads for layer in sizes.layers) - sum(layer.heads for layer in left),
        ffn=sum(layer.ffn for layer in sizes.layers) - sum(layer.ffn for layer in left),
        layers=len(sizes.layers) - len(left),
        amount=round(prices.total(sizes.layers) - prices.total(left), 4),
        score=score,
    )


def next_taken(
    sizes: Shapes, kept: Kept, scores: Scores, prices: Amounts, *, remove: frozenset[Kind], amount: float
) -> Taken | None:
    """What would go next, by the same scores: the heads and neurons that `choose_parts` would take for `amount` less.

    Or as many as there are while each layer keeps one of each; where whole layers alone may go, the least one.

    Args:
        sizes: of the model before the cut, which `scores` count in.
        kept: what the cut leaves.
    Returns: None where nothing more may go.
    """
    left, rest = kept_shapes(sizes, kept), scores_of(scores, kept)
    units: frozenset[Kind] = remove - {"layers"}
    if not units:
        return _next_layer(left, rest, prices)
    total, least = prices.total(left.layers), least_left(left, prices, units)
    if total <= least:
        return None
    choice = choose_parts(
        left, rest, remove=units, prices=prices, budget=max(least, total - amount), loss_with=lambda _kept: 0.0
    )
    return taken(left, choice.kept, prices, score=choice.lost)


def _next_layer(sizes: Shapes, scores: Scores, prices: Amounts) -> Taken | None:
    """The layer of least score per price; None where it is the last one."""
    numbers = range(len(sizes.layers))
    if len(numbers) == 1:
        return None
    gone = min(numbers, key=lambda each: float(scores.layers[each]) / max(1e-9, prices.layer(sizes.layers[each])))
    whole = keep_all(sizes)
    kept = Kept(whole.heads, whole.neurons, tuple(each for each in numbers if each != gone))
    return taken(sizes, kept, prices, score=float(scores.layers[gone]))


def scores_of(scores: Scores, kept: Kept) -> Scores:
    """The scores of the parts that are kept, as the cut model counts them."""

    def picked(parts: Sequence[Tensor], indices: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        return tuple(parts[layer][torch.tensor(indices[layer], dtype=torch.long)] for layer in kept.layers)

    layers = scores.layers[torch.tensor(kept.layers, dtype=torch.long)]
    return Scores(picked(scores.heads, kept.heads), picked(scores.neurons, kept.neurons), layers)
