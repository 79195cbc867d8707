"""Intervals of shares of rows, against scipy, a published table, other arithmetic and every outcome there is."""

import numpy as np
import pytest
from scipy import stats

from compressor.evaluate.proportions import fall_statistic, paired_fall, wilson

NORMAL = 1.6448536


@pytest.mark.parametrize(("right", "rows"), [(0, 12), (12, 12), (7, 40), (499, 500)])
def test_wilsons_interval_is_scipys(right: int, rows: int):
    ends = stats.binomtest(right, rows).proportion_ci(0.9, method="wilson")
    found = wilson(right / rows, rows, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-12)
    with pytest.raises(ValueError, match=r"got 1\.5 of 3 rows"):
        wilson(1.5, 3)


def test_the_interval_of_a_fall_is_the_published_one():
    """Fagerland, Lydersen and Laake 2014, doi 10.1002/sim.6148: patients of Bentur et al. 2009, one against seven."""
    found = paired_fall(1, 7, 21)
    assert (found.value, found.low, found.high) == pytest.approx((-6 / 21, -0.517, -0.026), abs=5e-4)


def test_the_statistic_is_the_published_one():
    """Tango 1998, contact lenses: 43 of 44 pairs alike, one lost, equivalence within 0.1: Z 1.709, p 0.044."""
    assert -fall_statistic(1, 0, 44, 0.1) == pytest.approx(1.709, abs=5e-4)
    assert stats.norm.sf(1.709) == pytest.approx(0.044, abs=5e-4)


@pytest.mark.parametrize(("lost", "won", "rows"), [(0, 0, 64), (5, 0, 5), (30, 12, 400), (2, 9, 90), (0, 44, 44)])
def test_a_fall_turned_round_has_the_interval_turned_round(lost: int, won: int, rows: int):
    there, back = paired_fall(lost, won, rows), paired_fall(won, lost, rows)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)
    assert -1 <= there.low <= there.value <= there.high <= 1


def statistics_at(limit: float, rows: int, lost: np.ndarray, won: np.ndarray) -> np.ndarray:
    """The same statistic where the most likely share of won rows is searched for by halving, not solved for."""
    low, high = np.full(lost.shape, 1e-12), np.full(lost.shape, (1 - limit) / 2 - 1e-9)
    for _ in range(60):
        share = (low + high) / 2
        slope = lost / (share + limit) + won / share - 2 * (rows - lost - won) / (1 - 2 * share - limit)
        low, high = np.where(slope > 0, share, low), np.where(slope > 0, high, share)
    return (lost - won - rows * limit) / np.sqrt(rows * (2 * share + limit - limit**2))


@pytest.mark.parametrize(("rows", "flipped"), [(400, 0.06), (1000, 0.05), (1000, 0.03), (2000, 0.1)])
def test_summed_over_all_outcomes_a_fall_at_the_limit_errs_in_about_5_of_100_either_way(rows: int, flipped: float):
    limit = 0.02
    lost_share, won_share = (flipped + limit) / 2, (flipped - limit) / 2
    lost, won = np.meshgrid(
        np.arange(0, int(rows * lost_share * 3) + 20), np.arange(0, int(rows * won_share * 3) + 25), indexing="ij"
    )
    chance = stats.binom.pmf(lost, rows, lost_share)
    chance = chance * stats.binom.pmf(won, rows - lost, won_share / (1 - lost_share))
    found = statistics_at(limit, rows, lost, won)
    assert 0.044 <= chance[found <= -NORMAL].sum() <= 0.051
    assert 0.044 <= chance[found >= NORMAL].sum() <= 0.055
    for place in np.random.default_rng(0).integers(0, lost.size, 50):
        here = (int(lost.flat[place]), int(won.flat[place]))
        assert fall_statistic(*here, rows, limit) == pytest.approx(found.flat[place], abs=1e-5)
        interval = paired_fall(*here, rows, confidence=0.9)
        assert (interval.high <= limit) == (found.flat[place] <= -NORMAL)
        assert (interval.low > limit) == (found.flat[place] > NORMAL)


@pytest.mark.parametrize(("lost", "won", "rows"), [(3, 0, 2), (-1, 0, 2), (0, 0, 0)])
def test_more_flips_than_rows_are_refused(lost: int, won: int, rows: int):
    with pytest.raises(ValueError, match=f"got {lost} and {won} of {rows}"):
        paired_fall(lost, won, rows)
