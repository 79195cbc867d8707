"""The range of values that INT8 spans in a tensor, from a histogram that is filled as batches pass by.

A histogram takes the same memory however many values it has seen. Its bins are aligned to zero and as wide as a power
of two; a value outside doubles the width by merging pairs of bins, which is exact. So the same values give the same
histogram in any order and in any batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compressor.quantize.settings import Calibrate, RangeMethod

Values = npt.NDArray[np.floating]
Counts = npt.NDArray[np.int64]
Centres = npt.NDArray[np.float64]

BINS = 8192
"""At least a quarter of them hold the values seen, some eight for each of the 255 steps of INT8."""
LEVELS = 255
"""Steps between the smallest and the largest of 8 bits."""
SMALLEST_EXPONENT = -126
"""Bins are never narrower than 2 to this power, the smallest normal fp32 number."""
KL_BINS = 2048
"""Wider bins for the entropy, as a distribution with mostly empty bins says little."""
KL_CANDIDATES = 128
"""Ranges that the entropy compares."""
MSE_SHRINKS = np.linspace(1.0, 0.2, 81)
"""Shares of the way from zero to the least and to the largest value that are tried."""


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high` are told apart; those outside are taken for the nearer end. low <= 0 <= high."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        """The larger of both ends' distances from zero."""
        return max(-self.low, self.high)


