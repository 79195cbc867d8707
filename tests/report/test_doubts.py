"""Doubts about a machine, and its grade."""

from dataclasses import replace

import numpy as np
import pytest

from compressor.bench.isolation import Slot, Timing
from compressor.bench.resources import Taken
from compressor.bench.statistics import Interval
from compressor.report.doubts import doubts, machine_quality, of_reference, stolen_share

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


@pytest.mark.parametrize(("flags", "gains"), [(["avx2"], True), (["avx_vnni"], False), (["i8mm"], False), (None, True)])
def test_a_processor_without_sums_of_four_bytes_is_a_doubt(flags, gains):
    assert any("no INT8 dot products (VNNI)" in one for one in found(flags=flags)) == gains


def test_noise_says_what_gain_it_hides():
    (sentence,) = found(noise=Interval(1.0, 0.8, 1.25))
    assert sentence.endswith("so a model must be more than 20 % faster to be called so.")


def test_a_subject_that_never_became_warm_is_named():
    late = replace(TIMING, taken={"slow": taken((9,) * 5 + (1,) * 5, 5), "fast": taken((1,) * 10, 0)})
    (sentence,) = found(late)
    assert sentence == "cpu: slow became faster until the end of the first calls: the warm-up may be too short."


def test_what_the_host_took_is_held_against_the_time_that_was_measured():
    stolen = replace(TIMING, stolen_seconds=0.3, wall_seconds=1.5)  # of two pinned processors
    poor = {"grade": "poor", "because": ["the host took 10.0 % of the time"]}
    assert machine_quality(MACHINE, {"cpu": stolen}, QUIET) == poor
    assert machine_quality(MACHINE | {"processors": 64}, {"cpu": stolen}, QUIET) == poor  # the others are not used
    assert stolen_share(replace(stolen, cpus=None), 4) == pytest.approx(0.05)
    assert stolen_share(TIMING, 2) is None


def test_nothing_timed_has_no_grade():
    assert machine_quality(MACHINE, "timing was switched off", None) == {}


def test_a_teacher_that_is_no_better_than_its_commonest_answer_is_a_doubt_however_many_rows_there_are():
    references = [0, 1] * 2000
    guessed = np.random.default_rng(0).integers(0, 2, 4000)
    (sentence,) = of_reference("teacher", guessed, references, ("no", "yes"), part="select")
    assert sentence.startswith("teacher is right on ")
    assert "of the 4,000 rows of select, not shown to be more than the 50.0 % of always answering no" in sentence
    assert of_reference("teacher", np.array(references), references, ("no", "yes"), part="select") == []


def test_a_class_that_the_teacher_never_answers_is_a_doubt():
    references = [0] * 50 + [1] * 40 + [2] * 10 + [None] * 5
    answered = np.array([0] * 50 + [1] * 50 + [2] * 5)  # the last five rows have no label
    (sentence,) = of_reference("teacher", answered, references, ("a", "b", "c", "d"), part="test")
    assert sentence == "teacher never answers c, which 10 rows of test are."
    assert of_reference("teacher", answered, [None] * 105, ("a", "b", "c", "d"), part="test") == []
