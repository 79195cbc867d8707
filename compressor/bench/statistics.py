"""Figures from raw timings: percentiles that the samples can carry, paired ratios with intervals, orders of rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MIN_BEYOND = 10
"""Samples that must lie beyond a percentile before it is shown."""


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval, all in the value's unit."""

    value: float
    low: float
    high: float


def samples_needed(share: float) -> int:
    """Least number of samples before the percentile at `share` (0 to 1) is shown: ten must lie beyond it.

    >>> samples_needed(0.5), samples_needed(0.9), samples_needed(0.99)
    (20, 100, 1000)
    """
    return math.ceil(round(MIN_BEYOND / (1.0 - share), 6))


def percentile(nanoseconds: Sequence[int] | np.ndarray, share: float) -> float | None:
    """Percentile in milliseconds, or None where fewer samples were taken than `samples_needed` says."""
    if len(nanoseconds) < samples_needed(share):
        return None
    return float(np.quantile(np.asarray(nanoseconds, dtype=np.float64), share)) / 1e6


def median_interval(rounds: Sequence[Sequence[int]], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Median of all samples in milliseconds; its interval resamples whole rounds, since samples in one are alike.

    Percentile bootstrap over rounds, two-sided at `confidence`, 1,000 resamples. Raises ValueError on no samples.
    """
    series = [np.asarray(one, dtype=np.float64) for one in rounds if len(one)]
    if not series:
        raise ValueError("no samples to take a median of")
    value = float(np.median(np.concatenate(series))) / 1e6
    draws = np.random.default_rng(seed).integers(0, len(series), size=(1000, len(series)))
    medians = [float(np.median(np.concatenate([series[i] for i in draw]))) / 1e6 for draw in draws]
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def ratio_interval(subject: Sequence[float], reference: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Geometric mean over rounds of subject / reference, with Student's t interval on the log scale.

    Both hold the p50 of each round in the same unit, > 0. `confidence` is two-sided; 0.90 gives the two one-sided
    95 % bounds. Raises ValueError for fewer than two rounds, another number of rounds, or a p50 that is not positive.

    >>> ratio_interval([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]).value
    0.5
    """
    if len(subject) != len(reference) or len(subject) < 2:
        raise ValueError(f"needs two or more rounds of both (got {len(subject)} and {len(reference)})")
    if min(*subject, *reference) <= 0:
        raise ValueError("a p50 must be above 0")
    logs = np.log(np.asarray(subject, dtype=np.float64)) - np.log(np.asarray(reference, dtype=np.float64))
    mean = float(logs.mean())
    half = _student_quantile(confidence, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def _student_quantile(confidence: float, freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1.0 + confidence) / 2.0, freedom))


def p50_by_round(slots: Mapping[int, Sequence[int]]) -> list[float]:
    """Median milliseconds of each round, in the order of the rounds."""
    return [float(np.median(np.asarray(slots[number], dtype=np.float64))) / 1e6 for number in sorted(slots)]


def balanced_orders(count: int) -> list[list[int]]:
    """Orders of `count` subjects in which each takes each place equally often and follows each other equally often.

    Williams' design: `count` orders for an even number, twice as many for an odd one (E. J. Williams 1949).

    >>> balanced_orders(2)
    [[0, 1], [1, 0]]
    """
    zigzag, low, high = [], 0, count - 1
    for place in range(count):
        zigzag.append(low if place % 2 == 0 else high)
        low, high = (low + 1, high) if place % 2 == 0 else (low, high - 1)
    orders = [[(item + shift) % count for item in zigzag] for shift in range(count)]
    return orders + [order[::-1] for order in orders] if count % 2 and count > 1 else orders
