"""Two models on the same rows: how much worse, how often alike, which rows changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.statistics import Interval
from compressor.data.labels import require_labels
from compressor.data.rows import DataSets, Text, open_data
from compressor.data.settings import Data
from compressor.errors import InputError
from compressor.evaluate.gates import answers_from
from compressor.evaluate.paired import Flips, Score, agreement, drop, flips, score_interval
from compressor.model.manifest import read_manifest
from compressor.stage import Progress, silent


@dataclass(frozen=True)
class Comparison:
    """A subject beside a reference; scores in fractions, intervals two-sided 95 %, a drop above 0 is worse."""

    metric: str
    rows: int
    on_test: bool
    """False where the data has no test rows and select was used."""
    reference: Score
    subject: Score
    drop: Interval
    agreement: float
    flips: Flips
    changed: tuple[Text, ...]
    """Texts on which the two answer differently, in the order of the rows."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's types."""
        return asdict(self)


def scored_rows(data: DataSets) -> tuple[list[Text], list[int | None], bool]:
    """Texts and class ids that scores are taken on: test, or select (then False) where there is no test set."""
    rows = data.scored
    if not len(rows):
        raise InputError("there are no rows to score on; give data.test")
    return list(rows.texts), list(rows.labels), data.scored_part == "test"


def open_rows(data: DataSets | Data | Mapping[str, Any], model: Path, *, base: Path | None = None) -> DataSets:
    """The rows of `data`, their class ids in the order of the model's labels where `data` names none."""
    return open_data(data, base=base, teacher_labels=read_manifest(model).labels)


def compare(
    reference: str | Path,
    subject: str | Path,
    *,
    data: DataSets | Data | Mapping[str, Any],
    metric: str | None = None,
    base: Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """The second model beside the first on the test rows of `data`, each on the engine that its folder holds.

    `metric` is the task's unless given. Raises InputError where a model or the rows cannot be read, or where the two
    do not know the same labels.
    """
    from compressor.runtime.predictor import load

    rows = open_rows(data, Path(reference), base=base)
    texts, references, on_test = scored_rows(rows)
    logits = []
    for number, folder in enumerate((reference, subject)):
        progress("scoring", number, 2)
        predictor = load(folder, spinning=False)
        require_labels(Path(folder), predictor.manifest.labels, rows.labels)
        logits.append(np.asarray(predictor.logits(texts)))
    progress("scoring", 2, 2)
    kept = [text for text, label in zip(texts, references, strict=True) if label is not None]
    return compare_answers(
        logits[0],
        logits[1],
        references,
        rows.labels,
        metric=metric or rows.task.metric,
        on_test=on_test,
        texts=kept,
    )


def compare_answers(
    reference_logits: np.ndarray,
    subject_logits: np.ndarray,
    references: list[int | None],
    labels: tuple[str, ...],
    *,
    metric: str,
    on_test: bool,
    texts: list[Text],
) -> Comparison:
    """The comparison from logits; `texts` are those of the labelled rows."""
    ours = answers_from(subject_logits, {"reference": reference_logits}, references, labels)
    before, after = ours.compared["reference"], ours.predictions
    return Comparison(
        metric=metric,
        rows=len(after),
        on_test=on_test,
        reference=score_interval(metric, before, ours.references, labels),
        subject=score_interval(metric, after, ours.references, labels),
        drop=drop(metric, before, after, ours.references, labels),
        agreement=agreement(before, after),
        flips=flips(before, after, ours.references),
        changed=tuple(text for text, one, other in zip(texts, before, after, strict=True) if one != other),
    )
