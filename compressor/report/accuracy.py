"""Accuracy in depth: classes, lengths, calibration, and what deciding on select flattered."""
# N rows, C classes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.statistics import Interval
from compressor.data.encode import open_encoder
from compressor.data.rows import Text
from compressor.errors import InputError
from compressor.evaluate.breakdown import by_class, by_length
from compressor.evaluate.calibration import calibration_error, confidence, cross_fitted_confidence, fit_temperature
from compressor.evaluate.fidelity import divergence
from compressor.evaluate.gates import Answers, answers_from
from compressor.evaluate.paired import drop, flips, mcnemar
from compressor.report.model import (
    Calibration,
    ClassRow,
    Figure,
    LengthRow,
    Optimism,
    Report,
    SubjectRow,
    Versus,
)
from compressor.report.subjects import Subject


@dataclass(frozen=True)
class Known:
    """The scored rows, and what the subjects answered on select."""

    references: Sequence[int | None]
    """Class ids of the scored rows, None where unlabelled."""
    labels: Sequence[str]
    metric: str
    on_test: bool
    """False where the scored rows are those of select."""
    lengths: np.ndarray | None = None
    """Tokens of each scored row, shape (N,), as `token_lengths` counts them; None leaves out the score by length."""
    select: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Key of a subject to its logits on select; without them a test has no calibration and no optimism."""
    select_references: Sequence[int | None] = ()
    """Class ids of the rows of select."""


def deepen(report: Report, subjects: Sequence[Subject], known: Known, *, reference: str = "teacher") -> Report:
    """The report with classes, lengths and calibration of every subject, McNemar and KL beside the reference, optimism.

    Args:
        report: as `assemble` makes it; its rows are matched with the subjects by name and engine.
        subjects: with logits on the scored rows.
        known: those rows.
        reference: name of the subject that others are compared with.
    Raises: InputError where the logits of the reference are missing, or logits and rows differ in number.
    """
    logits = {one.key: np.asarray(one.logits) for one in subjects if one.logits is not None}
    if reference not in logits:
        raise InputError(f"accuracy in depth needs the answers of {reference}; there are {', '.join(logits) or 'none'}")
    keys: dict[tuple[str, str], str] = {(one.name, one.engine): one.key for one in subjects}

    def deeper(row: SubjectRow) -> SubjectRow:
        key = keys.get((row.name, row.engine))
        if key is None or key not in logits:
            return row
        return row.model_copy(update=_parts(row, logits[key], logits[reference], known, known.select.get(key)))

    found = optimisms(logits, known, reference=reference)
    rows = tuple(deeper(row) for row in report.subjects)
    return report.model_copy(update={"subjects": rows, "optimism": found})


def _parts(
    row: SubjectRow, logits: np.ndarray, reference_logits: np.ndarray, known: Known, select: np.ndarray | None
) -> dict[str, Any]:
    """The fields of a subject's row that are filled here."""
    ours, theirs = (answers_from(one, {}, known.references, known.labels) for one in (logits, reference_logits))
    beside = theirs if row.versus_teacher is not None else None
    found: dict[str, Any] = {
        "classes": class_rows(ours, beside),
        "calibration": calibration(logits, known, select),
    }
    if known.lengths is not None:
        found["lengths"] = length_rows(ours, beside, _labelled(known.lengths, known.references), metric=known.metric)
    if row.versus_teacher is not None:
        found["versus_teacher"] = versus(row.versus_teacher, ours, theirs, divergence(reference_logits, logits))
    return found


def class_rows(answers: Answers, reference: Answers | None) -> tuple[ClassRow, ...]:
    """Precision, recall and its drop of each class; `reference` None leaves the drop out."""
    before = None if reference is None else reference.predictions
    parts = by_class(answers.predictions, answers.references, answers.labels, reference_predictions=before)
    return tuple(
        ClassRow(
            label=part.label,
            rows=part.rows,
            precision=_figure(part.precision),
            recall=_figure(part.recall),
            recall_drop=_figure(part.recall_drop),
        )
        for part in parts
    )


def length_rows(
    answers: Answers, reference: Answers | None, lengths: np.ndarray, *, metric: str
) -> tuple[LengthRow, ...]:
    """Score and drop by length; `lengths` are the tokens of the labelled rows, in their order."""
    before = None if reference is None else reference.predictions
    parts = by_length(
        metric, answers.predictions, answers.references, answers.labels, lengths, reference_predictions=before
    )
    return tuple(
        LengthRow(
            low=part.low,
            high=part.high,
            rows=part.score.rows,
            score=Figure(value=part.score.value, low=part.score.low, high=part.score.high),
            drop=_figure(part.drop),
        )
        for part in parts
    )


