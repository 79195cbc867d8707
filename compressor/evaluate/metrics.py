"""Scores as functions of a confusion matrix, many matrices at once, and the same scores through `evaluate` modules.

The reported score comes from the `evaluate` module (scikit-learn inside); intervals resample thousands of confusion
matrices, for which the functions here are fast. Tests hold the two against each other.
"""
# C classes; a leading ... is any number of resamples

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compressor.errors import InputError
from compressor.evaluate.settings import check_metric

Confusion = np.ndarray
"""Counts of shape (..., C, C): reference class, predicted class."""


def confusion(references: np.ndarray, predictions: np.ndarray, classes: int) -> Confusion:
    """How often each class was predicted for each: shape (C, C), float64.

    >>> confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    counts = np.zeros((classes, classes))
    np.add.at(counts, (references, predictions), 1.0)
    return counts


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Shape of the inputs: part / whole, and 0 where whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0))


def accuracy(counts: Confusion) -> np.ndarray:
    """Share of rows that are right, shape (...)."""
    return _share(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def recall_by_class(counts: Confusion) -> np.ndarray:
    """Share of each class's rows that are right, shape (..., C); 0 for a class without rows."""
    return _share(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def f1_by_class(counts: Confusion) -> np.ndarray:
    """Harmonic mean of precision and recall of each class, shape (..., C); 0 where the class never occurs."""
    return _share(2.0 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2))


def macro_f1(counts: Confusion) -> np.ndarray:
    """Mean F1 over the classes that occur among references or predictions, shape (...), as scikit-learn has it."""
    present = (counts.sum(-1) + counts.sum(-2)) > 0
    return _share(f1_by_class(counts).sum(-1), present.sum(-1).astype(np.float64))


def worst_class_recall(counts: Confusion) -> np.ndarray:
    """Least recall among the classes that have rows, shape (...)."""
    recalls = np.where(counts.sum(-1) > 0, recall_by_class(counts), np.inf).min(-1)
    return np.where(np.isfinite(recalls), recalls, 0.0)


def matthews(counts: Confusion) -> np.ndarray:
    """Matthews correlation of references and predictions, -1 to 1, shape (...); 0 where either is constant.

    J. Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient".
    """
    references, predictions, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (references * predictions).sum(-1)
    spread = (total**2 - (references**2).sum(-1)) * (total**2 - (predictions**2).sum(-1))
    return np.asarray(np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0))


def metric_function(name: str, labels: Sequence[str]) -> Callable[[Confusion], np.ndarray]:
    """Function of confusion matrices for a metric or METRIC@CLASS, from (..., C, C) to (...).

    Raises InputError for a metric or class that is not known, with those that are.
    """
    try:
        check_metric(name)
    except ValueError as error:
        raise InputError(f"metric {error}") from error
    metric, _, of_class = name.partition("@")
    if not of_class:
        return METRICS[metric]
    if of_class not in labels:
        raise InputError(f"metric {name!r}: no class {of_class!r}; the classes are {', '.join(labels)}")
    place, by_class = list(labels).index(of_class), BY_CLASS[metric]
    return lambda counts: np.asarray(by_class(counts)[..., place])


def score(name: str, predictions: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> float:
    """Score of class ids against references, from the `evaluate` module of that metric; 1 is best, in fractions.

    `name` is a metric or METRIC@CLASS (recall of the class for accuracy, its F1 for macro_f1).

    >>> score("accuracy", np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), ("no", "yes"))
    0.75
    """
    return scores((name,), predictions, references, labels)[name]


def scores(
    names: Sequence[str], predictions: np.ndarray, references: np.ndarray, labels: Sequence[str]
) -> dict[str, float]:
    """Several scores of the same rows, from one `evaluate.combine` of their modules.

    Raises InputError for an unknown metric or class, and when predictions and references differ in number or are none.
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise InputError(f"a score needs as many predictions as labels (got {len(predictions)} and {len(references)})")
    for name in names:
        metric_function(name, labels)
    from compressor.evaluate.modules import combined

    return combined(tuple(names), tuple(labels), predictions, references)


METRICS: dict[str, Callable[[Confusion], np.ndarray]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "worst_class_recall": worst_class_recall,
    "matthews": matthews,
}
BY_CLASS: dict[str, Callable[[Confusion], np.ndarray]] = {"accuracy": recall_by_class, "macro_f1": f1_by_class}
