"""What a run needs before its first stage: the rows, the model to start from, and that the two suit each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from compressor.data.encode import check_script, open_encoder
from compressor.data.rows import DataSets, Rows, read_data
from compressor.model.manifest import teacher_labels
from compressor.recipe.recipe import Recipe
from compressor.sources.models import peek_model, resolve_model
from compressor.stage import Progress


@dataclass(frozen=True)
class Prepared:
    """The rows and the folder of the model that the teacher is made from."""

    data: DataSets
    source: Path


def prepare(recipe: Recipe, *, progress: Progress, offline: bool = False) -> Prepared | None:
    """Fetch the model, read the rows; None where `offline` and something would have to be fetched.

    Raises: InputError for rows or a model that cannot be used.
    """
    if offline:
        source = peek_model(recipe.teacher.model, base=recipe.base)
        if source is None or not _rows_are_here(recipe):
            return None
    else:
        source = resolve_model(recipe.teacher.model, base=recipe.base, progress=progress)
    known = teacher_labels(source) if recipe.teacher.finetune is None else None
    progress("read rows", 0, None)
    data = read_data(recipe.data, recipe.task, base=recipe.base, teacher_labels=known)
    if recipe.smoke_rows is not None:
        count = recipe.smoke_rows
        data = replace(
            data,
            train=_few(data.train, count),
            select=_few(data.select, count),
            test=_few(data.test, count) if data.test else None,
            unlabelled=data.unlabelled.head(count),
        )
    return Prepared(data, source)


def check_rows(prepared: Prepared) -> dict[str, int]:
    """Rows truncated for each part; raises InputError where the vocabulary lacks the script of a part."""
    encoder = open_encoder(prepared.source, prepared.data.max_tokens)
    truncated = {}
    for name in ("train", "select", "test", "unlabelled"):
        rows = getattr(prepared.data, name)
        if rows is not None and len(rows):
            encoded = encoder.encode(rows.texts)
            check_script(encoded, name)
            truncated[name] = encoded.truncated
    return truncated


def _few(rows: Rows, count: int) -> Rows:
    """The first rows of each class in turn, so that few rows still hold every class."""
    of_class: dict[int | None, list[int]] = {}
    for place, label in enumerate(rows.labels):
        of_class.setdefault(label, []).append(place)
    in_turn = [place for turn in zip_longest(*of_class.values()) for place in turn if place is not None]
    return rows.take(sorted(in_turn[:count]))


def _rows_are_here(recipe: Recipe) -> bool:
    from compressor.sources.rows_source import peek_rows
    from compressor.sources.settings import RowFile

    data = recipe.data
    sources = [data.train, data.test, *data.unlabelled, *([data.select] if isinstance(data.select, RowFile) else [])]
    return all(source is None or peek_rows(source, recipe.base) is not None for source in sources)
