"""Accuracy in depth, from answers that the tests make up."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from compressor.errors import InputError
from compressor.report.accuracy import Known, calibration, deepen, difference, token_lengths
from compressor.report.assemble import Scored, Told, assemble
from compressor.report.model import Figure, Report
from compressor.report.subjects import Subject

ROWS, LABELS = 600, ("bad", "good")
DRAW = np.random.default_rng(0)
REFERENCES = [int(label) for label in DRAW.integers(0, 2, ROWS)]
LENGTHS = DRAW.integers(4, 40, ROWS)
SELECT = [int(label) for label in DRAW.integers(0, 2, 300)]


def answers(references: list[int], wrong: float, seed: int) -> np.ndarray:
    """Overconfident logits that are wrong on a share of the rows, shape (rows, 2)."""
    rng = np.random.default_rng(seed)
    own = np.array(references)
    told = np.where(rng.random(len(own)) < wrong, 1 - own, own)
    return (np.eye(2)[told] * rng.uniform(4, 9, (len(own), 1))).astype(np.float32)


def subject(folder: Path, name: str, wrong: float, seed: int) -> Subject:
    place = folder / name.replace("/", "-")
    place.mkdir()
    (place / "model.onnx").write_bytes(name.encode() * 50)
    return Subject(name, place, parameters=10, logits=answers(REFERENCES, wrong, seed))


@pytest.fixture
def subjects(tmp_path: Path) -> list[Subject]:
    named = [("teacher", 0.1), ("student", 0.2), ("student/no_kd", 0.2)]
    return [subject(tmp_path, name, wrong, seed) for seed, (name, wrong) in enumerate(named)]


@pytest.fixture
def known(subjects: list[Subject]) -> Known:
    select = {one.key: answers(SELECT, wrong, 9) for one, wrong in zip(subjects, (0.1, 0.15, 0.2), strict=True)}
    return Known(REFERENCES, LABELS, "accuracy", True, lengths=LENGTHS, select=select, select_references=SELECT)


def reported(subjects: list[Subject], *, on_test: bool = True) -> Report:
    told = Told(name="movies", task={"kind": "text-classification", "metric": "accuracy"}, data={}, machine={})
    return assemble(told, subjects, Scored(REFERENCES, LABELS, on_test), timings="not timed")


def test_every_subject_gets_classes_lengths_and_calibration(subjects: list[Subject], known: Known):
    report = deepen(reported(subjects), subjects, known)
    assert len(report.subjects) == 3
    for row, one in zip(report.subjects, subjects, strict=True):
        assert [found.label for found in row.classes] == ["bad", "good"]
        right = np.sum([found.recall.value * found.rows for found in row.classes])
        assert right / ROWS == pytest.approx(row.metric.value)
        assert sum(found.rows for found in row.lengths) == ROWS
        assert sum(found.score.value * found.rows for found in row.lengths) / ROWS == pytest.approx(row.metric.value)
        assert row.calibration.temperature > 1.5
        assert row.calibration.error_after < row.calibration.error
        assert row.calibration.rows == len(one.logits)
    assert Report.model_validate(report.to_dict()) == report


def test_the_teacher_is_beside_nothing_and_others_beside_it(subjects: list[Subject], known: Known):
    report = deepen(reported(subjects), subjects, known)
    teacher, student = report.subject("teacher"), report.subject("student")
    assert teacher.versus_teacher is None
    assert {found.recall_drop for found in teacher.classes} == {None}
    assert {found.drop for found in teacher.lengths} == {None}
    flips = student.versus_teacher.flips
    wanted = stats.binomtest(flips["lost"], flips["lost"] + flips["won"]).pvalue
    assert student.versus_teacher.mcnemar_p == pytest.approx(wanted)
    assert student.versus_teacher.kl > 0.1
    weighed = sum(found.recall_drop.value * found.rows for found in student.classes) / ROWS
    assert weighed == pytest.approx(student.versus_teacher.drop.value)


def test_optimism_is_the_drop_on_test_minus_that_on_select(subjects: list[Subject], known: Known):
    (found,) = deepen(reported(subjects), subjects, known).optimism
    assert found.stage == "student"

    def score(logits: np.ndarray, references: list[int]) -> float:
        return float(np.mean(logits.argmax(-1) == references))

    on_test = score(subjects[0].logits, REFERENCES) - score(subjects[1].logits, REFERENCES)
    on_select = score(known.select["teacher"], SELECT) - score(known.select["student"], SELECT)
    assert found.test.value == pytest.approx(on_test)
    assert found.select.value == pytest.approx(on_select)
    assert found.optimism == pytest.approx(on_test - on_select)
    assert found.optimism - found.low == pytest.approx(
        np.hypot(found.test.value - found.test.low, found.select.high - found.select.value)
    )
    assert found.high - found.optimism == pytest.approx(
        np.hypot(found.test.high - found.test.value, found.select.value - found.select.low)
    )


def test_the_interval_of_optimism_holds_the_truth_about_as_often_as_promised():
    rng, held = np.random.default_rng(5), 0
    for _ in range(2000):
        one, other = rng.normal(0.03, 0.02), rng.normal(0.01, 0.01)
        found = difference(
            Figure(value=one, low=one - 1.96 * 0.02, high=one + 1.96 * 0.02),
            Figure(value=other, low=other - 1.96 * 0.01, high=other + 1.96 * 0.01),
        )
        held += found.low <= 0.02 <= found.high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_without_a_test_set_there_is_no_optimism_and_calibration_is_cross_fitted(subjects: list[Subject]):
    known = Known(REFERENCES, LABELS, "accuracy", False)
    report = deepen(reported(subjects, on_test=False), subjects, known)
    assert report.optimism == ()
    assert report.subject("student").lengths == ()
    assert report.subject("student").calibration.error_after < 0.1


def test_a_test_without_answers_to_select_has_no_calibration():
    logits = answers(REFERENCES, 0.1, 0)
    assert calibration(logits, Known(REFERENCES, LABELS, "accuracy", True), None) is None


def test_rows_without_a_label_are_left_out(subjects: list[Subject], known: Known):
    half = [label if row < 300 else None for row, label in enumerate(REFERENCES)]
    found = deepen(reported(subjects), subjects, Known(half, LABELS, "accuracy", True, LENGTHS, known.select, SELECT))
    student = found.subject("student")
    assert sum(one.rows for one in student.classes) == 300
    assert sum(one.rows for one in student.lengths) == 300
    assert student.calibration.rows == 300


def test_a_report_without_the_references_answers_is_refused(subjects: list[Subject], known: Known):
    with pytest.raises(InputError, match="needs the answers of teacher; there are student"):
        deepen(reported(subjects), subjects[1:2], known)
    short = Known(REFERENCES, LABELS, "accuracy", True, lengths=LENGTHS[:5])
    with pytest.raises(InputError, match="each row needs one value"):
        deepen(reported(subjects), subjects, short)


def test_lengths_are_counted_as_the_model_reads_them(tiny_classifier: Path):
    found = token_lengths(tiny_classifier, ["the film is dull", "a story " * 40], 16)
    assert found.tolist() == [6, 16]
    assert token_lengths(tiny_classifier, [("the film", "is dull")], 16).tolist() == [7]
