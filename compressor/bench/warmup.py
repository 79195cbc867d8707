"""Where a series of timings stops being a warm-up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_SHARE = 0.5
"""Share of a series that a warm-up may take; what is slow for longer is no warm-up, or the series is too short."""
SPREADS, LEAST_SHARE = 3.5, 0.02
"""How far above the later half's median a call may lie: robust standard deviations, and a share of the median."""
TOGETHER = 5
"""Calls of which most must be warm: one quick call within a warm-up does not end it."""


def warm_from(nanoseconds: Sequence[int]) -> int:
    """Number of the first sample after the warm-up, at most half of them; 0 where there was none.

    The change point is where a call, and the median of it and the next ones, first lie within the range of the later
    half: its median plus 3.5 robust standard deviations (1.4826 times the median absolute deviation). A rule on means
    such as MSER (White 1997, https://doi.org/10.1177/003754979706900601) takes each later burst for the end of one.

    >>> warm_from([90, 50, 20, 11, 10, 10, 10, 10, 10, 10, 10, 10])
    4
    """
    series = np.asarray(nanoseconds, dtype=np.float64)
    most = int(len(series) * MOST_SHARE)
    if not most:
        return 0
    later = series[most:]
    median = float(np.median(later))
    spread = 1.4826 * float(np.median(np.abs(later - median)))
    limit = median + max(SPREADS * spread, LEAST_SHARE * median)
    for place in range(most):
        if series[place] <= limit and np.median(series[place : place + TOGETHER]) <= limit:
            return place
    return most
