"""Queues against what theory and a step-by-step loop say, and scenarios on processes that hold no model."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from compressor.bench import scenarios
from compressor.bench.process import Command, Work
from compressor.bench.scenarios import (
    arrival_times,
    arrivals,
    offline,
    p99_of,
    promised_rate,
    rows_of_pass,
    search_rate,
    waits,
)
from compressor.bench.settings import Benchmark, Grid
from compressor.errors import StageError

FAKE = Path(__file__).with_name("fake_subject.py")


def fake(name: str = "model", milliseconds: float = 1.0, mode: str = "sleep") -> Command:
    return Command(name, (sys.executable, str(FAKE), str(milliseconds), mode))


def test_waits_are_those_of_a_queue_served_step_by_step():
    rng = np.random.default_rng(0)
    service, gaps = rng.exponential(0.9, 500), rng.exponential(1.0, 499)
    arrived, free = np.concatenate([[0.0], np.cumsum(gaps)]), 0.0
    for place, moment in enumerate(arrived):
        start = max(moment, free)
        assert waits(service, gaps)[place] == pytest.approx(start - moment, abs=1e-9)
        free = start + service[place]


def test_the_mean_wait_at_fixed_service_is_that_of_pollaczek_and_khinchine():
    for load in (0.3, 0.6, 0.8):
        gaps = np.diff(arrival_times(load, 400_000, seed=3))
        mean = waits(np.ones(400_000), gaps).mean()
        assert mean == pytest.approx(load / (2 * (1 - load)), rel=0.05), load


def test_the_share_that_waits_at_random_service_is_the_load():
    rng = np.random.default_rng(4)
    gaps = np.diff(arrival_times(0.7, 300_000, seed=5))
    waited = waits(rng.exponential(1.0, 300_000), gaps)
    assert (waited > 0).mean() == pytest.approx(0.7, abs=0.01)
    assert np.quantile(waited, 0.99) == pytest.approx(np.log(0.7 / 0.01) / 0.3, rel=0.1)


def test_gaps_of_another_number_than_requests_need_are_refused():
    with pytest.raises(ValueError, match=r"3 requests have 2 gaps between them \(got 3\)"):
        waits(np.ones(3), np.ones(3))


def test_arrivals_are_poisson_and_stretch_with_the_rate():
    slow, fast = arrival_times(10.0, 50_000, seed=1), arrival_times(20.0, 50_000, seed=1)
    assert np.allclose(slow, 2 * fast)
    gaps = np.diff(slow)
    assert gaps.mean() == pytest.approx(0.1, rel=0.02)
    assert gaps.std() == pytest.approx(0.1, rel=0.02)
    assert list(arrival_times(10.0, 1, seed=1)) == [0.0]


def test_the_promised_rate_keeps_the_limit_and_a_higher_one_breaks_it():
    service = np.full(100, 10.0)
    rate = promised_rate(service, 50.0, seed=0)
    assert rate is not None
    for times, kept in ((0.98, True), (1.03, False)):
        gaps = np.diff(arrival_times(times * rate, 20_000, seed=1)) * 1e3
        assert (p99_of(waits(np.full(20_000, 10.0), gaps) + 10.0) <= 50.0) is kept
    assert rate < 100.0


def test_a_limit_below_the_service_promises_no_rate():
    assert promised_rate([10.0, 10.0], 9.0, seed=0) is None


def test_the_search_closes_in_on_the_rate_that_still_keeps_the_limit():
    tried = []

    def trial(rate: float) -> float:
        tried.append(rate)
        return 10.0 if rate <= 100.0 else 99.0

    best = search_rate(80.0, trial, 50.0, trials=8, more=lambda rate: True)
    assert best == max(rate for rate in tried if rate <= 100.0)
    assert best > 97.0
    assert tried[:2] == [80.0, 100.0]
    tried.clear()
    assert search_rate(300.0, trial, 50.0, trials=3, more=lambda rate: True) == 75.0
    assert tried == [300.0, 150.0, 75.0]
    assert search_rate(300.0, trial, 50.0, trials=2, more=lambda rate: True) is None
    assert search_rate(90.0, trial, 50.0, trials=8, more=lambda rate: False) == 90.0


def test_requests_sent_at_their_times_are_answered_and_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenarios, "REQUESTS", 150)
    monkeypatch.setattr(scenarios, "TRIALS", 2)
    found = arrivals(fake(), cpus=None, threads=1, rows=5, seconds_per_row=0.03, limit_ms=40.0)
    assert found.reason is None
    assert found.rows_per_second is not None
    assert found.rows_per_second > 50
    assert len(found.milliseconds) == found.samples == 150
    assert min(found.milliseconds) >= 1.0
    assert p99_of(found.milliseconds) <= 40.0
    assert f"{found.rows_per_second:.2f}/s" in dict(found.tried)


def test_a_queue_that_grows_is_seen_from_outside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenarios, "REQUESTS", 60)
    monkeypatch.setattr(scenarios, "TRIALS", 1)
    found = arrivals(fake(mode="late"), cpus=None, threads=1, rows=5, seconds_per_row=0.03, limit_ms=20.0)
    assert found.rows_per_second is None
    assert "kept p99 within 20 ms" in found.reason
    assert found.tried[0][1] > 100


def test_rates_too_low_for_a_p99_are_not_tried():
    found = arrivals(
        fake(milliseconds=200.0, mode="work"), cpus=None, threads=1, rows=5, seconds_per_row=0.2, limit_ms=300.0
    )
    assert found.reason.startswith("p99 needs 1,000 requests: ")
    assert found.reason.endswith("60 s are given")
    alone = arrivals(
        fake(milliseconds=200.0, mode="work"), cpus=None, threads=1, rows=5, seconds_per_row=0.2, limit_ms=99.0
    )
    assert alone.reason == "of 100 calls one after the other more than one in a hundred took over 99 ms"


def test_a_subject_that_dies_among_requests_is_named():
    with pytest.raises(StageError, match="timing model: loading answered"):
        arrivals(fake(mode="crash"), cpus=None, threads=1, rows=5, seconds_per_row=0.1, limit_ms=100.0)


def test_offline_takes_the_layout_that_answers_most(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenarios, "OFFLINE_SECONDS", 0.1)
    found = offline(lambda threads: fake(milliseconds=2.0), cpus=None, threads=2, rows=10, seconds_per_row=0.002)
    assert (found.processes, found.threads) == (2, 1)
    layouts = dict(found.tried)
    assert layouts["2 x 1 threads"] == found.rows_per_second
    assert layouts["2 x 1 threads"] > 1.4 * layouts["1 x 2 threads"]
    assert found.samples == 3 * 2 * 20


def test_offline_takes_fewer_rows_where_a_pass_would_be_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenarios, "PASS_SECONDS", 0.1)
    found = offline(lambda threads: fake(milliseconds=5.0), cpus=None, threads=2, rows=64, seconds_per_row=0.01)
    assert found.reason == "5 of 64 rows, which take long"
    assert found.rows_per_second is not None
    assert found.samples % (3 * 5) == 0
    assert rows_of_pass(64, 0.02) == [0, 12, 25, 38, 51]
    assert rows_of_pass(64, 1e-9) == list(range(64))
    assert rows_of_pass(64, 1e9) == [0]


def test_offline_on_one_thread_has_one_layout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenarios, "OFFLINE_SECONDS", 0.02)
    work = Work(end_to_end=True)
    found = offline(lambda threads: fake(), cpus=None, threads=1, rows=5, seconds_per_row=0.002, work=work)
    assert [what for what, _rate in found.tried] == ["1 x 1 threads"]
    assert found.work == work


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"scenarios": ["offline"]}, "must hold 'single stream'"),
        ({"scenarios": ["single stream", "arrivals"]}, "p99_ms, such as 50, and scenario arrivals need each other"),
        ({"p99_ms": 20.0}, "need each other"),
        ({"grid": {"batch": [0]}}, "greater than or equal to 1"),
        ({"grid": {"length": ["own"]}}, "'data' or 'padded'"),
        ({"baselines": ["svm"]}, "'tfidf', 'static' or 'small'"),
        ({"price": 0}, "greater than 0"),
    ],
)
def test_a_benchmark_that_makes_no_sense_is_refused(said: dict, words: str):
    with pytest.raises(ValidationError, match=words):
        Benchmark.model_validate(said)


def test_the_default_grid_is_the_plain_work():
    assert list(itertools.product(Grid().batch, Grid().length)) == [(1, "data")]
