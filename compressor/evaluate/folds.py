"""Answers to every row from a model that never saw it: k folds, each answered by a training on the others."""
# N rows, C classes

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compressor.errors import InputError
from compressor.stage import Progress, silent

Train = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Called with the numbers of the rows to train on and of those to answer; gives logits of shape (answered rows, C)."""


def folds(labels: Sequence[int | None], k: int = 5, *, seed: int = 17) -> tuple[np.ndarray, ...]:
    """The numbers of the rows in each of k folds, ascending; every row is in one.

    The rows of a class, those without a label too, are spread evenly: folds differ by at most one row of each, and by
    at most one row in all.

    Raises: InputError unless 2 <= k <= rows.

    >>> [fold.tolist() for fold in folds([0, 0, 1, 1], 2, seed=1)]
    [[0, 2], [1, 3]]
    """
    if not 2 <= k <= len(labels):
        raise InputError(f"folds must be 2 to {len(labels)}, the number of rows (got {k})")
    classes = np.array([-1 if label is None else label for label in labels], dtype=np.int64)
    order = np.lexsort((np.random.default_rng(seed).random(len(classes)), classes))
    fold = np.empty(len(classes), dtype=np.int64)
    fold[order] = np.arange(len(classes)) % k
    return tuple(np.flatnonzero(fold == number) for number in range(k))


def out_of_fold(
    labels: Sequence[int | None], train: Train, *, k: int = 5, seed: int = 17, progress: Progress = silent
) -> np.ndarray:
    """Logits of every row from the training that left its fold out, shape (N, C), float32.

    Args:
        labels: class ids, None where unlabelled, by which rows are spread over the folds.
        train: trains on some rows and answers others; called k times.
        k: number of folds.
        seed: of the folds.
        progress: called before each training.
    Raises: InputError for a number of folds that the rows do not allow, or answers of another shape than asked.
    """
    answers: np.ndarray | None = None
    for number, held in enumerate(folds(labels, k, seed=seed)):
        progress("out-of-fold answers", number, k)
        found = np.asarray(train(np.setdiff1d(np.arange(len(labels)), held), held), dtype=np.float32)
        if answers is None:
            answers = np.zeros((len(labels), found.shape[-1] if found.ndim == 2 else 0), dtype=np.float32)
        if found.shape != (len(held), answers.shape[1]) or not found.size:
            raise InputError(
                f"fold {number + 1} of {k}: answers to {len(held)} rows must be of shape ({len(held)}, classes), with "
                f"the same classes in every fold (got {found.shape})"
            )
        answers[held] = found
    progress("out-of-fold answers", k, k)
    assert answers is not None
    return answers
