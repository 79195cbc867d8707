"""A training whose student loses heads and neurons behind masks, and the choice that it ends with."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.data.batches import Batch
from compressor.data.rows import DataSets
from compressor.distill.course import Beside, LossOf
from compressor.model.gates import fold, gated
from compressor.model.importance import Scores
from compressor.model.parts import bare, shapes
from compressor.prune.goal import Goal, masked_kinds
from compressor.prune.masks import MASKS, LearnedMasks
from compressor.prune.plan import Plan
from compressor.prune.recovery import open_training
from compressor.prune.schedule import Choice, kept_share
from compressor.prune.targets import Amounts
from compressor.prune.width import Widths
from compressor.stage import Decision
from compressor.train.finetune import digest_of
from compressor.train.fit import Loss

EVERY = 10
"""Steps between two choices of what is masked, so that choosing stays a small part of the time."""


@dataclass(frozen=True)
class Timetable:
    """How much remains at which step, and when the masks stand still; steps count from 0."""

    steps: int
    hold: float
    """Share of the steps, at the end, in which they do; at least the last one is held."""
    share: float
    """Of the whole, at the end."""

    @property
    def held_from(self) -> int:
        """The first step with the masks that the cut is made by.

        >>> Timetable(10, 0.3, 0.5).held_from
        7
        """
        return min(self.steps - 1, math.ceil((1 - self.hold) * self.steps - 1e-9))

    def share_at(self, step: int) -> float:
        """Share of the whole that may remain: all at the first step, `share` from `held_from` on, cubic between."""
        if step >= self.held_from:
            return self.share
        return 1.0 if step == 0 else kept_share(self.share, step=step, steps=self.held_from)


@dataclass(frozen=True)
class MaskedLoss:
    """The loss of a student behind its masks, which `fit` calls once a step."""

    inner: LossOf
    masks: LearnedMasks
    times: Timetable

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Loss:
        """The student's loss after `progress` (0 to 1) of the steps."""
        step, masks = round(progress * self.times.steps), self.masks
        share, held = self.times.share_at(step), step >= self.times.held_from
        if step == self.times.held_from or (masks.every_step and not held and step % EVERY == 0):
            masks.refresh(share)
        heads, neurons = masks.gates(None if held else share)
        whole = [torch.ones(())] * len(heads)
        with gated(bare(model), heads=heads, neurons=neurons, layers=whole):
            return self.inner(model, batch, progress)


@dataclass(frozen=True)
class Chosen:
    """A model and what stays of it, by which scores."""

    model: PreTrainedModel
    choice: Choice
    scores: Scores
    words: str
    """How the parts were scored."""


def learn_masks(
    plan: Plan,
    data: DataSets,
    model: PreTrainedModel,
    *,
    start: Scores,
    order: str,
    prices: Amounts,
    share: float,
    work: Path,
    decide: Callable[[Decision], None],
) -> Chosen:
    """A copy of `model`, trained behind masks, and what stays of it; goes on from a checkpoint in `work`.

    The gates of the parts that stay are in its weights, and those that go do nothing, so that a cut changes no answer.

    Args:
        plan: one with masks and recover.
        start: scores whose order the masks begin with.
        order: those scores in words.
        share: of the whole that shall remain.
        work: for checkpoint, cache and steps.jsonl.
    """
    settings = plan.masks
    assert settings is not None
    assert not isinstance(prices, Widths), "check_masks refuses masks beside the width"
    student = copy.deepcopy(model)
    goal = Goal(shapes(model), masked_kinds(plan.kinds), prices, share)
    masks = MASKS[settings.kind](goal, start)

    def around(inner: LossOf, steps: int) -> LossOf:
        return MaskedLoss(inner, masks, Timetable(steps, settings.hold, share))

    key = digest_of(settings.model_dump_json(), json.dumps([share, asdict(prices)]))
    beside = Beside(masks, {"lr": settings.learning_rate, "eps": masks.epsilon}, around, key)
    distiller = open_training(plan, data, student, step=1, what=f"learn {settings.kind} masks", decide=decide)
    trained = distiller.train_model(student, work, beside=beside).eval()
    heads, neurons = masks.gates(None)
    fold(trained, heads=heads, neurons=neurons)
    assert distiller.fitted is not None
    words = f"{settings.kind} masks learned in {distiller.fitted.steps} steps, begun with {order}"
    return Chosen(trained, masks.choice(share), masks.scores(), words)
