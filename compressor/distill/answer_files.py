"""Answers written down elsewhere, found again by the text of the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.readers import Columns, read_columns
from compressor.data.rows import DataSets, Rows
from compressor.data.source_rows import Text
from compressor.distill.settings import AnswersFile
from compressor.distill.votes import NO_VOTE, vote_probabilities
from compressor.errors import InputError
from compressor.sources.rows_source import resolve_rows

SUM_TOLERANCE = 1e-3
"""Probabilities whose sum is off by no more are made to sum to 1."""


@dataclass(frozen=True)
class WrittenAnswers:
    """Probabilities by text."""

    name: str
    """The file as the recipe gives it."""
    path: Path
    places: dict[Text, int]
    """Text to its row in `probabilities`."""
    probabilities: NDArray[np.float64]
    """(texts, classes); NaN where nothing was said."""

    def of(self, rows: Rows) -> NDArray[np.float32]:
        """Probabilities of each row's classes, shape (rows, classes); NaN where the file says nothing of it."""
        found = np.full((len(rows), self.probabilities.shape[1]), np.nan, dtype=np.float32)
        places = np.array([self.places.get(text, -1) for text in rows.texts], dtype=np.int64)
        known = places >= 0
        found[known] = self.probabilities[places[known]]
        return found


def read_probabilities(file: AnswersFile, data: DataSets, *, base: Path) -> WrittenAnswers:
    """The probabilities in a file: lists in the order of the classes, or maps of class to probability.

    Raises: InputError naming the line of an unknown class, a number out of range, or a sum that is not 1.
    """
    path, columns, places, order = _read(file, data, base)
    values = columns.values[-1]
    found = [_probabilities(values[row], data.labels, columns.where(row)) for row in order]
    return WrittenAnswers(file.path.path, path, places, np.array(found, dtype=np.float64).reshape(-1, len(data.labels)))


def read_votes(file: AnswersFile, data: DataSets, *, base: Path) -> WrittenAnswers:
    """The votes in a file as probabilities: one class a row, or a list of them, one place a voter.

    Raises: InputError naming the line of an unknown class, or of a list that is empty or longer or shorter than the
        first.
    """
    path, columns, places, order = _read(file, data, base)
    known = {name: number for number, name in enumerate(data.labels)}
    values = columns.values[-1]
    voters = next((len(values[row]) for row in order if isinstance(values[row], list) and values[row]), 1)
    votes = [_votes(values[row], known, voters, columns.where(row)) for row in order]
    table = np.array(votes, dtype=np.int64).reshape(-1, voters)
    return WrittenAnswers(file.path.path, path, places, vote_probabilities(table, len(data.labels)))


def _read(file: AnswersFile, data: DataSets, base: Path) -> tuple[Path, Columns, dict[Text, int], list[int]]:
    """Path and columns of the file, each text's number, and the row of the file where each text first stands."""
    path = resolve_rows(file.path, base)
    columns = read_columns(path, file.path, [*data.text_columns, file.column])
    parts = columns.values[:-1]
    places: dict[Text, int] = {}
    order: list[int] = []
    for row in range(len(columns.places)):
        each = tuple(column[row] for column in parts)
        if all(part is None for part in each):
            continue
        if not all(isinstance(part, str) for part in each):
            raise InputError(f"{columns.where(row)} holds no text in {', '.join(data.text_columns)} (got {each!r:.60})")
        text: Text = each[0] if len(each) == 1 else (each[0], each[1])
        if text not in places:
            places[text] = len(order)
            order.append(row)
        elif columns.values[-1][row] != columns.values[-1][order[places[text]]]:
            raise InputError(
                f"{columns.where(row)} answers {text!r:.60} otherwise than {columns.where(order[places[text]])}; "
                "keep one of them, or give several votes as one list"
            )
    return path, columns, places, order


def _probabilities(value: Any, labels: Sequence[str], where: str) -> list[float]:
    """One row of probabilities in the order of the classes; NaN for null."""
    if value is None:
        return [np.nan] * len(labels)
    if isinstance(value, Mapping):
        unknown = sorted(str(name) for name in value if name not in labels)
        if unknown:
            raise _unknown_class(where, unknown[0], labels)
        value = [value.get(name, 0.0) for name in labels]
    if not isinstance(value, list) or len(value) != len(labels) or not all(map(_is_number, value)):
        raise InputError(
            f"{where} must hold a list of {len(labels)} probabilities in the order {', '.join(labels)}, a map of class "
            f"to probability, or null (got {value!r:.60})"
        )
    total = float(sum(value))
    if min(value) < 0 or not abs(total - 1) <= SUM_TOLERANCE:
        raise InputError(f"{where} holds no probabilities: {value!r:.60} sums to {total:g}; each is 0 or more, sum 1")
    return [each / total for each in value]


def _votes(value: Any, known: Mapping[str, int], voters: int, where: str) -> list[int]:
    """One row of class ids, -1 where a voter said nothing."""
    said = [None] * voters if value is None else value if isinstance(value, list) else [value]
    if not said:
        raise InputError(f"{where} holds an empty list of votes; give one place a voter, or null where nobody voted")
    if len(said) != voters:
        raise InputError(
            f"{where} holds {len(said)} votes where {voters} are expected, one place a voter (got {value!r:.60}); "
            "write null where a voter said nothing"
        )
    return [NO_VOTE if vote is None else _class_id(vote, known, where) for vote in said]


def _class_id(vote: Any, known: Mapping[str, int], where: str) -> int:
    name = str(vote) if isinstance(vote, int) and not isinstance(vote, bool) else vote
    if not isinstance(name, str) or name not in known:
        raise _unknown_class(where, vote, list(known))
    return known[name]


def _unknown_class(where: str, name: object, labels: Sequence[str]) -> InputError:
    return InputError(f"{where}: class {name!r} is not one of the classes {', '.join(labels)}; correct the answer")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


READERS: dict[str, Callable[..., WrittenAnswers]] = {"probabilities": read_probabilities, "votes": read_votes}
"""Key of a teacher's part to what reads its file."""
