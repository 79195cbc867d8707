"""What simple models reach on the rows of the report, and whether one of them would do in place of the deployed one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from compressor.bench.settings import BaselineName
from compressor.data.rows import DataSets, Text
from compressor.errors import CompressorError, InputError
from compressor.evaluate.gates import Answers, BudgetRow, judge_budget
from compressor.evaluate.paired import drop, score_interval
from compressor.evaluate.settings import Budget
from compressor.model.manifest import MANIFEST_NAME
from compressor.report.linear import Simple, fit_static, fit_tfidf
from compressor.report.model import Baseline, Figure, MetricFigure
from compressor.report.simpler import TITLES, percent
from compressor.report.small_model import Small, small_answers
from compressor.report.subjects import draw_texts
from compressor.stage import Progress, silent

Clock = Callable[[], int]
"""Nanoseconds on a clock that never goes back."""
TIMED, UNTIMED, SECONDS = 200, 10, 2.0
"""Rows timed one by one, those before them that do not count, and the most that timing may take."""
MARGIN = 0.01
"""How far behind the deployed model, in fractions, something that suffices may be at most where no budget says it."""
FAILURES = (CompressorError, ValueError, OSError, RuntimeError)
"""What a baseline may fail with: input that does not suit it, scikit-learn's ValueError, a full disk, torch's error."""


@dataclass(frozen=True)
class Held:
    """The deployed model and what it was judged on, which baselines are held against."""

    texts: Sequence[Text]
    """The scored rows."""
    references: Sequence[int | None]
    """Their class ids, None where unlabelled."""
    logits: Mapping[str, np.ndarray]
    """Subject to its logits on those rows, shape (rows, classes): the teacher, the deployed model, what limits name."""
    deployed: str
    """Name of the deployed model."""
    teacher: str = "teacher"
    """Name of the model that drops are taken from."""
    budget: Budget | None = None
    """Its score limits are held against baselines too."""


@dataclass(frozen=True)
class Baselines:
    """Those that were made, the simplest first, and a sentence for each that could not be."""

    made: tuple[Baseline, ...]
    doubts: tuple[str, ...]


def make_baselines(
    names: Sequence[BaselineName],
    data: DataSets,
    teacher: Path,
    held: Held,
    *,
    work: Path,
    small: Small | None = None,
    threads: int | None = None,
    device: str = "cpu",
    seed: int = 17,
    timing: bool = True,
    smoke: bool = False,
    progress: Progress = silent,
    clock: Clock = time.perf_counter_ns,
) -> Baselines:
    """What each named baseline reaches on the labelled rows of `held`, learned from the train rows of `data`.

    All choices are made on `select`. A baseline that fails becomes a doubt; it never ends the report.

    Args:
        names: of BASELINES, in any order.
        data: rows, class names, metric and longest row.
        teacher: folder with the teacher's safetensors: static vectors are made of it, and the small model unless
            `small` says where another is.
        held: the deployed model.
        work: folder for the small model's training and export; a training found there is not repeated.
        small: the small model that is there already, or its shape.
        threads: of the small model on onnxruntime; None takes all that this process may use.
        device: that the small model is trained on.
        seed: of all draws.
        timing: False leaves the time of a row out.
        smoke: trains the small model for 2 steps.
        progress: called while it works.
        clock: for the time of a row and of the making.
    Raises: InputError for logits that are missing or of another number of rows, or where no row has a label.
    """
    kept, answers = _judged_rows(held, data)
    given = Small() if small is None else small
    makers: Mapping[str, Callable[[], Simple]] = {
        "tfidf": lambda: fit_tfidf(data, seed=seed, progress=progress),
        "static": lambda: fit_static(data, teacher, kept, seed=seed, progress=progress),
        "small": lambda: small_answers(
            given,
            data,
            teacher,
            work=work / "small",
            threads=threads,
            seed=seed,
            device=device,
            smoke=smoke,
            progress=progress,
        ),
    }
    made, doubts = [], []
    for name in (name for name in TITLES if name in names):
        began = clock()
        there = name == "small" and (given.folder is not None or (work / "small" / "model" / MANIFEST_NAME).is_file())
        try:
            simple = makers[name]()
            seconds = None if there else (clock() - began) / 1e9
            row = _row(name, simple, kept, answers, held, data)
            spent = row_milliseconds(simple.answer, kept, seed=seed, clock=clock) if timing else None
        except FAILURES as failure:
            doubts.append(f"Baseline {name} could not be made: {_one_line(failure)}.")
            continue
        made.append(row.model_copy(update={"seconds": seconds, "milliseconds": spent}))
    return Baselines(tuple(made), tuple(doubts))


def row_milliseconds(
    answer: Callable[[Sequence[Text]], object], texts: Sequence[Text], *, seed: int = 17, clock: Clock
) -> float:
    """Median time of one text alone, tokenizing and all, in this process; some texts are drawn and asked in turn.

    The first ten do not count; 200 do, or as many as two seconds hold, but one at least.
    """
    drawn = draw_texts(texts, seed=seed)
    for place in range(UNTIMED):
        answer([drawn[place % len(drawn)]])
    samples: list[int] = []
    start = clock()
    while not samples or (len(samples) < TIMED and clock() - start < SECONDS * 1e9):
        text = drawn[len(samples) % len(drawn)]
        before = clock()
        answer([text])
        samples.append(clock() - before)
    return float(np.median(samples)) / 1e6


def _judged_rows(held: Held, data: DataSets) -> tuple[list[Text], Answers]:
    """Texts of the labelled rows, and the deployed model's answers to them beside those of all others."""
    for name in (held.deployed, held.teacher):
        if name not in held.logits:
            raise InputError(f"baselines need the answers of {name!r}; there are {', '.join(held.logits) or 'none'}")
    kept = [place for place, label in enumerate(held.references) if label is not None]
    wrong = [name for name, one in held.logits.items() if len(one) != len(held.references)]
    if not kept or wrong or len(held.texts) != len(held.references):
        shown = f"{wrong[0]} has {len(held.logits[wrong[0]])} answers" if wrong else f"{len(held.texts)} texts"
        raise InputError(f"baselines need labelled rows, one answer each ({len(held.references)} rows, {shown})")
    compared = {name: np.asarray(one)[kept].argmax(-1) for name, one in held.logits.items()}
    references = np.array([held.references[place] for place in kept], dtype=np.int64)
    answers = Answers(references, compared[held.deployed], compared, tuple(data.labels))
    return [held.texts[place] for place in kept], answers


