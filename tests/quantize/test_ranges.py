"""Ranges: laws of the histogram, and each method beside numpy or onnxruntime's own calibrators."""

import contextlib
import io
from typing import get_args

import numpy as np
import pytest

from compressor.quantize import ranges
from compressor.quantize.ranges import BINS, RANGES, Histogram, Range, Seen, range_of
from compressor.quantize.settings import Calibrate, RangeMethod


def values_of(seed=0, count=20_000):
    draw = np.random.default_rng(seed)
    return np.concatenate([draw.normal(0.3, 1.0, count), draw.standard_t(2, count // 50) * 4]).astype(np.float32)


def filled(batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def seen_of(values, batches=10, rate=0.01):
    seen = Seen(rate=rate)
    for batch in np.array_split(values, batches):
        seen.add(batch)
    return seen


def same(left, right):
    return (
        left.exponent == right.exponent
        and (left.lowest, left.highest) == (right.lowest, right.highest)
        and np.array_equal(left.counts, right.counts)
    )


def test_any_order_and_any_split_of_the_values_give_the_same_histogram():
    values = values_of()
    whole = filled([values])
    draw = np.random.default_rng(1)
    for parts in (2, 7, 100):
        assert same(whole, filled(np.array_split(draw.permutation(values), parts)))
    assert same(whole, filled(np.array_split(np.sort(values), 50)))
    small_first = values[np.argsort(np.abs(values))]
    assert same(whole, filled(np.array_split(small_first, 30)))
    assert same(whole, filled([np.zeros(0, np.float32), values.reshape(2, -1)]))


def test_bins_count_what_numpy_counts():
    values = values_of()
    histogram = filled(np.array_split(values, 5))
    edges = np.arange(-BINS // 2, BINS // 2 + 1) * histogram.width
    assert np.array_equal(np.histogram(values, edges)[0], histogram.counts)
    assert histogram.total == len(values)


def test_a_histogram_takes_the_same_memory_however_many_values_it_has_seen():
    histogram = filled([values_of(seed) for seed in range(20)])
    assert histogram.counts.shape == (BINS,)
    assert set(vars(histogram)) == {"counts", "exponent", "lowest", "highest"}


def test_growing_by_a_billion_times_loses_no_value():
    histogram = filled([np.full(3, 1e-6, np.float32), np.array([1e9, -2e9], np.float32), np.zeros(4, np.float32)])
    assert histogram.total == 9
    assert (histogram.lowest, histogram.highest) == (np.float32(-2e9), np.float32(1e9))
    assert same(histogram, filled([np.array([-2e9, 0, 0, 1e-6, 1e-6, 1e9, 0, 1e-6, 0], np.float32)]))


def test_at_least_a_quarter_of_the_bins_cover_the_values():
    for largest in (1e-3, 1.0, 3.9, 4.0, 1234.5):
        histogram = filled([np.array([-largest / 10, largest], np.float32)])
        assert BINS / 4 <= largest / histogram.width <= BINS / 2


def test_values_that_are_not_finite_are_refused():
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="values must be finite"):
            filled([np.array([1.0, wrong], np.float32)])
    with pytest.raises(ValueError, match="no values were seen"):
        range_of(Seen(rate=0.1), Calibrate())


@pytest.mark.parametrize("share", [90.0, 99.0, 99.9, 99.99])
def test_percentile_is_that_of_numpy_to_within_a_bin(share):
    values = values_of()
    seen = seen_of(values)
    cut = (100 - share) / 2
    low, high = np.percentile(values, [cut, 100 - cut], method="inverted_cdf")
    found = range_of(seen, Calibrate(method="percentile", percentile=share))
    assert found.low == pytest.approx(low, abs=seen.histogram.width)
    assert found.high == pytest.approx(high, abs=seen.histogram.width)


def test_the_whole_percentile_is_minmax():
    seen = seen_of(values_of())
    whole = range_of(seen, Calibrate(method="percentile", percentile=100.0))
    assert whole.low == pytest.approx(range_of(seen, Calibrate(method="minmax")).low)
    assert whole.high == pytest.approx(range_of(seen, Calibrate(method="minmax")).high)


def test_the_moving_average_is_the_loop_that_defines_it():
    values = values_of().reshape(20, -1)
    low, high = values[0].min(), values[0].max()
    for row in values:
        low, high = low + 0.2 * (row.min() - low), high + 0.2 * (row.max() - high)
    found = range_of(seen_of(values, batches=20, rate=0.2), Calibrate(method="moving_average"))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-5)


def of_onnxruntime(method, values, **options):
    """The range that onnxruntime's own histogram calibrator finds."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method=method,
        symmetric=False,
        num_bins=options.get("bins", 2048),
        num_quantized_bins=options.get("levels", 255),
        percentile=options.get("percentile", 99.9),
        scenario="same",
    )
    with contextlib.redirect_stdout(io.StringIO()):
        for batch in np.array_split(values, 3):
            collector.collect({"x": batch})
        low, high = collector.compute_collection_result()["x"][:2]
    return float(low), float(high)


def test_percentile_agrees_with_onnxruntime_to_within_its_wider_bins():
    values = values_of(count=4000)
    low, high = of_onnxruntime("percentile", values, percentile=99.0)
    found = range_of(seen_of(values), Calibrate(method="percentile", percentile=99.0))
    wide = float(2 * np.abs(values).max() / 2048)
    assert (found.low, found.high) == pytest.approx((low, high), abs=2 * wide)


def test_entropy_agrees_with_onnxruntime():
    values = np.random.default_rng(3).laplace(0, 1, 200_000).astype(np.float32)
    low, high = of_onnxruntime("entropy", values, bins=1001, levels=255)
    found = range_of(seen_of(values), Calibrate(method="entropy"))
    assert found.high == pytest.approx(high, rel=0.25)
    assert found.low == pytest.approx(low, rel=0.25)


def test_entropy_and_percentile_cut_off_a_lone_outlier_that_minmax_follows():
    values = np.append(np.random.default_rng(4).normal(0, 1, 50_000), 60.0).astype(np.float32)
    seen = seen_of(values)
    found = {method: range_of(seen, Calibrate(method=method)) for method in get_args(RangeMethod)}
    assert found["minmax"].high == 60.0
    assert found["entropy"].high < 12
    assert found["percentile"].high < 6


def rounding_error(values, found):
    step = (found.high - found.low) / 255
    zero = round(-found.low / step)
    back = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    return float(((values - back) ** 2).mean())


@pytest.mark.parametrize("seed", range(3))
def test_no_method_rounds_with_less_squared_error_than_mse(seed):
    values = values_of(seed)
    seen = seen_of(values)
    errors = {method: rounding_error(values, range_of(seen, Calibrate(method=method))) for method in RANGES}
    assert errors["mse"] <= min(errors.values()) * 1.01


def test_the_error_on_the_histogram_is_that_on_the_values():
    values = values_of()
    histogram = seen_of(values).histogram
    found = ranges.squared_error(histogram.centres, histogram.counts, -6.0, 7.0)
    assert found == pytest.approx(rounding_error(values, Range(-6.0, 7.0)), rel=0.02)


def test_dropping_nothing_loses_no_information_and_dropping_more_loses_more():
    counts = np.zeros(BINS, dtype=np.int64)
    counts[BINS // 2 - 100 : BINS // 2 + 100] = 7
    assert ranges.information_lost(counts, 127) == pytest.approx(0.0, abs=1e-9)
    assert ranges.information_lost(counts, 50) > ranges.information_lost(counts, 90) > 0.01


@pytest.mark.parametrize("method", get_args(RangeMethod))
def test_every_range_holds_zero(method):
    for values in (np.linspace(2, 3, 500), np.linspace(-3, -2, 500), np.zeros(10), np.full(5, 1e-30)):
        found = range_of(seen_of(values.astype(np.float32), batches=2), Calibrate(method=method))
        assert found.low <= 0.0 <= found.high
        assert np.isfinite([found.low, found.high]).all()


def test_the_methods_of_the_recipe_are_those_of_the_table():
    assert set(get_args(RangeMethod)) == set(RANGES)
