"""Gates on `select` and budgets on `test`: each limit held against a score, a time or a size, with three outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from compressor.bench.statistics import Interval, median_interval, p50_by_round, ratio_interval
from compressor.errors import InputError
from compressor.evaluate.metrics import score
from compressor.evaluate.paired import drop, flips, rows_by_interval, rows_to_decide, score_interval
from compressor.evaluate.settings import Budget, LatencyLimit, check_score_limit
from compressor.settings import Limit, parse_limit
from compressor.stage import Gate, Outcome, ScoreLimit

Verdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Answers:
    """What is known of scores: class ids of the subject and of those it may be compared with, on the same rows."""

    references: np.ndarray
    """The rows' own class ids, shape (rows,)."""
    predictions: np.ndarray
    """The subject's class ids, shape (rows,)."""
    compared: Mapping[str, np.ndarray]
    """Id of a stage, or `teacher`, to its class ids."""
    labels: tuple[str, ...]
    """Class names in the order of their ids."""


@dataclass(frozen=True)
class Times:
    """Raw nanoseconds by round, of the subject and of those it may be compared with, all on one engine."""

    subject: Mapping[int, Sequence[int]]
    compared: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class BudgetRow:
    """One limit of a budget and how it ended; value, low and high as fraction, ratio, milliseconds or bytes."""

    what: str
    limit: str
    vs: str | None
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    because: str


def judge(
    gate: Gate,
    logits: np.ndarray,
    compared: Mapping[str, np.ndarray],
    references: Sequence[int | None],
    labels: Sequence[str],
) -> Outcome:
    """How a gate ends on the rows that have a label: on the point estimate, or as a test where it has a `confidence`.

    Args:
        gate: the limits.
        logits: the subject's, shape (rows, classes).
        compared: key of each drop limit in the gate to the logits of the model it is compared with.
        references: the rows' own class ids, None where unlabelled.
        labels: class names in the order of their ids.
    Returns: the verdict, and for each limit the drop (or score) in fractions with its two-sided 95 % interval.
    Raises: InputError for a limit whose metric, class or compared logits are not there.
    """
    answers = answers_from(logits, compared, references, labels)
    verdicts, values, reasons = [], {}, []
    for name, limit in gate.limits.items():
        value, shown, parsed = _measure(name, limit, answers, name, 0.95)
        tested = Interval(value.value, value.value, value.value)
        if gate.confidence is not None:
            tested = _measure(name, limit, answers, name, 2 * gate.confidence - 1)[0]
        verdict = _decide(tested, parsed, parsed.value / 100)
        verdicts.append(verdict)
        values[name] = (value.value, value.low, value.high)
        level = gate.confidence or 0.95
        advice = _advice(name, limit, answers, name, tested=tested, verdict=verdict, level=level)
        reasons.append(f"{shown} is {_points(value, parsed)}, limit {parsed}: {verdict}{advice}")
    overall = worst(verdicts)
    assert overall != "none"
    passed = overall == "pass" or (overall == "undecided" and gate.undecided == "pass")
    return Outcome(overall, passed, "; ".join(reasons), values)


def answers_from(
    logits: np.ndarray, compared: Mapping[str, np.ndarray], references: Sequence[int | None], labels: Sequence[str]
) -> Answers:
    """Class ids on the labelled rows alone, from logits; `compared` maps a name to another model's logits."""
    kept = [row for row, label in enumerate(references) if label is not None]
    if len(references) != len(logits) or not kept:
        raise InputError(f"scores need labelled rows, one answer each ({len(references)} rows, {len(logits)} answers)")
    return Answers(
        references=np.array([references[row] for row in kept], dtype=np.int64),
        predictions=np.asarray(logits)[kept].argmax(-1),
        compared={name: np.asarray(one)[kept].argmax(-1) for name, one in compared.items()},
        labels=tuple(labels),
    )


def judge_budget(
    budget: Budget, *, answers: Answers, on_test: bool, times: Times | str, size_bytes: int | None
) -> tuple[BudgetRow, ...]:
    """One row for each limit of the budget, by one-sided bounds at the budget's confidence: high <= limit passes.

    Args:
        budget: the limits.
        answers: predictions of the finished model and of those compared with.
        on_test: False when there is no test set; a score limit then stays undecided.
        times: raw times of the same, or the reason why there are none.
        size_bytes: of the model file with its external data; None when it is not known.
    """
    rows = [_score_row(name, limit, budget, answers, on_test) for name, limit in budget.scores.items()]
    if budget.latency is not None:
        rows.append(_latency_row(budget.latency, times, 2 * budget.confidence - 1))
    if budget.size is not None:
        limit = parse_limit(budget.size)
        fits: Verdict = "undecided" if size_bytes is None else "pass" if size_bytes <= limit.value * 1e6 else "fail"
        exact = None if size_bytes is None else float(size_bytes)
        because = "size not known" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB, exact"
        rows.append(BudgetRow("size", str(limit), None, exact, exact, exact, fits, because))
    return tuple(rows)


def worst(verdicts: Sequence[Verdict]) -> Literal["pass", "fail", "undecided", "none"]:
    """Verdict of several: fail if any fails, else undecided if any is, else pass; none of nothing.

    >>> worst(["pass", "undecided"])
    'undecided'
    """
    order: tuple[Verdict, ...] = ("fail", "undecided", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "none")


