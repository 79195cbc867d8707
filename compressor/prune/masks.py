"""Masks on heads and neurons that are learned while a model trains: what they let through, and what they leave."""

# H heads, F neurons of one layer

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.model.importance import Scores
from compressor.prune.goal import Goal, Masked, ranks
from compressor.prune.schedule import Choice
from compressor.prune.settings import MaskKind

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
"""How far a hard-concrete gate is stretched beyond 0 and 1, and how sharp it is: those of Louizos et al. 2018."""
LEAST_GATE = 0.1
"""Of a part that is kept: about the gate at which it is open half of the times. At 0 its weights would not learn."""

WIDE_OPEN, SHUT, HALVINGS = 4.0, 16.0, 24
"""Bounds of a shift beyond the least and the greatest parameter of a gate, and bisections between them."""
LEAST_SLOPE = 1e-9
"""Share of the whole that a shift of 1 changes at least; a table of times may be flat."""

Gates = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Those of heads, one tensor (H,) a layer, and those of neurons, (F,)."""


def straight_through(scores: Tensor, mask: Tensor) -> Tensor:
    """`mask`, whose gradient goes to `scores` as it is.

    So a masked part's score goes on moving, by what the loss would change if it were there (Sanh et al. 2020,
    https://arxiv.org/abs/2005.07683, section 4.1).
    """
    return mask + (scores - scores.detach())


def evened(values: Tensor) -> Tensor:
    """The same values, whose gradient is divided by its root mean square; a gradient of 0 stays 0."""
    same = values.view_as(values)
    least = torch.finfo(values.dtype).tiny
    same.register_hook(lambda slope: slope / slope.square().mean().sqrt().clamp(min=least))  # type: ignore[no-untyped-call]
    return same


def hard_concrete(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates from 0 to 1, both included, drawn by numbers in [0, 1), same shape, with a gradient to `log_alpha`.

    Louizos et al. 2018, https://arxiv.org/abs/1712.01312, equations 10 and 11.
    """
    logistic = uniform.log() - torch.log1p(-uniform)
    concrete = torch.sigmoid((logistic + log_alpha) / TEMPERATURE)
    return (concrete * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


def open_probability(log_alpha: Tensor) -> Tensor:
    """How likely a hard-concrete gate is not 0 (the same, equation 12).

    >>> round(float(open_probability(torch.tensor(0.0))), 4)
    0.8318
    """
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def still_gate(log_alpha: Tensor) -> Tensor:
    """The gate that stands for those that would be drawn, from 0 to 1 (the same, equation 13)."""
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


class LearnedMasks(nn.Module, ABC):
    """A number for each head and neuron that may go, from which follows what stays.

    Args:
        goal: what shall be left.
        start: scores by a criterion, whose order the numbers begin with.
    """

    every_step: ClassVar[bool]
    """Whether masked parts are left out from the first step on; else once the masks stand still."""
    first: ClassVar[tuple[float, float]]
    """The numbers that the parts of least and of most score begin with."""
    epsilon: ClassVar[float]
    """What AdamW adds to the root of a gradient's mean square: below it, how large a gradient is counts."""

    def __init__(self, goal: Goal, start: Scores) -> None:
        super().__init__()
        self.goal, self.start = goal, start
        low, high = self.first
        self.learned = nn.ParameterDict(
            {kind: nn.Parameter(low + (high - low) * place) for kind, place in ranks(goal, start).items()}
        )
        for kind in goal.kinds:
            self.register_buffer(f"{kind}_mask", torch.ones(sum(goal.counts(kind))))

    @abstractmethod
    def worth(self) -> dict[Masked, Tensor]:
        """What each part is worth by its price, >= 0, one number a part over all layers."""

    @abstractmethod
    def all_gates(self, share: float) -> dict[Masked, Tensor]:
        """Factor of each part, one number a part over all layers, while so much may remain; with a gradient."""

    @abstractmethod
    def held_gates(self) -> dict[Masked, Tensor]:
        """The same once the masks stand still, as `refresh` left them; without a gradient."""

    def mask(self, kind: Masked) -> Tensor:
        """1 for each part that stayed at the last `refresh`, else 0."""
        found: Tensor = self.get_buffer(f"{kind}_mask")
        return found

    def scores(self) -> Scores:
        """What is learned, as what each part is worth times its share of the whole; a layer's is the sum of its parts.

        Kinds that may not go have the scores that the masks began with.
        """
        found = {
            kind: self.goal.by_layer(kind, value.detach().double().cpu() * self.goal.costs(kind))
            for kind, value in self.worth().items()
        }
        return replace(
            self.start,
            heads=found.get("heads", self.start.heads),
            neurons=found.get("ffn", self.start.neurons),
            layers=torch.stack([torch.stack([part.sum() for part in each]) for each in found.values()]).sum(0),
        )

    def choice(self, share: float) -> Choice:
        """What stays when so much may remain."""
        return self.goal.choose(self.scores(), share)

    def refresh(self, share: float) -> None:
        """Mask all but what stays when so much may remain."""
        kept = self.choice(share).kept
        for kind in self.goal.kinds:
            mask = self.mask(kind).zero_()
            stay = kept.heads if kind == "heads" else kept.neurons
            for part, indices in zip(self.goal.by_layer(kind, mask), stay, strict=True):
                part[list(indices)] = 1.0

    def gates(self, share: float | None) -> Gates:
        """Factors of all heads and neurons; 1 for kinds that may not go.

        Args:
            share: of the whole that may remain while masks are learned; None once they stand still.
        """
        found = self.held_gates() if share is None else self.all_gates(share)
        like = next(iter(found.values())).detach()

        def of(kind: Masked) -> tuple[Tensor, ...]:
            if kind in found:
                return self.goal.by_layer(kind, found[kind])
            return tuple(like.new_ones(count) for count in self.goal.counts(kind))

        return of("heads"), of("ffn")


class MovementMasks(LearnedMasks):
    """Scores that move against the gradient at the parts' gates: those that the loss wants smaller go.

    Movement pruning (Sanh et al. 2020, https://arxiv.org/abs/2005.07683) of whole heads and neurons (Lagunas et al.
    2021, https://arxiv.org/abs/2109.04838). A score counts by price. Gradients are divided by their root mean square
    over the parts of a kind, so that the learning rate means the same for every loss, and a part without effect stays
    where it began.
    """

    every_step = True
    first = (0.0, 1.0)
    epsilon = 1.0

    def worth(self) -> dict[Masked, Tensor]:
        """The scores above the least one."""
        least = torch.stack([each.detach().min() for each in self.learned.values()]).min()
        return {kind: self.learned[kind] - least for kind in self.goal.kinds}

    def all_gates(self, _share: float) -> dict[Masked, Tensor]:
        """The mask of the moment, whose gradient goes to the scores."""
        return {kind: straight_through(evened(self.learned[kind]), self.mask(kind)) for kind in self.goal.kinds}

    def held_gates(self) -> dict[Masked, Tensor]:
        """The mask."""
        return {kind: self.mask(kind) for kind in self.goal.kinds}


class HardConcreteMasks(LearnedMasks):
    """Gates that are open by chance, of which as much is open as may remain, by what is expected.

    L0 regularisation (Louizos et al. 2018, https://arxiv.org/abs/1712.01312) to a target, as in Wang et al. 2020
    (https://arxiv.org/abs/1910.04732) and CoFi (Xia et al. 2022, https://arxiv.org/abs/2204.00408). Their multiplier of
    the constraint rises and falls by gradients, which takes hundreds of steps to settle; here it is solved for at each
    step: all gates are shifted until the expected amount is the one that may remain, and the gradient goes through that
    shift, so that it is the one along the constraint.
    """

    every_step = False
    first = (0.0, 4.0)
    epsilon = 1e-8

    def __init__(self, goal: Goal, start: Scores) -> None:
        super().__init__(goal, start)
        self.register_buffer("held_shift", torch.zeros((), dtype=torch.float64))

    def shift(self, share: float) -> Tensor:
        """What is taken from all gates' parameters for so much to be expected, shape (), with its gradient to them.

        Never so little that the least gate is open in more than 99.7 of 100 draws. Found by bisection, and made exact
        by a step of Newton's.
        """
        values: dict[Masked, Tensor] = {kind: self.learned[kind].double() for kind in self.goal.kinds}
        still = {kind: each.detach() for kind, each in values.items()}
        low = torch.stack([each.min() for each in still.values()]).min() - WIDE_OPEN
        high = torch.stack([each.max() for each in still.values()]).max() + SHUT

        def expected(of: Mapping[Masked, Tensor], shift: Tensor) -> Tensor:
            return self.goal.expected_share({kind: open_probability(each - shift) for kind, each in of.items()})

        if float(expected(still, low)) <= share:
            return low
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = expected(still, middle) > share
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        found = high.requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(expected(still, found), found)
        return found.detach() - (expected(values, found.detach()) - share) / slope.clamp(max=-LEAST_SLOPE)

    def refresh(self, share: float) -> None:
        """Also keep the shift that goes with it."""
        super().refresh(share)
        with torch.no_grad():
            self.get_buffer("held_shift").copy_(self.shift(share))

    def worth(self) -> dict[Masked, Tensor]:
        """How likely the gates are open at the target."""
        with torch.no_grad():
            shift = self.shift(self.goal.share)
        return {kind: open_probability(self.learned[kind].double() - shift) for kind in self.goal.kinds}

    def all_gates(self, share: float) -> dict[Masked, Tensor]:
        """Drawn anew by torch's own random numbers."""
        shift = self.shift(share)
        shifted = {kind: (self.learned[kind] - shift).float() for kind in self.goal.kinds}
        return {kind: hard_concrete(each, torch.rand_like(each)) for kind, each in shifted.items()}

    def held_gates(self) -> dict[Masked, Tensor]:
        """What stands for all draws, 0 where the mask is."""
        shift = self.get_buffer("held_shift")
        still = {kind: still_gate((self.learned[kind].detach() - shift).float()) for kind in self.goal.kinds}
        return {kind: self.mask(kind) * each.clamp(min=LEAST_GATE) for kind, each in still.items()}


MASKS: dict[MaskKind, type[LearnedMasks]] = {"movement": MovementMasks, "l0": HardConcreteMasks}
