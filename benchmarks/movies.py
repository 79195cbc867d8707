"""What the accuracy benchmarks share: the movie snippets, trainings that are made once, and scores with intervals.

Rows are split as in recipes/teacher-movies.yaml: 2,000 test, 1,000 select, 7,043 train; those in no class are a pool.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets, Rows, read_data
from compressor.model.encoders import load_model
from compressor.recipe.recipe import Recipe
from compressor.sources.models import resolve_model
from compressor.sources.settings import ModelSource
from compressor.stage import silent
from compressor.train.finetune import encoded_pool
from compressor.train.scoring import pool_logits

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "teacher-movies.yaml"


def movies() -> DataSets:
    """All snippets, split by the hash of their text."""
    recipe = Recipe.load(RECIPE)
    return read_data(recipe.data, recipe.task, base=recipe.base, teacher_labels=None)


def encoder_folder() -> Path:
    """The MiniLM encoder that the recipe starts from."""
    recipe = Recipe.load(RECIPE)
    source = recipe.teacher.model
    return resolve_model(ModelSource(path=source.path, sha256=source.sha256), base=recipe.base, progress=silent)


def share_of(data: DataSets, *, labels: int | None, unlabelled: int | None, seed: int) -> DataSets:
    """So many labelled rows, drawn evenly from both classes, and so many of all others as the pool; None is all."""
    random = np.random.default_rng([seed, 5])
    order = random.permutation(len(data.train))
    chosen = order if labels is None else _stratified(order, data.train.labels, labels)
    others = np.setdiff1d(order, chosen, assume_unique=True)
    rest = [*(data.train.texts[int(row)] for row in others), *data.unlabelled.texts]
    pool = [rest[int(row)] for row in random.permutation(len(rest))[: len(rest) if unlabelled is None else unlabelled]]
    return replace(
        data,
        train=data.train.take([int(row) for row in sorted(chosen)]),
        unlabelled=Rows(tuple(pool), (None,) * len(pool)),
        pools=(),
    )


def _stratified(order: np.ndarray, labels: tuple[int | None, ...], count: int) -> np.ndarray:
    classes = np.array([-1 if label is None else label for label in labels])[order]
    each = [order[classes == number][: count // len(set(classes))] for number in sorted(set(classes))]
    return np.concatenate(each)


@dataclass(frozen=True)
class Log:
    """Finished trainings in a jsonl file, one line each, so that a stopped benchmark goes on."""

    path: Path

    def lines(self) -> list[dict[str, Any]]:
        """What is there."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def once(self, key: dict[str, Any], make: Callable[[], list[dict[str, Any]]]) -> None:
        """Append what `make` gives, each with the key, unless lines with that key are there."""
        if any(key.items() <= line.items() for line in self.lines()):
            return
        made = make()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for line in made:
                file.write(json.dumps({**key, **line}) + "\n")
        print(key, [(line.get("subject"), line.get("accuracy")) for line in made], flush=True)


def scored(folder: Path, data: DataSets) -> dict[str, Any]:
    """Accuracy of a model folder on select and test, and which test rows it has right (hex, first row first)."""
    model, encoder = load_model(folder, labels=data.labels), open_encoder(folder, data.max_tokens)
    found: dict[str, Any] = {}
    assert data.test is not None
    for name, rows in (("select", data.select), ("test", data.test)):
        pool = encoded_pool(rows, encoder, name)
        right = pool_logits(model, pool).argmax(1) == pool.targets
        found[name] = float(right.mean())
    return {"accuracy": found["test"], "select": found["select"], "right": np.packbits(right).tobytes().hex()}


def right_rows(line: dict[str, Any], rows: int = 2000) -> np.ndarray:
    """Which test rows were right, shape (rows,), 0 or 1."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(line["right"]), dtype=np.uint8))[:rows].astype(float)


def mean_right(lines: Iterable[dict[str, Any]]) -> np.ndarray:
    """Share of the seeds that have each test row right, shape (rows,)."""
    return np.mean([right_rows(line) for line in lines], axis=0)


def gain(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Mean gain in points with its 95 % interval over test rows (paired, t); seeds are averaged within a row first."""
    difference = (after - before) * 100
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean()), float(difference.mean() - half), float(difference.mean() + half)


def verdict(low: float, high: float) -> str:
    """What an interval of a gain says."""
    return "helps" if low > 0 else "hurts" if high < 0 else "not shown to help"


def use_threads() -> int:
    """Threads of torch, from OMP_NUM_THREADS or all cores; printed in the results."""
    count = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(count)
    return count
