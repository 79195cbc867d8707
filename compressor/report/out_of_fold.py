"""What models answered to rows that they never saw, over all folds: scores, their difference, and how it is shown."""
# N rows of all folds together

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from compressor.bench.statistics import Interval
from compressor.evaluate.gates import Answers, BudgetRow, judge_budget, worst
from compressor.evaluate.metrics import score
from compressor.evaluate.paired import Flips, Score, agreement, drop, flips, mcnemar, score_interval
from compressor.evaluate.proportions import wilson
from compressor.evaluate.settings import Budget
from compressor.report.markdown import escaped, fenced, table
from compressor.report.table import WIDTH, percent, points

TEACHER = "teacher"
HEADS = ("", "rows", "teacher %", "final %", "drop (pp)", "agreement %")


@dataclass(frozen=True)
class FoldAnswers:
    """One fold as its run answered it; class ids of shape (rows of the fold,)."""

    run: str
    """The fold's run directory."""
    train_rows: int
    select_rows: int
    stage: str
    """Id of the stage whose model the run deployed."""
    ended: str | None
    """Which gate ended the run, in words; None where it came through."""
    references: np.ndarray
    """The rows' own class ids."""
    answers: Mapping[str, np.ndarray]
    """Id of each stage to its class ids, `teacher` among them."""


@dataclass(frozen=True)
class FoldRow:
    """One fold in figures; shares in fractions."""

    run: str
    rows: int
    train_rows: int
    select_rows: int
    stage: str
    ended: str | None
    teacher: float
    final: float
    agreement: float
    """Share of its rows to which teacher and final model answer alike."""


@dataclass(frozen=True)
class OutOfFold:
    """Teacher and final model on every labelled row, each answered by the run that left its fold out.

    Shares in fractions, intervals two-sided 95 %.
    """

    name: str
    """The recipe's."""
    metric: str
    rows: int
    classes: dict[str, int]
    """Class to its rows."""
    teacher: Score
    final: Score
    drop: Interval
    """How far the score falls from teacher to final, paired row by row; positive is worse."""
    flips: Flips
    """Rows by who is right; `lost` are broken, `won` fixed."""
    p_value: float
    """McNemar's, exact and two-sided: chance of flips so uneven were both equally often right."""
    agreement: Interval
    folds: tuple[FoldRow, ...]
    budgets: tuple[BudgetRow, ...]
    """The recipe's limits of scores, held against all rows."""
    doubts: tuple[str, ...]
    command: str
    """What makes these figures again."""

    @property
    def verdict(self) -> Literal["pass", "fail", "undecided", "none"]:
        """How the limits of scores end; none where the recipe has none."""
        return worst([row.verdict for row in self.budgets])

    def to_dict(self) -> dict[str, Any]:
        """folds.json: the same as JSON's types."""
        return {"schema": 1, "k": len(self.folds), "verdict": self.verdict, **asdict(self)}

    def sentences(self) -> tuple[str, ...]:
        """What the tables leave out: flips, agreement, and each limit of the budget."""
        counts, stages = self.flips, ", ".join(dict.fromkeys(one.stage for one in self.folds))
        found = [
            f"the final model is that of stage {stages}",
            f"{counts.won} rows fixed and {counts.lost} broken by the final model (McNemar p {self.p_value:.2g}), "
            f"{counts.both} right and {counts.neither} wrong in both",
        ]
        limits = [f"budget {row.what} {row.limit}: {row.verdict}, {row.because}" for row in self.budgets]
        return (*found, *limits)

    def text(self) -> str:
        """For the terminal, at most 100 columns wide."""
        rows = [HEADS, *self._table()]
        widths = [max(len(row[place]) for row in rows) for place in range(len(HEADS))]
        lines = [_title(self), *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]
        for sentence in (*self.sentences(), *(f"doubt: {doubt}" for doubt in self.doubts)):
            lines += textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_long_words=False)
        return "\n".join(lines) + "\n"

    def to_markdown(self) -> str:
        """folds.md."""
        out = [f"# {escaped(self.name)}: out-of-fold answers", "", escaped(_title(self)), ""]
        out += table(HEADS, self._table())
        out += [*(f"- {escaped(sentence)}" for sentence in self.sentences()), ""]
        out += table(("class", "rows"), [(name, f"{rows:,}") for name, rows in self.classes.items()])
        out += ["## Doubts", "", *(f"- {escaped(doubt)}" for doubt in self.doubts), ""]
        return "\n".join([*out, "## Again", "", *fenced(self.command)]).rstrip() + "\n"

    def _table(self) -> list[tuple[str, ...]]:
        """All rows, then each fold, in the order of HEADS."""
        every = (points(one) for one in (self.teacher, self.final, self.drop, self.agreement))
        return [
            ("all folds", f"{self.rows:,}", *every),
            *(_fold_cells(number, one) for number, one in enumerate(self.folds, 1)),
        ]


