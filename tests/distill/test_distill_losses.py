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
    SAME_WIDTH,
    ce_per_row,
    decoupled_per_row,
    gce_per_row,
    hidden_cosine,
    hidden_gram,
    hidden_mmd,
    hidden_mse,
    hidden_pkd,
    kd_ce,
    kd_kl,
    kd_mse,
    kl_per_row,
    weighted_mean,
)
from compressor.distill.settings import EmbeddingsMatch, HiddenMatch, LogitsMatch
from compressor.train.losses import gce_per_row as label_gce_per_row


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
    assert set(typing.get_args(EmbeddingsMatch.model_fields["loss"].annotation)) < set(HIDDEN_LOSSES)
    assert set(HIDDEN_LOSSES) > SAME_WIDTH


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


@pytest.mark.parametrize("name", sorted(LOGITS_LOSSES))
def test_no_gradient_flows_into_the_teachers_logits(name: str) -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    LOGITS_LOSSES[name](student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(LOGITS_LOSSES))
def test_each_row_has_a_loss_of_its_own(name: str) -> None:
    student, teacher = torch.randn(6, 4) * 2, torch.randn(6, 4) * 2
    together, order = LOGITS_LOSSES[name](student, teacher), torch.randperm(6)
    assert together.shape == (6,)
    torch.testing.assert_close(LOGITS_LOSSES[name](student[order], teacher[order]), together[order])
    torch.testing.assert_close(LOGITS_LOSSES[name](student[2:3], teacher[2:3]), together[2:3])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_is_kl_split_at_the_teachers_first_class(temperature: float) -> None:
    student, teacher = torch.randn(8, 5) * 3, torch.randn(8, 5) * 3
    p = softmax(teacher.numpy() / temperature, 1)
    rest = 1 - p.max(1)
    without, full = (decoupled_per_row(student, teacher, temperature=temperature, beta=beta) for beta in (0.0, 1.0))
    # KL = TCKD + (1 - p) NCKD (Zhao et al. 2022, equation 5)
    expected = kl_per_row(student, teacher, temperature=temperature)
    torch.testing.assert_close(without + torch.tensor(rest) * (full - without), expected, rtol=1e-4, atol=1e-5)


def test_decoupled_agrees_with_its_definition_in_numpy() -> None:
    student, teacher = torch.randn(6, 4) * 2, torch.randn(6, 4) * 2
    expected = []
    for one, other in zip(student.numpy() / 3.0, teacher.numpy() / 3.0, strict=True):
        q, p, first = softmax(one), softmax(other), other.argmax()
        ends = rel_entr([p[first], 1 - p[first]], [q[first], 1 - q[first]]).sum()
        p, q = np.delete(p, first), np.delete(q, first)
        expected.append(9.0 * (ends + 8.0 * rel_entr(p / p.sum(), q / q.sum()).sum()))
    assert decoupled_per_row(student, teacher, temperature=3.0).numpy() == pytest.approx(np.array(expected), rel=1e-4)


def test_decoupled_of_two_classes_has_no_others_and_is_kl() -> None:
    student, teacher = torch.randn(8, 2) * 3, torch.randn(8, 2) * 3
    torch.testing.assert_close(
        decoupled_per_row(student, teacher, beta=8.0), kl_per_row(student, teacher), rtol=1e-4, atol=1e-5
    )


def test_decoupled_stays_finite_where_the_teacher_is_sure() -> None:
    student = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    loss = decoupled_per_row(student, torch.tensor([[200.0, 0.0, -200.0]])).sum()
    assert math.isfinite(loss.item())
    assert torch.isfinite(gradient(loss, student)).all()


def test_gce_agrees_with_its_definition_and_tends_to_the_labels_one() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    p, q = softmax(teacher.numpy(), 1), softmax(student.numpy(), 1)
    expected = (p * (1 - q**0.7) / 0.7).sum(1)
    assert gce_per_row(student, teacher).numpy() == pytest.approx(expected, rel=1e-5)
    sure = torch.full((5, 3), -99.0).scatter(1, torch.tensor([[0], [2], [1], [1], [0]]), 99.0)
    labels = torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(gce_per_row(student, sure), label_gce_per_row(student, labels))


