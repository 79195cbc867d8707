"""What `compress why` prints: the decisions of a stage, candidates as a table, prices one a line."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.export.audit import product_name
from compressor.report.int8 import Line, chosen_line, quantization, search_line
from compressor.report.int8_sections import candidates, price, products
from compressor.report.quantization import Quantization
from compressor.report.section import Section
from compressor.report.table import WIDTH, lines, plain

INDENT = "    "


def why(stage: str, decisions: Sequence[Line]) -> str:
    """The decisions in their order, in words.

    Args:
        stage: its id.
        decisions: lines of its decisions.jsonl.
    """
    if not decisions:
        return f"{stage} decided nothing: it did as the recipe says\n"
    found = quantization(stage, decisions)
    told = [line for one in decisions for line in _told(one, found, decisions)]
    return "\n".join(told) + "\n"


def _told(one: Line, found: Quantization | None, every: Sequence[Line]) -> list[str]:
    head = f"{one['kind']}: {_words(one['chosen'])} because {one['because']}"
    if found is not None and one is chosen_line(every) and found.candidates:
        return [head, *section_text(candidates(found))]
    if found is not None and one is search_line(every):
        return [f"{one['kind']}: {found.ranked}", *_prices(found), *section_text(products(found))]
    return [head, *_more("candidates", one.get("candidates")), *_more("cost", one.get("cost"))]


def _prices(found: Quantization) -> list[str]:
    """A line for each product in float that was priced."""
    told = [(one, price(one)) for one in found.ranking]
    return [f"{INDENT}{one.product} in {one.precision}: {words}" for one, words in told if words]


def section_text(section: Section) -> list[str]:
    """The table of a section, without columns that nothing stands in, and below it what stands below its cells."""
    rows = [[cell.text for cell in row] for row in section.rows]
    kept = [place for place in range(len(section.heads)) if any(row[place] != "-" for row in rows)]
    table = [[row[place] for place in kept] for row in ([*section.heads], *rows)]
    out = [INDENT + line for line in lines(table, WIDTH - len(INDENT))]
    for row in section.rows:
        for head, cell in zip(section.heads, row, strict=True):
            if cell.note and head in NOTES:
                out += _wrapped(f"{row[0].text}: {cell.note}")
    return out


NOTES = ("is", "in INT8")
"""Columns whose small print is told below the table: why a scheme was refused, and what it left in float."""


def _more(name: str, value: Any) -> list[str]:
    """Candidates or cost: rows of like keys as a table, anything else as JSON; nothing for None."""
    if value is None:
        return []
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return [f"{INDENT}{name}:", *(INDENT + line for line in _table([list(one.items()) for one in value]))]
    if isinstance(value, Mapping) and value and all(isinstance(one, Mapping) for one in value.values()):
        named = [[("", key), *one.items()] for key, one in value.items()]
        return [f"{INDENT}{name}:", *(INDENT + line for line in _table(named))]
    return [f"{INDENT}{name}: {_words(value)}"]


def _table(rows: Sequence[Sequence[tuple[str, Any]]]) -> list[str]:
    """Rows of names and values as aligned text."""
    heads = list(dict.fromkeys(name for row in rows for name, _ in row))
    texts = [[_cell(head, dict(row)) for head in heads] for row in rows]
    return lines([heads, *texts], WIDTH - len(INDENT))


def _cell(head: str, row: Mapping[str, Any]) -> str:
    """The value below a head; nodes of a traced graph by the words for them."""
    value = row.get(head)
    if head == "product" and isinstance(value, str) and value.startswith("/"):
        return product_name(value)
    return "-" if value is None else plain(value)


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + "  ")


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
