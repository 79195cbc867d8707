from typing import get_args

import torch

from compressor.train.losses import LABEL_LOSSES, LABEL_LOSSES_PER_ROW, cross_entropy, cross_entropy_per_row
from compressor.train.settings import Finetune


def test_table_and_settings_name_the_same_losses() -> None:
    named = get_args(Finetune.model_fields["loss"].annotation)
    assert named
    assert set(named) == set(LABEL_LOSSES) == set(LABEL_LOSSES_PER_ROW)


def test_cross_entropy_is_minus_the_log_of_the_right_class() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
    targets = torch.tensor([0, 2])
    expected = -torch.stack([torch.log(torch.exp(row)[t] / torch.exp(row).sum()) for row, t in zip(logits, targets)])  # noqa: B905
    torch.testing.assert_close(cross_entropy_per_row(logits, targets), expected)
    torch.testing.assert_close(cross_entropy(logits, targets), expected.mean())


def test_unlabelled_rows_change_nothing() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    more = torch.cat([logits, torch.randn(5, 3)])
    padded = torch.cat([targets, torch.full((5,), -100)])
    torch.testing.assert_close(cross_entropy(more, padded), cross_entropy(logits, targets))


def test_a_batch_without_labels_has_loss_and_gradient_zero() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == 0.0
