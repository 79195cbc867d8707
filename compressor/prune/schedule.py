"""How much goes at each step, and which heads, neurons and layers those are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
    """The least amount that pruning can leave: one head and one neuron a layer, or one layer where layers may go."""
    bottom = 0 if "layers" in remove else 1
    least = [
        LayerShape(
            heads=min(layer.heads, bottom) if "heads" in remove else layer.heads,
            head_size=layer.head_size,
            ffn=min(layer.ffn, bottom) if "ffn" in remove else layer.ffn,
        )
        for layer in sizes.layers
    ]
    return prices.fixed + min(map(prices.layer, least)) if "layers" in remove else prices.total(least)


@dataclass(frozen=True)
class LayerVerdict:
    """Whether a whole layer went, and why; losses are None where nothing had to be compared."""

    layer: int
    removed: bool
    score: float
    because: str
    loss: float | None = None
    """Mean loss of the sample without the layer."""
    units_loss: float | None = None
    """Mean loss without the same amount in heads and neurons instead."""


@dataclass(frozen=True)
class Choice:
    """What stays, the sum of the scores of what goes, and a verdict on each layer where layers may go."""

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

    Layers are looked at in the order of their scores. One goes where the loss without it, measured, is below the loss
    without the same amount in heads and neurons, and where that takes no more than the last step may. (Scores cannot
    be compared: a sum of absolute gradients over a layer's parts always exceeds the gradient of the whole.)
    Heads and neurons leave one of each in a layer unless layers may go.

    Args:
        budget: amount that may remain after this step, in the unit of `prices`; at least `floor`.
        last: amount after the last step; that of this step unless given.
        loss_with: mean loss of the sample when only the given parts are used; called only where layers may go.
    """
    units = _units(sizes, scores, remove, prices)
    bottom = 0 if "layers" in remove else 1
    present, verdicts = list(range(len(sizes.layers))), list[LayerVerdict]()
    if "layers" in remove:
        goal = budget if last is None else last
        present, verdicts = _choose_layers(sizes, scores, units, prices, budget, goal, loss_with)
    while True:
        need = prices.total(sizes.layers[index] for index in present) - budget
        gone, saved = _cheapest(units, sizes, present, need, bottom)
        if saved >= need or "layers" not in remove or len(present) == 1:
            break
        index = min(present, key=lambda each: float(scores.layers[each]) / max(1, prices.layer(sizes.layers[each])))
        present.remove(index)
        why = "heads and neurons alone do not reach the target"
        verdicts = [v for v in verdicts if v.layer != index]
        verdicts.append(LayerVerdict(index, True, float(scores.layers[index]), why))
    kept = _without(sizes, gone, present)
    lost = sum(unit.score for unit in gone) + sum(verdict.score for verdict in verdicts if verdict.removed)
    return Choice(kept, lost, tuple(sorted(verdicts, key=lambda verdict: verdict.layer)))


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


def _cheapest(
    units: Sequence[_Unit], sizes: Shapes, present: Sequence[int], need: int, bottom: int
) -> tuple[list[_Unit], int]:
    """Units of the present layers, cheapest first, until they save `need`; and what they save."""
    left = {(index, "heads"): sizes.layers[index].heads for index in present}
    left |= {(index, "ffn"): sizes.layers[index].ffn for index in present}
    gone: list[_Unit] = []
    saved = 0
    for unit in units:
        if saved >= need:
            break
        place = (unit.layer, unit.kind)
        if left.get(place, 0) > bottom:
            left[place] -= 1
            gone.append(unit)
            saved += unit.price
    return gone, saved


def _without(sizes: Shapes, gone: Sequence[_Unit], present: Sequence[int]) -> Kept:
    """All of the present layers but the units that go."""
    cut = {(unit.layer, unit.kind, unit.index) for unit in gone}
    numbered = list(enumerate(sizes.layers))
    return Kept(
        heads=tuple(tuple(h for h in range(s.heads) if (i, "heads", h) not in cut) for i, s in numbered),
        neurons=tuple(tuple(n for n in range(s.ffn) if (i, "ffn", n) not in cut) for i, s in numbered),
        layers=tuple(present),
    )


def _choose_layers(
    sizes: Shapes,
    scores: Scores,
    units: Sequence[_Unit],
    prices: Prices,
    budget: int,
    last: int,
    loss_with: Callable[[Kept], float],
) -> tuple[list[int], list[LayerVerdict]]:
    """The layers that stay, and why each went or stayed; the least score per price is looked at first."""
    present = list(range(len(sizes.layers)))
    price = {index: prices.layer(layer) for index, layer in enumerate(sizes.layers)}
    verdicts: list[LayerVerdict] = []
    for index in sorted(present, key=lambda each: float(scores.layers[each]) / max(1, price[each])):
        score, total = float(scores.layers[index]), prices.total(sizes.layers[each] for each in present)
        rest = [each for each in present if each != index]
        if not rest:
            verdicts.append(LayerVerdict(index, False, score, "it is the last one"))
        elif total <= budget:
            verdicts.append(LayerVerdict(index, False, score, "the target of this step is reached without it"))
        elif units and total - price[index] < last:
            verdicts.append(LayerVerdict(index, False, score, "it is more than remains to be removed"))
        else:
            same, saved = _cheapest(units, sizes, present, price[index], 0)
            if saved < price[index]:
                why = "the same amount cannot be had from heads and neurons"
                verdicts.append(LayerVerdict(index, True, score, why))
            else:
                verdicts.append(_compared(index, score, loss_with(_without(sizes, (), rest)),
                                          loss_with(_without(sizes, same, present))))  # fmt: skip
            if verdicts[-1].removed:
                present = rest
    return present, verdicts


def _compared(index: int, score: float, loss: float, units_loss: float) -> LayerVerdict:
    removed = loss < units_loss
    relation = "below" if removed else "not below"
    why = f"the loss without it, {loss:.4g}, is {relation} {units_loss:.4g} without the same in heads and neurons"
    return LayerVerdict(index, removed, score, why, loss, units_loss)