def calibration(logits: np.ndarray, known: Known, select: np.ndarray | None) -> Calibration | None:
    """Calibration error on the scored rows, before and after a temperature that was fitted on select.

    Where select is scored itself, each half's error is taken at the temperature of the other. None where the
    answers to select are not given, or where there are fewer than two labelled rows.
    """
    scored, references = _of_labelled(logits, known.references)
    fitted, own = scored, references
    if known.on_test:
        if select is None:
            return None
        fitted, own = _of_labelled(select, known.select_references)
    if min(len(references), len(own)) < 2:
        return None
    right = scored.argmax(-1) == references
    temperature = fit_temperature(fitted, own)
    if known.on_test:
        after = confidence(scored, temperature=temperature)
    else:
        after = cross_fitted_confidence(scored, references)
    return Calibration(
        error=calibration_error(confidence(scored), right),
        temperature=temperature,
        error_after=calibration_error(after, right),
        rows=len(references),
    )


def versus(found: Versus, answers: Answers, reference: Answers, divergences: np.ndarray) -> Versus:
    """The comparison with McNemar's p of the labelled rows and the mean KL of all rows, in nats."""
    counts = flips(reference.predictions, answers.predictions, answers.references)
    return found.model_copy(update={"mcnemar_p": mcnemar(counts.lost, counts.won), "kl": float(np.mean(divergences))})


def optimisms(logits: Mapping[str, np.ndarray], known: Known, *, reference: str = "teacher") -> tuple[Optimism, ...]:
    """For each stage answered on both, its drop on test minus that on select, on which it was decided.

    Args:
        logits: key of a subject to its logits on the scored rows; controls, baselines and other engines are left out.
        known: those rows, and the answers on select.
        reference: the subject that a drop is counted from.
    Returns: empty where there is no test set.
    """
    if not known.on_test or reference not in known.select:
        return ()
    stages = [key for key in logits if key != reference and key in known.select and not set("/@") & set(key)]
    found = []
    for stage in stages:
        before = _fall(known.select[reference], known.select[stage], known.select_references, known)
        after = _fall(logits[reference], logits[stage], known.references, known)
        gap = difference(after, before)
        found.append(Optimism(stage=stage, select=before, test=after, optimism=gap.value, low=gap.low, high=gap.high))
    return tuple(found)


def difference(one: Figure, other: Figure) -> Figure:
    """The first minus the second, of rows apart: on each side half widths add in quadrature.

    As Zou and Donner 2008, https://doi.org/10.1002/sim.3095: the low end takes the first's low and the second's high.

    >>> found = difference(Figure(value=5, low=2, high=6), Figure(value=1, low=0, high=5))
    >>> (found.value, found.low), round(found.high, 3)
    ((4.0, -1.0), 5.414)
    """
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Figure(value=value, low=value - below, high=value + above)


def _fall(reference_logits: np.ndarray, logits: np.ndarray, references: Sequence[int | None], known: Known) -> Figure:
    """Drop from one model to the other on some rows."""
    ours = answers_from(logits, {"reference": reference_logits}, references, known.labels)
    found = drop(known.metric, ours.compared["reference"], ours.predictions, ours.references, known.labels)
    return Figure(**asdict(found))


def token_lengths(folder: Path, texts: Sequence[Text], max_tokens: int) -> np.ndarray:
    """Tokens of each text as the model in `folder` reads it, special ones included, shape (N,), int64."""
    return np.asarray(open_encoder(folder, max_tokens).encode(texts).lengths)


def _labelled(values: np.ndarray, references: Sequence[int | None]) -> np.ndarray:
    """The values of rows that have a label."""
    if len(values) != len(references):
        raise InputError(f"each row needs one value (got {len(values)} for {len(references)} rows)")
    return np.asarray(values)[[label is not None for label in references]]


def _of_labelled(logits: np.ndarray, references: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and class ids of the rows that have one."""
    own = np.array([label for label in references if label is not None], dtype=np.int64)
    return _labelled(np.asarray(logits), references), own


def _figure(interval: Interval | None) -> Figure | None:
    return None if interval is None else Figure(value=interval.value, low=interval.low, high=interval.high)
