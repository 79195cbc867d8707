"""The clock and the filling of slots."""

from compressor.bench.timer import plan_slots, rows_of_round, time_calls


def test_warm_up_calls_are_made_but_not_timed():
    called: list[int] = []
    ticks = iter(range(0, 100, 10))
    assert time_calls(called.append, [7, 8], warmup=3, clock=lambda: next(ticks)) == [10, 10]
    assert called == [7, 8, 7, 7, 8]


def test_no_rows_take_no_time():
    assert time_calls(print, [], warmup=3) == []


def test_slots_last_about_as_long_for_fast_and_slow_subjects():
    plan = plan_slots([30e6, 3e6, 0.3e6], 64)
    assert plan.rows_per_round == 10
    for repeat, milliseconds in zip(plan.repeats, [30, 3, 0.3], strict=True):
        assert 250 <= plan.rows_per_round * repeat * milliseconds <= 350


def test_a_slow_subject_still_gets_eight_rows():
    assert plan_slots([1e9], 64).rows_per_round == 8
    assert plan_slots([1e9], 3).rows_per_round == 3
    assert plan_slots([1e9], 64, fewest=4).rows_per_round == 4


def test_all_rows_take_part_over_the_rounds():
    seen = [row for number in range(15) for row in rows_of_round(number, 10, 64)]
    assert set(seen) == set(range(64))
