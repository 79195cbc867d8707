"""Latency rows from raw timings that the tests make up."""

from pathlib import Path

import numpy as np
import pytest

from compressor.bench.isolation import Slot, Timing
from compressor.bench.process import PLAIN, Work
from compressor.bench.scenarios import Answered
from compressor.bench.settings import TARGETS, Benchmark, Target
from compressor.bench.statistics import percentile_interval
from compressor.report.detail import _percentile
from compressor.report.latency import latency_rows, measured

WHOLE, BATCH = Work(end_to_end=True), Work(batch=8, length="padded")


def timing(works: dict[Work, float], *, calls: int = 20, **more) -> Timing:
    slots = [
        Slot("model", number, 0, tuple(range(calls)), tuple(int(1e6 * ms) + place for place in range(calls)), work)
        for work, ms in works.items()
        for number in range(5)
    ]
    return Timing(tuple(slots), 2, (0, 1), {"model": 0.5}, 0.0, None, None, None, **more)


def rows(timings: dict[str, Timing], **more):
    known = {"folder": Path("unused"), "targets": TARGETS}
    return latency_rows("model", timings, **(known | more))


def test_each_kind_of_work_is_a_row_and_the_plain_one_is_first():
    found = rows({"cpu": timing({WHOLE: 5.0, BATCH: 9.0, PLAIN: 4.0})})
    assert [(row.batch, row.length, row.end_to_end) for row in found] == [
        (1, "data", False),
        (1, "data", True),
        (8, "padded", False),
    ]
    assert [row.p50_ms for row in found] == pytest.approx([4.0, 5.0, 9.0], rel=1e-3)
    assert all(row.scenario == "single stream" for row in found)


def test_percentiles_need_their_samples():
    few = measured("cpu", timing({PLAIN: 4.0}, calls=3), "model")
    assert (few.p50_ms, few.p90_ms, few.p99_ms) == (None, None, None)
    assert few.reason == "p50 needs 20 samples; p90 needs 100 samples"
    many = timing({PLAIN: 4.0}, calls=200)
    row = measured("cpu", many, "model")
    samples = [ns for slot in many.slots for ns in slot.nanoseconds]
    assert row.p99_ms == pytest.approx(np.quantile(samples, 0.99) / 1e6)
    for per_cent in (90, 95, 99):
        ends = percentile_interval(samples, per_cent / 100)
        shown = [getattr(row, f"p{per_cent}_{part}") for part in ("ms", "low_ms", "high_ms")]
        assert shown == [ends.value, ends.low, ends.high]
    assert row.reason is None


def test_scenarios_have_rows_of_their_own():
    answered = (
        Answered(
            "model", "offline", 1, WHOLE, 2, 812.0, 3000, tried=(("2 x 1 threads", 812.0), ("1 x 2 threads", 640.0))
        ),
        Answered(
            "model", "arrivals", 2, WHOLE, 1, 90.0, 1000, tuple(np.linspace(1, 20, 1000)), 20.0, (("90/s", 19.8),)
        ),
        Answered("other", "offline", 1, WHOLE, 2, 1.0),
    )
    one_core = timing({PLAIN: 8.0})
    found = rows({"cpu": timing({PLAIN: 4.0}, one_core=one_core, answered=answered)})
    assert [row.scenario for row in found] == ["single stream", "one core", "offline", "arrivals"]
    _plain, core, offline, arrivals = found
    assert core.p50_ms == pytest.approx(8.0, rel=1e-3)
    assert (offline.rows_per_second, offline.processes, offline.threads) == (812.0, 2, 1)
    assert offline.reason == "tried 2 x 1 threads: 812 rows/s, 1 x 2 threads: 640 rows/s"
    assert (arrivals.rows_per_second, arrivals.limit_ms, arrivals.end_to_end) == (90.0, 20.0, True)
    assert arrivals.p99_ms == pytest.approx(19.81, abs=0.01)
    assert arrivals.p50_low_ms < arrivals.p50_ms < arrivals.p50_high_ms
    assert arrivals.p99_low_ms < arrivals.p99_ms < arrivals.p99_high_ms
    assert offline.p50_low_ms is None


