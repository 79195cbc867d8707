"""A score taken apart: each class by itself, and rows by their length, beside another model on the same rows."""
# N rows

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.bench.statistics import Interval
from compressor.errors import InputError
from compressor.evaluate.paired import Score, drop, score_interval
from compressor.evaluate.proportions import paired_fall, wilson

LENGTH_BINS = 4
"""Quartiles: more would leave too few rows in each of a usual test set."""
ROWS_A_BIN = 25
"""Least rows for each bin of lengths; fewer say nothing about one of them."""


@dataclass(frozen=True)
class ClassPart:
    """How well one class is found, in fractions with two-sided 95 % intervals."""

    label: str
    rows: int
    """Rows of that class."""
    precision: Interval | None
    """Share of the rows called it that are of it; None where none was called it."""
    recall: Interval | None
    """Share of its rows that were called it; None where there are none."""
    recall_drop: Interval | None
    """The reference model's recall minus this one's, on the same rows; None without a reference or such rows."""


@dataclass(frozen=True)
class LengthPart:
    """The score of the rows of `low` to `high` tokens, both ends within."""

    low: int
    high: int
    score: Score
    drop: Interval | None
    """The reference model's score minus this one's; None without a reference."""


def by_class(
    predictions: np.ndarray,
    references: np.ndarray,
    labels: Sequence[str],
    *,
    reference_predictions: np.ndarray | None = None,
) -> tuple[ClassPart, ...]:
    """One part for each class, in the order of the ids.

    Args:
        predictions: class ids of the subject, shape (N,).
        references: the rows' own class ids, shape (N,).
        labels: class names in the order of their ids.
        reference_predictions: class ids of the model compared with, on the same rows.
    """
    found = []
    for place, label in enumerate(labels):
        own, called = references == place, predictions == place
        right, rows, calls = int(np.sum(own & called)), int(own.sum()), int(called.sum())
        fall = None
        if reference_predictions is not None and rows:
            before, after = reference_predictions[own] == place, called[own]
            fall = paired_fall(int(np.sum(before & ~after)), int(np.sum(after & ~before)), rows)
        found.append(
            ClassPart(
                label=label,
                rows=rows,
                precision=wilson(right / calls, calls) if calls else None,
                recall=wilson(right / rows, rows) if rows else None,
                recall_drop=fall,
            )
        )
    return tuple(found)


def length_bins(
    lengths: np.ndarray, *, bins: int = LENGTH_BINS, least: int = ROWS_A_BIN
) -> tuple[tuple[int, int], ...]:
    """First and last length of each bin: quantiles, so that each holds about as many rows; no gap between them.

    Fewer bins where rows are too few for `least` in each, or where many rows have one length; none for no rows.

    >>> length_bins(np.array([3, 4, 5, 6, 7, 8, 9, 20]), bins=2, least=1)
    ((3, 6), (7, 20))
    """
    if not len(lengths):
        return ()
    wanted = max(1, min(bins, len(lengths) // least))
    shares = np.arange(1, wanted + 1) / wanted
    ends = np.unique(np.quantile(lengths, shares, method="inverted_cdf").astype(np.int64))
    starts = [int(np.min(lengths)), *(int(end) + 1 for end in ends[:-1])]
    return tuple((start, int(end)) for start, end in zip(starts, ends, strict=True))


def by_length(
    metric: str,
    predictions: np.ndarray,
    references: np.ndarray,
    labels: Sequence[str],
    lengths: np.ndarray,
    *,
    reference_predictions: np.ndarray | None = None,
) -> tuple[LengthPart, ...]:
    """The score in each bin of lengths, shortest first; empty where the rows make one bin alone.

    Args:
        metric: a metric or METRIC@CLASS.
        predictions: class ids of the subject, shape (N,).
        references: the rows' own class ids, shape (N,).
        labels: class names in the order of their ids.
        lengths: tokens of each row, shape (N,).
        reference_predictions: class ids of the model compared with, on the same rows.
    Raises: InputError when lengths and rows differ in number, or for an unknown metric.
    """
    if len(lengths) != len(references):
        raise InputError(f"each row needs its length (got {len(lengths)} lengths for {len(references)} rows)")
    edges = length_bins(lengths)
    if len(edges) < 2:
        return ()
    if metric == "accuracy":  # it asks for two classes alone, however many there are
        if reference_predictions is not None:
            reference_predictions = np.where(reference_predictions == references, 0, 1)
        predictions = np.where(predictions == references, 0, 1)
        references, labels = np.zeros_like(references), ("right", "wrong")
    found = []
    for low, high in edges:
        inside = (lengths >= low) & (lengths <= high)
        ours, own = predictions[inside], references[inside]
        fall = None
        if reference_predictions is not None:
            fall = drop(metric, reference_predictions[inside], ours, own, labels)
        found.append(LengthPart(low, high, score_interval(metric, ours, own, labels), fall))
    return tuple(found)
