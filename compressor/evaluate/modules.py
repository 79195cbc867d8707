"""The metrics as modules of Hugging Face's `evaluate`, on scikit-learn, without a download; heavy to import."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import datasets
import evaluate
import numpy as np
from sklearn import metrics as sklearn_metrics


def _accuracy(references: np.ndarray, predictions: np.ndarray, _place: int | None) -> float:
    return float(sklearn_metrics.accuracy_score(references, predictions))


def _macro_f1(references: np.ndarray, predictions: np.ndarray, _place: int | None) -> float:
    return float(sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0))


def _worst_class_recall(references: np.ndarray, predictions: np.ndarray, _place: int | None) -> float:
    present = np.unique(references)
    recalls = sklearn_metrics.recall_score(references, predictions, labels=present, average=None, zero_division=0)
    return float(np.min(recalls))


def _matthews(references: np.ndarray, predictions: np.ndarray, _place: int | None) -> float:
    if len(np.unique(np.concatenate([references, predictions]))) < 2:
        return 0.0  # as scikit-learn says, without its warning
    return float(sklearn_metrics.matthews_corrcoef(references, predictions))


def _recall_of(references: np.ndarray, predictions: np.ndarray, place: int | None) -> float:
    return float(
        sklearn_metrics.recall_score(references, predictions, labels=[place], average="macro", zero_division=0)
    )


def _f1_of(references: np.ndarray, predictions: np.ndarray, place: int | None) -> float:
    return float(sklearn_metrics.f1_score(references, predictions, labels=[place], average="macro", zero_division=0))


class ClassMetric(evaluate.Metric):  # type: ignore[misc]
    """One metric over class ids as an `evaluate` module, which `evaluate.combine` takes."""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self._metric = name
        self._labels = tuple(labels)
        super().__init__(config_name=name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=f"{self._metric} of class ids, from scikit-learn",
            citation="",
            inputs_description="predictions and references: class ids",
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        metric, _, of_class = self._metric.partition("@")
        place = self._labels.index(of_class) if of_class else None
        function = (SCORES_OF_CLASS if of_class else SCORES)[metric]
        return {self._metric: function(np.asarray(references), np.asarray(predictions), place)}


def combined(
    names: Sequence[str], labels: Sequence[str], predictions: np.ndarray, references: np.ndarray
) -> dict[str, float]:
    """Name to score, for several metrics on the same rows."""
    modules = evaluate.combine([ClassMetric(name, labels) for name in names])
    found = modules.compute(predictions=[int(one) for one in predictions], references=[int(one) for one in references])
    return {name: float(found[name]) for name in names}


SCORES: dict[str, Callable[[np.ndarray, np.ndarray, int | None], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "worst_class_recall": _worst_class_recall,
    "matthews": _matthews,
}
SCORES_OF_CLASS: dict[str, Callable[[np.ndarray, np.ndarray, int | None], float]] = {
    "accuracy": _recall_of,
    "macro_f1": _f1_of,
}
