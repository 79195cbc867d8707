"""The sum that a student minimises: the terms of `match`, their weights and the layers they pair."""

# B rows, L tokens, D hidden, C classes, H heads, d head size, N terms

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.data.batches import Batch
from compressor.data.tasks import unit_logits, unit_rows, unit_targets
from compressor.distill.answers import Answers, Teacher
from compressor.distill.balance import is_measured
from compressor.distill.layer_map import Pairing, Term, relation_heads, term_names
from compressor.distill.losses import HIDDEN_LOSSES, LOGITS_LOSSES, weighted_mean
from compressor.distill.projections import TeachingParts
from compressor.distill.relations import ATTENTION_LOSSES, relations_kl
from compressor.distill.settings import (
    AttentionMatch,
    EmbeddingsMatch,
    HiddenMatch,
    LabelsMatch,
    LogitsMatch,
    RelationsMatch,
)
from compressor.model.states import Heads, attention_bias, forward, head_states, record_heads, record_hidden
from compressor.settings import AutoWeight, Number, value_at
from compressor.train.fit import Loss
from compressor.train.losses import LABEL_LOSSES


@dataclass(frozen=True)
class _Seen:
    """What the terms of one batch are computed from."""

    model: nn.Module
    batch: Batch
    progress: float
    logits: Tensor
    """(U, C), the student's, by unit."""
    states: Mapping[int, Tensor]
    """Student layer to (B, L, D)."""
    heads: Mapping[int, Heads]
    """Student layer to queries, keys and values, each (B, L, H, d)."""
    answers: Answers
    rows: Tensor | None
    """Factor of each row, (B,); None where all are 1."""
    taught: dict[int, Heads] = field(default_factory=dict)
    """Teacher layer to queries, keys and values, as far as terms have asked for them."""

    @property
    def mask(self) -> Tensor:
        """(B, L), 1 for tokens."""
        return self.batch.inputs["attention_mask"]


