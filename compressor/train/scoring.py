"""Answers and scores of a model that is being trained, on tokenised rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.data.batches import Pool
from compressor.data.rows import DataSets
from compressor.errors import InputError
from compressor.model.states import forward

Scorer = Callable[[str, NDArray[np.int64], NDArray[np.int64], Sequence[str]], float]
"""(metric, predictions, references, labels) to a score, higher is better; evaluate.metrics.score is one."""

SCORING_TOKENS = 4096
"""Tokens a batch, padding included, in passes without gradients."""


def pool_logits(model: nn.Module, pool: Pool) -> NDArray[np.float32]:
    """Logits of every row in its order, shape (rows, classes), in eval mode; the model's mode is put back."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    parts: list[NDArray[np.float32]] = []
    rows: list[NDArray[np.int64]] = []
    with torch.inference_mode():
        for batch in pool.in_order(batch_tokens=SCORING_TOKENS):
            parts.append(forward(model, batch.to(device)).float().cpu().numpy())
            rows.append(batch.rows.numpy())
    model.train(training)
    logits = np.empty((len(pool), parts[0].shape[1]), dtype=np.float32)
    logits[np.concatenate(rows)] = np.concatenate(parts)
    return logits


def select_scorer(data: DataSets, pool: Pool, score: Scorer | None) -> Callable[[nn.Module], float]:
    """A function that gives a model's score on `select`, by the task's metric.

    Args:
        pool: the rows of `data.select`, tokenised.
        score: computes the metric; None serves accuracy alone.
    Raises: InputError for another metric without `score`, and where `select` is empty.
    """
    metric = data.task.metric
    if not len(pool):
        raise InputError("data.select has no rows, so nothing can be decided on it; set data.select")
    if score is None and metric != "accuracy":
        raise InputError(f"scoring {metric} needs score=compressor.evaluate.metrics.score; without it accuracy alone")
    compute: Scorer = accuracy if score is None else score

    def scored(model: nn.Module) -> float:
        return float(compute(metric, pool_logits(model, pool).argmax(1), pool.targets, data.labels))

    return scored


def accuracy(
    _metric: str, predictions: NDArray[np.int64], references: NDArray[np.int64], _labels: Sequence[str]
) -> float:
    """Share of the rows that are right."""
    return float((predictions == references).mean())
