"""The sum that a student minimises: the terms of `match`, their weights and the layers they pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.data.batches import Batch
from compressor.data.tasks import unit_logits, unit_rows, unit_targets
from compressor.distill.layer_map import Pairs, layer_pairs
from compressor.distill.losses import HIDDEN_LOSSES, LOGITS_LOSSES, weighted_mean
from compressor.distill.settings import HiddenMatch, LabelsMatch, LogitsMatch
from compressor.distill.teacher_cache import Answers, Teacher, recorded
from compressor.model.encoders import shapes
from compressor.settings import Number, value_at
from compressor.train.fit import Loss
from compressor.train.losses import LABEL_LOSSES

Term = LogitsMatch | LabelsMatch | HiddenMatch


def term_names(match: Sequence[Term]) -> tuple[str, ...]:
    """What each term is called in steps.jsonl: what it is of, numbered from the second of a kind on.

    >>> term_names([LogitsMatch(), LabelsMatch(), LogitsMatch()])
    ('logits', 'labels', 'logits2')
    """
    kinds = [term.of for term in match]
    return tuple(
        kind if kinds[:index].count(kind) == 0 else f"{kind}{kinds[:index].count(kind) + 1}"
        for index, kind in enumerate(kinds)
    )


def term_pairs(match: Sequence[Term], *, teacher_layers: int, student_layers: int) -> dict[str, Pairs]:
    """Layer pairs of each hidden term by its name; InputError for a layer that is not there."""
    return {
        name: layer_pairs(term.map, teacher_layers, student_layers)
        for name, term in zip(term_names(match), match, strict=True)
        if isinstance(term, HiddenMatch)
    }


def make_projections(
    pairs: dict[str, Pairs], student: PreTrainedModel, teacher: PreTrainedModel, *, seed: int
) -> nn.ModuleDict | None:
    """A Linear from the student's width to the teacher's for each pair of each hidden term; None where widths agree."""
    narrow, wide = shapes(student).hidden, shapes(teacher).hidden
    if narrow == wide or not pairs:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = {_projection(name, pair): nn.Linear(narrow, wide) for name, each in pairs.items() for pair in each}
    return nn.ModuleDict(made)


def _projection(name: str, pair: tuple[int, int]) -> str:
    return f"{name}-{pair[0]}-{pair[1]}"


@dataclass(frozen=True)
class Teaching:
    """The loss that `fit` calls: terms of one batch and their weighted sum."""

    match: tuple[Term, ...]
    teacher: Teacher
    pairs: dict[str, Pairs]
    """Name of each hidden term to its layer pairs."""
    projections: nn.ModuleDict | None
    """From the student's width to the teacher's; None where they agree."""
    unlabelled_weight: Number = 1.0
    """Factor of the unlabelled rows in the logits and hidden terms."""

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Loss:
        """The loss of a batch after `progress` (0 to 1) of the steps.

        Logits and hidden terms are means over all rows (tokens), so that a labelled and an unlabelled row count alike;
        the labels term is a mean over the labelled rows, so that the share of unlabelled ones does not dilute it.
        """
        weights = {
            name: value_at(term.weight, progress) for name, term in zip(term_names(self.match), self.match, strict=True)
        }
        hidden = any(weights[name] for name in self.pairs)
        answers = self.teacher.answers(batch, hidden=hidden)
        layers = sorted({layer for each in self.pairs.values() for _, layer in each}) if hidden else []
        with recorded(model, layers) as states:
            logits = unit_logits(model(**batch.inputs).logits, batch)
        rows = self._row_weights(batch, progress)
        terms = {
            name: self._term(term, name, logits, states, answers, batch, rows, progress)
            if weights[name]
            else logits.new_zeros(())
            for name, term in zip(weights, self.match, strict=True)
        }
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        if not any(weights.values()):
            total = total + logits.sum() * 0.0
        return Loss(total, terms)

    def _row_weights(self, batch: Batch, progress: float) -> Tensor | None:
        """Factor of each row, shape (rows,); None where all are 1."""
        factor = value_at(self.unlabelled_weight, progress)
        if factor == 1.0:
            return None
        return torch.where(batch.unlabelled, factor, 1.0)

    def _term(
        self,
        term: Term,
        name: str,
        logits: Tensor,
        states: dict[int, Tensor],
        answers: Answers,
        batch: Batch,
        rows: Tensor | None,
        progress: float,
    ) -> Tensor:
        if isinstance(term, LabelsMatch):
            return LABEL_LOSSES[term.loss](logits, unit_targets(batch))
        if isinstance(term, LogitsMatch):
            temperature = value_at(term.temperature, progress)
            taught = unit_logits(answers.logits, batch)
            values = LOGITS_LOSSES[term.loss](logits, taught, temperature=temperature)
            return weighted_mean(values, None if rows is None else rows[unit_rows(batch)])
        mask = batch.inputs["attention_mask"]
        distances = [
            HIDDEN_LOSSES[term.loss](
                self._projected(states[pair[1]], name, pair), answers.hidden[pair[0]], mask, row_weights=rows
            )
            for pair in self.pairs[name]
        ]
        return torch.stack(distances).mean()

    def _projected(self, states: Tensor, name: str, pair: tuple[int, int]) -> Tensor:
        if self.projections is None:
            return states
        projected: Tensor = self.projections[_projection(name, pair)](states)
        return projected
