"""Figures from raw timings, against scipy, numpy and simulated data."""

import numpy as np
import pytest
from scipy import stats

from compressor.bench.statistics import (
    balanced_orders,
    median_interval,
    p50_by_round,
    percentile,
    ratio_interval,
    samples_needed,
)


def test_ratio_interval_is_scipys_t_interval_of_the_logs():
    rng = np.random.default_rng(0)
    subject, reference = rng.lognormal(0, 0.1, 15), rng.lognormal(1, 0.1, 15)
    got = ratio_interval(list(subject), list(reference))
    logs = np.log(subject / reference)
    low, high = stats.t.interval(0.95, 14, loc=logs.mean(), scale=stats.sem(logs))
    assert got.value == pytest.approx(stats.gmean(subject / reference))
    assert (got.low, got.high) == pytest.approx((np.exp(low), np.exp(high)))


def test_the_ratio_interval_covers_the_true_ratio_at_its_nominal_rate():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        machine = rng.lognormal(0, 0.2, 15)  # what slows both in a round cancels in the pair
        subject, reference = (machine * rng.lognormal(0, 0.05, 15) for _ in range(2))
        got = ratio_interval(list(0.3 * subject), list(reference))
        covered += got.low <= 0.3 <= got.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_ratio_of_a_subject_with_itself_is_one_without_width():
    got = ratio_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (got.value, got.low, got.high) == (1.0, 1.0, 1.0)


def test_ladder_ratios_multiply_to_the_whole():
    rng = np.random.default_rng(2)
    a, b, c = (list(rng.lognormal(mean, 0.1, 9)) for mean in (2, 1, 0))
    assert ratio_interval(b, a).value * ratio_interval(c, b).value == pytest.approx(ratio_interval(c, a).value)


@pytest.mark.parametrize(("subject", "reference"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_rounds_that_cannot_be_compared_are_refused(subject: list[float], reference: list[float]):
    with pytest.raises(ValueError):
        ratio_interval(subject, reference)


def test_a_percentile_is_numpys_and_only_shown_when_ten_samples_lie_beyond_it():
    samples = [int(value) for value in np.random.default_rng(3).integers(1_000_000, 9_000_000, 100)]
    assert percentile(samples, 0.9) == pytest.approx(np.percentile(samples, 90) / 1e6)
    assert percentile(samples[:99], 0.9) is None
    assert percentile(samples[:20], 0.5) is not None
    assert samples_needed(0.999) == 10_000


def test_median_interval_resamples_rounds_and_not_samples():
    alike = [[1_000_000 * (1 + number)] * 50 for number in range(10)]  # rounds differ, samples within one do not
    got = median_interval(alike)
    assert got.value == 5.5
    assert got.high - got.low > 3
    assert got.low <= got.value <= got.high
    assert median_interval(alike) == got


def test_p50_by_round_follows_the_number_of_the_round():
    assert p50_by_round({1: (4_000_000,), 0: (1_000_000, 3_000_000)}) == [2.0, 4.0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_balanced_orders_give_each_place_and_each_neighbour_equally_often(count: int):
    orders = balanced_orders(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    for place in range(count):
        assert len({sum(order[place] == item for order in orders) for item in range(count)}) == 1
    after = [(order[i], order[i + 1]) for order in orders for i in range(count - 1)]
    assert len({after.count((a, b)) for a in range(count) for b in range(count) if a != b}) <= 1
