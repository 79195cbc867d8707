"""Whether confidence is accuracy: the calibration error, the temperature that mends it, and the accuracy it foretells.

Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
"""
# N rows, C classes

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from compressor.bench.statistics import Interval
from compressor.errors import InputError
from compressor.evaluate.proportions import wilson

BINS = 15
"""Bins of equal width, as in the paper."""
TEMPERATURES = (0.05, 20.0)
"""The temperatures that are looked among."""


def confidence(logits: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Probability of each row's first class, shape (N,), float64, after dividing the logits by `temperature` > 0.

    >>> confidence(np.array([[0.0, 0.0]])).tolist()
    [0.5]
    """
    return np.asarray(special.softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1).max(-1))


def calibration_error(confident: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> float:
    """Expected calibration error in fractions: mean over rows of |accuracy - confidence| of the row's bin.

    Args:
        confident: probability of each row's first class, shape (N,).
        right: whether that class is the row's own, shape (N,), bool.
        bins: of equal width between 0 and 1.
    Raises: InputError when the two differ in length or are empty.
    """
    if len(confident) != len(right) or not len(right):
        raise InputError(f"confidence and labels are of the same rows (got {len(confident)} and {len(right)})")
    place = np.minimum((confident * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, weights=confident - right, minlength=bins)
    return float(np.abs(gap).sum() / len(right))


def fit_temperature(logits: np.ndarray, references: np.ndarray) -> float:
    """What to divide the logits by, so that the rows' own classes are most likely.

    One row's worth of doubt is spread over the classes (as J. Platt 1999 does), without which a model that is right on
    all of a few rows would be called certain.

    Args:
        logits: shape (N, C), before softmax.
        references: class ids, shape (N,).
    Returns: between the ends of TEMPERATURES, no unit; above 1 where the model is too sure of itself.
    Raises: InputError when rows differ in number or are none, or for fewer than two classes.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2 or len(scores) != len(references) or not len(references):
        raise InputError(
            f"a temperature needs answers of two or more classes to labelled rows (got shape {scores.shape} for "
            f"{len(references)} labels)"
        )
    rows, classes = scores.shape
    doubt = 1.0 / (rows + 2)
    share = np.full(scores.shape, doubt / (classes - 1))
    share[np.arange(rows), references] = 1.0 - doubt

    def surprise(log_temperature: float) -> float:
        return -float((share * special.log_softmax(scores / np.exp(log_temperature), axis=-1)).sum() / rows)

    found = optimize.minimize_scalar(
        surprise, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-5}
    )
    return float(np.exp(found.x))


def cross_fitted_confidence(logits: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Confidence of each row at the temperature fitted on the other half of the rows, shape (N,); halves by parity.

    For rows on which there is nothing else to fit on. Raises InputError for fewer than two rows.
    """
    if len(references) < 2:
        raise InputError(f"two halves need two rows or more (got {len(references)})")
    found = np.zeros(len(references))
    for half in (0, 1):
        temperature = fit_temperature(logits[1 - half :: 2], references[1 - half :: 2])
        found[half::2] = confidence(logits[half::2], temperature=temperature)
    return found


def expected_accuracy(confident: np.ndarray) -> Interval:
    """The accuracy that calibrated confidence foretells, with the interval that labelling as many rows would fall in.

    Redrawing the rows and whether each is right, by its confidence, gives a binomial law; the interval is Wilson's,
    two-sided 95 %. It holds as far as the confidence is calibrated on such rows.

    Args:
        confident: calibrated probability of each row's first class, shape (N,).
    Raises: InputError for no rows.
    """
    if not len(confident):
        raise InputError("an expected accuracy needs a row or more (got none)")
    return wilson(min(1.0, float(np.mean(confident))), len(confident))
