"""One source of rows as texts and class names, still in the file's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from compressor.data.labels import Bins, label_of
from compressor.data.readers import Columns, read_columns
from compressor.data.settings import Column, Data, Label
from compressor.errors import InputError
from compressor.sources.rows_source import resolve_rows
from compressor.sources.settings import RowFile

Text = str | tuple[str, str]
"""One text, or the two of a pair task."""


@dataclass(frozen=True)
class Source:
    """Rows of one file: texts as read, class names (None unlabelled), and where each stands."""

    name: str
    texts: Sequence[Text]
    labels: Sequence[str | None]
    places: Sequence[int]
    word: str = "line"
    """What `places` counts: line or row."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Source:
        """The rows at these positions, in that order."""
        return replace(
            self,
            texts=[self.texts[i] for i in indices],
            labels=[self.labels[i] for i in indices],
            places=[self.places[i] for i in indices],
        )

    def without_labels(self) -> Source:
        """The same rows for the unlabelled pool."""
        return replace(self, labels=[None] * len(self))

    def where(self, row: int) -> str:
        """File and line of a row, for an error."""
        return f"{self.name}: {self.word} {self.places[row]}"


def read_source(source: RowFile, data: Data, *, base: Path, bins: Bins | None, labelled: bool = True) -> Source:
    """The rows of one file; `labelled` False leaves the label column unread, as it may be absent.

    Raises: InputError naming the file and line.
    """
    path = resolve_rows(source, base)
    text_columns = text_columns_of(data)
    wanted = [*text_columns, label_column(data)] if labelled else list(text_columns)
    columns = read_columns(path, source, wanted)
    texts = _texts(columns, len(text_columns))
    labels: list[str | None] = [None] * len(texts)
    if labelled:
        values = columns.values[-1]
        labels = [label_of(value, bins, where=partial(columns.where, row)) for row, value in enumerate(values)]
    return Source(columns.name, texts, labels, columns.places, columns.word)


def text_columns_of(data: Data) -> list[Column]:
    """The one or two text columns."""
    return list(data.text) if isinstance(data.text, list) else [data.text]


def label_column(data: Data) -> Column:
    """The column of the label, or of the number that bins make labels of."""
    return data.label.column if isinstance(data.label, Label) else data.label


def _texts(columns: Columns, count: int) -> list[Text]:
    parts = [[_text(value, columns, row) for row, value in enumerate(column)] for column in columns.values[:count]]
    return list(parts[0]) if count == 1 else list(zip(parts[0], parts[1], strict=True))


def _text(value: Any, columns: Columns, row: int) -> str:
    """A text as read; null is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{columns.where(row)} holds {_kind(value)}, not a text (got {value!r:.60}); look at data.text"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as problem:
            raise InputError(
                f"{columns.where(row)} holds half a character (a lone surrogate at {problem.start}); write it again"
            ) from problem
    return value


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    return {"list": "a list", "int": "a number", "float": "a number", "bool": "true or false"}.get(
        type(value).__name__, type(value).__name__
    )
