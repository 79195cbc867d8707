"""The rows of a task: read, split by hash, cleaned of what is empty, repeated or leaked, with labels as ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from compressor.data.columns import check_columns
from compressor.data.labels import Bins, class_order, label_ids, parse_bins
from compressor.data.pools import PoolPart, in_words, no_rows, share_notes, share_problem
from compressor.data.settings import Column, Data, SelectShare, Task
from compressor.data.source_rows import Source, Text, read_source
from compressor.data.split import Cleaned, Parts, cleaned, joined, split_by_hash, split_problems
from compressor.errors import InputError
from compressor.sources.settings import RowFile

__all__ = ["DataSets", "PoolPart", "Rows", "Text", "check_columns", "open_data", "read_data"]


@dataclass(frozen=True)
class Rows:
    """Texts with their label ids, None where unlabelled."""

    texts: tuple[Text, ...]
    labels: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"needs a label (or None) for each text (got {len(self.texts)} and {len(self.labels)})")

    def __len__(self) -> int:
        return len(self.texts)

    def digest(self) -> str:
        """SHA-256 (hex) of all texts and labels in their order."""
        total = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            for part in (text,) if isinstance(text, str) else text:
                raw = part.encode()
                total.update(b"%d:" % len(raw))
                total.update(raw)
            total.update(f"={label};".encode())
        return total.hexdigest()

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at these positions, in that order."""
        return Rows(tuple(self.texts[i] for i in indices), tuple(self.labels[i] for i in indices))

    def head(self, rows: int) -> Rows:
        """The first so many rows."""
        return Rows(self.texts[:rows], self.labels[:rows])


@dataclass(frozen=True)
class DataSets:
    """All rows of a task, split and cleaned."""

    task: Task
    labels: tuple[str, ...]
    """Class names by id."""
    text_columns: tuple[str, ...]
    """Names of the text columns, ('text',) or ('text_a', 'text_b') where they were given by number."""
    max_tokens: int
    train: Rows
    select: Rows
    test: Rows | None
    """None where the data has no test rows."""
    unlabelled: Rows
    removed: dict[str, int] = field(default_factory=no_rows)
    """Rows taken out of train and pool: texts of select or test, repetitions, blank ones."""
    pools: tuple[PoolPart, ...] = ()
    """What `unlabelled` is made of, in order; empty means one source without a share."""
    notes: tuple[str, ...] = ()
    """What a reader of the report should know about the rows, one sentence each."""

    @property
    def scored_part(self) -> Literal["test", "select"]:
        """The rows that a report scores: test, or select where there are none."""
        return "test" if self.test is not None and len(self.test) else "select"

    @property
    def scored(self) -> Rows:
        """Those rows."""
        return self.select if self.test is None or self.scored_part == "select" else self.test


def read_data(data: Data, task: Task, *, base: Path, teacher_labels: Sequence[str] | None = None) -> DataSets:
    """The rows that `data` names, split, cleaned and numbered as DESIGN.md says under Rows.

    Args:
        base: folder that relative paths start from.
        teacher_labels: class names of a fine-tuned teacher by id; None where the teacher is not fine-tuned.
    Raises: InputError naming the file, the row and what to do.
    """
    for key, message in split_problems(data):
        raise InputError(f"data.{key} {message}")
    if problem := share_problem([source.share for source in data.unlabelled]):
        raise InputError(f"data.unlabelled {problem}")
    bins = parse_bins(data.label)
    main = read_source(data.train, data, base=base, bins=bins)
    labelled = [place for place, label in enumerate(main.labels) if label is not None]
    if not labelled:
        raise InputError(f"{main.name}: no row has a label; look at data.label")
    notes: list[str] = []
    if data.split is not None:
        test, select, train, rest = split_by_hash(main, labelled, data.split)
        held = (main.take(select) if select else None, main.take(test) if test else None)
    else:
        train, rest = labelled, [place for place, label in enumerate(main.labels) if label is None]
        held = (
            None if isinstance(data.select, SelectShare) else _scored(data.select, data, base, bins, notes),
            None if data.test is None else _scored(data.test, data, base, bins, notes),
        )
    pools = [read_source(source, data, base=base, bins=None, labelled=False) for source in data.unlabelled]
    parts = cleaned(
        Parts(main.take(train), (main.take(rest), *pools), select=held[0], test=held[1]),
        share=data.select.share if isinstance(data.select, SelectShare) else 0.0,
    )
    found = {label for label in main.labels if label is not None}
    names = class_order(data, found, bins=bins, teacher=teacher_labels, name=main.name)
    pool = joined(parts.pool)
    sources = _pool_parts(data, main, parts)
    return DataSets(
        task=task,
        labels=names,
        text_columns=text_names(data.text),
        max_tokens=data.max_tokens,
        train=_trainable(parts.train, names, removed=parts.removed),
        select=_numbered(parts.select, names),
        test=None if parts.test is None else _numbered(parts.test, names),
        unlabelled=Rows(pool, (None,) * len(pool)),
        removed=parts.removed,
        pools=sources,
        notes=tuple(notes + parts.notes + share_notes(sources)),
    )


