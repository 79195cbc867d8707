"""What can be told of the rows before anything is run: files that are not there, columns that no file has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from compressor.data.labels import order_problem, parse_bins
from compressor.data.pools import share_problem
from compressor.data.readers import format_of, head_names, place_of
from compressor.data.settings import Column, Data, Label
from compressor.data.source_rows import label_column, text_columns_of
from compressor.data.split import split_problems
from compressor.errors import InputError
from compressor.sources.rows_source import is_local, local_problem, peek_rows
from compressor.sources.settings import RowFile


def check_columns(data: Data, base: Path, *, teacher_labels: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Each mistake as (key under `data`, message), one per cause; files that would have to be fetched are skipped.

    Reads at most the first megabyte of each file.

    Args:
        base: folder that relative paths start from.
        teacher_labels: class names of a fine-tuned teacher by id, to be held against data.labels.
    """
    problems = split_problems(data)
    if message := share_problem([source.share for source in data.unlabelled]):
        problems.append(("unlabelled", message))
    try:
        parse_bins(data.label)
    except InputError as problem:
        key, _, message = str(problem).removeprefix("data.").partition(" ")
        problems.append((key, message))
    if data.labels is not None:
        order = order_problem(data.labels, teacher_labels)
        if order:
            problems.append(("labels", order))
    classes = data.labels or teacher_labels
    if isinstance(data.label, Label) and data.label.bins and classes:
        foreign = [name for name in data.label.bins if name not in classes]
        if foreign:
            whose = "data.labels" if data.labels else "the teacher"
            problems.append((f"label.bins.{foreign[0]}", f"is not one of the classes of {whose}: {', '.join(classes)}"))
    said: set[str] = set()
    for key, source, labelled in _sources(data):
        for where, message in _source_problems(key, source, data, base, labelled=labelled):
            if message not in said:
                said.add(message)
                problems.append((where, message))
    return problems


def _sources(data: Data) -> Iterator[tuple[str, RowFile, bool]]:
    """Each file of `data`: its key, and whether its labels are read."""
    yield "train", data.train, True
    for place, source in enumerate(data.unlabelled):
        yield f"unlabelled.{place}", source, False
    if isinstance(data.select, RowFile):
        yield "select", data.select, True
    if data.test is not None:
        yield "test", data.test, True


def _source_problems(key: str, source: RowFile, data: Data, base: Path, *, labelled: bool) -> Iterator[tuple[str, str]]:
    try:
        if is_local(source) and (missing := local_problem(source, base)) is not None:
            yield key, missing
            return
        path = peek_rows(source, base)
        if path is None:
            return
        texts = text_columns_of(data)
        label = label_column(data)
        if format_of(source, path) == "txt":
            if labelled or len(texts) > 1:
                yield key, f"{source.path}: a txt file has one column, a text a line; say its format: if it has more"
            return
        names = head_names(path, source, [*texts, label] if labelled else texts)
    except InputError as problem:
        yield key, str(problem)
        return
    if names is None:
        return
    wanted: list[tuple[str, Column]] = [("text", column) for column in texts]
    if labelled:
        wanted.append(("label.column" if isinstance(data.label, Label) else "label", label))
    for where, column in wanted:
        try:
            place_of(column, names, name=source.path)
        except InputError as problem:
            yield where, str(problem)
