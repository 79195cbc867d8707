"""What shall be left of a model by learned masks: what each part counts for, and what is expected to remain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from compressor.model.footprint import head_macs, neuron_macs
from compressor.model.importance import Scores
from compressor.model.manifest import Shapes
from compressor.model.surgery import keep_all
from compressor.prune.latency_table import LatencyTable
from compressor.prune.schedule import Choice, Prices
from compressor.prune.settings import MASKED, Kind
from compressor.prune.targets import choose_parts, rounded_down

Masked = Literal["heads", "ffn"]


def masked_kinds(kinds: frozenset[Kind]) -> tuple[Masked, ...]:
    """Those of the kinds whose masks are learned."""
    return tuple(kind for kind in MASKED if kind in kinds)


@dataclass(frozen=True)
class Goal:
    """What shall be left of a model, and of which kinds something may go."""

    sizes: Shapes
    kinds: tuple[Masked, ...]
    prices: Prices | LatencyTable
    share: float
    """Of the whole amount, at the end."""

    @property
    def full(self) -> float:
        """What the model amounts to."""
        return self.prices.total(self.sizes.layers)

    def counts(self, kind: Masked) -> list[int]:
        """How many parts of that kind each layer has."""
        return [layer.heads if kind == "heads" else layer.ffn for layer in self.sizes.layers]

    def by_layer(self, kind: Masked, flat: Tensor) -> tuple[Tensor, ...]:
        """One tensor a layer, of one number a part over all layers."""
        return tuple(torch.split(flat, self.counts(kind)))

    def costs(self, kind: Masked) -> Tensor:
        """Share of the whole that each part of that kind counts for, of multiply-accumulates where time is counted."""
        return self._costs[kind]

    @cached_property
    def _costs(self) -> dict[Masked, Tensor]:
        return {kind: self._costs_of(kind) for kind in self.kinds}

    def _costs_of(self, kind: Masked) -> Tensor:
        sizes, prices = self.sizes, self.prices
        per_layer: list[float] = []
        for layer in sizes.layers:
            if isinstance(prices, LatencyTable):
                price = head_macs(layer.head_size, sizes.hidden) if kind == "heads" else neuron_macs(sizes.hidden)
            else:
                price = prices.head(layer) if kind == "heads" else prices.neuron()
            per_layer.append(price)
        values = torch.tensor(per_layer, dtype=torch.float64).repeat_interleave(torch.tensor(self.counts(kind)))
        if not isinstance(prices, LatencyTable):
            return values / self.full
        every = sum(
            layer.heads * head_macs(layer.head_size, sizes.hidden) + layer.ffn * neuron_macs(sizes.hidden)
            for layer in sizes.layers
        )
        return values / every

    def choose(self, scores: Scores, share: float) -> Choice:
        """What stays when `share` of the whole may remain: the choice that a cut is made by."""
        if share >= 1:
            return Choice(keep_all(self.sizes), 0.0, ())
        return choose_parts(
            self.sizes,
            scores,
            remove=frozenset[Kind](self.kinds),
            prices=self.prices,
            budget=rounded_down(self.prices, share * self.full),
            loss_with=lambda _kept: 0.0,
        )

    def expected_share(self, probabilities: Mapping[Masked, Tensor]) -> Tensor:
        """Share of the whole that is expected to remain, shape (), with a gradient to how likely each part stays.

        Times are read at the expected counts, as linear between those that were timed as the table has them.

        Args:
            probabilities: of each kind that may go, one number a part over all layers.
        """
        if isinstance(self.prices, LatencyTable):
            return self._expected_time(probabilities) / self.full
        gone = [((1 - value) * self.costs(kind).to(value)).sum() for kind, value in probabilities.items()]
        return 1 - torch.stack(gone).sum()

    def _expected_time(self, probabilities: Mapping[Masked, Tensor]) -> Tensor:
        saved = [self._columns[kind].whole - self._columns[kind].total(each) for kind, each in probabilities.items()]
        return self.full - torch.stack(saved).sum()

    @cached_property
    def _columns(self) -> dict[Masked, _Column]:
        return {kind: self._column(kind) for kind in self.kinds}

    def _column(self, kind: Masked) -> _Column:
        table, counts = self.prices, torch.tensor(self.counts(kind))
        assert isinstance(table, LatencyTable)
        at, ms = (table.heads, table.attention_ms) if kind == "heads" else (table.neurons, table.ffn_ms)
        layer = torch.arange(len(counts)).repeat_interleave(counts)
        return _Column(torch.tensor(at, dtype=torch.float64), torch.tensor(ms, dtype=torch.float64), layer, len(counts))


@dataclass(frozen=True)
class _Column:
    """What a table of times says of one kind, and where the parts of that kind are."""

    at: Tensor
    """Counts that were timed, ascending."""
    ms: Tensor
    layer: Tensor
    """Of each part."""
    layers: int

    @cached_property
    def whole(self) -> float:
        """Milliseconds of all parts."""
        return float(self.total(torch.ones(len(self.layer), dtype=torch.float64)))

    def total(self, probabilities: Tensor) -> Tensor:
        """Milliseconds of the layers at the counts that are expected, shape (), with the slope of the table's lines."""
        at, ms = self.at.to(probabilities), self.ms.to(probabilities)
        counts = probabilities.new_zeros(self.layers).index_add(0, self.layer.to(probabilities.device), probabilities)
        place = torch.searchsorted(at, counts.detach()).clamp(1, len(at) - 1)
        slope = (ms[place] - ms[place - 1]) / (at[place] - at[place - 1])
        return (ms[place - 1] + (counts - at[place - 1]) * slope).sum()


def ranks(goal: Goal, scores: Scores) -> dict[Masked, Tensor]:
    """The place of each part among all that may go, by score per price: from 0, which goes first, to 1."""
    flat = {kind: torch.cat(scores.heads if kind == "heads" else scores.neurons) for kind in goal.kinds}
    rates = torch.cat([values / goal.costs(kind) for kind, values in flat.items()])
    places = torch.empty(len(rates))
    places[rates.argsort(stable=True)] = torch.linspace(0, 1, len(rates))
    return dict(zip(flat, torch.split(places, [len(values) for values in flat.values()]), strict=True))
