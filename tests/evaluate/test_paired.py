"""Intervals of scores and drops, against formulas, direct resampling of rows, and simulated data."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from compressor.errors import InputError
from compressor.evaluate.paired import agreement, drop, flips, mcnemar, rows_to_decide, score_interval
from compressor.evaluate.proportions import paired_fall

LABELS = ("no", "yes")


def two_models(seed: int, rows: int, lost: float, won: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """References, a reference model's answers and a subject's that loses and wins rows at these rates."""
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 2, rows)
    alike = np.where(rng.random(rows) < 0.85, references, 1 - references)
    kind = rng.choice(3, rows, p=[lost, won, 1 - lost - won])
    before = np.where(kind == 0, references, np.where(kind == 1, 1 - references, alike))
    after = np.where(kind == 0, 1 - references, np.where(kind == 1, references, alike))
    return references, before, after


def test_the_interval_of_an_accuracy_is_agresti_and_coulls():
    references, before, _ = two_models(0, 2000, 0.02, 0.02)
    found = score_interval("accuracy", before, references, LABELS)
    right, rows = np.sum(before == references) + 2, 2004
    half = 1.96 * np.sqrt(right / rows * (1 - right / rows) / rows)
    assert found.value == np.mean(before == references)
    assert (found.low, found.high) == pytest.approx((right / rows - half, right / rows + half), abs=2e-3)
    assert found.rows == 2000


def test_resampling_counts_is_resampling_rows():
    references, before, after = two_models(1, 1500, 0.04, 0.02)
    drawn = np.random.default_rng(0).integers(0, 1500, (2000, 1500))

    def macro_f1(answers: np.ndarray) -> np.ndarray:
        called, real = answers[drawn], references[drawn]
        parts = [2 * np.mean((called == one) & (real == one), 1) for one in (0, 1)]
        return sum(part / (np.mean(called == one, 1) + np.mean(real == one, 1)) for one, part in enumerate(parts)) / 2

    found = drop("macro_f1", before, after, references, LABELS)
    wanted = np.quantile(macro_f1(before) - macro_f1(after), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize(("metric", "rows"), [("accuracy", slice(None)), ("accuracy@yes", 1)])
def test_the_drop_of_an_accuracy_or_of_a_recall_has_the_score_interval_of_its_rows(metric: str, rows: slice | int):
    references, before, after = two_models(7, 900, 0.04, 0.02)
    own = np.isin(references, [0, 1][rows])
    counts = flips(before[own], after[own], references[own])
    found = drop(metric, before, after, references, LABELS, confidence=0.9)
    assert found == paired_fall(counts.lost, counts.won, int(own.sum()), confidence=0.9)


def test_a_model_does_not_fall_below_itself_but_few_rows_prove_little():
    references, before, _ = two_models(2, 64, 0.0, 0.0)
    found = drop("accuracy", before, before, references, LABELS, confidence=0.90)
    assert found.value == 0.0
    assert found.high > 0.01
    many = drop("accuracy", *(np.tile(one, 60) for one in (before, before, references)), LABELS, confidence=0.90)
    assert many.high < 0.001


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "worst_class_recall", "matthews", "accuracy@yes"])
def test_a_drop_is_positive_when_the_subject_is_worse_and_changes_sign_when_turned_round(metric: str):
    references, before, after = two_models(3, 3000, 0.10, 0.01)
    there = drop(metric, before, after, references, LABELS)
    back = drop(metric, after, before, references, LABELS)
    assert there.low > 0
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.01)


def test_a_relative_drop_is_a_share_of_the_references_score():
    references, before, after = two_models(4, 2000, 0.05, 0.01)
    absolute = drop("accuracy", before, after, references, LABELS)
    relative = drop("accuracy", before, after, references, LABELS, relative=True)
    assert relative.value == pytest.approx(absolute.value / np.mean(before == references))


def test_the_order_of_the_rows_changes_nothing():
    references, before, after = two_models(5, 500, 0.05, 0.02)
    order = np.random.default_rng(0).permutation(500)
    assert drop("macro_f1", before, after, references, LABELS) == drop(
        "macro_f1", before[order], after[order], references[order], LABELS
    )


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_drop_intervals_cover_the_true_drop_at_their_nominal_rate(metric: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compressor.evaluate.paired.RESAMPLES", 500)
    true = drop(metric, *_order(two_models(999, 400_000, 0.04, 0.02)), LABELS).value
    covered = 0
    for seed in range(300):
        found = drop(metric, *_order(two_models(seed, 400, 0.04, 0.02)), LABELS, seed=seed)
        covered += found.low <= true <= found.high
    assert 0.92 <= covered / 300 <= 0.98


def _order(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    references, before, after = drawn
    return before, after, references


def test_a_model_as_bad_as_the_limit_passes_about_one_time_in_twenty():
    highs_below = sum(
        drop("accuracy", *_order(two_models(seed, 1000, 0.03, 0.01)), LABELS, confidence=0.90, seed=seed).high <= 0.02
        for seed in range(400)
    )
    assert highs_below / 400 < 0.09


def test_agreement_and_flips_count_rows():
    references, before, after = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), np.array([0, 0, 0, 1, 0])
    assert agreement(before, after) == 0.6
    found = flips(before, after, references)
    assert (found.both, found.lost, found.won, found.neither) == (2, 1, 1, 1)


def test_an_equal_model_passes_four_times_in_five_at_the_rows_to_decide():
    rows = rows_to_decide(0.02, 0.04)
    passed = sum(
        drop("accuracy", *_order(two_models(seed, rows, 0.02, 0.02)), LABELS, confidence=0.90, seed=seed).high <= 0.02
        for seed in range(400)
    )
    assert passed / 400 == pytest.approx(0.8, abs=0.06)


def test_rows_to_decide_at_even_power_solve_the_one_sided_bound():
    rows = rows_to_decide(0.01, 0.04, power=0.5)
    assert stats.norm.ppf(0.95) * np.sqrt(0.04 / rows) <= 0.01
    assert stats.norm.ppf(0.95) * np.sqrt(0.04 / (rows - 1)) > 0.01


def test_models_on_other_rows_are_refused():
    with pytest.raises(InputError, match=r"same rows \(got 3 and 2\)"):
        drop("accuracy", np.zeros(3, int), np.zeros(2, int), np.zeros(3, int), LABELS)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews", "accuracy@yes"])
def test_the_size_of_the_chunks_changes_no_number(metric: str, monkeypatch: pytest.MonkeyPatch):
    references, before, after = two_models(6, 700, 0.05, 0.02)
    score, fall = score_interval(metric, before, references, LABELS), drop(metric, before, after, references, LABELS)
    monkeypatch.setattr("compressor.evaluate.paired.CHUNK_BYTES", 10_000)
    assert score_interval(metric, before, references, LABELS) == score
    assert drop(metric, before, after, references, LABELS) == fall


def test_many_classes_take_little_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compressor.evaluate.paired.RESAMPLES", 300)
    rng = np.random.default_rng(0)
    references, before, after = rng.integers(0, 500, (3, 5000))
    tracemalloc.start()
    drop("macro_f1", before, after, references, [str(each) for each in range(500)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize(("lost", "won"), [(9, 2), (0, 6), (30, 41), (5, 5)])
def test_mcnemar_is_the_binomial_law_of_the_flips_on_both_sides(lost: int, won: int):
    fewer = min(lost, won)
    assert mcnemar(lost, won) == pytest.approx(min(1.0, 2 * stats.binom.cdf(fewer, lost + won, 0.5)))
    assert mcnemar(lost, won) == mcnemar(won, lost)
    assert mcnemar(0, 0) == 1.0


def test_equal_models_are_called_unequal_in_at_most_one_run_of_twenty():
    alarms = 0
    for seed in range(600):
        references, before, after = two_models(seed, 400, 0.03, 0.03)
        counts = flips(before, after, references)
        alarms += mcnemar(counts.lost, counts.won) < 0.05
    assert alarms / 600 <= 0.06
