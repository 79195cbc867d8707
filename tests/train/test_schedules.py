import math
import subprocess
import sys
from typing import get_args

import pytest

from compressor.train.schedules import SCHEDULES, planned_steps, rate_factor, warmup_steps
from compressor.train.settings import Train


def test_table_and_settings_name_the_same_schedules() -> None:
    named = get_args(Train.model_fields["schedule"].annotation)
    assert named
    assert set(named) == set(SCHEDULES)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_every_step_has_a_rate_above_zero_and_at_most_the_peak(schedule: str, warmup: float) -> None:
    rates = [rate_factor(schedule, step, 30, warmup=warmup) for step in range(30)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0


def test_warmup_rises_in_a_straight_line_and_then_the_schedule_falls() -> None:
    rates = [rate_factor("linear", step, 10, warmup=0.4) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([1 - i / 6 for i in range(6)])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rate_factor("cosine", 50, 100) == pytest.approx(0.5)
    assert rate_factor("cosine", 25, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_constant_stays() -> None:
    assert {rate_factor("constant", step, 7) for step in range(7)} == {1.0}


def test_a_step_that_was_not_planned_is_refused() -> None:
    with pytest.raises(ValueError, match="step must be from 0 to 4"):
        rate_factor("linear", 5, 5)


def test_planned_steps_of_epochs_steps_and_default() -> None:
    assert planned_steps(Train(epochs=0.5), lambda _: 9) == 4
    assert planned_steps(Train(steps=7), lambda _: 9) == 7
    assert planned_steps(Train(), lambda _: 9) == 27
    assert planned_steps(Train(), lambda _: 9, limit=2) == 2
    assert planned_steps(Train(epochs=0.01), lambda _: 9) == 1


def test_planned_steps_counts_each_epoch_by_itself() -> None:
    assert planned_steps(Train(epochs=2.5), lambda epoch: [10, 12, 8][epoch]) == 26


def test_warmup_is_rounded_up() -> None:
    assert warmup_steps(3, 0.1) == 1
    assert warmup_steps(100, 0.1) == 10
    assert warmup_steps(10, 0.0) == 0


def test_schedules_load_nothing_heavy() -> None:
    code = "import compressor.train.schedules, compressor.distill.layer_map, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
