"""The report as Markdown (report.md): the sections and numbers of the page, without its plots."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compressor.report.model import Report
from compressor.report.outline import sections
from compressor.report.section import Cell, Section


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


def fenced(text: str) -> list[str]:
    """Text as a block that shows it letter by letter, whatever backticks it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, text, fence, ""]


def markdown(report: Report) -> str:
    """The whole report: verdict, then every section of the page."""
    out = [f"# {escaped(report.name)}", "", f"Verdict: **{report.verdict}**", ""]
    for section in sections(report):
        out += _section(section)
    return "\n".join(out).rstrip()


def _section(section: Section) -> list[str]:
    out = [f"## {escaped(section.title)}", ""]
    if section.lead:
        out += [escaped(section.lead), ""]
    if section.items:
        out += [*(f"- {escaped(item)}" for item in section.items), ""]
    if section.code:
        out += fenced(section.code)
    if section.rows:
        out += table(section.heads, [[_words(cell) for cell in row] for row in section.rows])
    if section.note:
        out += [escaped(section.note), ""]
    return out


def _words(cell: Cell) -> str:
    """The cell's text with its small print in brackets."""
    return f"{cell.text} ({cell.note})" if cell.note else cell.text
