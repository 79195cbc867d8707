"""What a report says beyond its main figures: accuracy in depth, changed texts, and the rows it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.rows import DataSets, Rows
from compressor.report.accuracy import Known, deepen, token_lengths
from compressor.report.compare import scored_rows
from compressor.report.doubts import of_reference
from compressor.report.model import Report
from compressor.report.perturbations import with_perturbations
from compressor.report.saturation import with_saturation
from compressor.report.subjects import Subject
from compressor.stage import Progress, silent

ROWS_COUNTED = 20_000
"""Rows of a part whose tokens are counted for the histogram, evenly spaced; a pool may have millions."""
BINS = 24


def in_depth(
    report: Report,
    subjects: Sequence[Subject],
    data: DataSets,
    *,
    tokenizer: Path,
    select: Mapping[str, np.ndarray] | None = None,
    reference: str = "teacher",
    changed: Sequence[str] = (),
    threads: int | None = None,
    seed: int = 17,
    progress: Progress = silent,
) -> Report:
    """The report with classes, lengths, calibration, changed texts, optimism, and counts of the rows.

    Args:
        report: as `assemble` makes it.
        subjects: with logits on the scored rows of `data`.
        data: all rows.
        tokenizer: folder of a model whose tokens are counted.
        select: key of a subject to its logits on select.
        reference: name of the subject that others are compared with.
        changed: names of the subjects that changed texts are given to; with none, saturating sums are not tried either.
        threads: of each model that is asked again.
        seed: draws rows and typos.
        progress: called while it works.
    """
    texts, references, on_test = scored_rows(data)
    known = Known(
        references=references,
        labels=data.labels,
        metric=str(report.task["metric"]),
        on_test=on_test,
        lengths=token_lengths(tokenizer, texts, data.max_tokens),
        select=select or {},
        select_references=data.select.labels if select else (),
    )
    report = deepen(report, subjects, known, reference=reference)
    if changed:
        report = with_perturbations(
            report, subjects, texts, known, names=changed, threads=threads, seed=seed, progress=progress
        )
        report = with_saturation(report, subjects, data, threads=threads, progress=progress)
    counted = {"histogram": histogram(data, tokenizer), "label_counts": label_counts(data)}
    weak = _weak_reference(subjects, known, reference, "test" if on_test else "select")
    return report.model_copy(update={**counted, "doubts": (*weak, *report.doubts)})


def _weak_reference(subjects: Sequence[Subject], known: Known, reference: str, part: str) -> list[str]:
    """Doubts about the model that others are held against: on select where it was answered, else on the scored rows."""
    on_select = known.select.get(reference)
    if on_select is not None:
        return of_reference(reference, on_select.argmax(-1), known.select_references, known.labels, part="select")
    logits = next((one.logits for one in subjects if one.key == reference), None)
    if logits is None:
        return []
    return of_reference(reference, np.asarray(logits).argmax(-1), known.references, known.labels, part=part)


def parts(data: DataSets) -> dict[str, Rows]:
    """The parts of the data that have rows, by name."""
    every = {"train": data.train, "select": data.select, "test": data.test, "unlabelled": data.unlabelled}
    return {name: rows for name, rows in every.items() if rows is not None and len(rows)}


def histogram(data: DataSets, tokenizer: Path) -> dict[str, Any]:
    """Tokens a row, `{edges, counts: {part: [..]}}`, over at most 20,000 rows of each part; bins of equal width."""
    lengths = {
        name: token_lengths(tokenizer, rows.texts[:: -(-len(rows) // ROWS_COUNTED)], data.max_tokens)
        for name, rows in parts(data).items()
    }
    if not lengths:
        return {}
    longest = int(max(each.max() for each in lengths.values()))
    width = max(1, -(-longest // BINS))
    edges = list(range(0, longest + width + 1, width))
    counts = {name: np.histogram(each, bins=edges)[0].tolist() for name, each in lengths.items()}
    return {"edges": edges, "counts": counts}


def label_counts(data: DataSets) -> dict[str, dict[str, int]]:
    """Part to label to rows; parts without labels are left out."""
    found: dict[str, dict[str, int]] = {}
    for name, rows in parts(data).items():
        counts = Counter(label for label in rows.labels if label is not None)
        if counts:
            found[name] = {label: counts.get(number, 0) for number, label in enumerate(data.labels)}
    return found
