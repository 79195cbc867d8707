"""Doubts about a machine, and its grade."""

from dataclasses import replace

from compressor.bench.isolation import Slot, Timing
from compressor.bench.resources import Taken
from compressor.bench.statistics import Interval
from compressor.report.doubts import doubts, machine_quality

QUIET = Interval(1.0, 0.995, 1.005)
MACHINE = {"flags": ["avx512_vnni"], "usable": 2, "processors": 2, "virtual": False, "quota": None, "pressure": 0.0}
SLOTS = tuple(Slot("teacher", number, 0, (0,) * 10, (10_000_000,) * 10) for number in range(15))
TIMING = Timing(SLOTS, 2, (0, 1), {"teacher": 0.5}, 0.02, 0.5, 0.0, 0)


def found(timing: Timing = TIMING, noise: Interval = QUIET, **machine: object) -> list[str]:
    return doubts(on_test=True, rows=800, timings={"cpu": timing}, noise=noise, machine=MACHINE | machine)


def taken(first_calls: tuple[int, ...], warm_from: int) -> Taken:
    return Taken(1.0, first_calls, warm_from, None, None)


def test_a_quiet_machine_leaves_no_doubt_and_is_good():
    assert found() == []
    assert machine_quality(MACHINE, {"cpu": TIMING}, QUIET)["grade"] == "good"


def test_a_quota_and_pressure_are_said():
    assert "A quota of 1.5 processors stops 2 threads in every period." in found(quota=1.5)
    assert "Something waited for a processor in 40 % of the last minute." in found(pressure=0.4)


def test_noise_says_what_gain_it_hides():
    (sentence,) = found(noise=Interval(1.0, 0.8, 1.25))
    assert sentence.endswith("so a model must be more than 20 % faster to be called so.")


def test_a_subject_that_never_became_warm_is_named():
    late = replace(TIMING, taken={"slow": taken((9,) * 5 + (1,) * 5, 5), "fast": taken((1,) * 10, 0)})
    (sentence,) = found(late)
    assert sentence == "cpu: slow became faster until the end of the first calls: the warm-up may be too short."


def test_what_the_host_took_is_held_against_the_time_that_was_measured():
    stolen = replace(TIMING, stolen_seconds=0.3)  # 15 rounds of 0.1 s on two processors
    assert machine_quality(MACHINE, {"cpu": stolen}, QUIET) == {
        "grade": "poor",
        "because": ["the host took 10.0 % of the time"],
    }


def test_nothing_timed_has_no_grade():
    assert machine_quality(MACHINE, "timing was switched off", None) == {}
