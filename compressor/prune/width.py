"""Fewer channels of the hidden states: which widths there are, what they amount to, and which channels stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from compressor.model.footprint import macs
from compressor.model.manifest import Shapes
from compressor.model.parts import anatomy, shapes
from compressor.model.surgery import keep_all
from compressor.model.width import parameters_at
from compressor.prune.schedule import WEIGHT_BYTES, Choice

LOT = 8
"""Channels that kernels like to take at once; also the least that stay."""
NARROW = 64
"""Hidden channels below which a model is so small that no kernel takes lots of them."""

WidthQuantity = Literal["macs", "parameters", "bytes"]
"""Quantities that the width changes and that can be counted."""


@dataclass(frozen=True)
class Widths:
    """What a model amounts to, in the unit of one quantity, at each width that it may get."""

    quantity: WidthQuantity
    totals: Mapping[int, int]
    """By hidden channels, ascending, the model's own width last."""

    @property
    def floor(self) -> int:
        """The least amount that pruning can leave."""
        return min(self.totals.values())

    def widest(self, budget: float) -> int:
        """Most channels of a model that amounts to at most `budget`; the fewest there are where none does."""
        return max((width for width, total in self.totals.items() if total <= budget), default=min(self.totals))


def widths_of(sizes: Shapes, *, projected_from: int | None = None) -> list[int]:
    """The widths that a model may be cut to, ascending, its own last.

    Multiples of 8 from 8 on; any width from 8 on where the model has fewer than 64 channels.

    Args:
        projected_from: width of embeddings that a projection widens; transformers drops it where both are as wide, so
            that the model cannot be cut to that width. None where there is no projection.

    >>> widths_of(Shapes(hidden=66, layers=(), vocabulary=10))
    [8, 16, 24, 32, 40, 48, 56, 64, 66]
    """
    full = sizes.hidden
    lots = range(LOT, full, LOT if full >= NARROW else 1)
    return [*(width for width in lots if width != projected_from), full]


def width_prices(quantity: WidthQuantity, model: PreTrainedModel, *, names: int) -> Widths:
    """What `model` amounts to at each width.

    Args:
        names: bytes of its file beside the weights, which a cut leaves or lessens.
    """
    sizes, projection = shapes(model), anatomy(model).projection
    widths = widths_of(sizes, projected_from=None if projection is None else projection.in_features)
    if quantity == "macs":
        totals = {width: macs(replace(sizes, hidden=width)) for width in widths}
    elif quantity == "parameters":
        totals = {width: parameters_at(model, width) for width in widths}
    else:
        totals = {width: WEIGHT_BYTES * parameters_at(model, width) + names for width in widths}
    return Widths(quantity, totals)


def choose_width(sizes: Shapes, scores: Tensor, widths: Widths, *, budget: float) -> Choice:
    """The channels of greatest score in the greatest width within `budget`.

    Args:
        scores: of the hidden channels, shape (hidden,).
        budget: amount that may remain after this step; at least `widths.floor`.
    """
    count = min(sizes.hidden, widths.widest(budget))
    values = scores.tolist()
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    gone = order[: len(order) - count]
    stay = tuple(sorted(order[len(order) - count :]))
    return Choice(replace(keep_all(sizes), hidden=stay), sum(values[index] for index in gone), ())
