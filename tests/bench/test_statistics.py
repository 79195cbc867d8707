"""Figures from raw timings, against scipy, numpy and simulated data."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from compressor.bench.statistics import (
    Interval,
    balanced_orders,
    median_interval,
    needs_samples,
    noise_floor,
    orders_of_rounds,
    p50_by_round,
    percentile,
    percentile_interval,
    ratio_interval,
    samples_needed,
    speed_verdict,
    standard_error,
)


def test_where_neighbours_are_not_alike_the_ratio_interval_is_scipys_t_interval_of_the_logs():
    logs = 0.1 * np.array([1.0, -1.0] * 7 + [1.0])  # each round is the opposite of the one before
    subject, reference = np.exp(logs), np.ones(15)
    got = ratio_interval(list(subject), list(reference))
    low, high = stats.t.interval(0.95, 10, loc=logs.mean(), scale=stats.sem(logs))
    assert got.value == pytest.approx(stats.gmean(subject))
    assert (got.low, got.high) == pytest.approx((np.exp(low), np.exp(high)))


@pytest.mark.parametrize("lags", [0, 1, 4])
def test_the_standard_error_is_newey_and_wests(lags: int):
    """Summed pair by pair, as the paper defines it, with the usual correction for a small sample."""
    values = np.cumsum(np.random.default_rng(1).normal(size=20))
    off, total = values - values.mean(), 0.0
    for one in range(20):
        for other in range(20):
            total += max(0.0, 1 - abs(one - other) / (lags + 1)) * off[one] * off[other]
    assert standard_error(values, lags) == pytest.approx(np.sqrt(total / 19 / 20))
    assert standard_error(values, 0) == pytest.approx(stats.sem(values))


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


def test_median_interval_counts_rounds_and_not_samples():
    alike = [[1_000_000 * (1 + number)] * 50 for number in range(10)]  # rounds differ, samples within one do not
    got = median_interval(alike)
    logs = np.log(np.arange(1.0, 11.0))
    half = stats.t.ppf(0.975, 9) * logs.std(ddof=1) / np.sqrt(10)
    assert (got.value, got.low, got.high) == pytest.approx((5.5, 5.5 * np.exp(-half), 5.5 * np.exp(half)))


def test_one_round_has_the_interval_of_its_samples_where_they_are_enough():
    assert median_interval([[1_000_000, 2_000_000]]) == Interval(1.5, 1.5, 1.5)
    many = [1_000_000 + number for number in range(100)]
    assert median_interval([many]) == percentile_interval(many, 0.5)


@pytest.mark.parametrize("rounds", [5, 15])
def test_the_interval_of_a_median_covers_the_truth_where_rounds_differ(rounds: int):
    rng, covered, tries = np.random.default_rng(rounds), 0, 2000
    for _ in range(tries):
        machine = rng.lognormal(0, 0.03, (rounds, 1))
        found = median_interval((1e6 * machine * rng.lognormal(0, 0.05, (rounds, 21))).tolist())
        covered += found.low <= 1.0 <= found.high
    assert 0.93 <= covered / tries <= 0.97


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


QUIET = Interval(1.0, 0.99, 1.01)
NOISY = Interval(1.02, 0.95, 1.10)


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict"),
    [
        ((0.50, 0.48, 0.52), QUIET, "faster"),
        ((2.00, 1.90, 2.10), QUIET, "slower"),
        ((1.00, 0.985, 1.015), QUIET, "same"),
        ((0.99, 0.985, 0.995), QUIET, "same"),  # shown to differ, by less than matters
        ((0.97, 0.955, 0.985), QUIET, "faster"),  # beyond the floor, though not wholly beyond the band
        ((0.98, 0.95, 1.01), QUIET, "undecided"),
        ((0.94, 0.92, 0.96), NOISY, "undecided"),  # excludes 1, and lies within what the copy showed
        ((0.85, 0.82, 0.88), NOISY, "faster"),
        ((0.97, 0.95, 0.979), None, "faster"),
        ((0.985, 0.975, 0.995), None, "undecided"),
        ((1.00, 0.99, 1.01), Interval(1.05, 1.04, 1.06), "undecided"),  # a copy seems 4 % slower: nothing is the same
    ],
)
def test_a_verdict_needs_an_effect_beyond_the_noise_floor(ratio: tuple, noise: Interval | None, verdict: str):
    assert speed_verdict(Interval(*ratio), noise) == verdict


@pytest.mark.parametrize("noise", [QUIET, NOISY, None])
def test_the_verdict_of_the_inverse_is_the_opposite(noise: Interval | None):
    opposite = {"faster": "slower", "slower": "faster", "undecided": "undecided"}
    for value in np.geomspace(0.5, 2.0, 41):
        ratio = Interval(value, value / 1.04, value * 1.04)
        inverse = Interval(1 / value, 1 / ratio.high, 1 / ratio.low)
        assert speed_verdict(inverse, noise) == opposite[speed_verdict(ratio, noise)]


def test_the_noise_floor_counts_both_directions_and_is_never_below_one():
    assert noise_floor(Interval(0.97, 0.8, 1.1)) == 1.25
    assert noise_floor(Interval(1.05, 1.0, 1.1)) == 1.1
    assert noise_floor(Interval(1.0, 1.0, 1.0)) == 1.0


def test_ratios_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        speed_verdict(Interval(0.5, 0.0, 1.0), None)


def test_a_percentile_that_is_not_earned_says_what_it_needs():
    assert needs_samples(0.9, 99) == "p90 needs 100 samples"
    assert needs_samples(0.99, 999) == "p99 needs 1,000 samples"
    assert needs_samples(0.999, 10_000) is None
    assert percentile_interval([1] * 999, 0.99) is None


@pytest.mark.parametrize(("share", "count"), [(0.5, 20), (0.5, 301), (0.9, 100), (0.99, 1000)])
def test_the_ends_of_a_percentile_are_the_samples_that_the_binomial_law_names(share: float, count: int):
    samples = np.random.default_rng(4).permutation(count) + 1  # sample k is the k-th smallest
    found = percentile_interval(samples, share)
    assert found is not None
    low, high = round(found.low * 1e6), round(found.high * 1e6)
    below = stats.binom(count, share)  # samples below the true percentile
    assert below.cdf(high - 1) - below.cdf(low - 1) >= 0.95
    assert below.cdf(low) > 0.025  # the next sample up would miss more than 2.5 % of the time
    assert below.cdf(high - 2) < 0.975


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_orders_of_rounds_are_balanced_designs_one_after_the_other(count: int) -> None:
    size = len(balanced_orders(count))
    found = orders_of_rounds(count, 3 * size)
    for start in range(0, len(found), size):
        orders = found[start : start + size]
        assert {tuple(sorted(Counter(column).values())) for column in zip(*orders, strict=True)} == {
            (size // count,) * count
        }
        follows = Counter(pair for order in orders for pair in pairwise(order))
        assert set(follows.values()) == {size // count}
    assert found == orders_of_rounds(count, 3 * size)


def test_over_many_rounds_each_subject_follows_each_other_about_as_often_across_rounds_too() -> None:
    found = orders_of_rounds(4, 4000)
    followed = np.zeros((4, 4))
    for before, after in pairwise(found):
        followed[before[-1], after[0]] += 1
    others = followed[~np.eye(4, dtype=bool)]
    assert others.max() < 1.35 * others.min()
