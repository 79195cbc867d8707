"""What the page and Markdown show alike: sections of tables, each cell with the number that it sorts by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.report.model import Figure
from compressor.report.table import plain, points


@dataclass(frozen=True)
class Cell:
    """One text of a table, and what belongs to it."""

    text: str
    value: float | None = None
    """What its column sorts by; None sorts by the text."""
    note: str = ""
    """Small print below it."""
    tone: str = ""
    """How the page colours it: pass, fail, undecided or dim; nothing for plain text."""
    kept: tuple[bool, ...] = ()
    """Drawn beside it on the page: a square for each part, filled where the part was kept."""
    shades: tuple[float, ...] = ()
    """Drawn beside it on the page: a square for each part, 0 to 1, the darker the more."""
    share: float | None = None
    """Drawn beside it on the page: a bar, 0 to 1."""


@dataclass(frozen=True)
class Section:
    """A title and what stands below it: sentences, a table, a list, a text as it is."""

    key: str
    """One word; no two sections of a report share it."""
    title: str
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    lead: str = ""
    """Above the table."""
    note: str = ""
    """Below the table, in small print."""
    items: tuple[str, ...] = ()
    code: str = ""
    """Shown letter by letter, such as a command."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing below the title."""
        return not (self.rows or self.items or self.code or self.lead)


def spread(
    figure: Figure | None, shown: Callable[[Figure | None], str] = points, *, note: str = "", tone: str = ""
) -> Cell:
    """A figure with its interval; a dash for None.

    >>> spread(Figure(value=0.5, low=0.4, high=0.6)).text
    '50.0 [40.0, 60.0]'
    """
    return Cell(shown(figure), None if figure is None else figure.value, note, tone)


def number(value: float | None, form: str = ".3g", *, note: str = "") -> Cell:
    """A number in a format of Python's; a dash for None.

    >>> number(0.123456, ".2f").text, number(None).text
    ('0.12', '-')
    """
    return Cell("-" if value is None else format(value, form), value, note)


def said(value: object, *, note: str = "", tone: str = "") -> Cell:
    """Anything of report.json in words, sorted by its number where it is one."""
    countable = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(plain(value), float(value) if countable else None, note, tone)  # type: ignore[arg-type]


def facts(key: str, title: str, pairs: Sequence[tuple[str, object]], *, lead: str = "") -> Section:
    """A section of names and values."""
    rows = tuple((Cell(name), said(value)) for name, value in pairs)
    return Section(key, title, ("fact", "value"), rows, lead=lead)
