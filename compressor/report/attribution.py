"""What distillation and unlabelled rows brought: a student beside controls that were trained without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compressor.evaluate.gates import Answers
from compressor.evaluate.paired import drop
from compressor.report.model import Attribution

Control = Literal["no_kd", "no_mix"]


@dataclass(frozen=True)
class Question:
    """What a control answers, and how its own training differed from the student's."""

    what: Literal["distillation", "unlabelled rows"]
    without: str


QUESTIONS: Mapping[Control, Question] = {
    "no_kd": Question("distillation", "trained on labels alone, at the best of three learning rates on select"),
    "no_mix": Question("unlabelled rows", "trained with the same terms on labelled rows alone"),
}
"""Last part of a control's name to its question."""


def attributions(answers: Mapping[str, Answers], *, metric: str) -> tuple[Attribution, ...]:
    """For each control among the answers, whether the student that it belongs to gained anything over it.

    Args:
        answers: subject to its predictions on the scored rows; a control is called `STAGE/no_kd` or `STAGE/no_mix`.
        metric: of the task.
    """
    found = []
    for name, control in answers.items():
        stage, _, kind = name.rpartition("/")
        for wanted, question in QUESTIONS.items():
            if kind == wanted and stage in answers:
                found.append(_attribution(stage, question, answers[stage], control, metric))
    return tuple(found)


def _attribution(stage: str, question: Question, student: Answers, control: Answers, metric: str) -> Attribution:
    """The gain of the student over its control, on the same rows, with its two-sided 95 % interval."""
    gain = drop(metric, student.predictions, control.predictions, student.references, student.labels)
    verdict: Literal["helped", "hurt", "no evidence"] = (
        "helped" if gain.low > 0 else "hurt" if gain.high < 0 else "no evidence"
    )
    said = f"no evidence that {question.what} helped" if verdict == "no evidence" else f"{question.what} {verdict}"
    shown = f"{_points(gain.value)} [{_points(gain.low)}, {_points(gain.high)}]"
    sentence = (
        f"{said[:1].upper()}{said[1:]} {stage}: {metric} {shown} points against the same student {question.without}, "
        f"on {len(student.references):,} rows."
    )
    return Attribution(
        stage=stage,
        what=question.what,
        value=gain.value,
        low=gain.low,
        high=gain.high,
        verdict=verdict,
        sentence=sentence,
    )


def one_seed(found: Sequence[Attribution]) -> tuple[str, ...]:
    """The doubt that goes with any attribution."""
    if not found:
        return ()
    return (
        "What distillation and unlabelled rows brought rests on one training each: the intervals are over rows, and "
        "another seed would move the figures too.",
    )


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-0.0", "+0.0")
