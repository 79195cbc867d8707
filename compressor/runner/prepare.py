"""What a run needs before its first stage: the rows, the model to start from, and that the two suit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

from compressor.data.encode import check_script, open_encoder
from compressor.data.rows import DataSets, PoolPart, Rows, read_data
from compressor.model.manifest import teacher_labels
from compressor.recipe.recipe import Recipe
from compressor.runner.chain import stages_of
from compressor.sources.models import peek_model, resolve_model
from compressor.sources.rows_source import peek_rows, resolve_rows
from compressor.sources.settings import ModelSource, RowFile
from compressor.stage import Progress


@dataclass(frozen=True)
class Prepared:
    """The rows, the folder of the model that the teacher is made from, and what else the stages read."""

    data: DataSets
    source: Path
    sources: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    """(Id of a stage, role) to the model folder or file that it reads from elsewhere; without those not here yet."""


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
    sources = _stage_sources(recipe, progress=progress, offline=offline)
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
            **_few_of_pool(data, count),
        )
    return Prepared(data, source, sources)


def _stage_sources(recipe: Recipe, *, progress: Progress, offline: bool) -> dict[tuple[str, str], Path]:
    """What stages read from elsewhere, fetched; with `offline` what of it is here."""
    found: dict[tuple[str, str], Path] = {}
    for stage in stages_of(recipe):
        for role, source in stage.sources().items():
            here = _peeked(source, recipe.base) if offline else _fetched(source, recipe.base, progress)
            if here is not None:
                found[stage.id, role] = here
    return found


def _peeked(source: ModelSource | RowFile, base: Path) -> Path | None:
    return peek_model(source, base) if isinstance(source, ModelSource) else peek_rows(source, base)


def _fetched(source: ModelSource | RowFile, base: Path, progress: Progress) -> Path:
    if isinstance(source, ModelSource):
        return resolve_model(source, base=base, progress=progress)
    return resolve_rows(source, base)


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


def _few_of_pool(data: DataSets, count: int) -> dict[str, Any]:
    """`unlabelled` and `pools` with the first rows of each source, `count` in all."""
    parts = data.pools or (PoolPart("unlabelled", len(data.unlabelled), None),)
    each = -(-count // len(parts))
    starts = accumulate((part.rows for part in parts), initial=0)
    taken = [range(start, start + min(each, part.rows)) for start, part in zip(starts, parts, strict=False)]
    fewer = tuple(replace(part, rows=len(rows)) for part, rows in zip(parts, taken, strict=True))
    return {
        "unlabelled": data.unlabelled.take([place for rows in taken for place in rows]),
        "pools": fewer if data.pools else (),
    }


def _rows_are_here(recipe: Recipe) -> bool:
    data = recipe.data
    sources = [data.train, data.test, *data.unlabelled, *([data.select] if isinstance(data.select, RowFile) else [])]
    return all(source is None or peek_rows(source, recipe.base) is not None for source in sources)
