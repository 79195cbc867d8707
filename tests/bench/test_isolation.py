"""Subjects in processes of their own."""

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_subject import FIRST_SLOW

from compressor.bench import process
from compressor.bench.isolation import MORE_ROUNDS, time_in_turn
from compressor.bench.process import PLAIN, Command, Work
from compressor.errors import StageError

FAKE = Path(__file__).with_name("fake_subject.py")


def fake(name: str, milliseconds: float = 10.0, mode: str = "work") -> Command:
    return Command(name, (sys.executable, str(FAKE), str(milliseconds), mode))


def test_every_subject_times_the_same_rows_in_every_round():
    timing = time_in_turn([fake("slow", 40.0), fake("fast", 4.0), fake("mid", 8.0)], rows=20, rounds=4, threads=1)
    assert len(timing.slots) == 12
    for number in range(4):
        rows = {slot.subject: set(slot.rows) for slot in timing.slots if slot.round == number}
        assert rows["slow"] == rows["fast"] == rows["mid"]
    fast, slow = (next(slot for slot in timing.slots if slot.subject == name) for name in ("fast", "slow"))
    assert len(fast.rows) > len(slow.rows)
    assert set(timing.rounds_of("slow")) == {0, 1, 2, 3}
    assert fast.nanoseconds[0] == 4_000_000 + fast.rows[0]


def test_further_lots_of_rounds_are_timed_while_they_are_wanted():
    seen: list[int] = []

    def undecided(slots: list) -> bool:
        seen.append(len(slots))
        return len(seen) < 2

    timing = time_in_turn([fake("a"), fake("b")], rows=8, rounds=2, threads=1, looks=3, undecided=undecided)
    assert seen == [4, 8]
    assert [slot.round for slot in timing.slots] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (timing.looks, timing.rounds_a_look) == (3, 2)
    assert timing.wall_seconds is not None
    once = time_in_turn([fake("a")], rows=8, rounds=2, threads=1, looks=3)
    assert len(once.slots) == 2
    with pytest.raises(ValueError, match=r"looks must be 1 to 3 \(got 4\)"):
        time_in_turn([fake("a")], rows=8, rounds=2, threads=1, looks=4)


def test_the_order_changes_from_round_to_round():
    timing = time_in_turn([fake("a"), fake("b")], rows=8, rounds=4, threads=1)
    first = [slot.subject for slot in timing.slots if slot.place == 0]
    assert sorted(first[:2]) == sorted(first[2:]) == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin")
def test_subjects_are_pinned_to_as_many_processors_as_they_have_threads():
    before = os.sched_getaffinity(0)
    timing = time_in_turn([fake("a", 1.0, "affinity")], rows=1, rounds=1, threads=1)
    assert set(timing.slots[0].nanoseconds) == {1_000_000}
    assert len(timing.cpus or ()) == 1
    assert os.sched_getaffinity(0) == before


def test_a_subject_that_dies_is_named_with_its_last_words():
    with pytest.raises(StageError, match=r"timing broken: loading answered ''.*no such model"):
        time_in_turn([fake("good"), fake("broken", mode="crash")], rows=4, rounds=1, threads=1)


def test_a_subject_that_answers_something_else_is_named():
    with pytest.raises(StageError, match=r"timing odd: round -1 answered 'hello"):
        time_in_turn([fake("odd", mode="garbage")], rows=4, rounds=1, threads=1)


def test_a_subject_that_stays_silent_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(StageError, match=r"timing silent: round -1 took more than 0.5 s"):
        time_in_turn([fake("silent", mode="hang")], rows=4, rounds=1, threads=1)
    assert time.monotonic() - start < 30
    assert threading.active_count() < 10


def test_two_subjects_of_one_name_are_refused():
    with pytest.raises(ValueError, match="different names"):
        time_in_turn([fake("a"), fake("a")], rows=4, rounds=1, threads=1)


def test_further_work_is_timed_apart_from_the_rounds_of_the_ratios():
    whole, batch = Work(end_to_end=True), Work(batch=4, length="padded")
    commands = [fake("a", 4.0), fake("b", 2.0)]
    timing = time_in_turn(commands, rows=12, rounds=6, threads=1, more={whole: ["a", "b"], batch: ["b"]})
    assert len(timing.rounds_of("a")) == 6
    assert len(timing.rounds_of("a", whole)) == MORE_ROUNDS
    assert timing.works_of("a") == (PLAIN, whole)
    assert timing.works_of("b") == (PLAIN, whole, batch)
    plain, tokenized = timing.rounds_of("a")[0], timing.rounds_of("a", whole)[0]
    assert np.median(tokenized) == pytest.approx(2 * np.median(plain), rel=0.01)
    assert np.median(timing.rounds_of("b", batch)[0]) == pytest.approx(8e6, rel=0.01)
    assert sum(len(one) for one in timing.rounds_of("b", batch).values()) >= 20


def test_the_first_calls_are_kept_and_say_when_the_subject_was_warm():
    timing = time_in_turn([fake("late", 1.0, "slow start"), fake("even", 1.0)], rows=8, rounds=1, threads=1)
    late, even = timing.taken["late"], timing.taken["even"]
    assert len(late.first_calls) > 2 * FIRST_SLOW
    assert late.warm_from == FIRST_SLOW
    assert even.warm_from < FIRST_SLOW
    assert 0 < late.cold_seconds < 30


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory")
def test_memory_is_what_a_process_takes_above_an_empty_one():
    lean = time_in_turn([fake("lean")], rows=4, rounds=1, threads=1, empty=fake("nothing"))
    assert 0 <= lean.taken["lean"].peak_bytes < 20_000_000
    unknown = time_in_turn([fake("lean")], rows=4, rounds=1, threads=1)
    assert unknown.taken["lean"].peak_bytes is None


def test_progress_names_what_is_timed():
    said = []
    time_in_turn(
        [fake("a", 1.0)],
        rows=4,
        rounds=2,
        threads=1,
        more={Work(end_to_end=True): ["a"], Work(batch=2, length=16): ["a"], Work(batch=3): []},
        progress=lambda what, done, total: said.append((what, done, total)),
    )
    assert said[1] == ("timing", 2, 2)
    assert {what for what, _done, _total in said} == {"timing", "timing with tokenizing", "timing batch 2, 16 tokens"}
