from typing import get_args

import pytest
import torch

from compressor.data.batches import Batch
from compressor.data.settings import TaskKind
from compressor.data.tasks import (
    TASKS,
    best_spans,
    first_tokens,
    labelled_units,
    span_targets,
    unit_logits,
    unit_rows,
    unit_targets,
    word_targets,
)  # fmt: skip


def batch_of(targets, valid=None):
    targets = torch.tensor(targets)
    rows = torch.arange(len(targets))
    valid = None if valid is None else torch.tensor(valid)
    return Batch({}, targets, rows, torch.zeros(len(rows), dtype=torch.bool), valid)


def test_every_kind_that_a_recipe_may_name_has_its_units():
    kinds = get_args(TaskKind)
    assert kinds
    assert set(kinds) <= set(TASKS)
    assert {kind.unit for kind in TASKS.values()} == {"row", "token", "span"}


def test_a_row_is_one_unit():
    batch, logits = batch_of([1, -100]), torch.randn(2, 3)
    assert torch.equal(unit_logits(logits, batch), logits)
    assert unit_targets(batch).tolist() == [1, -100]
    assert unit_rows(batch).tolist() == [0, 1]
    assert labelled_units(batch).tolist() == [True, False]


def test_token_units_are_the_first_tokens_of_words():
    word_ids = [None, 0, 0, 1, None]
    assert word_targets(word_ids, [3, None]) == [-100, 3, -100, -100, -100]
    batch = batch_of([word_targets(word_ids, [3, 4]), word_targets(word_ids, [None, 5])], [first_tokens(word_ids)] * 2)
    logits = torch.randn(2, 5, 6)
    units = unit_logits(logits, batch, "token-classification")
    assert torch.equal(units, torch.stack([logits[0, 1], logits[0, 3], logits[1, 1], logits[1, 3]]))
    assert unit_targets(batch, "token-classification").tolist() == [3, 4, -100, 5]
    assert unit_rows(batch, "token-classification").tolist() == [0, 0, 1, 1]


def test_span_units_are_start_and_end_over_the_context():
    context = [[False, True, True, False], [False, False, True, True]]
    batch, logits = batch_of([[1, 2], [-100, -100]], context), torch.randn(2, 2, 4)
    units = unit_logits(logits, batch, "question-answering")
    assert units.shape == (4, 4)
    probabilities = units.softmax(-1).reshape(2, 2, 4)
    for row in range(2):
        assert torch.all(probabilities[row][:, ~torch.tensor(context[row])] == 0)
        assert torch.equal(units.reshape(2, 2, 4)[row][:, context[row]], logits[row][:, context[row]])
    assert unit_targets(batch, "question-answering").tolist() == [1, 2, -100, -100]
    assert unit_rows(batch, "question-answering").tolist() == [0, 0, 1, 1]


def test_a_span_target_is_its_tokens_or_nothing_when_cut_off():
    offsets, context = [(0, 0), (0, 3), (0, 2), (2, 5), (6, 9)], [False, False, True, True, True]
    assert span_targets(offsets, context, 0, 5) == (2, 3)
    assert span_targets(offsets, context, 3, 4) == (3, 3)
    assert span_targets(offsets, context, 6, 12) == (-100, -100)
    assert span_targets(offsets, context, 20, 22) == (-100, -100)


def test_the_best_span_is_that_of_an_exhaustive_search():
    torch.manual_seed(0)
    logits, context = torch.randn(20, 2, 9), torch.rand(20, 9) > 0.3
    context[:, 4] = True
    for row, (first, last) in enumerate(best_spans(logits, context, max_tokens=3).tolist()):
        spans = [(i, j) for i in range(9) for j in range(i, min(i + 3, 9)) if context[row, i] and context[row, j]]
        assert (first, last) == max(spans, key=lambda s: float(logits[row, 0, s[0]] + logits[row, 1, s[1]]))


def test_token_units_need_to_know_which_tokens_count():
    with pytest.raises(ValueError, match="needs `valid`"):
        unit_targets(batch_of([[1, 2]]), "token-classification")
