"""Which heads and neurons each layer keeps so that most importance fits into a time: an exact dynamic programme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compressor.model.importance import Scores
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.surgery import Kept, keep_all
from compressor.prune.latency_table import LatencyTable
from compressor.prune.schedule import PARTS, Choice, LayerVerdict, Part
from compressor.prune.settings import Kind

BINS = 4096
"""Equal parts that the time to be shared out is counted in; a choice is rounded up to whole ones, so that the time is
never exceeded, and of 24 choices that leaves less than 0.3 % of it unused on average."""

ROUNDING = 1e-9
"""Share of a budget, of 1 where it is less, that sums of floats may be off."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """A count of one layer's heads, or neurons, with the importance that it keeps and what it costs."""

    count: int
    importance: float
    cost: float


@dataclass(frozen=True)
class LayerOptions:
    """What one layer may keep: one option of each kind."""

    heads: tuple[Option, ...]
    neurons: tuple[Option, ...]

    @property
    def least(self) -> float:
        """The least that it can cost."""
        return sum(min(each.cost for each in kind) for kind in (self.heads, self.neurons))


def reaches(layers: Sequence[LayerOptions], budget: float) -> bool:
    """Whether the layers can cost `budget` or less."""
    return sum(layer.least for layer in layers) - budget <= ROUNDING * max(1.0, abs(budget))


def best_counts(layers: Sequence[LayerOptions], *, budget: float, bins: int = BINS) -> list[tuple[int, int]] | None:
    """For each layer the counts of heads and neurons that together keep most importance.

    A knapsack whose items are the layers' halves, solved over all of them and all times up to the budget (as in ZipLM,
    Kurtic et al. 2023, https://arxiv.org/abs/2302.04089). Of equals the cheapest is taken.

    Args:
        budget: what the layers may cost together, in the unit of their costs; never exceeded.
        bins: parts that the budget, less what the layers cost at least, is counted in.
    Returns: None where even the cheapest options cost more.
    """
    if not reaches(layers, budget):
        return None
    width = max(0.0, budget - sum(layer.least for layer in layers)) / bins
    values, chosen = np.zeros(bins + 1), list[_Chosen]()
    for layer in layers:
        values, found = _with_layer(values, layer, width)
        chosen.append(found)
    place = int(np.argmax(values))
    counts: list[tuple[int, int]] = []
    for layer, found in zip(reversed(layers), reversed(chosen), strict=True):
        heads = int(found.heads[place])
        place -= found.head_bins[heads]
        neurons = int(found.neurons[place])
        place -= found.neuron_bins[neurons]
        counts.append((layer.heads[heads].count, layer.neurons[neurons].count))
    return counts[::-1]


@dataclass(frozen=True)
class _Chosen:
    """The best options of one layer for every number of bins that it and the layers before it may take."""

    heads: npt.NDArray[np.int64]
    head_bins: list[int]
    neurons: npt.NDArray[np.int64]
    neuron_bins: list[int]


def _with_layer(before: Array, layer: LayerOptions, width: float) -> tuple[Array, _Chosen]:
    """Most importance of the layers so far for every number of bins, shape (bins + 1,), and how it is had."""
    neuron_bins, head_bins = _bins_of(layer.neurons, width), _bins_of(layer.heads, width)
    values, neurons = _with_options(before, layer.neurons, neuron_bins)
    values, heads = _with_options(values, layer.heads, head_bins)
    return values, _Chosen(heads, head_bins, neurons, neuron_bins)


def _bins_of(options: Sequence[Option], width: float) -> list[int]:
    """Bins that each option takes beyond the layer's least, rounded up."""
    least = min(option.cost for option in options)
    above = [option.cost - least for option in options]
    most = 2**31  # no budget has as many
    return [0 if cost <= 0 else most if width <= 0 else min(most, math.ceil(round(cost / width, 9))) for cost in above]


def _with_options(before: Array, options: Sequence[Option], bins: Sequence[int]) -> tuple[Array, npt.NDArray[np.int64]]:
    """The best value for every number of bins with one of the options added, and which option that is."""
    best, which = np.full(len(before), -np.inf), np.zeros(len(before), dtype=np.int64)
    for number, (option, taken) in enumerate(zip(options, bins, strict=True)):
        if taken >= len(before):
            continue
        found = before[: len(before) - taken] + option.importance
        better = found > best[taken:]
        best[taken:][better] = found[better]
        which[taken:][better] = number
    return best, which