def _score_row(name: str, limit: ScoreLimit | str, budget: Budget, answers: Answers, on_test: bool) -> BudgetRow:
    vs = (limit.vs or "teacher") if isinstance(limit, ScoreLimit) else None
    what = f"{name}.drop" if isinstance(limit, ScoreLimit) else name
    if vs is not None and vs not in answers.compared:
        text = str(parse_limit(limit.drop if isinstance(limit, ScoreLimit) else limit))
        return BudgetRow(what, text, vs, None, None, None, "undecided", f"{vs} was not made")
    value, shown, parsed = _measure(name, limit, answers, vs or "", 2 * budget.confidence - 1)
    verdict = _decide(value, parsed, parsed.value / 100)
    advice = _advice(name, limit, answers, vs or "", tested=value, verdict=verdict, level=budget.confidence)
    if verdict == "pass" and not on_test:
        verdict, advice = "undecided", "; no test set, and a score budget cannot pass on select"
    because = f"{shown} is {_points(value, parsed)}{advice}"
    return BudgetRow(what, str(parsed), vs, value.value, value.low, value.high, verdict, because)


def _latency_row(limit: LatencyLimit, times: Times | str, confidence: float) -> BudgetRow:
    parsed = parse_limit(limit.p50)
    vs = limit.vs if parsed.unit == "x" else None
    if isinstance(times, str) or (vs is not None and vs not in times.compared):
        because = times if isinstance(times, str) else f"{vs} was not timed"
        return BudgetRow("latency.p50", str(parsed), vs, None, None, None, "undecided", because)
    if vs is None:
        found, unit = median_interval(list(times.subject.values()), confidence=confidence), "ms"
    else:
        found, unit = (
            ratio_interval(
                p50_by_round(dict(times.subject)), p50_by_round(dict(times.compared[vs])), confidence=confidence
            ),
            "x",
        )
    because = f"{found.value:.3g}{unit} ({found.low:.3g} to {found.high:.3g})"
    verdict = _decide(found, parsed, parsed.value)
    return BudgetRow("latency.p50", str(parsed), vs, found.value, found.low, found.high, verdict, because)


def _measure(
    name: str, limit: ScoreLimit | str, answers: Answers, compared: str, confidence: float
) -> tuple[Interval, str, Limit]:
    """Interval of what the limit speaks of, its name in words, and the limit."""
    try:
        check_score_limit(name, limit)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not isinstance(limit, ScoreLimit):
        found = score_interval(name, answers.predictions, answers.references, answers.labels, confidence=confidence)
        exact = score(name, answers.predictions, answers.references, answers.labels)
        return Interval(exact, min(found.low, exact), max(found.high, exact)), name, parse_limit(limit)
    parsed = parse_limit(limit.drop)
    if compared not in answers.compared:
        raise InputError(
            f"{name}: no answers of {limit.vs or compared!r}; there are {', '.join(answers.compared) or 'none'}"
        )
    fall = drop(
        name,
        answers.compared[compared],
        answers.predictions,
        answers.references,
        answers.labels,
        confidence=confidence,
        relative=parsed.unit == "%",
    )
    return fall, f"{name} drop vs {limit.vs or ('the input' if compared == name else compared)}", parsed


def _decide(found: Interval, limit: Limit, bound: float) -> Verdict:
    """Three outcomes; a hair is allowed so that 0.3 - 0.1 counts as 0.2."""
    hair = 1e-9
    if limit.relation == "<=":
        return "pass" if found.high <= bound + hair else "fail" if found.low > bound + hair else "undecided"
    return "pass" if found.low >= bound - hair else "fail" if found.high < bound - hair else "undecided"


def _points(value: Interval, limit: Limit) -> str:
    unit = "%" if limit.unit == "%" else " pp"
    return f"{100 * value.value:.2f}{unit} ({100 * value.low:.2f} to {100 * value.high:.2f})"


def _advice(
    name: str,
    limit: ScoreLimit | str,
    answers: Answers,
    compared: str,
    *,
    tested: Interval,
    verdict: Verdict,
    level: float,
) -> str:
    """Words on how many rows would decide what is undecided, at the one-sided confidence `level` of its test."""
    if verdict != "undecided":
        return ""
    rows = len(answers.references)
    if isinstance(limit, ScoreLimit) and name == "accuracy":
        counts = flips(answers.compared[compared], answers.predictions, answers.references)
        share, away = (counts.lost + counts.won) / rows, parse_limit(limit.drop).value / 100
        if away <= 0 or share == 0:
            return ""
        where = f"at {100 * share:.1f} % flips"
        needed: int | None = rows_to_decide(away, share, confidence=level)
    else:
        bound = parse_limit(limit.drop if isinstance(limit, ScoreLimit) else limit).value / 100
        truth, where = (0.0, "if nothing is lost") if isinstance(limit, ScoreLimit) else (tested.value, "at this score")
        needed = rows_by_interval(tested, rows, away=abs(bound - truth), confidence=level)
    if needed is None:
        return ""
    if needed > rows:
        return f"; {rows} rows do not show it, about {needed:,} rows would show it in 4 of 5 cases {where}"
    return (
        f"; {rows} rows do not settle a {'fall' if isinstance(limit, ScoreLimit) else 'score'} this close to the limit"
    )
