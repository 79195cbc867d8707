"""Where a warm-up ends, on simulated series whose warm-up is known."""

import numpy as np
import pytest

from compressor.bench.warmup import MOST_SHARE, warm_from


def noisy(level: np.ndarray, *, spread: float = 0.03, seed: int = 0) -> list[int]:
    """Nanoseconds about a level in milliseconds."""
    return [int(value) for value in 1e6 * level * np.random.default_rng(seed).lognormal(0, spread, len(level))]


@pytest.mark.parametrize("steady", [[], [5], [5, 5], [7] * 40])
def test_a_series_without_change_has_no_warm_up(steady: list[int]):
    assert warm_from(steady) == 0


@pytest.mark.parametrize("slow", [1, 2, 7, 30])
def test_a_slow_start_is_cut_at_its_very_end(slow: int):
    for seed in range(20):
        level = np.where(np.arange(100) < slow, 3.0, 1.0)
        assert warm_from(noisy(level, seed=seed)) in (slow, slow + 1, slow + 2)


def test_most_series_in_no_order_have_no_warm_up():
    cuts = [warm_from(noisy(np.ones(60), seed=seed)) for seed in range(500)]
    assert np.mean(np.array(cuts) == 0) > 0.95


@pytest.mark.parametrize("scale", [2.0, 5.0, 15.0])
def test_what_is_left_of_a_ramp_is_as_fast_as_its_end(scale: float):
    for seed in range(50):
        level = 1 + 4 * np.exp(-np.arange(200) / scale)
        series = noisy(level, seed=seed)
        cut = warm_from(series)
        assert level[cut] < 1.25  # was 5 at the start
        assert np.median(series[cut:]) == pytest.approx(1e6, rel=0.02)
        assert cut <= 100


def test_a_burst_after_the_warm_up_changes_nothing():
    level = np.where(np.arange(200) < 10, 4.0, 1.0)
    burst = level * np.where((np.arange(200) >= 60) & (np.arange(200) < 80), 5.0, 1.0)
    assert warm_from(noisy(burst)) == warm_from(noisy(level))


def test_the_unit_changes_nothing():
    series = noisy(1 + 4 * np.exp(-np.arange(80) / 6))
    assert warm_from(series) == warm_from([1000 * value for value in series])


def test_a_warm_up_takes_at_most_half():
    level = np.where(np.arange(100) < 70, 3.0, 1.0)
    assert warm_from(noisy(level)) == MOST_SHARE * len(level)
