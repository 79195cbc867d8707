"""Folds by class, and answers from models that never saw the row."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from compressor.errors import InputError
from compressor.evaluate.folds import folds, out_of_fold


@pytest.mark.parametrize("k", [2, 5, 7])
def test_every_row_is_in_one_fold_and_classes_are_spread_evenly(k: int):
    labels = [0] * 61 + [1] * 20 + [2] * 3 + [None] * 11
    found = folds(labels, k)
    assert sorted(np.concatenate(found).tolist()) == list(range(95))
    for kind in (0, 1, 2, None):
        counts = [sum(labels[row] == kind for row in fold) for fold in found]
        assert max(counts) - min(counts) <= 1
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_folds_are_drawn_by_the_seed():
    labels = [0, 1] * 20
    same = zip(folds(labels, 4, seed=1), folds(labels, 4, seed=1), strict=True)
    assert all(np.array_equal(one, other) for one, other in same)
    other = zip(folds(labels, 4, seed=1), folds(labels, 4, seed=2), strict=True)
    assert not all(np.array_equal(one, two) for one, two in other)


def test_out_of_fold_answers_are_those_of_scikit_learns_cross_validation():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    features = rng.normal(0, 1, (200, 3)) + labels[:, None]

    def train(rows: np.ndarray, held: np.ndarray) -> np.ndarray:
        assert not set(rows) & set(held)
        return LogisticRegression().fit(features[rows], labels[rows]).predict_log_proba(features[held])

    seen: list[tuple[int, int | None]] = []
    found = out_of_fold(labels.tolist(), train, k=5, progress=lambda _what, done, total: seen.append((done, total)))
    parts = folds(labels.tolist(), 5)
    splits = [(np.setdiff1d(np.arange(200), held), held) for held in parts]
    wanted = cross_val_predict(LogisticRegression(), features, labels, cv=splits, method="predict_log_proba")
    assert found == pytest.approx(wanted, abs=1e-5)
    assert seen[0] == (0, 5)
    assert seen[-1] == (5, 5)


def test_numbers_of_folds_and_answers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"folds must be 2 to 3, the number of rows \(got 4\)"):
        folds([0, 1, 0], 4)
    with pytest.raises(
        InputError, match=r"fold 1 of 2: answers to 2 rows must be of shape \(2, classes\).*got \(1, 2\)"
    ):
        out_of_fold([0, 1, 0, 1], lambda _rows, _held: np.zeros((1, 2)), k=2)
