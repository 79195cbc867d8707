"""The report as Markdown (report.md)."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.report.model import Report
from compressor.report.table import HEADS, cells, plain, points, ratio


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, also in a table cell.

    >>> escaped("a < b")
    'a &lt; b'
    """
    shown = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\|`*_[]#":
        shown = shown.replace(sign, "\\" + sign)
    return " ".join(shown.split())


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table, escaped."""
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in (heads, *rows)]
    return [lines[0], "|" + " --- |" * len(heads), *lines[1:], ""]


def markdown(report: Report) -> str:
    """The whole report: verdict, budget, models, what distillation brought, ladder, doubts, machine."""
    metric = report.task.get("metric", "score")
    out = [f"# {escaped(report.name)}", "", f"Verdict: **{report.verdict}**", ""]
    if report.budgets:
        out += ["## Budget", ""]
        rows = [(line.what, line.vs or "-", line.limit, line.because, line.verdict) for line in report.budgets]
        out += table(("what", "vs", "limit", "found", "verdict"), rows)
    out += ["## Models", "", f"Scores are {escaped(metric)}; brackets hold 95 % intervals.", ""]
    out += table((*HEADS, "agreement"), [(*cells(row), _agreement(row.versus_teacher)) for row in report.subjects])
    if report.attribution:
        out += ["## What distillation brought", ""]
        gains = [(one.stage, one.what, points(one), one.verdict, one.sentence) for one in report.attribution]
        out += table(("stage", "what", "gain (pp)", "verdict", "in words"), gains)
    if report.decisions:
        out += ["## Decided while distilling", ""]
        heads = ("stage", "kind", "chosen", "because")
        out += table(heads, [[plain(one.get(key)) for key in heads] for one in report.decisions])
    if report.ladder:
        out += ["## Step by step", ""]
        steps = [(step.step, ratio(step.speedup), points(step.drop), step.reason or "") for step in report.ladder]
        out += table(("step", "speed-up over the step before", "drop (pp)", "note"), steps)
    if report.pruning:
        out += ["## Pruned", ""]
        for one in report.pruning:
            out += [escaped(f"{one.get('stage', '')}: {one.get('because', '')}"), ""]
            layers = one.get("layers", [])
            keys = sorted({key for layer in layers for key in layer}, key=lambda key: (key != "layer", key))
            out += table(keys, [[layer.get(key, "") for key in keys] for layer in layers]) if layers else []
    if report.doubts:
        out += ["## Doubts", "", *(f"- {escaped(doubt)}" for doubt in report.doubts), ""]
    out += ["## Rows and machine", ""]
    facts = [(f"{key} rows", plain(value)) for key, value in report.data.items()]
    out += table(("fact", "value"), facts + [(key, plain(value)) for key, value in report.machine.items()])
    return "\n".join(out)


def _agreement(versus: object) -> str:
    share = getattr(versus, "agreement", None)
    return "-" if share is None else f"{100 * share:.1f} %"
