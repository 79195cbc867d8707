"""Whether distillation and unlabelled rows helped: three answers, from paired rows."""

import numpy as np
import pytest

from compressor.evaluate.gates import answers_from
from compressor.evaluate.paired import drop
from compressor.report.attribution import attributions

LABELS = ("bad", "good")
ROWS = 400
TRUTH = np.arange(ROWS) % 2


def right_on(share: float, *, seed: int = 0) -> np.ndarray:
    """Logits that are right on a share of the rows."""
    right = np.random.default_rng(seed).permutation(ROWS) < share * ROWS
    return np.eye(2)[np.where(right, TRUTH, 1 - TRUTH)]


def found(**logits: np.ndarray):
    answers = {name.replace("__", "/"): answers_from(one, {}, TRUTH.tolist(), LABELS) for name, one in logits.items()}
    return attributions(answers, metric="accuracy")


def test_a_student_that_is_better_than_its_control_was_helped():
    (one,) = found(student=right_on(0.95), student__no_kd=right_on(0.75))
    assert (one.stage, one.what, one.verdict) == ("student", "distillation", "helped")
    assert one.value == pytest.approx(0.2)
    assert 0 < one.low < one.value < one.high
    assert one.sentence.startswith("Distillation helped student: accuracy +20.0 [")
    assert "on 400 rows" in one.sentence


def test_a_student_that_is_worse_than_its_control_was_hurt():
    (one,) = found(student=right_on(0.75), student__no_mix=right_on(0.95))
    assert (one.what, one.verdict) == ("unlabelled rows", "hurt")
    assert one.value == pytest.approx(-0.2)
    assert one.sentence.startswith("Unlabelled rows hurt student: accuracy -20.0 [")


def test_a_difference_within_its_interval_is_no_evidence():
    one, other = found(student=right_on(0.9), student__no_kd=right_on(0.9, seed=1), student__no_mix=right_on(0.9))
    assert one.verdict == other.verdict == "no evidence"
    assert one.low <= 0 <= one.high
    assert one.sentence.startswith("No evidence that distillation helped student: accuracy +0.0 [")
    assert other.sentence.startswith("No evidence that unlabelled rows helped student")


def test_the_gain_is_the_paired_drop_from_the_student_to_its_control():
    student, control = right_on(0.9), right_on(0.8, seed=3)
    (one,) = found(student=student, student__no_kd=control)
    expected = drop("accuracy", student.argmax(-1), control.argmax(-1), TRUTH, LABELS)
    assert (one.value, one.low, one.high) == (expected.value, expected.low, expected.high)


def test_what_has_no_control_is_not_attributed():
    assert found(teacher=right_on(0.9), student=right_on(0.8), baseline__no_kd=right_on(0.8)) == ()
