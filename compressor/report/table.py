"""The report as plain text for the terminal, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Protocol

from compressor.report.model import Figure, Report, SubjectRow
from compressor.report.simpler import verdict_note

WIDTH = 100
HEADS = ("model", "prec.", "MB", "score %", "drop (pp)", "p50 ms", "time vs teacher", "speed")


class Spread(Protocol):
    """A value with the ends of its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def points(figure: Spread | None) -> str:
    """A fraction with its interval, in percent or percentage points; a dash for None.

    >>> points(Figure(value=0.008, low=-0.002, high=0.018))
    '0.8 [-0.2, 1.8]'
    """
    if figure is None:
        return "-"
    return f"{percent(figure.value)} [{percent(figure.low)}, {percent(figure.high)}]"


def ratio(figure: Figure | None) -> str:
    """A ratio with its interval; a dash for None.

    >>> ratio(Figure(value=0.1, low=0.09, high=0.112))
    '0.100 [0.090, 0.112]'
    """
    return "-" if figure is None else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def percent(share: float) -> str:
    """A fraction in percent, without a zero below nothing.

    >>> percent(0.1234), percent(-0.0001)
    ('12.3', '0.0')
    """
    return f"{100 * share:.1f}".replace("-0.0", "0.0")


def plain(value: object) -> str:
    """A JSON value as a reader would write it.

    >>> plain({"torch": "2.13", "rows": [1, 2]}), plain(None)
    ('torch 2.13, rows 1 2', 'not known')
    """
    if value is None:
        return "not known"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return " ".join(plain(one) for one in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def megabytes(size: int | None) -> str:
    """Bytes in units of 10^6, small ones with more places; a dash for None.

    >>> megabytes(15_340_000), megabytes(4_200), megabytes(None)
    ('15.3', '0.004', '-')
    """
    return "-" if size is None else f"{size / 1e6:.{1 if size >= 95_000 else 3}f}"


def cells(row: SubjectRow) -> tuple[str, ...]:
    """One subject as the texts of a line, in the order of HEADS."""
    name = row.name if row.engine == "onnxruntime" else f"{row.name} ({row.engine})"
    p50 = row.latency[0].p50_ms if row.latency else None
    versus = row.versus_teacher
    return (
        name if row.same_as is None or "/" in row.name else f"{name} = {row.same_as}",
        row.precision,
        megabytes(row.bytes),
        points(row.metric),
        points(versus.drop) if versus else "-",
        "-" if p50 is None else f"{p50:.3g}",
        ratio(versus.latency_ratio) if versus else "-",
        (versus.speed_verdict if versus else None) or "-",
    )


def chain(report: Report) -> list[SubjectRow]:
    """The reference and what was made of it, step by step: on onnxruntime, without baselines and controls."""
    return [row for row in report.subjects if row.engine == "onnxruntime" and "/" not in row.name]


def deployed(report: Report) -> SubjectRow | None:
    """The subject in `final/`; the last of the chain where the report does not name it; None without subjects."""
    rows = chain(report)
    return next((row for row in rows if row.name == report.best), rows[-1] if rows else None)


def noise_sentence(report: Report) -> str:
    """The noise floor in words; empty where it was not measured."""
    if report.noise is None:
        return ""
    return f"The teacher timed against itself: {ratio(report.noise)}; what lies within that is noise."


def pytorch_sentence(report: Report) -> str:
    """The times beside PyTorch, another engine, in words; empty where they were not measured."""
    found = report.pytorch
    if found is None:
        return ""
    return (
        f"Beside {found.subject} in PyTorch fp32, another engine, in the same rounds: the deployed model takes "
        f"{ratio(found.deployed)} of its time, {found.subject} itself {ratio(found.engine)}."
    )


def simpler(report: Report) -> str:
    """What of the baselines would do in place of the deployed model; empty where none would."""
    return verdict_note(report.baselines) or ""


def _fitting(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[tuple[str, ...]]:
    """The rows, without their precision where names would be cut to fit."""
    needed = sum(max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]))) - 2
    spare = rows[0].index("prec.")
    return [tuple(cell for place, cell in enumerate(row) if needed <= width or place != spare) for row in rows]


def lines(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Rows as aligned text; the first column is cut so that a line fits `width`."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[0] = max(6, min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    cut = [[row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "~", *row[1:]] for row in rows]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in cut]


def text(report: Report) -> str:
    """The table of subjects, what distillation and baselines gave, the budget, the verdict and the doubts."""
    metric = report.task.get("metric", "score")
    shown = lines(_fitting([HEADS, *(cells(row) for row in report.subjects)]))
    out = [shown[0], "-" * max(len(line) for line in shown), *shown[1:]]
    rows = report.subjects[0].metric.rows if report.subjects and report.subjects[0].metric else 0
    told = f"score: {metric} on {rows:,} rows; [95 % interval]; a drop above 0 is worse, " if rows else ""
    out += ["", *_wrapped(f"{told}a time below 1 is faster")]
    for sentence in _sentences(report):
        out += _wrapped(sentence)
    if report.budgets:
        out.append("")
        for line in report.budgets:
            against = f" vs {line.vs}" if line.vs else ""
            out += _wrapped(f"budget {line.what}{against} {line.limit}: {line.verdict}. {line.because}")
    out += [f"verdict: {report.verdict}", *(_wrapped(enough) if (enough := simpler(report)) else [])]
    if report.doubts:
        out += ["", "doubts:"]
        for doubt in report.doubts:
            out += _wrapped(f"- {doubt}")
    return "\n".join(out) + "\n"


def _sentences(report: Report) -> list[str]:
    """What distillation brought, what baselines reach, times beside PyTorch, and a machine not good for timing."""
    found = [one.sentence for one in report.attribution]
    found += [one.sentence for one in report.baselines if one.sentence]
    if report.pytorch is not None:
        found.append(pytorch_sentence(report))
    grade = report.quality.get("grade")
    if grade not in (None, "good"):
        found.append(f"machine for timing: {grade}; {'; '.join(map(str, report.quality.get('because', ())))}")
    return found


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, subsequent_indent="  ") or [""]
