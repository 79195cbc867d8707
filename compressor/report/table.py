"""The report as plain text for the terminal, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from compressor.report.model import Figure, Report, SubjectRow

WIDTH = 100
HEADS = ("model", "prec.", "MB", "score %", "drop (pp)", "p50 ms", "time vs teacher")


def points(figure: Figure | None) -> str:
    """A fraction with its interval, in percent or percentage points; a dash for None.

    >>> points(Figure(value=0.008, low=-0.002, high=0.018))
    '0.8 [-0.2, 1.8]'
    """
    if figure is None:
        return "-"
    return f"{_tidy(100 * figure.value)} [{_tidy(100 * figure.low)}, {_tidy(100 * figure.high)}]"


def ratio(figure: Figure | None) -> str:
    """A ratio with its interval; a dash for None.

    >>> ratio(Figure(value=0.1, low=0.09, high=0.112))
    '0.100 [0.090, 0.112]'
    """
    return "-" if figure is None else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _tidy(value: float) -> str:
    return f"{value + 0.0:.1f}".replace("-0.0", "0.0")


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
    """Bytes in units of 10^6; a dash for None."""
    return "-" if size is None else f"{size / 1e6:.1f}"


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
    )


def lines(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Rows as aligned text; the first column is cut so that a line fits `width`."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[0] = max(6, min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    cut = [[row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "~", *row[1:]] for row in rows]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in cut]


def text(report: Report) -> str:
    """The table of subjects, what distillation brought, the budget, the verdict and the doubts."""
    metric = report.task.get("metric", "score")
    shown = lines([HEADS, *(cells(row) for row in report.subjects)])
    out = [shown[0], "-" * max(len(line) for line in shown), *shown[1:]]
    rows = report.subjects[0].metric.rows if report.subjects and report.subjects[0].metric else 0
    out += [
        "",
        *_wrapped(f"score: {metric} on {rows:,} rows; [95 % interval]; a drop above 0 is worse, a time below 1 faster"),
    ]
    for gained in report.attribution:
        out += _wrapped(gained.sentence)
    if report.budgets:
        out.append("")
        for line in report.budgets:
            against = f" vs {line.vs}" if line.vs else ""
            out += _wrapped(f"budget {line.what}{against} {line.limit}: {line.verdict}. {line.because}")
    out += [f"verdict: {report.verdict}"]
    if report.doubts:
        out += ["", "doubts:"]
        for doubt in report.doubts:
            out += _wrapped(f"- {doubt}")
    return "\n".join(out) + "\n"


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, subsequent_indent="  ") or [""]