def _row(name: str, simple: Simple, texts: Sequence[Text], answers: Answers, held: Held, data: DataSets) -> Baseline:
    """The baseline's score beside the deployed model's and the teacher's, on the same rows."""
    metric = data.task.metric
    predictions = np.asarray(simple.answer(texts), dtype=np.int64)
    found = score_interval(metric, predictions, answers.references, answers.labels)
    fallen, behind = (
        Figure(**asdict(drop(metric, answers.compared[other], predictions, answers.references, answers.labels)))
        for other in (held.teacher, held.deployed)
    )
    limits = _limits(replace(answers, predictions=predictions), held)
    row = Baseline(
        name=name,
        what=simple.what,
        metric=MetricFigure(**asdict(found), name=metric),
        drop=fallen,
        behind_best=behind,
        bytes=simple.bytes,
        suffices=behind.low <= 0
        and (all(one.verdict == "pass" for one in limits) if limits else behind.high <= MARGIN),
    )
    return row.model_copy(update={"sentence": _sentence(row, held.deployed, limits)})


def _limits(answers: Answers, held: Held) -> list[BudgetRow]:
    """How the score limits of the budget end for the answers."""
    if held.budget is None:
        return []
    scores = held.budget.model_copy(update={"latency": None, "size": None})
    compared = {**answers.compared, "teacher": answers.compared.get("teacher", answers.compared[held.teacher])}
    found = replace(answers, compared=compared)
    return list(judge_budget(scores, answers=found, on_test=True, times="not asked", size_bytes=None))


def _sentence(row: Baseline, deployed: str, limits: Sequence[BudgetRow]) -> str:
    """What it reaches, how far that is behind the deployed model, and whether it suffices."""
    behind, sign = row.behind_best, 1 if row.behind_best.value >= 0 else -1
    low, high = sorted((100 * sign * behind.low + 0.0, 100 * sign * behind.high + 0.0))
    words = "behind" if sign > 0 else "ahead of"
    broken = [f"{one.what} {one.limit}" for one in limits if one.verdict == "fail"]
    if behind.low > 0:
        ending = "it does not suffice"
    elif broken:
        ending = f"not shown to be worse, but it breaks {' and '.join(broken)}, so it does not suffice"
    elif row.suffices:
        kept = "it is not shown to be worse and keeps the budget's scores"
        ending = f"{kept if limits else f'it is at most {100 * MARGIN:g} pp worse'}: it suffices"
    else:
        ending = "these rows do not settle whether it suffices"
    title = TITLES.get(row.name, row.name)
    return (
        f"{title} reaches {percent(row)}, {100 * abs(behind.value):.1f} pp {words} the deployed model {deployed} "
        f"({low:.1f} to {high:.1f}) on {row.metric.rows:,} rows: {ending}."
    )


def _one_line(failure: BaseException) -> str:
    """The first line of what went wrong, without its full stop."""
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0].rstrip(".")