def out_of_fold_report(
    name: str,
    parts: Sequence[FoldAnswers],
    labels: Sequence[str],
    *,
    metric: str,
    budget: Budget,
    doubts: Sequence[str],
    command: str,
) -> OutOfFold:
    """The figures over all folds together, and of each.

    Args:
        name: the recipe's.
        parts: the folds in their order, every labelled row in one of them.
        labels: class names in the order of their ids.
        metric: the task's.
        budget: its limits of scores are held against all rows; a limit beside a stage that a fold did not make stays
            undecided.
        doubts: what a reader should know beside those that the figures show.
        command: what makes them again.
    """
    references = np.concatenate([part.references for part in parts])
    made = [stage for stage in parts[0].answers if all(stage in part.answers for part in parts)]
    pooled = {stage: np.concatenate([part.answers[stage] for part in parts]) for stage in made}
    final = np.concatenate([part.answers[part.stage] for part in parts])
    teacher = pooled[TEACHER]
    counts = flips(teacher, final, references)
    answers = Answers(references, final, pooled, tuple(labels))
    held = judge_budget(_scores_of(budget), answers=answers, on_test=True, times="not timed", size_bytes=None)
    return OutOfFold(
        name=name,
        metric=metric,
        rows=len(references),
        classes={label: int(np.sum(references == place)) for place, label in enumerate(labels)},
        teacher=score_interval(metric, teacher, references, labels),
        final=score_interval(metric, final, references, labels),
        drop=drop(metric, teacher, final, references, labels),
        flips=counts,
        p_value=mcnemar(counts.lost, counts.won),
        agreement=wilson(agreement(teacher, final), len(references)),
        folds=tuple(_fold_row(part, metric, labels) for part in parts),
        budgets=held,
        doubts=(*doubts, *_doubts(parts)),
        command=command,
    )


def _scores_of(budget: Budget) -> Budget:
    """The budget less what folds do not measure."""
    return budget.model_copy(update={"latency": None, "size": None})


def _fold_row(part: FoldAnswers, metric: str, labels: Sequence[str]) -> FoldRow:
    teacher, final = part.answers[TEACHER], part.answers[part.stage]
    return FoldRow(
        run=part.run,
        rows=len(part.references),
        train_rows=part.train_rows,
        select_rows=part.select_rows,
        stage=part.stage,
        ended=part.ended,
        teacher=score(metric, teacher, part.references, labels),
        final=score(metric, final, part.references, labels),
        agreement=agreement(teacher, final),
    )


def _doubts(parts: Sequence[FoldAnswers]) -> list[str]:
    """What the folds themselves give rise to."""
    found = [f"fold {number}: {part.ended}." for number, part in enumerate(parts, 1) if part.ended]
    stages = list(dict.fromkeys(part.stage for part in parts))
    if len(stages) > 1:
        found.append(f"The folds' final models are of different stages: {', '.join(stages)}.")
    share = 1 - 1 / len(parts)
    found.append(
        f"Each fold is one training with one seed on about {100 * share:.0f} % of the rows: the intervals are over "
        "rows and leave out how trainings differ, and a model made of all rows is another one."
    )
    return found


def _title(found: OutOfFold) -> str:
    """What the table shows."""
    return f"{found.name}: {found.metric} on {found.rows:,} rows in {len(found.folds)} folds, each left out once"


def _fold_cells(number: int, one: FoldRow) -> tuple[str, ...]:
    shares = (one.teacher, one.final, one.teacher - one.final, one.agreement)
    return (f"fold {number}", f"{one.rows:,}", *(percent(share) for share in shares))