def layer_options(
    layer: LayerShape,
    heads: Tensor,
    neurons: Tensor,
    table: LatencyTable,
    remove: frozenset[Kind],
    *,
    halves: tuple[float, float] = (0.0, 0.0),
) -> LayerOptions:
    """What a layer may keep, with its times from the table.

    One head and one neuron at least unless layers or halves may go. A half whose parts may not go one by one stays as
    it is, or goes whole where halves may.

    Args:
        heads: scores of the layer's heads, shape (heads,).
        neurons: scores of its neurons, shape (neurons,).
        halves: scores of the attention and the feed-forward half, read where such a half may go whole alone.
    """
    bottom = 0 if {"layers", "halves"} & remove else 1
    head_counts = range(min(bottom, layer.heads), layer.heads + 1) if "heads" in remove else [layer.heads]
    neuron_counts = _neuron_counts(layer.ffn, table.step, bottom) if "ffn" in remove else [layer.ffn]
    attention = _options(heads, head_counts, table.attention)
    feed_forward = _options(neurons, neuron_counts, table.feed_forward)
    if "halves" in remove and "heads" not in remove:
        attention = _all_or_none(layer.heads, halves[0], table.attention)
    if "halves" in remove and "ffn" not in remove:
        feed_forward = _all_or_none(layer.ffn, halves[1], table.feed_forward)
    return LayerOptions(attention, feed_forward)


def _all_or_none(count: int, score: float, cost: Callable[[int], float]) -> tuple[Option, ...]:
    """The options of a half that goes whole."""
    return tuple(Option(each, score if each else 0.0, cost(each)) for each in sorted({0, count}))


def _neuron_counts(count: int, step: int, bottom: int) -> list[int]:
    """Whole steps up to `count`, and `count` itself: what is there may stay as it is."""
    return [*(each for each in range(0, count, step) if each >= bottom), count]


def _options(scores: Tensor, counts: Sequence[int], cost: Callable[[int], float]) -> tuple[Option, ...]:
    """The options of one kind: of any count the parts of greatest score stay."""
    kept = np.concatenate([[0.0], np.cumsum(np.sort(scores.double().cpu().numpy())[::-1])])
    return tuple(Option(count, float(kept[count]), cost(count)) for count in counts)


def least_time(sizes: Shapes, table: LatencyTable, remove: frozenset[Kind]) -> float:
    """The least milliseconds that pruning can leave, up to the next 0.0001: as `floor` of other quantities."""
    least = [
        layer_options(layer, torch.zeros(layer.heads), torch.zeros(layer.ffn), table, remove).least
        for layer in sizes.layers
    ]
    found = table.rest_ms + (min(least) if "layers" in remove else sum(least))
    return math.ceil(round(found * 1e4, 6)) / 1e4


def choose_by_time(
    sizes: Shapes,
    scores: Scores,
    *,
    remove: frozenset[Kind],
    table: LatencyTable,
    budget: float,
    last: float | None = None,
    loss_with: Callable[[Kept], float],
) -> Choice:
    """The shapes that keep most importance in `budget` milliseconds; in each layer the parts of least score go first.

    Where layers may go, the model without its least layer (score per millisecond), without its two least and so on
    share out the same time, as long as the measured loss falls; one of those that alone reach the last step's time
    stays to the end. Halves go where what keeps most score in the time leaves them out.

    Args:
        budget: milliseconds that may remain after this step; at least `least_time`.
        last: those after the last step, below which no layer that need not go is taken; that of this step unless given.
        loss_with: mean loss of the sample when only the given parts are used; called only where layers may go.
    """
    filled = _Filled(sizes, scores, remove, table, budget)
    every = list(range(len(sizes.layers)))
    if "layers" not in remove:
        kept = filled.of(every)
        assert kept is not None, "the budget is at least the floor"
        return Choice(kept, _lost(sizes, scores, kept, remove), _half_verdicts(sizes, scores, kept, remove))
    goal = budget if last is None else last
    order = _order(filled, every, goal)
    tried = list(_fewer_layers(filled, order, goal, loss_with))
    best = min(tried, key=lambda each: each.loss)
    verdicts = [_verdict(layer, best, tried, filled, order) for layer in every]
    verdicts += _half_verdicts(sizes, scores, best.kept, remove)
    told = sorted(verdicts, key=lambda each: (each.layer, PARTS.index(each.part)))
    return Choice(best.kept, _lost(sizes, scores, best.kept, remove), tuple(told))


@dataclass(frozen=True)
class _Filled:
    """The search of one step."""

    sizes: Shapes
    scores: Scores
    remove: frozenset[Kind]
    table: LatencyTable
    budget: float

    def options(self, layer: int) -> LayerOptions:
        """What that layer may keep."""
        shape, heads, neurons = self.sizes.layers[layer], self.scores.heads[layer], self.scores.neurons[layer]
        attention, feed_forward = self.scores.halves[layer].tolist() if "halves" in self.remove else (0.0, 0.0)
        return layer_options(shape, heads, neurons, self.table, self.remove, halves=(attention, feed_forward))

    def rate(self, layer: int) -> float:
        """That layer's score per millisecond."""
        return float(self.scores.layers[layer]) / max(1e-9, self.table.layer(self.sizes.layers[layer]))

    def of(self, present: Sequence[int]) -> Kept | None:
        """What stays of these layers within the budget, all where they meet it; None where all of them cannot."""
        if self.table.total(self.sizes.layers[layer] for layer in present) <= self.budget:
            return replace(keep_all(self.sizes), layers=tuple(present))
        options = [self.options(layer) for layer in present]
        counts = best_counts(options, budget=self.budget - self.table.rest_ms)
        return None if counts is None else self._kept(dict(zip(present, counts, strict=True)))

    def _kept(self, left: dict[int, tuple[int, int]]) -> Kept:
        """The parts of greatest score in the numbers that are left; all parts are named in layers that go."""
        counts = [left.get(layer, (shape.heads, shape.ffn)) for layer, shape in enumerate(self.sizes.layers)]
        return Kept(
            heads=tuple(_greatest(each, count) for each, (count, _) in zip(self.scores.heads, counts, strict=True)),
            neurons=tuple(_greatest(each, count) for each, (_, count) in zip(self.scores.neurons, counts, strict=True)),
            layers=tuple(sorted(left)),
        )


