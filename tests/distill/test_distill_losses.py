import math
import typing

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from compressor.distill.losses import (
    HIDDEN_LOSSES,
    LOGITS_LOSSES,
    hidden_cosine,
    hidden_mse,
    kd_ce,
    kd_kl,
    kd_mse,
    kl_per_row,
    weighted_mean,
)
from compressor.distill.settings import HiddenMatch, LogitsMatch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def test_tables_and_settings_name_the_same_losses() -> None:
    for table, schema in ((LOGITS_LOSSES, LogitsMatch), (HIDDEN_LOSSES, HiddenMatch)):
        named = typing.get_args(schema.model_fields["loss"].annotation)
        assert named
        assert set(named) == set(table)


def test_kl_agrees_with_scipy() -> None:
    student, teacher = torch.randn(7, 5) * 3, torch.randn(7, 5) * 3
    for temperature in (0.5, 1.0, 4.0):
        p, q = softmax(teacher.numpy() / temperature, 1), softmax(student.numpy() / temperature, 1)
        expected = rel_entr(p, q).sum(1).mean() * temperature**2
        assert kd_kl(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-4)
        expected = -(p * log_softmax(student.numpy() / temperature, 1)).sum(1).mean() * temperature**2
        assert kd_ce(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_kl_of_equal_answers_is_zero_with_gradient_zero(temperature: float) -> None:
    student = (torch.randn(6, 4) * 5).requires_grad_()
    loss = kd_kl(student, student.detach(), temperature=temperature)
    assert loss.item() == 0.0
    assert gradient(loss, student).abs().max().item() < 1e-6


def test_kl_is_never_negative() -> None:
    assert all(kd_kl(torch.randn(3, 4) * 9, torch.randn(3, 4) * 9).item() >= 0 for _ in range(50))


def test_kl_ignores_a_constant_added_to_a_rows_logits() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(kd_kl(student + 7, teacher - 3), kd_kl(student, teacher))


@pytest.mark.parametrize("loss", [kd_kl, kd_ce])
def test_gradient_keeps_its_size_as_the_temperature_changes_at_small_logits(loss: typing.Any) -> None:
    student, teacher = (torch.randn(16, 3) * 0.05).requires_grad_(), torch.randn(16, 3) * 0.05
    norms = [gradient(loss(student, teacher, temperature=t), student).norm().item() for t in (1.0, 2.0, 4.0, 8.0)]
    assert norms == pytest.approx([norms[0]] * 4, rel=0.02)


@pytest.mark.parametrize("loss", [kd_kl, kd_ce])
def test_classes_that_both_rule_out_change_neither_loss_nor_gradient(loss: typing.Any) -> None:
    student, teacher = torch.randn(8, 2).requires_grad_(), torch.randn(8, 2)
    ruled_out = torch.full((8, 75), -60.0)
    few = loss(student, teacher)
    many = loss(torch.cat([student, ruled_out], 1), torch.cat([teacher, ruled_out], 1))
    torch.testing.assert_close(few, many)
    torch.testing.assert_close(gradient(few, student), gradient(many, student))


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_the_mean_over_rows_does_not_depend_on_their_number(rows: int) -> None:
    student, teacher = torch.randn(1, 3), torch.randn(1, 3)
    for loss in (kd_kl, kd_ce, kd_mse):
        torch.testing.assert_close(loss(student.repeat(rows, 1), teacher.repeat(rows, 1)), loss(student, teacher))


def test_kl_of_extreme_and_of_half_precision_logits_is_finite() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = kd_kl(student, torch.tensor([[-1e4, 1e4, 0.0]]))
    assert math.isfinite(loss.item())
    assert torch.isfinite(gradient(loss, student)).all()
    assert kd_kl(torch.randn(2, 3).bfloat16(), torch.randn(2, 3).half()).dtype == torch.float32


def test_kl_tends_to_half_of_mse_as_the_temperature_grows() -> None:
    student, teacher = torch.randn(5, 6), torch.randn(5, 6)
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    assert kd_kl(student, teacher, temperature=300.0).item() == pytest.approx(
        kd_mse(student, teacher).item() / 2, rel=0.02
    )


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    states, taught = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    mask = torch.ones(2, 4)
    total = kd_kl(student, teacher) + kd_ce(student, teacher) + kd_mse(student, teacher)
    (total + hidden_mse(states, taught, mask) + hidden_cosine(states, taught, mask)).backward()
    assert teacher.grad is None
    assert taught.grad is None
    assert student.grad is not None


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in shape: \(2, 3\), \(2, 4\)"):
        kd_kl(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"temperature must be above 0 \(got 0.0\)"):
        kl_per_row(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0)
    with pytest.raises(ValueError, match="states differ in shape"):
        hidden_mse(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1, 2))