def open_data(
    value: DataSets | Data | Mapping[str, Any],
    *,
    base: Path | None = None,
    task: Task | Mapping[str, Any] | None = None,
    teacher_labels: Sequence[str] | None = None,
) -> DataSets:
    """The rows, from whatever the Python API was given: read ones, settings, or a mapping as in a recipe.

    Args:
        value: a mapping has the keys of `data` and may have the key `task`.
        base: folder that relative paths start from; the current one unless given.
        task: what the model decides; text-classification by accuracy unless given.
    """
    if isinstance(value, DataSets):
        return value
    try:
        if not isinstance(value, Data):
            given = dict(value)
            task = given.pop("task", None) if task is None else task
            value = Data.model_validate(given)
        task = task if isinstance(task, Task) else Task.model_validate(task or {})
    except ValidationError as problem:
        raise InputError("\n".join(_sentence(error) for error in problem.errors())) from problem
    return read_data(value, task, base=base or Path.cwd(), teacher_labels=teacher_labels)


def text_names(text: Column | list[Column]) -> tuple[str, ...]:
    """Names of the text columns for readers of jsonl; made up where they were given by number.

    >>> text_names("review"), text_names(2), text_names([0, 1])
    (('review',), ('text',), ('text_a', 'text_b'))
    """
    columns = text if isinstance(text, list) else [text]
    made_up = ("text",) if len(columns) == 1 else ("text_a", "text_b")
    return tuple(name if isinstance(name, str) else spare for name, spare in zip(columns, made_up, strict=True))


def _pool_parts(data: Data, main: Source, parts: Cleaned) -> tuple[PoolPart, ...]:
    """The pool's sources after cleaning, what the train file left over first; sources that never had rows are out."""
    names = (f"unlabelled rows of {main.name}", *(source.path for source in data.unlabelled))
    shares = (None, *(source.share for source in data.unlabelled))
    found = zip(names, map(len, parts.pool), shares, parts.pool_removed, strict=True)
    return tuple(PoolPart(*part) for part in found if part[1] or sum(part[3].values()))


def _scored(source: RowFile, data: Data, base: Path, bins: Bins | None, notes: list[str]) -> Source:
    """Rows that a score is taken on: those with a label, and a note on how many had none."""
    rows = read_source(source, data, base=base, bins=bins)
    labelled = [place for place, label in enumerate(rows.labels) if label is not None]
    if not labelled:
        raise InputError(f"{rows.name}: no row has a label, so nothing can be scored on it; look at data.label")
    if len(labelled) < len(rows):
        notes.append(f"{rows.name}: {len(rows) - len(labelled)} rows without a label are left out.")
    return rows.take(labelled)


def _numbered(rows: Source, names: Sequence[str]) -> Rows:
    """The rows with label ids."""
    ids = label_ids(rows.labels, names)
    if -1 in ids:
        row = ids.index(-1)
        raise InputError(
            f"{rows.where(row)}: class {rows.labels[row]!r} is not one of the classes {', '.join(names)}; correct the "
            "row or name every class in data.labels"
        )
    return Rows(tuple(rows.texts), tuple(ids))


def _trainable(source: Source, names: Sequence[str], *, removed: Mapping[str, int]) -> Rows:
    """The rows with label ids, of at least two classes."""
    rows = _numbered(source, names)
    found = sorted({names[label] for label in rows.labels if label is not None})
    if not found:
        raise InputError(
            f"{source.name}: no row to train on is left (removed: {in_words(removed)}); give it rows of its own"
        )
    if len(found) == 1:
        raise InputError(
            f"{source.name}: every row to train on has the label {found[0]!r}; a classifier needs at least two "
            "classes, look at data.label"
        )
    return rows


def _sentence(error: Any) -> str:
    """A pydantic error in this project's words."""
    where = ".".join(str(part) for part in error["loc"] if part not in {"RowFile", "SelectShare"}) or "data"
    return f"data.{where}: {error['msg']} (got {error['input']!r})" if where != "data" else f"data: {error['msg']}"