def test_gce_pulls_less_than_ce_towards_answers_that_the_student_contradicts() -> None:
    student = torch.tensor([[6.0, 0.0]], requires_grad=True)
    wrong = torch.tensor([[-20.0, 20.0]])
    noisy, plain = (gradient(loss(student, wrong).sum(), student).norm() for loss in (gce_per_row, ce_per_row))
    assert noisy < 0.05 * plain


def test_rows_without_an_answer_take_no_part_and_are_not_counted() -> None:
    values = torch.tensor([1.0, 3.0, 50.0])
    answered = torch.tensor([True, True, False])
    assert weighted_mean(values, None, answered).item() == 2.0
    assert weighted_mean(values, torch.tensor([1.0, 0.5, 9.0]), answered).item() == 1.25
    assert weighted_mean(values, None, torch.zeros(3, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize("name", sorted(HIDDEN_LOSSES))
def test_the_order_of_a_batch_changes_no_hidden_loss(name: str) -> None:
    student, teacher, mask = torch.randn(4, 5, 8), torch.randn(4, 5, 8), torch.ones(4, 5)
    mask[2, 3:] = 0
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        HIDDEN_LOSSES[name](student[order], teacher[order], mask[order]), HIDDEN_LOSSES[name](student, teacher, mask)
    )


def test_pkd_is_the_distance_of_unit_first_tokens_whatever_the_width() -> None:
    student, teacher, mask = torch.randn(3, 4, 8), torch.randn(3, 4, 8), torch.ones(3, 4)
    a, b = student[:, 0].numpy(), teacher[:, 0].numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert hidden_pkd(student, teacher, mask).item() == pytest.approx((2 - 2 * cosine).mean(), rel=1e-5)
    wide = [torch.cat([each] * 4, -1) for each in (student, teacher)]
    torch.testing.assert_close(hidden_pkd(*wide, mask), hidden_pkd(student, teacher, mask))


def test_mmd_agrees_with_the_kernel_over_all_pairs_of_channels() -> None:
    student, teacher = torch.randn(2, 5, 6), torch.randn(2, 5, 9)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = []
    for row, length in ((0, 5), (1, 3)):
        s, t = (each[row, :length].numpy().T for each in (student, teacher))
        s, t = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (s, t))
        kernel = {pair: ((x @ y.T) ** 2).mean() for pair, x, y in (("ss", s, s), ("tt", t, t), ("st", s, t))}
        expected.append(kernel["ss"] + kernel["tt"] - 2 * kernel["st"])
    assert hidden_mmd(student, teacher, mask).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_gram_agrees_with_cosines_of_all_pairs_of_tokens() -> None:
    student, teacher = torch.randn(2, 4, 6), torch.randn(2, 4, 9)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    by_token = []
    for row, length in ((0, 4), (1, 2)):
        units = [
            (x := each[row, :length].numpy()) / np.linalg.norm(x, axis=1, keepdims=True) for each in (student, teacher)
        ]
        by_token.extend(((units[0] @ units[0].T - units[1] @ units[1].T) ** 2).mean(1))
    assert hidden_gram(student, teacher, mask).item() == pytest.approx(np.mean(by_token), rel=1e-5)


@pytest.mark.parametrize("name", sorted(HIDDEN_LOSSES))
def test_hidden_losses_in_half_precision_are_computed_in_full(name: str) -> None:
    student, teacher, mask = torch.randn(2, 3, 8).bfloat16(), torch.randn(2, 3, 8), torch.ones(2, 3)
    found = HIDDEN_LOSSES[name](student, teacher, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, HIDDEN_LOSSES[name](student.float(), teacher, mask))


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in shape: \(2, 3\), \(2, 4\)"):
        kd_kl(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"temperature must be above 0 \(got 0.0\)"):
        kl_per_row(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0)
    with pytest.raises(ValueError, match="states differ in shape"):
        hidden_mse(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"differ in rows or tokens: \(1, 2\), \(1, 3\)"):
        hidden_gram(torch.zeros(1, 2, 3), torch.zeros(1, 3, 4), torch.ones(1, 2))


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
