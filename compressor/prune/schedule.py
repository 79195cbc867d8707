"""How much goes at each step, and which heads, neurons, halves and layers those are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compressor.model import footprint
from compressor.model.importance import Scores
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.surgery import Kept
from compressor.prune.settings import Kind

Counted = Literal["macs", "parameters", "bytes", "heads", "ffn"]
"""Quantities of which every part has a whole number."""
WEIGHT_BYTES = 4
"""Of a parameter in fp32."""


def kept_share(target: float, *, step: int, steps: int) -> float:
    """Share that remains after `step` (1 to `steps`): falls fast at first, slowly at the end, to `target`.

    The cubic schedule of Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878, equation 1.

    >>> [round(kept_share(0.5, step=step, steps=4), 3) for step in (1, 2, 3, 4)]
    [0.711, 0.562, 0.508, 0.5]
    """
    return target + (1.0 - target) * (1.0 - step / steps) ** 3


@dataclass(frozen=True)
class Prices:
    """What each part counts for, in the unit of one quantity."""

    quantity: Counted
    hidden: int
    fixed: int = 0
    """What no cut can take: embeddings and classifier where parameters or bytes count, else 0."""

    @property
    def _of_parameters(self) -> int:
        """What one parameter counts for."""
        return {"parameters": 1, "bytes": WEIGHT_BYTES}.get(self.quantity, 0)

    def head(self, layer: LayerShape) -> int:
        """One head of that layer."""
        if self.quantity == "macs":
            return footprint.head_macs(layer.head_size, self.hidden)
        if self._of_parameters:
            return self._of_parameters * footprint.head_parameters(layer.head_size, self.hidden)
        return 1 if self.quantity == "heads" else 0

    def neuron(self) -> int:
        """One feed-forward neuron."""
        if self.quantity == "macs":
            return footprint.neuron_macs(self.hidden)
        if self._of_parameters:
            return self._of_parameters * footprint.neuron_parameters(self.hidden)
        return 1 if self.quantity == "ffn" else 0

    def layer(self, layer: LayerShape) -> int:
        """One whole layer."""
        rest = footprint.layer_parameters(LayerShape(0, layer.head_size, 0), self.hidden)
        units = layer.heads * self.head(layer) + layer.ffn * self.neuron()
        return units + self._of_parameters * rest

    def total(self, layers: Iterable[LayerShape]) -> int:
        """A whole model."""
        return self.fixed + sum(self.layer(layer) for layer in layers)


def prices_for(quantity: Counted, sizes: Shapes, *, parameters: int, names: int = 0) -> Prices:
    """Prices for a model of these shapes that has `parameters` parameters in all.

    Args:
        names: bytes of its file beside the weights, which a cut leaves or lessens.
    """
    outside = parameters - sum(footprint.layer_parameters(layer, sizes.hidden) for layer in sizes.layers)
    fixed = {"parameters": outside, "bytes": WEIGHT_BYTES * outside + names}
    return Prices(quantity, sizes.hidden, fixed.get(quantity, 0))


def floor(sizes: Shapes, prices: Prices, remove: frozenset[Kind]) -> int:
    """The least amount that pruning can leave.

    One head and one neuron a layer, none where layers or halves may go; one layer where layers may go, one half where
    nothing smaller than a half may. As any may be the last one, the largest counts.
    """
    least = [_least(layer, remove) for layer in sizes.layers]
    last = prices.fixed + max(map(prices.layer, least)) if "layers" in remove else prices.total(least)
    if "halves" not in remove or {"heads", "ffn"} & remove:
        return last
    return last + max(max(layer.heads * prices.head(layer), layer.ffn * prices.neuron()) for layer in sizes.layers)


def _least(layer: LayerShape, remove: frozenset[Kind]) -> LayerShape:
    """What can be left of a layer that stays."""
    bottom = 0 if {"layers", "halves"} & remove else 1
    heads, neurons = ("halves" in remove or kind in remove for kind in ("heads", "ffn"))
    return LayerShape(
        heads=min(layer.heads, bottom) if heads else layer.heads,
        head_size=layer.head_size,
        ffn=min(layer.ffn, bottom) if neurons else layer.ffn,
    )


Part = Literal["whole", "attention", "feed-forward"]
"""A layer, or one half of it."""
PARTS: tuple[Part, ...] = ("whole", "attention", "feed-forward")


@dataclass(frozen=True)
class LayerVerdict:
    """Whether a layer or a half of it went, and why; losses are None where nothing had to be compared."""

    layer: int
    removed: bool
    score: float
    because: str
    loss: float | None = None
    """Mean loss of the sample without it."""
    units_loss: float | None = None
    """Mean loss without the same amount in heads and neurons instead."""
    part: Part = "whole"


@dataclass(frozen=True)
class Choice:
    """What stays, the sum of the scores of what goes, and a verdict on each layer and half where these may go."""

    kept: Kept
    lost: float
    layers: tuple[LayerVerdict, ...]


@dataclass(frozen=True)
class _Unit:
    rate: float
    layer: int
    kind: Literal["heads", "ffn"]
    index: int
    score: float
    price: int


def choose(
    sizes: Shapes,
    scores: Scores,
    *,
    remove: frozenset[Kind],
    prices: Prices,
    budget: int,
    last: int | None = None,
    loss_with: Callable[[Kept], float],
) -> Choice:
    """The parts of least score per price that must go for the model to cost at most `budget`.

    Layers, and halves of layers, are looked at in the order of their scores. One goes where the loss without it,
    measured, is below the loss without the same amount in heads and neurons, and where that takes no more than the last
    step may. (Scores cannot be compared: a sum of absolute gradients over a layer's parts always exceeds the gradient
    of the whole.) Heads and neurons leave one of each in a layer unless layers or halves may go.

    Args:
        budget: amount that may remain after this step, in the unit of `prices`; at least `floor`.
        last: amount after the last step; that of this step unless given.
        loss_with: mean loss of the sample when only the given parts are used; called only where layers or halves, and
            heads or neurons, may go.
    """
    units = _units(sizes, scores, remove, prices)
    blocks = blocks_of(sizes, scores, remove, prices)
    bottom = 0 if blocks else 1
    goal = budget if last is None else last
    left, verdicts = _choose_blocks(_Left(sizes), blocks, units, prices, budget, goal, loss_with)
    while True:
        need = prices.total(left.layers.values()) - budget
        gone, saved = _cheapest(units, left, need, bottom)
        if saved >= need or (block := _next_block(left, blocks, units, prices)) is None:
            break
        left = left.without(block)
        why = f"{'heads and neurons' if units else 'halves'} alone do not reach the target"
        verdicts = [v for v in verdicts if (v.layer, v.part) != (block.layer, block.part)]
        verdicts.append(LayerVerdict(block.layer, True, block.score, why, part=block.part))
    told = [verdict for verdict in verdicts if verdict.part == "whole" or verdict.layer in left.layers]
    lost = sum(unit.score for unit in gone) + sum(verdict.score for verdict in told if verdict.removed)
    return Choice(left.kept(gone), lost, tuple(sorted(told, key=lambda each: (each.layer, PARTS.index(each.part)))))


@dataclass(frozen=True)
class Block:
    """A layer or a half of it that may go as one."""

    layer: int
    part: Part
    score: float
    rate: float
    """Score per price."""


def blocks_of(sizes: Shapes, scores: Scores, remove: frozenset[Kind], prices: Prices) -> list[Block]:
    """Every layer and half that may go and counts for something, the least score per price first."""
    found: list[Block] = []
    for index, layer in enumerate(sizes.layers):
        parts: dict[Part, tuple[float, int]] = {}
        if "layers" in remove:
            parts["whole"] = float(scores.layers[index]), max(1, prices.layer(layer))
        if "halves" in remove:
            attention, feed_forward = scores.halves[index].tolist()
            parts["attention"] = attention, layer.heads * prices.head(layer)
            parts["feed-forward"] = feed_forward, layer.ffn * prices.neuron()
        found += [Block(index, part, score, score / price) for part, (score, price) in parts.items() if price]
    return sorted(found, key=lambda block: (block.rate, block.layer, PARTS.index(block.part)))


@dataclass(frozen=True)
class _Left:
    """What is left of a model without some blocks."""

    sizes: Shapes
    gone: frozenset[tuple[int, Part]] = frozenset()

    @property
    def layers(self) -> dict[int, LayerShape]:
        """The layers that are there, without the halves that are not."""
        return {
            index: replace(
                layer,
                heads=0 if (index, "attention") in self.gone else layer.heads,
                ffn=0 if (index, "feed-forward") in self.gone else layer.ffn,
            )
            for index, layer in enumerate(self.sizes.layers)
            if (index, "whole") not in self.gone
        }

    def without(self, block: Block) -> _Left:
        """The same without that block, too."""
        return _Left(self.sizes, self.gone | {(block.layer, block.part)})

    def price(self, block: Block, prices: Prices) -> int:
        """What would go with that block; 0 where it is gone."""
        return prices.total(self.layers.values()) - prices.total(self.without(block).layers.values())

    def is_last(self, block: Block, *, in_parts: bool) -> bool:
        """Whether no layer would remain without it; or nothing in the layers, which heads and neurons may do alone."""
        rest = self.without(block).layers.values()
        return not rest or not (in_parts or any(layer.heads or layer.ffn for layer in rest))

    def kept(self, units: Sequence[_Unit]) -> Kept:
        """All that is left but the units; all parts are named in layers that go."""
        cut, layers = {(unit.layer, unit.kind, unit.index) for unit in units}, self.layers
        numbered = [(index, layers.get(index, layer)) for index, layer in enumerate(self.sizes.layers)]
        return Kept(
            heads=tuple(tuple(h for h in range(s.heads) if (i, "heads", h) not in cut) for i, s in numbered),
            neurons=tuple(tuple(n for n in range(s.ffn) if (i, "ffn", n) not in cut) for i, s in numbered),
            layers=tuple(layers),
        )


def _units(sizes: Shapes, scores: Scores, remove: frozenset[Kind], prices: Prices) -> list[_Unit]:
    """Every head and neuron that may go and counts for something, the least score per price first."""
    found: list[_Unit] = []
    for index, layer in enumerate(sizes.layers):
        if "heads" in remove and (price := prices.head(layer)):
            values = enumerate(scores.heads[index].tolist())
            found += [_Unit(score / price, index, "heads", each, score, price) for each, score in values]
        if "ffn" in remove and (price := prices.neuron()):
            values = enumerate(scores.neurons[index].tolist())
            found += [_Unit(score / price, index, "ffn", each, score, price) for each, score in values]
    return sorted(found, key=lambda unit: (unit.rate, unit.layer, unit.kind, unit.index))


def _cheapest(units: Sequence[_Unit], left: _Left, need: int, bottom: int) -> tuple[list[_Unit], int]:
    """Units that are left, cheapest first, until they save `need`; and what they save."""
    counts = {(index, "heads"): layer.heads for index, layer in left.layers.items()}
    counts |= {(index, "ffn"): layer.ffn for index, layer in left.layers.items()}
    gone: list[_Unit] = []
    saved = 0
    for unit in units:
        if saved >= need:
            break
        place = (unit.layer, unit.kind)
        if counts.get(place, 0) > bottom:
            counts[place] -= 1
            gone.append(unit)
            saved += unit.price
    return gone, saved


def _next_block(left: _Left, blocks: Sequence[Block], units: Sequence[_Unit], prices: Prices) -> Block | None:
    """The block of least score per price that is left; None where each is the last one."""
    prices_left = {block: price for block in blocks if (price := left.price(block, prices)) > 0}
    free = [block for block in prices_left if not left.is_last(block, in_parts=bool(units))]
    return min(free, key=lambda block: block.score / prices_left[block], default=None)


def _choose_blocks(
    left: _Left,
    blocks: Sequence[Block],
    units: Sequence[_Unit],
    prices: Prices,
    budget: int,
    last: int,
    loss_with: Callable[[Kept], float],
) -> tuple[_Left, list[LayerVerdict]]:
    """What the blocks that go leave, and why each went or stayed; they are looked at in the order given."""
    verdicts: list[LayerVerdict] = []
    halves = any(block.part != "whole" for block in blocks)
    for block in blocks:
        if block.layer not in left.layers:
            continue
        verdict = LayerVerdict(block.layer, False, block.score, "", part=block.part)
        total, price = prices.total(left.layers.values()), left.price(block, prices)
        smaller = units or (halves and block.part == "whole")
        if left.is_last(block, in_parts=bool(units)):
            verdict = replace(verdict, because="it is the last one")
        elif total <= budget:
            verdict = replace(verdict, because="the target of this step is reached without it")
        elif smaller and total - price < last:
            verdict = replace(verdict, because="it is more than remains to be removed")
        else:
            same, saved = _cheapest(units, left, price, 0)
            if saved < price:
                why = "the same amount cannot be had from heads and neurons"
                verdict = replace(verdict, removed=True, because=why)
            else:
                verdict = _compared(verdict, loss_with(left.without(block).kept(())), loss_with(left.kept(same)))
        verdicts.append(verdict)
        if verdict.removed:
            left = left.without(block)
    return left, verdicts


def _compared(verdict: LayerVerdict, loss: float, units_loss: float) -> LayerVerdict:
    removed = loss < units_loss
    relation = "below" if removed else "not below"
    why = f"the loss without it, {loss:.4g}, is {relation} {units_loss:.4g} without the same in heads and neurons"
    return replace(verdict, removed=removed, because=why, loss=loss, units_loss=units_loss)
