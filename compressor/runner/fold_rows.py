"""The labelled rows of a recipe in folds, and the recipe on the rows of one fold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from compressor.data.rows import DataSets, PoolPart, Rows
from compressor.data.settings import Data, SelectShare
from compressor.data.source_rows import Source, Text
from compressor.data.split import is_empty, stratified_share
from compressor.errors import InputError
from compressor.evaluate.settings import Budget
from compressor.recipe.recipe import Recipe

SELECT_AT_MOST = 0.5
"""Largest share of the other folds' rows that is set aside for decisions, whatever the recipe's own parts are."""
ROUNDS = 3
"""Rounds of timing in a fold's run, the fewest there are: nothing is told of them."""


def labelled_rows(data: DataSets) -> Rows:
    """The rows of train, select and test, one after the other."""
    parts = [part for part in (data.train, data.select, data.test) if part is not None]
    return Rows(
        tuple(text for part in parts for text in part.texts), tuple(label for part in parts for label in part.labels)
    )


def divide(rows: Rows, labels: Sequence[str], k: int, *, seed: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of the rows in each of k folds, ascending; a text that repeats stays whole in one fold.

    The texts of a class, that of their first row, are spread evenly.

    Raises: InputError for a class with fewer different texts than folds.
    """
    from compressor.evaluate.folds import folds

    copies = copies_of(rows)
    first = [rows.labels[places[0]] for places in copies]
    texts, every = Counter(first), Counter(rows.labels)
    for place, label in enumerate(labels):
        if every[place] and texts[place] < k:
            raise InputError(
                f"class {label!r} has fewer different texts ({texts[place]}, in {every[place]} labelled rows) than the "
                f"{k} folds; take fewer folds or give it more rows"
            )
    held = folds(first, k, seed=seed)
    return tuple(tuple(sorted(place for group in fold for place in copies[int(group)])) for fold in held)


def copies_of(rows: Rows) -> list[list[int]]:
    """Numbers of the rows of each different text."""
    found: dict[Text, list[int]] = {}
    for place, text in enumerate(rows.texts):
        found.setdefault(text, []).append(place)
    return list(found.values())


def fold_recipe(recipe: Recipe, data: DataSets, rows: Rows, held: Sequence[int], folder: Path) -> Recipe:
    """The recipe on other rows: those of `held` are its test set, the others its train and select.

    The rows are written below `folder`; of a text that repeats outside the fold the first row alone is trained on, as
    in every run, and blank ones are not.
    """
    out = set(held)
    others = [copies[0] for copies in copies_of(rows) if copies[0] not in out]
    others = [place for place in others if not is_empty(rows.texts[place])]
    names = [None if rows.labels[place] is None else data.labels[rows.labels[place] or 0] for place in others]
    source = Source("rows", [rows.texts[place] for place in others], names, others)
    chosen, left = stratified_share(source, min(SELECT_AT_MOST, _select_share(recipe, data)))
    label = next(name for name in ("label", "class", "label of the row") if name not in data.text_columns)

    def written(name: str, part: Rows) -> str:
        return _write_rows(folder / f"{name}.jsonl", part, data, label)

    asked = {
        "train": written("train", rows.take([others[place] for place in left])),
        "select": {"path": written("select", rows.take([others[place] for place in chosen]))},
        "test": written("test", rows.take(held)),
        "unlabelled": [
            {"path": written(f"unlabelled-{number}", part), "share": share}
            for number, (part, share) in enumerate(_pools(data, {rows.texts[place] for place in held}), 1)
        ],
        "text": data.text_columns[0] if len(data.text_columns) == 1 else list(data.text_columns),
        "label": label,
        "labels": list(data.labels),
        "max_tokens": data.max_tokens,
    }
    return replace(_untimed(recipe), data=Data.model_validate(asked), budget=Budget())


def _select_share(recipe: Recipe, data: DataSets) -> float:
    """Share of the rows that are not tested on which the recipe decides."""
    if isinstance(recipe.data.select, SelectShare) and recipe.data.split is None:
        return recipe.data.select.share
    return len(data.select) / (len(data.select) + len(data.train))


def _pools(data: DataSets, tested: set[Text]) -> list[tuple[Rows, float | None]]:
    """The sources of the unlabelled pool that have rows, less the texts that are tested, each with its share."""
    parts = data.pools or (PoolPart("unlabelled", len(data.unlabelled), None),)
    starts = accumulate((part.rows for part in parts), initial=0)
    found = []
    for part, start in zip(parts, starts, strict=False):
        kept = [place for place in range(start, start + part.rows) if data.unlabelled.texts[place] not in tested]
        if kept:
            found.append((data.unlabelled.take(kept), part.share))
    return found


def _untimed(recipe: Recipe) -> Recipe:
    """The recipe with as little timing as there can be and no baselines.

    The first processor among its targets is timed, or else its first target, as these say what INT8 is made for.
    """
    asked = recipe.benchmark
    name = next((name for name in asked.targets if recipe.targets[name].device == "cpu"), asked.targets[0])
    least: dict[str, Any] = {"workload": None}
    if recipe.targets[name].device == "cpu":
        least["engine"] = "onnxruntime"
    few = {
        "targets": [name],
        "rounds": ROUNDS,
        "pytorch": False,
        "grid": None,
        "scenarios": ["single stream"],
        "p99_ms": None,
    }
    return replace(
        recipe,
        benchmark=asked.model_copy(update={**few, "end_to_end": False, "price": None, "baselines": []}),
        targets={**recipe.targets, name: recipe.targets[name].model_copy(update=least)},
    )


def _write_rows(path: Path, rows: Rows, data: DataSets, label: str) -> str:
    """Rows as jsonl, written where they are not there already; the path, absolute."""
    lines = []
    for text, place in zip(rows.texts, rows.labels, strict=True):
        texts = (text,) if isinstance(text, str) else text
        row = dict(zip(data.text_columns, texts, strict=True)) | ({} if place is None else {label: data.labels[place]})
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    content = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)
    return str(path.resolve())
