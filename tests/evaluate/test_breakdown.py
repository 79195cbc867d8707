"""Scores by class and by length, against scikit-learn, scipy and simulated models."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from compressor.errors import InputError
from compressor.evaluate.breakdown import by_class, by_length, length_bins
from compressor.evaluate.paired import drop, score_interval

LABELS = ("差评", "ok", "good", "never")


def answers(seed: int, rows: int = 600, right: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """References of three of the four classes, and answers of which a share is right."""
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 3, rows)
    return references, np.where(rng.random(rows) < right, references, rng.integers(0, 3, rows))


def test_precision_and_recall_are_scikit_learns_and_their_intervals_scipys():
    references, predictions = answers(0)
    precision, recall, _, rows = metrics.precision_recall_fscore_support(
        references, predictions, labels=range(3), zero_division=0
    )
    for place, part in enumerate(by_class(predictions, references, LABELS)[:3]):
        assert part.label == LABELS[place]
        assert part.rows == rows[place]
        assert part.precision.value == pytest.approx(precision[place])
        assert part.recall.value == pytest.approx(recall[place])
        found = round(part.recall.value * part.rows)
        ends = stats.binomtest(found, part.rows).proportion_ci(method="wilson")
        assert (part.recall.low, part.recall.high) == pytest.approx((ends.low, ends.high))


def test_a_class_that_never_occurs_has_no_figures_and_one_that_is_never_answered_no_precision():
    references, predictions = answers(1)
    never = by_class(predictions, references, LABELS, reference_predictions=references)[3]
    assert (never.rows, never.precision, never.recall, never.recall_drop) == (0, None, None, None)
    silent = by_class(np.zeros_like(references), references, LABELS)[1]
    assert silent.precision is None
    assert silent.recall.value == 0.0


def test_a_models_recall_does_not_drop_below_its_own_and_drops_where_it_loses_rows():
    references, before = answers(2)
    same = by_class(before, references, LABELS, reference_predictions=before)
    assert [part.recall_drop.value for part in same[:3]] == [0.0, 0.0, 0.0]
    after = np.where((references == 1) & (np.arange(600) % 3 == 0), 0, before)
    worse = by_class(after, references, LABELS, reference_predictions=before)
    assert worse[1].recall_drop.low > 0
    assert worse[2].recall_drop.value == 0.0
    assert worse[1].recall_drop.value == pytest.approx(same[1].recall.value - worse[1].recall.value)


def test_the_interval_of_a_recall_drop_is_that_of_an_accuracy_on_the_classs_rows():
    references, before = answers(8)
    after = answers(9)[1]
    part = by_class(after, references, LABELS, reference_predictions=before)[2]
    own = references == 2
    wanted = drop("accuracy", before[own], after[own], references[own], LABELS)
    assert part.recall_drop.value == pytest.approx(wanted.value)
    assert (part.recall_drop.low, part.recall_drop.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)


def test_accuracy_by_length_is_that_of_the_rows_whatever_the_number_of_classes():
    references, predictions = answers(10)
    before, lengths = answers(11)[1], np.random.default_rng(10).integers(4, 60, 600)
    for part in by_length("accuracy", predictions, references, LABELS, lengths, reference_predictions=before):
        rows = (lengths >= part.low) & (lengths <= part.high)
        wanted = score_interval("accuracy", predictions[rows], references[rows], LABELS)
        fall = drop("accuracy", before[rows], predictions[rows], references[rows], LABELS)
        assert part.score.value == pytest.approx(wanted.value)
        assert (part.score.low, part.score.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)
        assert part.drop.value == pytest.approx(fall.value)
        assert (part.drop.low, part.drop.high) == pytest.approx((fall.low, fall.high), abs=0.015)


def test_the_interval_of_a_recall_drop_covers_the_true_one():
    covered, rng = 0, np.random.default_rng(3)
    for _ in range(200):
        kind = rng.choice(3, 300, p=[0.06, 0.02, 0.92])
        before, after = np.where(kind == 1, 1, 0), np.where(kind == 0, 1, 0)
        part = by_class(after, np.zeros(300, int), ("a", "b"), reference_predictions=before)[0]
        covered += part.recall_drop.low <= 0.04 <= part.recall_drop.high
    assert covered >= 0.91 * 200


def test_bins_of_lengths_hold_every_row_once_and_about_as_many_rows_each():
    lengths = np.random.default_rng(4).poisson(20, 1000) + 3
    edges = length_bins(lengths)
    assert len(edges) == 4
    counts = [int(np.sum((lengths >= low) & (lengths <= high))) for low, high in edges]
    assert sum(counts) == 1000
    assert min(counts) > 150
    assert all(before[1] + 1 == after[0] for before, after in pairwise(edges))


def test_few_rows_or_one_length_make_fewer_bins():
    assert length_bins(np.arange(60)) == ((0, 29), (30, 59))
    assert length_bins(np.full(500, 7)) == ((7, 7),)
    assert length_bins(np.array([], dtype=int)) == ()
    references, predictions = answers(5, rows=40)
    assert by_length("accuracy", predictions, references, LABELS, np.arange(40)) == ()


def test_the_score_of_a_bin_is_the_score_of_its_rows():
    references, predictions = answers(6)
    lengths = np.random.default_rng(6).integers(4, 60, 600)
    before = answers(7)[1]
    parts = by_length("macro_f1", predictions, references, LABELS, lengths, reference_predictions=before)
    assert sum(part.score.rows for part in parts) == 600
    for part in parts:
        rows = (lengths >= part.low) & (lengths <= part.high)
        ours, theirs = (metrics.f1_score(references[rows], one[rows], average="macro") for one in (predictions, before))
        assert part.score.value == pytest.approx(ours)
        assert part.drop.value == pytest.approx(theirs - ours)
        assert part.score.low <= part.score.value <= part.score.high


def test_lengths_of_other_rows_are_refused():
    with pytest.raises(InputError, match="got 2 lengths for 3 rows"):
        by_length("accuracy", np.zeros(3, int), np.zeros(3, int), LABELS, np.ones(2))
