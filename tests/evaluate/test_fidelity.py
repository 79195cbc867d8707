"""KL divergence of a model's answers from another's, against scipy."""

import numpy as np
import pytest
from scipy import special, stats

from compressor.errors import InputError
from compressor.evaluate.fidelity import divergence, mean_interval


def test_divergence_is_scipys_entropy_of_the_teacher_relative_to_the_subject():
    rng = np.random.default_rng(0)
    teacher, subject = rng.normal(0, 3, (2, 50, 4))
    wanted = [
        stats.entropy(special.softmax(one), special.softmax(other)) for one, other in zip(teacher, subject, strict=True)
    ]
    assert divergence(teacher, subject) == pytest.approx(wanted)


def test_a_model_is_nowhere_apart_from_itself_and_adding_a_constant_changes_nothing():
    logits = np.random.default_rng(1).normal(0, 3, (20, 3)).astype(np.float32)
    assert divergence(logits, logits).max() == 0.0
    assert divergence(logits, logits + 7.0) == pytest.approx(np.zeros(20), abs=1e-6)


def test_huge_logits_stay_finite():
    assert np.isfinite(divergence(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]]))).all()


def test_the_interval_of_the_mean_is_scipys_and_not_below_zero():
    values = np.random.default_rng(2).exponential(0.1, 300)
    found = mean_interval(values)
    ends = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert mean_interval(np.array([0.0, 0.0, 1.0])).low == 0.0
    assert mean_interval(np.array([0.5])).high == 0.5


def test_answers_of_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"got shapes \(2, 3\) and \(2, 2\)"):
        divergence(np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(InputError, match="got none"):
        mean_interval(np.array([]))
