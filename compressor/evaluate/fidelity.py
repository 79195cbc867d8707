"""How near a model's probabilities are to another's, rows by rows, without labels."""
# N rows, C classes

from __future__ import annotations

import numpy as np
from scipy import special, stats

from compressor.bench.statistics import Interval
from compressor.errors import InputError


def divergence(reference_logits: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(reference || subject) of each row's probabilities, in nats, shape (N,), float64; 0 where they agree.

    Args:
        reference_logits: shape (N, C), before softmax.
        logits: the subject's, same shape.
    Raises: InputError when the shapes differ.

    >>> divergence(np.array([[0.0, 0.0]]), np.array([[0.0, 0.0]])).tolist()
    [0.0]
    """
    if np.shape(reference_logits) != np.shape(logits):
        raise InputError(
            f"answers are compared on the same rows and classes (got shapes {np.shape(reference_logits)} and "
            f"{np.shape(logits)})"
        )
    theirs, ours = (
        special.log_softmax(np.asarray(one, dtype=np.float64), axis=-1) for one in (reference_logits, logits)
    )
    return np.asarray(np.maximum((np.exp(theirs) * (theirs - ours)).sum(-1), 0.0))


def mean_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Mean of values that are 0 or more, with Student's t interval over rows, not below 0; of one row the row alone.

    Raises InputError for no values.
    """
    if not len(values):
        raise InputError("a mean needs a row or more (got none)")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, mean, mean)
    half = float(stats.t.ppf((1.0 + confidence) / 2.0, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, max(0.0, mean - half), mean + half)
