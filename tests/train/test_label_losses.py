from typing import get_args

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from compressor.distill.settings import LabelsMatch
from compressor.train.losses import (
    LABEL_LOSSES,
    LABEL_LOSSES_PER_ROW,
    cross_entropy,
    cross_entropy_per_row,
    focal_per_row,
    gce_per_row,
)
from compressor.train.settings import Finetune


def test_table_and_settings_name_the_same_losses() -> None:
    named = get_args(Finetune.model_fields["loss"].annotation)
    assert named
    assert set(named) == set(LABEL_LOSSES) == set(LABEL_LOSSES_PER_ROW)
    assert set(get_args(LabelsMatch.model_fields["loss"].annotation)) == set(LABEL_LOSSES)


def test_cross_entropy_is_minus_the_log_of_the_right_class() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
    targets = torch.tensor([0, 2])
    expected = -torch.stack([torch.log(torch.exp(row)[t] / torch.exp(row).sum()) for row, t in zip(logits, targets)])  # noqa: B905
    torch.testing.assert_close(cross_entropy_per_row(logits, targets), expected)
    torch.testing.assert_close(cross_entropy(logits, targets), expected.mean())


def test_smoothing_spreads_a_share_of_each_label_over_all_classes() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    truth = np.eye(4)[targets.numpy()] * 0.8 + 0.2 / 4
    expected = -(truth * log_softmax(logits.numpy(), 1)).sum(1)
    assert cross_entropy_per_row(logits, targets, smoothing=0.2).numpy() == pytest.approx(expected, rel=1e-5)
    smooth = focal_per_row(logits, targets, gamma=0.0, smoothing=0.2)
    torch.testing.assert_close(smooth, torch.tensor(expected).float())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_focal_agrees_with_its_definition(gamma: float, smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3) * 3, torch.tensor([0, 1, 2, 2, 0, 1])
    p = softmax(logits.numpy(), 1)
    truth = np.eye(3)[targets.numpy()] * (1 - smoothing) + smoothing / 3
    expected = -(truth * (1 - p) ** gamma * np.log(p)).sum(1)
    found = focal_per_row(logits, targets, gamma=gamma, smoothing=smoothing)
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_focal_of_gamma_zero_is_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3) * 3, torch.tensor([0, 1, 2, 2, -100, 1])
    torch.testing.assert_close(focal_per_row(logits, targets, gamma=0.0), cross_entropy_per_row(logits, targets))


def test_focal_looks_less_at_rows_that_are_right() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 0.0]])
    focal, plain = (loss(logits, torch.tensor([0, 0])) for loss in (focal_per_row, cross_entropy_per_row))
    assert focal[0] / focal[1] < 0.001 * plain[0] / plain[1]


def test_gce_agrees_with_its_definition() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3) * 3, torch.tensor([0, 1, 2, 2, 0, 1])
    p = softmax(logits.numpy(), 1)[np.arange(6), targets.numpy()]
    assert gce_per_row(logits, targets).numpy() == pytest.approx((1 - p**0.7) / 0.7, rel=1e-4)


def test_a_wrong_label_pulls_less_in_gce_than_in_ce() -> None:
    logits = torch.tensor([[8.0, 0.0]], requires_grad=True)
    norms = {
        name: torch.autograd.grad(LABEL_LOSSES[name](logits, torch.tensor([1])), logits)[0].norm().item()
        for name in ("ce", "gce")
    }
    assert norms["gce"] < 0.01 * norms["ce"]


@pytest.mark.parametrize("name", sorted(LABEL_LOSSES))
def test_extreme_logits_have_finite_losses_and_gradients(name: str) -> None:
    for smoothing in (0.0, 0.1):
        for gamma in (0.5, 2.0):
            logits = torch.tensor([[90.0, -90.0], [-90.0, 90.0]], requires_grad=True)
            loss = LABEL_LOSSES[name](logits, torch.tensor([0, 0]), gamma=gamma, smoothing=smoothing)
            assert torch.isfinite(loss)
            assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@pytest.mark.parametrize("name", sorted(LABEL_LOSSES))
def test_the_mean_is_over_the_labelled_rows_of_the_row_losses(name: str) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), torch.tensor([0, -100, 2, 1, -100])
    rows = LABEL_LOSSES_PER_ROW[name](logits, targets, gamma=2.0, smoothing=0.0)
    assert rows[[1, 4]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(LABEL_LOSSES[name](logits, targets, gamma=2.0, smoothing=0.0), rows.sum() / 3)


@pytest.mark.parametrize("name", sorted(LABEL_LOSSES))
def test_unlabelled_rows_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    loss = LABEL_LOSSES[name]
    logits, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    more = torch.cat([logits, torch.randn(5, 3)])
    padded = torch.cat([targets, torch.full((5,), -100)])
    for smoothing in (0.0, 0.2):
        torch.testing.assert_close(loss(more, padded, smoothing=smoothing), loss(logits, targets, smoothing=smoothing))


@pytest.mark.parametrize("name", sorted(LABEL_LOSSES))
def test_a_batch_without_labels_has_loss_and_gradient_zero(name: str) -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = LABEL_LOSSES[name](logits, torch.full((3,), -100), smoothing=0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == 0.0