def test_hidden_losses_agree_with_numpy() -> None:
    student, teacher = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    squares, cosines = [], []
    for row, token in ((0, 0), (0, 1), (0, 2), (1, 0)):
        a, b = student[row, token].numpy(), teacher[row, token].numpy()
        cosines.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        a, b = (a - a.mean()) / np.sqrt(a.var() + 1e-5), (b - b.mean()) / np.sqrt(b.var() + 1e-5)
        squares.append(((a - b) ** 2).mean())
    assert hidden_mse(student, teacher, mask).item() == pytest.approx(np.mean(squares), rel=1e-5)
    assert hidden_cosine(student, teacher, mask).item() == pytest.approx(np.mean(cosines), rel=1e-5)


@pytest.mark.parametrize("name", sorted(HIDDEN_LOSSES))
@pytest.mark.parametrize("weighted", [False, True])
def test_padding_changes_neither_hidden_loss_nor_gradient(name: str, weighted: bool) -> None:
    loss, weights = HIDDEN_LOSSES[name], torch.tensor([1.0, 0.3, 2.0]) if weighted else None
    student, teacher, mask = torch.randn(3, 4, 8), torch.randn(3, 4, 8), torch.ones(3, 4, dtype=torch.int64)
    mask[1, 2:] = 0
    student.requires_grad_()
    short = loss(student, teacher, mask, row_weights=weights)
    junk = torch.randn(3, 5, 8) * 100
    longer = loss(
        torch.cat([student, junk], 1), torch.cat([teacher, junk * -3], 1),
        torch.cat([mask, torch.zeros(3, 5, dtype=torch.int64)], 1), row_weights=weights,
    )  # fmt: skip
    torch.testing.assert_close(short, longer)
    torch.testing.assert_close(gradient(short, student), gradient(longer, student))


@pytest.mark.parametrize("name", sorted(HIDDEN_LOSSES))
def test_hidden_loss_of_equal_states_is_zero_whatever_their_scale(name: str) -> None:
    states, mask = torch.randn(2, 3, 8), torch.ones(2, 3)
    assert HIDDEN_LOSSES[name](states, states, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert HIDDEN_LOSSES[name](states * 5, states, mask).item() == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", sorted(HIDDEN_LOSSES))
def test_a_rows_weight_changes_nothing_for_the_other_rows(name: str) -> None:
    student, teacher, mask = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8), torch.ones(2, 3)
    one = gradient(HIDDEN_LOSSES[name](student, teacher, mask, row_weights=torch.tensor([1.0, 1.0])), student)
    two = gradient(HIDDEN_LOSSES[name](student, teacher, mask, row_weights=torch.tensor([1.0, 0.25])), student)
    torch.testing.assert_close(one[0], two[0])
    torch.testing.assert_close(one[1] * 0.25, two[1])


def test_weighted_mean_divides_by_rows() -> None:
    values = torch.tensor([1.0, 3.0])
    assert weighted_mean(values, None).item() == 2.0
    assert weighted_mean(values, torch.tensor([1.0, 0.0])).item() == 0.5
