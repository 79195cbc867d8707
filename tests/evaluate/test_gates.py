"""Gates and budgets: three outcomes, said with the reason."""

import re

import numpy as np
import pytest
from pydantic import ValidationError

from compressor.bench.statistics import Interval
from compressor.errors import InputError
from compressor.evaluate.gates import Answers, BudgetRow, Times, judge, judge_budget, worst
from compressor.evaluate.paired import rows_by_interval, rows_to_decide
from compressor.evaluate.settings import Budget
from compressor.stage import Gate

LABELS = ("no", "yes")


def logits_of(classes: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[classes]


def with_errors(references: np.ndarray, wrong: int) -> np.ndarray:
    """Answers that are wrong on the first `wrong` rows."""
    answers = references.copy()
    answers[:wrong] = 1 - answers[:wrong]
    return answers


REFERENCES = np.random.default_rng(0).integers(0, 2, 1000)


def gated(gate: dict, wrong: int, before: int = 0, references: np.ndarray = REFERENCES):
    compared = {"accuracy": logits_of(with_errors(references, before))}
    return judge(
        Gate.model_validate(gate), logits_of(with_errors(references, wrong)), compared, list(references), LABELS
    )


@pytest.mark.parametrize(("wrong", "verdict"), [(8, "pass"), (9, "fail"), (0, "pass")])
def test_a_gate_decides_on_the_point_estimate_at_the_very_limit(wrong: int, verdict: str):
    outcome = gated({"accuracy": {"drop": "<= 0.8pp"}}, wrong)
    assert outcome.verdict == verdict
    assert outcome.passed == (verdict == "pass")
    value, low, high = outcome.values["accuracy"]
    assert value == pytest.approx(wrong / 1000)
    assert low <= value <= high


@pytest.mark.parametrize(("wrong", "verdict"), [(2, "pass"), (20, "undecided"), (60, "fail")])
def test_a_gate_with_confidence_has_three_outcomes(wrong: int, verdict: str):
    limit = {"accuracy": {"drop": "<= 2pp"}, "confidence": 0.95}
    assert gated(limit, wrong).verdict == verdict
    assert gated({**limit, "undecided": "fail"}, wrong).passed == (verdict == "pass")
    assert gated(limit, wrong).passed == (verdict != "fail")


def test_an_undecided_gate_says_how_many_rows_it_needs():
    outcome = gated({"accuracy": {"drop": "<= 1pp", "vs": "slim"}, "confidence": 0.95}, 29, 25)
    assert outcome.verdict == "pass"
    few = REFERENCES[:100]
    outcome = gated({"accuracy": {"drop": "<= 1pp", "vs": "slim"}, "confidence": 0.95}, 4, 2, few)
    assert "accuracy drop vs slim is 2.00 pp" in outcome.because
    wanted = "100 rows do not show it, about 1,237 rows would show it in 4 of 5 cases at 2.0 % flips"
    assert wanted in outcome.because


def test_the_rows_that_would_decide_are_those_of_the_tests_own_confidence():
    for confidence in (0.9, 0.99):
        gate = {"accuracy": {"drop": "<= 1pp", "vs": "slim"}, "confidence": confidence}
        wanted = rows_to_decide(0.01, 0.02, confidence=confidence)
        assert f"about {wanted:,} rows" in gated(gate, 4, 2, REFERENCES[:100]).because
        answers = Answers(REFERENCES, with_errors(REFERENCES, 20), {"teacher": REFERENCES}, LABELS)
        budget = Budget.model_validate({"accuracy": {"drop": "<= 2pp"}, "confidence": confidence})
        (row,) = judge_budget(budget, answers=answers, on_test=True, times="not timed", size_bytes=None)
        wanted = rows_to_decide(0.02, 0.02, confidence=confidence)
        assert wanted < 1000 or f"about {wanted:,} rows" in row.because


@pytest.mark.parametrize(
    ("limit", "where"),
    [({"macro_f1": {"drop": "<= 2pp"}}, "if nothing is lost"), ({"accuracy": ">= 97.8pp"}, "at this score")],
)
def test_rows_that_would_decide_are_told_for_every_score(limit: dict, where: str):
    """200 rows, 3 of them wrong."""
    (name,) = limit
    answers, few = with_errors(REFERENCES, 3)[:200], REFERENCES[:200]
    gate = Gate.model_validate({**limit, "confidence": 0.95})
    because = judge(gate, logits_of(answers), {name: logits_of(few)}, few.tolist(), LABELS).because
    found = re.search(r"200 rows do not show it, about ([\d,]+) rows would show it in 4 of 5 cases (.*)", because)
    assert found is not None, because
    assert found[2] == where
    assert int(found[1].replace(",", "")) > 200


def test_rows_by_interval_are_those_of_a_share():
    """A share of 0.9 on 500 rows, held against 0.89: the normal interval's arithmetic."""
    half = 1.6448536269514722 * np.sqrt(0.9 * 0.1 / 500)
    wanted = 0.9 * 0.1 * ((1.6448536269514722 + 0.8416212335729143) / 0.01) ** 2
    assert rows_by_interval(Interval(0.9, 0.9 - half, 0.9 + half), 500, away=0.01) == np.ceil(wanted)
    assert rows_by_interval(Interval(0.9, 0.9, 0.9), 500, away=0.0) is None


def test_a_score_limit_and_a_relative_drop_are_understood():
    outcome = gated({"accuracy": ">= 99pp"}, 10)
    assert outcome.verdict == "pass"
    assert gated({"accuracy": ">= 99pp"}, 11).verdict == "fail"
    assert gated({"accuracy": {"drop": "<= 1%"}}, 509, 500).verdict == "fail"
    assert gated({"accuracy": {"drop": "<= 1%"}}, 504, 500).verdict == "pass"


def test_rows_without_a_label_do_not_count():
    references: list[int | None] = [0, 1, None, None]
    gate = Gate.model_validate({"accuracy": ">= 99pp"})
    outcome = judge(gate, logits_of(np.array([0, 1, 1, 1])), {}, references, LABELS)
    assert outcome.values["accuracy"][0] == 1.0


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"acuracy": ">= 99pp"}, "'acuracy' is not a metric"),
        ({"macro_f1": {"drop": "<= 1pp", "vs": "slim"}}, "macro_f1: no answers of 'slim'"),
        ({"accuracy": {"drop": ">= 1pp"}}, "accuracy.drop must look like"),
        ({"accuracy": "<= 1ms"}, "accuracy must look like '>= 84pp'"),
    ],
)
def test_a_gate_that_cannot_be_judged_says_why(gate: dict, message: str):
    with pytest.raises(InputError, match=message):
        gated(gate, 1)


