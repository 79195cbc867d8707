"""Scores, against scikit-learn."""

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from compressor.errors import InputError
from compressor.evaluate import modules
from compressor.evaluate.metrics import BY_CLASS, METRICS, confusion, metric_function, score, scores
from compressor.evaluate.settings import CLASS_METRICS
from compressor.settings import MetricName

LABELS = ("bad", "good", "mixed")
INDEPENDENT = {
    "accuracy": sklearn_metrics.accuracy_score,
    "macro_f1": lambda refs, preds: sklearn_metrics.f1_score(refs, preds, average="macro", zero_division=0),
    "worst_class_recall": lambda refs, preds: min(np.mean(preds[refs == one] == one) for one in np.unique(refs)),
    "matthews": sklearn_metrics.matthews_corrcoef,
}


def drawn(seed: int, classes: int = 3, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    references = rng.integers(0, classes, rows)
    return references, np.where(rng.random(rows) < 0.7, references, rng.integers(0, classes, rows))


def test_the_tables_hold_the_metrics_that_a_recipe_may_name():
    assert set(METRICS) == set(get_args(MetricName)) == set(modules.SCORES) == set(INDEPENDENT)
    assert set(BY_CLASS) == set(CLASS_METRICS) == set(modules.SCORES_OF_CLASS)


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("seed", range(5))
def test_a_score_is_scikit_learns_in_both_forms(name: str, seed: int):
    references, predictions = drawn(seed)
    wanted = INDEPENDENT[name](references, predictions)
    assert score(name, predictions, references, LABELS) == pytest.approx(wanted)
    assert METRICS[name](confusion(references, predictions, 3)) == pytest.approx(wanted)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_classes_that_do_not_occur_change_no_score(name: str):
    references, predictions = drawn(1, classes=2)
    wanted = INDEPENDENT[name](references, predictions)
    assert METRICS[name](confusion(references, predictions, 3)) == pytest.approx(wanted)
    assert score(name, predictions, references, LABELS) == pytest.approx(wanted)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_constant_answer_gets_a_finite_score(name: str):
    references, predictions = np.array([0, 1, 1]), np.array([1, 1, 1])
    assert METRICS[name](confusion(references, predictions, 2)) == pytest.approx(
        INDEPENDENT[name](references, predictions)
    )


def test_many_confusion_matrices_are_scored_as_one_by_one():
    stacked = np.stack([confusion(*drawn(seed), 3) for seed in range(4)])
    for function in METRICS.values():
        assert function(stacked) == pytest.approx([float(function(one)) for one in stacked])


def test_a_metric_of_one_class_is_its_recall_or_f1():
    references, predictions = drawn(2)
    recall = sklearn_metrics.recall_score(references, predictions, labels=[1], average="macro")
    f1 = sklearn_metrics.f1_score(references, predictions, labels=[1], average="macro")
    found = scores(("accuracy@good", "macro_f1@good"), predictions, references, LABELS)
    assert found == pytest.approx({"accuracy@good": recall, "macro_f1@good": f1})
    assert metric_function("accuracy@good", LABELS)(confusion(references, predictions, 3)) == pytest.approx(recall)


def test_scores_come_from_modules_of_evaluate(monkeypatch: pytest.MonkeyPatch):
    asked = []
    real = modules.evaluate.combine

    def combine(given):
        asked.extend(given)
        return real(given)

    monkeypatch.setattr(modules.evaluate, "combine", combine)
    references, predictions = drawn(3)
    scores(("accuracy", "matthews"), predictions, references, LABELS)
    assert len(asked) == 2
    assert all(isinstance(one, modules.evaluate.EvaluationModule) for one in asked)
    monkeypatch.setattr(modules.ClassMetric, "_compute", lambda self, predictions, references: {"accuracy": 0.125})
    assert score("accuracy", predictions, references, LABELS) == 0.125


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "'acuracy' is not a metric; the metrics are accuracy, macro_f1"),
        ("accuracy@great", "no class 'great'; the classes are bad, good, mixed"),
        ("matthews@good", "must be METRIC@CLASS with a METRIC among accuracy, macro_f1"),
    ],
)
def test_an_unknown_metric_or_class_is_told_what_there_is(name: str, message: str):
    with pytest.raises(InputError, match=message):
        score(name, np.array([0]), np.array([0]), LABELS)


def test_a_score_without_rows_is_refused():
    with pytest.raises(InputError, match="as many predictions as labels"):
        score("accuracy", np.array([], dtype=int), np.array([], dtype=int), LABELS)


def test_the_settings_load_no_heavy_library():
    code = (
        "import sys, compressor.evaluate.settings; "
        "print([name for name in ('torch', 'evaluate', 'datasets', 'sklearn', 'numpy') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
