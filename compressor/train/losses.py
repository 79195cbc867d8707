"""Losses on the rows' own labels. Units without a label (target -100) count for nothing."""

# U units (rows, tokens), C classes

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from compressor.data.batches import UNLABELLED

GCE_POWER = 0.7
"""q of the generalised cross-entropy, its authors' choice."""


class LabelLoss(Protocol):
    """A loss on labels."""

    def __call__(
        self, logits_UC: Tensor, targets_U: Tensor, /, *, gamma: float = ..., smoothing: float = ...
    ) -> Tensor:
        """The loss; `gamma` is of focal alone, `smoothing` of ce and focal."""


def cross_entropy_per_row(
    logits_UC: Tensor, targets_U: Tensor, *, gamma: float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each unit in nats, shape (units,), fp32; 0 where the target is -100.

    Args:
        logits_UC: shape (units, classes).
        targets_U: shape (units,) int64, -100 where unlabelled.
        gamma: unused; of focal.
        smoothing: share (0 to 1) of each label that is spread over all classes.
    """
    return functional.cross_entropy(
        logits_UC.float(), targets_U, reduction="none", ignore_index=UNLABELLED, label_smoothing=smoothing
    )


def focal_per_row(logits_UC: Tensor, targets_U: Tensor, *, gamma: float = 2.0, smoothing: float = 0.0) -> Tensor:
    """Focal loss of each unit in nats, shape (units,), fp32; 0 where the target is -100.

    Cross-entropy with each class's part times (1 - p)^gamma, so that units which are right already count little (Lin
    et al. 2017, https://arxiv.org/abs/1708.02002, equation 4). Arguments as `cross_entropy_per_row`; gamma 0 is it.
    """
    logs_UC = functional.log_softmax(logits_UC.float(), dim=-1)
    # 1 - p; at p = 1 a power below 1 would have an endless slope
    doubt_UC = (-torch.expm1(logs_UC)).clamp(min=torch.finfo(logs_UC.dtype).eps)
    values_UC = -logs_UC * doubt_UC**gamma
    of_label_U = _at_label(values_UC, targets_U)
    mixed_U = (1 - smoothing) * of_label_U + smoothing * values_UC.mean(-1)
    return torch.where(targets_U != UNLABELLED, mixed_U, 0.0)


def gce_per_row(logits_UC: Tensor, targets_U: Tensor, *, gamma: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """Generalised cross-entropy of each unit, (1 - p^q) / q with q 0.7, shape (units,), fp32; 0 where unlabelled.

    Between cross-entropy (q to 0) and mean absolute error (q 1): wrong labels pull less (Zhang and Sabuncu 2018,
    https://arxiv.org/abs/1805.07836, equation 6). Arguments as `cross_entropy_per_row`; `gamma` and `smoothing` are
    unused, and a recipe that gives them is refused.
    """
    logs_U = _at_label(functional.log_softmax(logits_UC.float(), dim=-1), targets_U)
    return torch.where(targets_U != UNLABELLED, -torch.expm1(GCE_POWER * logs_U) / GCE_POWER, 0.0)


def cross_entropy(logits_UC: Tensor, targets_U: Tensor, *, gamma: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the labelled units in nats, shape (); 0 (with zero gradient) where none is labelled.

    Divided by the number of labelled units, so that another share of unlabelled rows in the batch changes nothing.

    >>> import torch
    >>> cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, -100])).item()  # log 2
    0.6931471824645996
    """
    return _mean(cross_entropy_per_row(logits_UC, targets_U, smoothing=smoothing), targets_U)


def focal(logits_UC: Tensor, targets_U: Tensor, *, gamma: float = 2.0, smoothing: float = 0.0) -> Tensor:
    """Mean focal loss of the labelled units, shape (), as `cross_entropy` is a mean."""
    return _mean(focal_per_row(logits_UC, targets_U, gamma=gamma, smoothing=smoothing), targets_U)


def gce(logits_UC: Tensor, targets_U: Tensor, *, gamma: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """Mean generalised cross-entropy of the labelled units, shape (), as `cross_entropy` is a mean."""
    return _mean(gce_per_row(logits_UC, targets_U), targets_U)


def _at_label(values_UC: Tensor, targets_U: Tensor) -> Tensor:
    """The value of each unit's own class, shape (U,); that of class 0 where unlabelled."""
    return values_UC.gather(-1, targets_U.clamp(min=0)[:, None]).squeeze(-1)


def _mean(values_U: Tensor, targets_U: Tensor) -> Tensor:
    return values_U.sum() / (targets_U != UNLABELLED).sum().clamp(min=1)


LABEL_LOSSES: dict[str, LabelLoss] = {"ce": cross_entropy, "focal": focal, "gce": gce}
"""Name in settings to loss(logits (U, C), targets (U,)) -> scalar."""
LABEL_LOSSES_PER_ROW: dict[str, LabelLoss] = {
    "ce": cross_entropy_per_row,
    "focal": focal_per_row,
    "gce": gce_per_row,
}
"""The same before the mean, shape (U,)."""