@dataclass(frozen=True)
class Teaching:
    """The loss that `fit` calls: terms of one batch and their weighted sum."""

    match: tuple[Term, ...]
    teacher: Teacher
    pairing: Pairing
    parts: TeachingParts | None
    """Trained beside the student; None where nothing is."""
    steps: int
    """Planned steps, by which the times of measuring gradients are told."""
    encoder: nn.Module | None = None
    """The teacher that hidden states are of, which makes queries, keys and values of them; None without such terms."""
    unlabelled_weight: Number = 1.0
    """Factor of the unlabelled rows in all terms but that of labels."""

    def __post_init__(self) -> None:
        automatic = any(isinstance(term.weight, AutoWeight) for term in self.match)
        if automatic and len(self.match) > 1 and (self.parts is None or self.parts.balance is None):
            raise ValueError("automatic weights of several terms need the running norms of make_parts")

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Loss:
        """The loss of a batch after `progress` (0 to 1) of the steps.

        All terms but that of labels are means over the rows (tokens) that the teacher answered, so that a labelled and
        an unlabelled row count alike; the labels term is a mean over the labelled rows, so that the share of
        unlabelled ones does not dilute it. A term of weight 0 is neither
        computed nor logged.
        """
        names = term_names(self.match)
        active = {
            name: term
            for name, term in zip(names, self.match, strict=True)
            if isinstance(term.weight, AutoWeight) or value_at(term.weight, progress)
        }
        seen = self._seen(model, active, batch, progress)
        parts: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        for name, term in active.items():
            with torch.autocast(seen.logits.device.type, enabled=False):  # losses are fp32, also products in them
                found = self._term(name, term, seen)
            terms[name] = torch.stack(list(found.values())).mean() if len(found) > 1 else next(iter(found.values()))
            parts |= {f"{name} {part}": value for part, value in found.items() if part}
        if not active:
            return Loss(seen.logits.sum() * 0.0, {})
        weights, shares = self._weights(model, terms, progress)
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return Loss(total, terms, parts, shares)

    def _seen(self, model: nn.Module, active: Mapping[str, Term], batch: Batch, progress: float) -> _Seen:
        """One pass of the student, and what the teacher says."""
        answers = self.teacher.answers(batch, hidden=self._teacher_layers(active, batch.epoch))
        with self._listening(model, active, batch.epoch) as (states, heads):
            logits = unit_logits(forward(model, batch), batch)
        return _Seen(model, batch, progress, logits, states, heads, answers, self._row_weights(batch, progress))

    def _teacher_layers(self, active: Mapping[str, Term], epoch: int) -> tuple[int, ...]:
        """Hidden states of the teacher that the terms read in this epoch, ascending."""
        needed: set[int] = set()
        for name, term in active.items():
            if not isinstance(term, LogitsMatch | LabelsMatch):
                below = isinstance(term, AttentionMatch | RelationsMatch)
                needed |= {teacher - below for teacher, _ in self.pairing.at(name, epoch)}
        return tuple(sorted(needed))

    @contextlib.contextmanager
    def _listening(
        self, model: nn.Module, active: Mapping[str, Term], epoch: int
    ) -> Iterator[tuple[dict[int, Tensor], dict[int, Heads]]]:
        """Dicts that the student's forward fills with the states and heads that the terms need."""
        states: set[int] = set()
        heads: set[int] = set()
        for name, term in active.items():
            if not isinstance(term, LogitsMatch | LabelsMatch):
                layers = {student for _, student in self.pairing.at(name, epoch)}
                (states if isinstance(term, HiddenMatch | EmbeddingsMatch) else heads).update(layers)
        with contextlib.ExitStack() as stack:
            # an encoder of unknown parts can be used where nothing inside it is asked for
            yield (
                stack.enter_context(record_hidden(model, layers=sorted(states))) if states else {},
                stack.enter_context(record_heads(model, sorted(heads))) if heads else {},
            )

    def _row_weights(self, batch: Batch, progress: float) -> Tensor | None:
        """Factor of each row, shape (B,); None where all are 1."""
        factor = value_at(self.unlabelled_weight, progress)
        if factor == 1.0:
            return batch.weights
        pools = torch.where(batch.unlabelled, factor, 1.0)
        return pools if batch.weights is None else pools * batch.weights

    def _term(self, name: str, term: Term, seen: _Seen) -> dict[str, Tensor]:
        """The unweighted term, as its parts by name: pairs such as `4:2`, or one part without a name."""
        if isinstance(term, LabelsMatch):
            targets = unit_targets(seen.batch)
            return {"": LABEL_LOSSES[term.loss](seen.logits, targets, gamma=term.gamma, smoothing=term.smoothing)}
        if isinstance(term, LogitsMatch):
            return {"": _logits_term(term, seen)}
        if isinstance(term, HiddenMatch | EmbeddingsMatch):
            return self._hidden_term(name, term, seen)
        pairs = self.pairing.at(name, seen.batch.epoch)
        return {f"{pair[0]}:{pair[1]}": self._heads_term(term, pair, seen) for pair in pairs}

    def _hidden_term(self, name: str, term: HiddenMatch | EmbeddingsMatch, seen: _Seen) -> dict[str, Tensor]:
        loss, taught = HIDDEN_LOSSES[term.loss], seen.answers.hidden
        found = {}
        if name in self.pairing.mixed:
            assert self.parts is not None
            layers = range(1, self.pairing.teacher_layers + 1)
            for student in range(1, self.pairing.student_layers + 1):
                mixture = self.parts.mixture(name, student, [taught[layer] for layer in layers])
                own = self._projected(seen.states[student], name, (0, student))
                found[f"all:{student}"] = loss(own, mixture, seen.mask, row_weights=seen.rows)
            return found
        for teacher, student in self.pairing.at(name, seen.batch.epoch):
            own = self._projected(seen.states[student], name, (teacher, student))
            found[f"{teacher}:{student}"] = loss(own, taught[teacher], seen.mask, row_weights=seen.rows)
        return found

    def _projected(self, states: Tensor, name: str, pair: tuple[int, int]) -> Tensor:
        return states if self.parts is None else self.parts.projected(states.float(), name, pair)

    def _heads_term(self, term: AttentionMatch | RelationsMatch, pair: tuple[int, int], seen: _Seen) -> Tensor:
        """An attention or relations term of one pair of layers."""
        own, taught = seen.heads[pair[1]], self._taught_heads(pair[0], seen)
        if isinstance(term, RelationsMatch):
            heads = relation_heads(
                term.heads,
                student_width=own[0].shape[2:].numel(),
                teacher_width=taught[0].shape[2:].numel(),
                teacher_heads=taught[0].shape[2],
            )
            return relations_kl(own, taught, seen.mask, heads=heads, pairs=term.pairs, row_weights=seen.rows)
        assert self.encoder is not None
        length = seen.mask.shape[1]
        return ATTENTION_LOSSES[term.loss](
            own[:2], taught[:2], seen.mask,
            row_weights=seen.rows,
            student_bias_HLL=attention_bias(seen.model, length, layer=pair[1]),
            teacher_bias_HLL=attention_bias(self.encoder, length, layer=pair[0]),
        )  # fmt: skip

    def _taught_heads(self, layer: int, seen: _Seen) -> Heads:
        """The teacher's queries, keys and values, without gradients."""
        if layer not in seen.taught:
            assert self.encoder is not None
            with torch.no_grad():
                seen.taught[layer] = head_states(self.encoder, layer, seen.answers.hidden[layer - 1])
        return seen.taught[layer]

    def _weights(
        self, model: nn.Module, terms: Mapping[str, Tensor], progress: float
    ) -> tuple[Mapping[str, float | Tensor], dict[str, Tensor]]:
        """Weight of each term, and its share of the gradient in steps where that is measured."""
        balance = None if self.parts is None else self.parts.balance
        norms = None
        if balance is not None and balance.automatic:
            balance.follow(terms)
        if balance is not None and is_measured(round(progress * self.steps), automatic=balance.automatic):
            norms = balance.measure(terms, [each for each in model.parameters() if each.requires_grad])
        if balance is None or not (balance.automatic or norms is not None):
            given = {name: term.weight for name, term in zip(term_names(self.match), self.match, strict=True)}
            return {n: w.auto if isinstance(w, AutoWeight) else value_at(w, progress) for n, w in given.items()}, {}
        weights = balance.weights(progress, norms)
        shares = {} if norms is None else balance.share(norms, weights)
        return dict(zip(balance.names, weights, strict=True)), shares


def _logits_term(term: LogitsMatch, seen: _Seen) -> Tensor:
    """A term of logits over the units of rows that the teacher answered; NaN stands for no answer."""
    taught = unit_logits(seen.answers.logits, seen.batch)
    answered = ~taught.isnan().any(-1)
    options = {"beta": term.beta} if term.loss == "decoupled" else {}
    values = LOGITS_LOSSES[term.loss](
        seen.logits,
        torch.where(answered[:, None], taught, 0.0),
        temperature=value_at(term.temperature, seen.progress),
        **options,
    )
    return weighted_mean(values, None if seen.rows is None else seen.rows[unit_rows(seen.batch)], answered)