def test_the_page_shows_the_ends_of_a_percentile_or_how_many_samples_it_needs():
    known = measured("cpu", timing({PLAIN: 4.0}, calls=30), "model")
    cells = [_percentile(known, per_cent) for per_cent in (50, 90, 95, 99)]
    assert known.samples == 150
    assert cells[1].note == f"{known.p90_low_ms:.3g} to {known.p90_high_ms:.3g}"
    assert [(cell.text, cell.note) for cell in cells[2:]] == [("-", "needs 200 samples"), ("-", "needs 1,000 samples")]


def test_a_scenario_without_a_figure_says_why():
    answered = (Answered("model", "arrivals", 2, limit_ms=1.0, reason="even alone"),)
    row = rows({"cpu": timing({PLAIN: 4.0}, answered=answered)})[-1]
    assert (row.status, row.reason, row.rows_per_second) == ("not measured", "even alone", None)


def test_a_figure_that_came_about_otherwise_says_how_beside_what_was_tried():
    tried = (("2 x 1 threads", 8.0),)
    answered = (Answered("model", "offline", 1, WHOLE, 2, 8.0, 15, tried=tried, reason="5 of 64 rows"),)
    row = rows({"cpu": timing({PLAIN: 4.0}, answered=answered)})[-1]
    assert (row.status, row.reason) == ("measured", "5 of 64 rows; tried 2 x 1 threads: 8 rows/s")


def test_lengths_that_a_model_does_not_read_are_named(tiny_classifier: Path):
    benchmark = Benchmark.model_validate({"grid": {"length": ["data", 16, 4096]}})
    found = rows({"cpu": timing({PLAIN: 4.0, Work(length=16): 3.0})}, benchmark=benchmark, folder=tiny_classifier)
    assert [(row.length, row.status) for row in found] == [
        ("data", "measured"),
        (16, "measured"),
        (4096, "not measured"),
    ]
    assert found[-1].reason == "the model reads 128 tokens a row at most"


def test_a_gpu_that_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compressor.runtime.choose.training_device", lambda: "cpu")
    benchmark = Benchmark(targets=["cpu", "gpu"])
    assert [row.target for row in rows({"cpu": timing({PLAIN: 4.0})}, benchmark=benchmark)] == ["cpu"]
    row = rows({}, benchmark=benchmark, engine="torch", untimed="no")[0]
    assert (row.target, row.status) == ("gpu", "not measured")
    assert row.reason == "this machine has no NVIDIA device that the installed torch can use"


def test_scenarios_are_not_run_on_a_gpu():
    benchmark = Benchmark(targets=["gpu"], scenarios=["single stream", "one core"])
    found = rows({"gpu": timing({PLAIN: 4.0})}, benchmark=benchmark, engine="torch")
    assert [(row.scenario, row.status) for row in found] == [
        ("single stream", "measured"),
        ("one core", "not measured"),
    ]


def test_what_was_not_timed_has_one_row_with_the_reason():
    found = rows({}, targets={"mine": Target(threads=3)}, untimed="a smoke run claims no time")
    assert [(row.target, row.threads, row.reason) for row in found] == [("mine", 3, "a smoke run claims no time")]
    other = rows({"cpu": timing({PLAIN: 4.0})}, engine="torch", targets={"cpu": Target()}, benchmark=Benchmark())
    assert other[0].status == "measured"
    stranger = latency_rows(
        "twin", {"cpu": timing({PLAIN: 4.0})}, folder=Path("unused"), targets=TARGETS, untimed="why"
    )
    assert [(row.status, row.reason) for row in stranger] == [("not measured", "why")]
