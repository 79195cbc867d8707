"""Losses on the rows' own labels. Units without a label (target -100) count for nothing."""

# U units (rows, tokens), C classes

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from compressor.data.batches import UNLABELLED


def cross_entropy_per_row(logits_UC: Tensor, targets_U: Tensor) -> Tensor:
    """Cross-entropy of each unit in nats, shape (units,), fp32; 0 where the target is -100."""
    return functional.cross_entropy(logits_UC.float(), targets_U, reduction="none", ignore_index=UNLABELLED)


def cross_entropy(logits_UC: Tensor, targets_U: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled units in nats, shape (); 0 (with zero gradient) where none is labelled.

    Divided by the number of labelled units, so that another share of unlabelled rows in the batch changes nothing.

    >>> import torch
    >>> cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, -100])).item()  # log 2
    0.6931471824645996
    """
    labelled = (targets_U != UNLABELLED).sum().clamp(min=1)
    return cross_entropy_per_row(logits_UC, targets_U).sum() / labelled


LABEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy}
"""Name in settings to loss(logits (U, C), targets (U,)) -> scalar."""
LABEL_LOSSES_PER_ROW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy_per_row}
"""The same before the mean, shape (U,)."""