def test_a_gate_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="needs a limit such as accuracy"):
        Gate.model_validate({"else": "warn"})


def budget_rows(
    budget: dict, *, wrong: int = 2, on_test: bool = True, times: Times | str = "switched off", size: int | None = 10**7
) -> dict[str, BudgetRow]:
    answers = Answers(REFERENCES, with_errors(REFERENCES, wrong), {"teacher": REFERENCES}, LABELS)
    rows = judge_budget(Budget.model_validate(budget), answers=answers, on_test=on_test, times=times, size_bytes=size)
    return {row.what: row for row in rows}


def timed(ratio: float, rounds: int = 15) -> Times:
    rng = np.random.default_rng(0)
    teacher = {one: [int(4e6 * rng.lognormal(0, 0.03))] * 30 for one in range(rounds)}
    return Times({one: [int(ratio * taken[0])] * 30 for one, taken in teacher.items()}, {"teacher": teacher})


@pytest.mark.parametrize(("wrong", "verdict"), [(2, "pass"), (20, "undecided"), (60, "fail")])
def test_a_score_budget_holds_its_one_sided_bounds_against_the_limit(wrong: int, verdict: str):
    row = budget_rows({"accuracy": {"drop": "<= 2pp"}}, wrong=wrong)["accuracy.drop"]
    assert row.verdict == verdict
    assert row.vs == "teacher"
    assert row.value == pytest.approx(wrong / 1000)
    assert row.low <= row.value <= row.high


def test_without_a_test_set_a_score_budget_cannot_pass_but_can_fail():
    row = budget_rows({"accuracy": {"drop": "<= 2pp"}}, on_test=False)["accuracy.drop"]
    assert row.verdict == "undecided"
    assert "no test set" in row.because
    assert budget_rows({"accuracy": {"drop": "<= 2pp"}}, wrong=60, on_test=False)["accuracy.drop"].verdict == "fail"


@pytest.mark.parametrize(
    ("limit", "verdict"), [("<= 0.6x", "pass"), ("<= 0.4x", "fail"), ("<= 5ms", "pass"), ("<= 1ms", "fail")]
)
def test_a_latency_budget_is_a_ratio_or_a_time(limit: str, verdict: str):
    row = budget_rows({"latency": {"p50": limit}}, times=timed(0.5))["latency.p50"]
    assert row.verdict == verdict
    assert (row.vs is None) == limit.endswith("ms")
    assert row.value == pytest.approx(0.5 if limit.endswith("x") else 2.0, rel=0.1)


def test_latency_that_was_not_measured_is_undecided_with_the_reason():
    row = budget_rows({"latency": {"p50": "<= 0.1x"}}, times="smoke run")["latency.p50"]
    assert (row.verdict, row.value, row.because) == ("undecided", None, "smoke run")
    row = budget_rows({"latency": {"p50": "<= 0.1x", "vs": "slim"}}, times=timed(0.5))["latency.p50"]
    assert (row.verdict, row.because) == ("undecided", "slim was not timed")


@pytest.mark.parametrize(("size", "verdict"), [(40_000_000, "pass"), (40_000_001, "fail"), (None, "undecided")])
def test_a_size_is_exact(size: int | None, verdict: str):
    assert budget_rows({"size": "<= 40MB"}, size=size)["size"].verdict == verdict


def test_one_failure_outweighs_doubt_and_doubt_outweighs_success():
    assert worst(["pass", "undecided", "fail"]) == "fail"
    assert worst(["pass", "undecided"]) == "undecided"
    assert worst(["pass"]) == "pass"
    assert worst([]) == "none"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"acuracy": ">= 84pp"}, "is not a metric"),
        ({"accuracy": 0.8}, "must be a comparison with a unit"),
        ({"accuracy": "84pp"}, "must be a comparison with a unit"),
        ({"size": "<= 4x"}, "size must look like '<= 40MB'"),
        ({"latency": {"p50": "<= 4pp"}}, "p50 must look like '<= 0.1x' or '<= 5ms'"),
        ({"latency": {"p99": "<= 4ms"}}, "p99"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(budget: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        Budget.model_validate(budget)


def test_a_budget_against_a_stage_that_was_not_made_is_undecided():
    import numpy as np

    from compressor.evaluate.gates import Answers, judge_budget
    from compressor.evaluate.settings import Budget

    ids = np.array([0, 1, 0, 1])
    known = Answers(ids, ids, {"teacher": ids}, ("no", "yes"))
    budget = Budget.model_validate({"accuracy": {"drop": "<= 1pp", "vs": "slim"}})
    (row,) = judge_budget(budget, answers=known, on_test=True, times="not timed", size_bytes=None)
    assert (row.what, row.vs, row.verdict, row.because) == ("accuracy.drop", "slim", "undecided", "slim was not made")
