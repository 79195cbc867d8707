"""Units: what one answer of each task kind is about (a row, a token, a span), and how logits and labels become units.

Every loss and metric works on units: logits (U, C), targets (U,) with -100 where a unit has no label, and the row that
each unit belongs to. A row task has one unit a row; a token task one per word, at its first sub-token; a span task two
a row, start and end, whose classes are the tokens.
"""

# B rows of a batch, L tokens, C classes, U units

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.data.batches import UNLABELLED, Batch


@dataclass(frozen=True)
class TaskKind:
    """All that differs between the kinds of task."""

    unit: str
    """row, token or span."""
    auto_class: str
    """Name of transformers' Auto class."""
    optimum_task: str
    """Name of the task in optimum's TasksManager and in transformers' pipelines."""
    metrics: tuple[str, ...]
    """Metrics that may be asked for, the default first."""
    logits: Callable[[Tensor, Batch], Tensor]
    """Raw logits of a batch to (U, C)."""
    targets: Callable[[Batch], Tensor]
    """(U,) int64, -100 where unlabelled."""
    rows: Callable[[Batch], Tensor]
    """(U,) int64, the place in the batch of the row that each unit belongs to."""


def unit_logits(logits: Tensor, batch: Batch, kind: str = "text-classification") -> Tensor:
    """Logits of each unit, shape (U, C).

    Args:
        logits: (B, C) for row units, (B, L, C) for tokens, (B, 2, L) for spans (start, end).
    """
    return TASKS[kind].logits(logits, batch)


def unit_targets(batch: Batch, kind: str = "text-classification") -> Tensor:
    """Target of each unit, shape (U,) int64, -100 where unlabelled."""
    return TASKS[kind].targets(batch)


def unit_rows(batch: Batch, kind: str = "text-classification") -> Tensor:
    """Place in the batch of each unit's row, shape (U,) int64."""
    return TASKS[kind].rows(batch)


def labelled_units(batch: Batch, kind: str = "text-classification") -> Tensor:
    """Which units have a label, shape (U,) bool."""
    return unit_targets(batch, kind) != UNLABELLED


def word_targets(word_ids: Sequence[int | None], tags: Sequence[int | None]) -> list[int]:
    """Target of each token: its word's tag at the word's first sub-token, -100 elsewhere and where the tag is None.

    >>> word_targets([None, 0, 0, 1, None], [7, 8])
    [-100, 7, -100, 8, -100]
    """
    targets = []
    before = None
    for word in word_ids:
        tag = tags[word] if word is not None and word != before else None
        targets.append(UNLABELLED if tag is None else tag)
        before = word
    return targets


def first_tokens(word_ids: Sequence[int | None]) -> list[bool]:
    """Which tokens are units of a token task: the first of each word.

    >>> first_tokens([None, 0, 0, 1, None])
    [False, True, False, True, False]
    """
    return [word is not None and (place == 0 or word_ids[place - 1] != word) for place, word in enumerate(word_ids)]


def span_targets(offsets: Sequence[tuple[int, int]], context: Sequence[bool], start: int, end: int) -> tuple[int, int]:
    """First and last token of the characters from `start` to before `end` of the context; (-100, -100) if cut off.

    Args:
        offsets: (first, past the last) character of each token in its own text.
        context: which tokens are of the context.

    >>> span_targets([(0, 0), (0, 3), (4, 9), (0, 0)], [False, True, True, False], 4, 9)
    (2, 2)
    """
    inside = [
        place
        for place, ((first, last), mine) in enumerate(zip(offsets, context, strict=True))
        if mine and first < end and last > start
    ]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return UNLABELLED, UNLABELLED
    return inside[0], inside[-1]


def best_spans(logits_B2L: Tensor, context_BL: Tensor, *, max_tokens: int = 30) -> Tensor:
    """First and last token of the likeliest answer in each row, shape (B, 2) int64.

    The pair of largest start plus end logit, both in the context, not backwards, at most `max_tokens` long.
    """
    scores_BLL = logits_B2L[:, 0, :, None] + logits_B2L[:, 1, None, :]
    length = context_BL.shape[1]
    allowed_LL = torch.ones(length, length, dtype=torch.bool, device=context_BL.device).triu().tril(max_tokens - 1)
    allowed_BLL = allowed_LL & context_BL[:, :, None] & context_BL[:, None, :]
    flat = scores_BLL.masked_fill(~allowed_BLL, -torch.inf).flatten(1).argmax(1)
    return torch.stack([flat // length, flat % length], dim=1)


def _valid(batch: Batch) -> Tensor:
    if batch.valid is None:
        raise ValueError("a batch of token or span units needs `valid`, the tokens that count (got None)")
    return batch.valid


def _span_logits(logits_B2L: Tensor, batch: Batch) -> Tensor:
    lowest = torch.finfo(logits_B2L.dtype).min
    return logits_B2L.masked_fill(~_valid(batch)[:, None, :], lowest).flatten(0, 1)


def _places(batch: Batch) -> Tensor:
    return torch.arange(len(batch), device=batch.rows.device)


TASKS: dict[str, TaskKind] = {
    "text-classification": TaskKind(
        unit="row",
        auto_class="AutoModelForSequenceClassification",
        optimum_task="text-classification",
        metrics=("accuracy", "macro_f1", "worst_class_recall", "matthews"),
        logits=lambda logits, _batch: logits,
        targets=lambda batch: batch.targets,
        rows=_places,
    ),
    "token-classification": TaskKind(
        unit="token",
        auto_class="AutoModelForTokenClassification",
        optimum_task="token-classification",
        metrics=("entity_f1", "accuracy"),
        logits=lambda logits, batch: logits[_valid(batch)],
        targets=lambda batch: batch.targets[_valid(batch)],
        rows=lambda batch: _places(batch)[:, None].expand_as(_valid(batch))[_valid(batch)],
    ),
    "question-answering": TaskKind(
        unit="span",
        auto_class="AutoModelForQuestionAnswering",
        optimum_task="question-answering",
        metrics=("f1", "exact_match"),
        logits=_span_logits,
        targets=lambda batch: batch.targets.flatten(),
        rows=lambda batch: _places(batch).repeat_interleave(2),
    ),
}
