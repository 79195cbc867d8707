"""Figures from raw timings: percentiles that the samples can carry, paired ratios, verdicts, orders of rounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SpeedVerdict = Literal["faster", "slower", "same", "undecided"]

MIN_BEYOND = 10
"""Samples that must lie beyond a percentile before it is shown."""
MOST_LAGS = 4
"""Rounds, a second or two apart each, over which one disturbance is counted as one."""
LOOKS = {1: 0.95, 2: 0.9706, 3: 0.9779}
"""Two-sided confidence of each look at growing samples so that all of them together err in 5 of 100; for one to three
looks after equal numbers of rounds (S. J. Pocock 1977, "Group sequential methods in the design and analysis of clinical
trials", Biometrika 64, 191-199)."""
BAND = 0.02
"""Times that differ by less than this share are the same to a user; a machine at rest drifts by as much."""


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


def needs_samples(share: float, count: int) -> str | None:
    """Words on why a percentile of `count` samples is not shown; None where it is.

    >>> needs_samples(0.99, 200)
    'p99 needs 1,000 samples'
    """
    needed = samples_needed(share)
    return None if count >= needed else f"p{100 * share:g} needs {needed:,} samples"


def percentile_interval(
    nanoseconds: Sequence[int] | np.ndarray, share: float, *, confidence: float = 0.95
) -> Interval | None:
    """Percentile in milliseconds between two of the samples, or None where fewer were taken than `samples_needed` says.

    The number of samples below the true percentile is binomial, so that two order statistics hold it at `confidence`
    or more whatever the distribution is (Conover, Practical Nonparametric Statistics, 1999, section 3.2), as long as
    samples are independent: within a round they are alike, for which `median_interval` counts rounds.
    """
    value, count = percentile(nanoseconds, share), len(nanoseconds)
    if value is None:
        return None
    from scipy import stats

    ordered = np.sort(np.asarray(nanoseconds, dtype=np.float64)) / 1e6
    low, high = (int(one) for one in stats.binom.ppf([(1 - confidence) / 2, (1 + confidence) / 2], count, share))
    return Interval(
        value, min(float(ordered[max(0, low - 1)]), value), max(float(ordered[min(high, count - 1)]), value)
    )


def median_interval(rounds: Sequence[Sequence[int]], *, confidence: float = 0.95) -> Interval:
    """Median of all samples in milliseconds, with Student's t interval over the rounds' medians on the log scale.

    Samples in one round are alike, so the rounds are what is counted; two-sided at `confidence`. A single round has no
    spread of its own: its ends are those of the samples (`percentile_interval`), or the value where they are too few.
    Raises ValueError on no samples.
    """
    series = [np.asarray(one, dtype=np.float64) for one in rounds if len(one)]
    if not series:
        raise ValueError("no samples to take a median of")
    value = float(np.median(np.concatenate(series))) / 1e6
    if len(series) == 1:
        return percentile_interval(series[0], 0.5) or Interval(value, value, value)
    logs = np.log([max(float(np.median(one)), 1.0) for one in series])
    half = _student_quantile(confidence, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(value, value * math.exp(-half), value * math.exp(half))


def ratio_interval(subject: Sequence[float], reference: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Geometric mean over rounds of subject / reference, with an interval on the log scale that bursts cannot fool.

    Its standard error counts that neighbouring rounds may be alike, as where other work slows one subject for several
    of them in a row (`standard_error`), and its quantile is Student's with a degree of freedom less for each lag.

    Both hold the p50 of each round, in the order of the rounds, in the same unit, > 0. `confidence` is two-sided; 0.90
    gives the two one-sided 95 % bounds. Raises ValueError for fewer than two rounds, another number of rounds, or a p50
    that is not positive.

    >>> ratio_interval([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]).value
    0.5
    """
    if len(subject) != len(reference) or len(subject) < 2:
        raise ValueError(f"needs two or more rounds of both (got {len(subject)} and {len(reference)})")
    if min(*subject, *reference) <= 0:
        raise ValueError("a p50 must be above 0")
    logs = np.log(np.asarray(subject, dtype=np.float64)) - np.log(np.asarray(reference, dtype=np.float64))
    mean = float(logs.mean())
    lags = lags_of(len(logs))
    half = _student_quantile(confidence, len(logs) - 1 - lags) * standard_error(logs, lags)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def lags_of(rounds: int) -> int:
    """Rounds over which a disturbance is expected to last: four of 13 rounds or more, fewer where there are fewer.

    >>> lags_of(3), lags_of(7), lags_of(15), lags_of(100)
    (0, 2, 4, 4)
    """
    return min(MOST_LAGS, (rounds - 1) // 3)


def standard_error(values: np.ndarray, lags: int) -> float:
    """Of the mean of values in the order of time, neighbours up to `lags` apart being alike; shape (rounds,).

    W. K. Newey and K. D. West 1987, "A simple, positive semi-definite, heteroskedasticity and autocorrelation
    consistent covariance matrix" (Econometrica 55, 703-708), and never less than for independent values.
    """
    count, off = len(values), values - values.mean()
    own = float(off @ off)
    shared = sum((1 - lag / (lags + 1)) * float(off[lag:] @ off[:-lag]) for lag in range(1, lags + 1))
    return math.sqrt(max(own, own + 2 * shared) / (count - 1) / count)


def noise_floor(noise: Interval) -> float:
    """The furthest that a model may seem from itself, as a ratio of 1 or more, from its interval against itself.

    Both directions count alike, as it is chance which of the two copies was slowed.

    >>> noise_floor(Interval(0.97, 0.8, 1.1))
    1.25
    """
    return max(noise.high, 1.0 / noise.low, 1.0)


def speed_verdict(ratio: Interval, noise: Interval | None, *, band: float = BAND) -> SpeedVerdict:
    """What a ratio of times, subject over reference, shows; below 1 the subject is faster.

    `same`: the whole interval lies within 1 -+ band, and the reference beside itself is not shown to lie outside it.
    `faster`, `slower`: the whole interval lies on that side of 1, and the ratio itself beyond the noise floor. The
    first holds by chance in 5 of 100 comparisons of a model with itself; the second refuses most of those, and gains
    that are real but no larger than what the machine does to a model beside itself. Else `undecided`.

    Args:
        ratio: with its two-sided 95 % interval.
        noise: the same of the reference beside itself; None where that was not timed, then the band is the floor.
        band: share of time, 0 to 1, that makes no difference to a user.
    Raises: ValueError for a ratio or noise that is not positive.

    >>> speed_verdict(Interval(0.80, 0.77, 0.83), Interval(1.0, 0.96, 1.05))
    'faster'
    >>> speed_verdict(Interval(0.97, 0.95, 0.99), Interval(1.0, 0.96, 1.05))
    'undecided'
    """
    if ratio.low <= 0 or (noise is not None and noise.low <= 0):
        raise ValueError(f"ratios of times are above 0 (got {ratio} beside {noise})")
    calm = noise is None or (noise.low <= 1 + band and noise.high >= 1 - band)
    if ratio.low >= 1 - band and ratio.high <= 1 + band and calm:
        return "same"
    floor = 1 + band if noise is None else noise_floor(noise)
    if ratio.high < 1 and ratio.value < 1 / floor:
        return "faster"
    return "slower" if ratio.low > 1 and ratio.value > floor else "undecided"


@functools.cache
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


def orders_of_rounds(count: int, rounds: int) -> list[list[int]]:
    """One order of `count` subjects for each round: a whole balanced design after the other, each with drawn roles.

    The draw, the same at every call, keeps one subject from always coming last before the same one begins a round.

    >>> [sorted(order) for order in orders_of_rounds(3, 2)]
    [[0, 1, 2], [0, 1, 2]]
    """
    random, balanced = np.random.default_rng(0), balanced_orders(count)
    found: list[list[int]] = []
    while len(found) < rounds:
        roles = random.permutation(count).tolist()
        found += [[roles[role] for role in balanced[place]] for place in random.permutation(len(balanced))]
    return found[:rounds]
