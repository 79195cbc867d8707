"""Intervals of shares of rows: of one model, and of the fall from one to another on the same rows."""

from __future__ import annotations

import math
from statistics import NormalDist

from compressor.bench.statistics import Interval


def wilson(share: float, rows: int, *, confidence: float = 0.95) -> Interval:
    """A share of `rows` rows with its two-sided interval (E. B. Wilson 1927), which holds near 0 and 1 too.

    The share need not be a whole number of rows. Raises ValueError for fewer than one row or a share outside 0 to 1.

    >>> round(wilson(1.0, 10).low, 3)
    0.722
    """
    if rows < 1 or not 0.0 <= share <= 1.0:
        raise ValueError(f"a share is 0 to 1 of one row or more (got {share:g} of {rows} rows)")
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    grown = 1.0 + z**2 / rows
    centre = (share + z**2 / (2 * rows)) / grown
    half = z / grown * math.sqrt(share * (1.0 - share) / rows + z**2 / (4 * rows**2))
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def paired_fall(lost: int, won: int, rows: int, *, confidence: float = 0.95) -> Interval:
    """How far a share of right rows falls from one model to another on the same rows: (lost - won) / rows.

    Its interval holds every fall that a score test does not refuse (T. Tango 1998, "Equivalence test and confidence
    interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17, 891-908).

    Args:
        lost: rows that the first model alone has right.
        won: rows that the second model alone has right.
        rows: all of them, one or more.
        confidence: two-sided; 0.90 gives the two one-sided 95 % bounds.
    Raises: ValueError where lost and won are not 0 to `rows` together.

    >>> found = paired_fall(1, 7, 21)
    >>> round(found.low, 3), round(found.high, 3)
    (-0.517, -0.026)
    """
    if rows < 1 or min(lost, won) < 0 or lost + won > rows:
        raise ValueError(f"rows lost and won are some of all rows (got {lost} and {won} of {rows})")
    from scipy import optimize

    value, z = (lost - won) / rows, NormalDist().inv_cdf((1.0 + confidence) / 2.0)

    def beyond(fall: float, sign: float) -> float:
        return fall_statistic(lost, won, rows, fall) - sign * z

    low = -1.0 if value <= -1.0 else optimize.brentq(beyond, -1.0 + 1e-12, value, args=(1.0,))
    high = 1.0 if value >= 1.0 else optimize.brentq(beyond, value, 1.0 - 1e-12, args=(-1.0,))
    return Interval(value, min(float(low), value), max(float(high), value))


def fall_statistic(lost: int, won: int, rows: int, fall: float) -> float:
    """Standard errors by which the fall that was found lies above a supposed one, -1 < fall < 1; Tango 1998.

    The variance is that of the most likely shares of lost and won rows which differ by `fall`.
    """
    linear, constant = (2 * rows - lost + won) * fall - lost - won, -won * fall * (1.0 - fall)
    won_share = (math.sqrt(max(linear**2 - 8 * rows * constant, 0.0)) - linear) / (4 * rows)
    variance = rows * (2 * won_share + fall * (1.0 - fall))
    return (lost - won - rows * fall) / math.sqrt(variance) if variance > 0 else 0.0
