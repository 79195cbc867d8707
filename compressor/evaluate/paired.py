"""Two models on the same rows: how far a score falls, with intervals that hold for few rows and few disagreements.

The fall of an accuracy, or of a class's recall, has Tango's score interval, whose errors are nominal at the limit of a
budget too. For any other score rows are resampled, as counts of (reference, one answer, the other answer), which is the
same as resampling rows. A few pseudo-rows are added first (Agresti and Coull 1998 for one score, Bonett and Price 2012
for a difference), without which 64 rows on which two models agree would seem to prove that they never differ.
"""
# N rows, C classes, S resamples

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compressor.bench.statistics import Interval
from compressor.errors import InputError
from compressor.evaluate.metrics import confusion, metric_function
from compressor.evaluate.proportions import paired_fall
from compressor.settings import LOWER_IS_BETTER

RESAMPLES = 4000
CHUNK_BYTES = 100 * 10**6
"""Memory of the resamples that are scored at a time; the numbers do not depend on it."""


@dataclass(frozen=True)
class Score:
    """A score in fractions with its two-sided 95 % interval and the rows it was taken on."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Flips:
    """Rows that are right for both, for the reference alone, for the subject alone, and for neither."""

    both: int
    lost: int
    won: int
    neither: int


def score_interval(
    metric: str,
    predictions: np.ndarray | Sequence[int],
    references: np.ndarray | Sequence[int],
    labels: Sequence[str],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Score:
    """Score of one model with its two-sided interval at `confidence`: percentile bootstrap of rows, seeded.

    Raises InputError for an unknown metric or when predictions and references differ in number or are none.
    """
    references, predictions = np.asarray(references), np.asarray(predictions)
    _check(references, predictions)
    function, classes = metric_function(metric, labels), len(labels)
    value = float(function(confusion(references, predictions, classes)))
    every = np.arange(classes)
    right, wrong = np.stack([every, every]), np.stack([every, (every + 1) % classes])
    cells, weights = np.unique(np.stack([references, predictions]), axis=1, return_counts=True)
    cells = np.concatenate([cells, right, wrong], axis=1)
    weights = np.concatenate([weights, np.full(2 * classes, 2.0 / classes)])
    scores = _resampled(
        lambda drawn: function(_confusions(drawn, cells[0], cells[1], classes)), weights, seed=seed, classes=classes
    )
    low, high = _ends(scores, confidence)
    return Score(value, min(low, value), max(high, value), len(references))


def drop(
    metric: str,
    reference_predictions: np.ndarray,
    predictions: np.ndarray,
    references: np.ndarray,
    labels: Sequence[str],
    *,
    confidence: float = 0.95,
    relative: bool = False,
    seed: int = 0,
) -> Interval:
    """How far the score falls from the reference model to the subject, in fractions; positive is worse.

    The two-sided interval is `proportions.paired_fall`'s for an accuracy or a class's recall that falls by points, else
    the percentiles of a bootstrap of rows.

    Args:
        metric: a metric or METRIC@CLASS.
        reference_predictions: class ids of the model compared with, shape (N,).
        predictions: class ids of the subject on the same rows.
        references: the rows' own class ids.
        labels: class names in the order of their ids.
        confidence: two-sided; 0.90 gives the two one-sided 95 % bounds.
        relative: divide the fall by the reference's score.
        seed: of the resamples, where there are any.
    Raises: InputError for an unknown metric or when the three differ in length or are empty.
    """
    _check(references, predictions)
    _check(references, reference_predictions)
    function, classes = metric_function(metric, labels), len(labels)
    shared = None if relative else _rows_of_share(metric, references, labels)
    if shared is not None:
        counts = flips(*(one[shared] for one in (reference_predictions, predictions, references)))
        return paired_fall(counts.lost, counts.won, len(shared), confidence=confidence)
    sign = -1.0 if metric.partition("@")[0] in LOWER_IS_BETTER else 1.0

    def fall(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        difference = sign * (before - after)
        if not relative:
            return np.asarray(difference)
        zeros = np.zeros_like(difference)
        return np.asarray(np.divide(difference, np.abs(before), out=zeros, where=before != 0))

    before, after = (confusion(references, one, classes) for one in (reference_predictions, predictions))
    value = float(fall(np.atleast_1d(function(before)), np.atleast_1d(function(after)))[0])
    cells, weights = np.unique(np.stack([references, reference_predictions, predictions]), axis=1, return_counts=True)
    every = np.arange(classes)
    wrong = (every + 1) % classes
    cells = np.concatenate([cells, np.stack([every, every, wrong]), np.stack([every, wrong, every])], axis=1)
    weights = np.concatenate([weights, np.full(2 * classes, 1.0 / classes)])

    def falls(drawn: np.ndarray) -> np.ndarray:
        return fall(*(function(_confusions(drawn, cells[0], cells[side], classes)) for side in (1, 2)))

    low, high = _ends(_resampled(falls, weights, seed=seed, classes=classes), confidence)
    return Interval(value, min(low, value), max(high, value))


def agreement(reference_predictions: np.ndarray, predictions: np.ndarray) -> float:
    """Share of rows on which two models answer alike, right or wrong.

    >>> agreement(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
    0.75
    """
    _check(reference_predictions, predictions)
    return float(np.mean(np.asarray(reference_predictions) == np.asarray(predictions)))


def flips(reference_predictions: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> Flips:
    """Rows by who is right."""
    _check(references, predictions)
    _check(references, reference_predictions)
    before, after = reference_predictions == references, predictions == references
    return Flips(
        both=int(np.sum(before & after)),
        lost=int(np.sum(before & ~after)),
        won=int(np.sum(~before & after)),
        neither=int(np.sum(~before & ~after)),
    )


def mcnemar(lost: int, won: int) -> float:
    """Chance of flips at least this uneven where both models are equally often right: exact, two-sided.

    Args:
        lost: rows that the reference alone has right, won: those that the subject alone has.
    Returns: p in 0 to 1; 1 where nothing flipped. Q. McNemar 1947, with the binomial law in place of chi-squared.

    >>> mcnemar(0, 5)
    0.0625
    """
    if lost + won == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(lost, lost + won, 0.5).pvalue)


def rows_to_decide(limit: float, discordant_share: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Rows at which a model whose true drop is zero proves a drop of at most `limit` in a share `power` of cases.

    Args:
        limit: a fraction > 0.
        discordant_share: of rows on which exactly one of the two models is right.
        confidence: of the one-sided bound.
        power: 0.5 gives the rows at which the bound is expected to lie at the limit, which half of the cases miss.

    >>> rows_to_decide(0.01, 0.02)
    1237
    """
    if limit <= 0:
        raise ValueError(f"limit must be above 0 (got {limit:g})")
    reach = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    return math.ceil(discordant_share * (reach / limit) ** 2)


def rows_by_interval(
    found: Interval, rows: int, *, away: float, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """Rows at which a bound clears its limit in a share `power` of cases, as intervals shrink with the root of rows.

    Args:
        found: two-sided interval at 2 * confidence - 1, measured on `rows` rows.
        away: how far the true value is taken to be from the limit, in the interval's unit; None is returned for 0.
        confidence: of the one-sided bound.

    >>> rows_by_interval(Interval(0.90, 0.88, 0.92), 500, away=0.01)
    4571
    """
    reach, width = NormalDist().inv_cdf(confidence), (found.high - found.low) / 2
    if away <= 0 or width <= 0:
        return None
    return math.ceil(rows * (width * (1 + NormalDist().inv_cdf(power) / reach) / away) ** 2)


def _rows_of_share(metric: str, references: np.ndarray, labels: Sequence[str]) -> np.ndarray | None:
    """Numbers of the rows of which the metric is the share that is right; None where it is no such share."""
    name, _, of_class = metric.partition("@")
    if name != "accuracy":
        return None
    found = np.flatnonzero(references == list(labels).index(of_class)) if of_class else np.arange(len(references))
    return found if len(found) else None


def _check(references: np.ndarray, predictions: np.ndarray) -> None:
    if len(references) != len(predictions) or len(references) == 0:
        raise InputError(f"models are compared on the same rows (got {len(references)} and {len(predictions)})")


def _resampled(
    answer: Callable[[np.ndarray], np.ndarray], weights: np.ndarray, *, seed: int, classes: int
) -> np.ndarray:
    """The answer for each resample, shape (S,); `answer` takes counts of shape (some of S, cells).

    Each resample has as many rows as the weights sum to.
    """
    total, generator = float(weights.sum()), np.random.default_rng(seed)
    at_once = max(1, CHUNK_BYTES // (8 * (2 * len(weights) + classes**2)))
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    return np.concatenate([answer(generator.multinomial(round(total), weights / total, size=size)) for size in sizes])


def _confusions(drawn: np.ndarray, references: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrices of shape (S, C, C) from counts of shape (S, cells)."""
    place = references * classes + predictions
    order = np.argsort(place, kind="stable")
    filled, starts = np.unique(place[order], return_index=True)
    flat = np.zeros((len(drawn), classes * classes))
    flat[:, filled] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return flat.reshape(-1, classes, classes)


def _ends(values: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)