def _greatest(scores: Tensor, count: int) -> tuple[int, ...]:
    """The `count` parts of greatest score, ascending; of equals the first go."""
    values = scores.tolist()
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    return tuple(sorted(order[len(order) - count :]))


def _lost(sizes: Shapes, scores: Scores, kept: Kept, remove: frozenset[Kind]) -> float:
    """Sum of the scores of what goes; of a whole layer its own, and of a half whose parts may not go one by one."""
    lost = 0.0
    for layer in range(len(sizes.layers)):
        if layer not in kept.layers:
            lost += float(scores.layers[layer])
            continue
        parts = ((scores.heads[layer], kept.heads[layer]), (scores.neurons[layer], kept.neurons[layer]))
        for place, (kind, (values, stay)) in enumerate(zip(("heads", "ffn"), parts, strict=True)):
            whole = "halves" in remove and kind not in remove and len(values) > len(stay)
            one_by_one = float(values.sum()) - float(values[list(stay)].sum())
            lost += float(scores.halves[layer, place]) if whole else one_by_one
    return lost


def _half_verdicts(sizes: Shapes, scores: Scores, kept: Kept, remove: frozenset[Kind]) -> tuple[LayerVerdict, ...]:
    """Why each half of the layers that stay went or stayed; none where halves may not go."""
    found: list[LayerVerdict] = []
    for layer in kept.layers if "halves" in remove else ():
        halves: tuple[tuple[Part, int, int], ...] = (
            ("attention", sizes.layers[layer].heads, len(kept.heads[layer])),
            ("feed-forward", sizes.layers[layer].ffn, len(kept.neurons[layer])),
        )
        for place, (part, before, left) in enumerate(halves):
            why = f"in the time that may remain most score is kept {'with' if left else 'without'} it"
            if before:
                found.append(LayerVerdict(layer, not left, float(scores.halves[layer, place]), why, part=part))
    return tuple(found)


@dataclass(frozen=True)
class _Tried:
    """One set of layers that was tried, and the measured loss of the model that is left of it."""

    without: tuple[int, ...]
    kept: Kept
    loss: float


def _fewer_layers(
    filled: _Filled, order: Sequence[int], last: float, loss_with: Callable[[Kept], float]
) -> Iterator[_Tried]:
    """What was tried, one layer fewer each time in that order, until the loss no longer falls; at least one."""
    shapes, table = filled.sizes.layers, filled.table
    before: float | None = None
    for count in range(len(order)):
        present = sorted(order[count:])
        if before is not None and table.total(shapes[layer] for layer in present) < last:
            return
        kept = filled.of(present)
        if kept is None:
            continue
        tried = _Tried(tuple(order[:count]), kept, loss_with(kept))
        yield tried
        if before is not None and tried.loss >= before:
            return
        before = tried.loss


def _order(filled: _Filled, every: Sequence[int], last: float) -> list[int]:
    """The layers by score per millisecond, the least first; at the end the best that alone reaches the last time."""
    order = sorted(every, key=filled.rate)
    alone = [each for each in order if reaches([filled.options(each)], last - filled.table.rest_ms)]
    return [*(each for each in order if each not in alone[-1:]), *alone[-1:]]


def _verdict(layer: int, best: _Tried, tried: Sequence[_Tried], filled: _Filled, order: Sequence[int]) -> LayerVerdict:
    """Why a layer went or stayed; they were tried in that order."""
    removed, score = layer not in best.kept.layers, float(filled.scores.layers[layer])
    without = next((each for each in tried if layer in each.without), None)
    beside = next((each for each in reversed(tried) if layer in each.kept.layers), None)
    if without is None:
        if any(filled.rate(each) < filled.rate(layer) for each in best.kept.layers):
            return LayerVerdict(layer, False, score, "layers of less score per millisecond stay")
        why = "it alone reaches the target" if layer == order[-1] else "it is more than remains to be removed"
        return LayerVerdict(layer, False, score, why)
    if beside is None:
        return LayerVerdict(layer, True, score, "heads and neurons alone do not reach the target")
    relation = "below" if without.loss < beside.loss else "not below"
    why = f"the loss without it, {without.loss:.4g}, is {relation} {beside.loss:.4g} with it in the same time"
    return LayerVerdict(layer, removed, score, why, without.loss, beside.loss)