@dataclass
class Histogram:
    """How many values fell into each bin, with the least and the largest value.

    >>> seen = Histogram()
    >>> seen.add(np.array([0.5, -1.0, 3.0], np.float32))
    >>> seen.total, seen.lowest, seen.highest
    (3, -1.0, 3.0)
    """

    counts: Counts = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    """Shape (BINS,); bin i holds values from (i - BINS / 2) widths up to, not including, one width more."""
    exponent: int | None = None
    """The width of a bin is 2 to this power; None while only zeros, or nothing, were seen."""
    lowest: float = math.inf
    highest: float = -math.inf

    @property
    def total(self) -> int:
        """Values seen."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, SMALLEST_EXPONENT if self.exponent is None else self.exponent)

    @property
    def centres(self) -> Centres:
        """The middle of each bin, shape (BINS,); the bins at the ends reach no further than the values seen."""
        edges = np.clip(np.arange(-BINS // 2, BINS // 2 + 1) * self.width, self.lowest, self.highest)
        middles: Centres = (edges[:-1] + edges[1:]) / 2
        return middles

    def add(self, values: Values) -> None:
        """Count values of any shape; all must be finite, else ValueError."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values must be finite")
        self._reach(low, high)
        places = np.floor(np.ldexp(values.ravel(), -self._exponent)).astype(np.int64) + BINS // 2
        self.counts += np.bincount(places, minlength=BINS)
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)

    @property
    def _exponent(self) -> int:
        return SMALLEST_EXPONENT if self.exponent is None else self.exponent

    def _reach(self, low: float, high: float) -> None:
        """Double the width until `low` and `high` have a bin."""
        needed = self._exponent
        while low < math.ldexp(-BINS / 2, needed) or high >= math.ldexp(BINS / 2, needed):
            needed += 1
        if needed == self._exponent:
            return
        for _ in range(min(needed - self._exponent, int(math.log2(BINS)))):
            merged = np.zeros(BINS, dtype=np.int64)
            merged[BINS // 4 : -BINS // 4] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = merged
        self.exponent = needed


@dataclass
class Seen:
    """What calibration keeps of one tensor."""

    rate: float
    """How far the averaged range moves towards that of each new batch, from 0 to 1."""
    histogram: Histogram = field(default_factory=Histogram)
    averaged: tuple[float, float] | None = None
    """The averaged range of the batches so far; the only part that depends on their order and size."""

    def add(self, values: Values) -> None:
        """Take one batch's values, of any shape; ValueError unless all are finite."""
        self.histogram.add(values)
        if values.size:
            low, high = float(values.min()), float(values.max())
            before = (low, high) if self.averaged is None else self.averaged
            self.averaged = tuple(old + self.rate * (new - old) for old, new in zip(before, (low, high), strict=True))  # type: ignore[assignment]


def range_of(seen: Seen, settings: Calibrate) -> Range:
    """The range of a tensor by the method of the settings, widened to hold zero; ValueError where nothing was seen."""
    if not seen.histogram.total:
        raise ValueError("no values were seen")
    low, high = RANGES[settings.method](seen, settings)
    return Range(low=min(low, 0.0), high=max(high, 0.0))


def minmax(seen: Seen, _settings: Calibrate) -> tuple[float, float]:
    """From the least to the largest value."""
    return seen.histogram.lowest, seen.histogram.highest


def moving_average(seen: Seen, _settings: Calibrate) -> tuple[float, float]:
    """From the averaged least to the averaged largest value of a batch, recent batches weighing more."""
    assert seen.averaged is not None, "range_of refuses a tensor without values"
    return seen.averaged


def percentile(seen: Seen, settings: Calibrate) -> tuple[float, float]:
    """The middle `percentile` percent of the values, to within the width of a bin."""
    histogram, cut = seen.histogram, (100.0 - settings.percentile) / 200.0
    below = np.concatenate([[0], np.cumsum(histogram.counts)]).astype(np.float64)

    def value_at(share: float) -> float:
        """The value that this share of all is below or at, spread evenly within its bin."""
        place = int(np.searchsorted(below[1:], share * histogram.total))
        inside = (share * histogram.total - below[place]) / max(histogram.counts[place], 1)
        return float(place - BINS // 2 + inside) * histogram.width

    return max(value_at(cut), histogram.lowest), min(value_at(1.0 - cut), histogram.highest)


def entropy(seen: Seen, _settings: Calibrate) -> tuple[float, float]:
    """The range, as far on both sides of zero, whose 255 levels lose the least information.

    Values outside count for the ends. The loss is the Kullback-Leibler divergence of the distribution after from that
    before (Migacz 2017, https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf).
    """
    histogram = seen.histogram
    counts, width = histogram.counts.reshape(KL_BINS, -1).sum(axis=1), histogram.width * BINS / KL_BINS
    used = min(KL_BINS // 2, max(1, math.ceil(max(-histogram.lowest, histogram.highest) / width)))
    reaches = np.unique(np.linspace(min(LEVELS // 2 + 1, used), used, KL_CANDIDATES).round().astype(int))
    losses = [information_lost(counts, int(reach)) for reach in reaches]
    best = int(reaches[int(np.argmin(losses))]) * width
    return max(-best, histogram.lowest), min(best, histogram.highest)


def information_lost(counts: Counts, reach: int) -> float:
    """Divergence in nats when only `reach` bins on each side of zero are kept and told apart by 255 levels."""
    middle = len(counts) // 2
    kept = counts[middle - reach : middle + reach].astype(np.float64)
    before = kept.copy()
    before[0] += counts[: middle - reach].sum()
    before[-1] += counts[middle + reach :].sum()
    levels = np.minimum(np.arange(2 * reach) * LEVELS // (2 * reach), LEVELS - 1)
    there = before > 0
    mass, places = (np.bincount(levels, weights=each, minlength=LEVELS) for each in (kept, there.astype(np.float64)))
    after = np.where(there, (mass / np.maximum(places, 1))[levels], 0.0)
    if not after.sum():
        return math.inf
    before, after = before[there] / before.sum(), np.maximum(after[there] / after.sum(), 1e-12)
    return float((before * np.log(before / after)).sum())


def mse(seen: Seen, _settings: Calibrate) -> tuple[float, float]:
    """The range with the least squared error of a value after rounding to 256 levels and back.

    Both ends are drawn in by turns, twice, over a grid of shares.
    """
    histogram = seen.histogram
    filled = histogram.counts > 0
    centres, counts = histogram.centres[filled], histogram.counts[filled]
    low, high = min(histogram.lowest, 0.0), max(histogram.highest, 0.0)
    least, largest = low, high
    for _ in range(2):
        high = min((largest * MSE_SHRINKS).tolist(), key=lambda end: squared_error(centres, counts, low, end))
        low = min((least * MSE_SHRINKS).tolist(), key=lambda end: squared_error(centres, counts, end, high))
    return low, high


def squared_error(centres: Centres, counts: Counts, low: float, high: float) -> float:
    """Mean squared error of the values in bins around `centres` when 256 levels span `low` to `high`."""
    scale = (high - low) / LEVELS
    if scale <= 0:
        return float((counts * centres**2).sum() / counts.sum())
    zero = np.round(-low / scale)
    back = (np.clip(np.round(centres / scale) + zero, 0, LEVELS) - zero) * scale
    return float((counts * (centres - back) ** 2).sum() / counts.sum())


RANGES: dict[RangeMethod, Callable[[Seen, Calibrate], tuple[float, float]]] = {
    "minmax": minmax,
    "moving_average": moving_average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
"""Name in the recipe to the function that does it."""
