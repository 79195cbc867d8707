import typing

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from compressor.distill.relations import (
    ATTENTION_LOSSES,
    PROJECTIONS,
    attention_kl,
    attention_mse,
    relations_kl,
    scaled_scores,
)
from compressor.distill.settings import AttentionMatch, RelationsMatch

ROWS, TOKENS = 3, 5
LENGTHS = (5, 2, 4)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def mask() -> Tensor:
    return (torch.arange(TOKENS)[None] < torch.tensor(LENGTHS)[:, None]).long()


def drawn(heads: int, size: int, *, rows: int = ROWS, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(rows, tokens, heads, size) * 1.5 for _ in range(3))  # type: ignore[return-value]


Loss = typing.Callable[..., Tensor]


def relations(student: typing.Any, teacher: typing.Any, mask: Tensor, **options: typing.Any) -> Tensor:
    return relations_kl(student, teacher, mask, heads=2, **options)


def attention(loss: Loss) -> Loss:
    return lambda student, teacher, mask, **options: loss(student[:2], teacher[:2], mask, **options)


LOSSES: dict[str, Loss] = {"relations": relations, **{name: attention(loss) for name, loss in ATTENTION_LOSSES.items()}}


def test_tables_and_settings_name_the_same_losses() -> None:
    assert set(typing.get_args(AttentionMatch.model_fields["loss"].annotation)) == set(ATTENTION_LOSSES)
    pairs = typing.get_args(typing.get_args(RelationsMatch.model_fields["pairs"].annotation)[0])
    assert set(pairs) == set(PROJECTIONS)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("pairs", [("qq", "kk", "vv"), ("vv",)])
def test_relations_agree_with_a_ten_line_reference(heads: int, pairs: tuple[str, ...], mask: Tensor) -> None:
    student, teacher = drawn(3, 4), drawn(2, 8)
    by_token = []
    for row, length in enumerate(LENGTHS):
        for query in range(length):
            for pair in pairs:
                for head in range(heads):
                    chances = []
                    for states in (teacher, student):
                        flat = states["qkv".index(pair[0])][row, :length].flatten(1).numpy()
                        part = np.split(flat, heads, axis=1)[head]
                        chances.append(softmax(part @ part[query] / np.sqrt(part.shape[1])))
                    by_token.append(rel_entr(*chances).sum())
    found = relations_kl(student, teacher, mask, heads=heads, pairs=pairs)
    assert found.item() == pytest.approx(np.mean(by_token), rel=1e-4)


def test_attention_kl_agrees_with_numpy_and_knows_a_bias(mask: Tensor) -> None:
    student, teacher = drawn(2, 4), drawn(2, 6)
    bias = torch.randn(2, TOKENS, TOKENS)
    by_query = []
    for row, length in enumerate(LENGTHS):
        for head in range(2):
            s, t = (
                each[0][row, :length, head].numpy() @ each[1][row, :length, head].numpy().T / np.sqrt(each[0].shape[-1])
                for each in (student, teacher)
            )
            t = t + bias[head, :length, :length].numpy()
            by_query.extend((softmax(t, 1) * (log_softmax(t, 1) - log_softmax(s, 1))).sum(1))
    found = attention_kl(student[:2], teacher[:2], mask, teacher_bias_HLL=bias)
    assert found.item() == pytest.approx(np.mean(by_query), rel=1e-4)


def test_attention_mse_agrees_with_numpy(mask: Tensor) -> None:
    student, teacher = drawn(2, 4), drawn(2, 6)
    by_query = []
    for row, length in enumerate(LENGTHS):
        s, t = (
            np.einsum("qhd,khd->hqk", *(x[row, :length].numpy() for x in each[:2])) / np.sqrt(each[0].shape[-1])
            for each in (student, teacher)
        )
        by_query.extend(((s - t) ** 2).mean((0, 2)))
    assert attention_mse(student[:2], teacher[:2], mask).item() == pytest.approx(np.mean(by_query), rel=1e-4)


def test_where_head_counts_differ_probabilities_and_scores_are_averaged_over_heads(mask: Tensor) -> None:
    student, teacher = drawn(1, 8), drawn(4, 2)
    s, t = (scaled_scores(*each[:2]) for each in (student, teacher))
    masked = [each.masked_fill(mask[:, None, None, :] == 0, -torch.inf).softmax(-1).mean(1).numpy() for each in (s, t)]
    kl = rel_entr(masked[1], masked[0]).sum(-1)[mask.bool().numpy()].mean()
    assert attention_kl(student[:2], teacher[:2], mask).item() == pytest.approx(kl, rel=1e-4)
    squares = (s.mean(1) - t.mean(1)).square()
    by_query = [squares[row, :n, :n].mean(1) for row, n in enumerate(LENGTHS)]
    torch.testing.assert_close(attention_mse(student[:2], teacher[:2], mask), torch.cat(by_query).mean())


def test_scaled_scores_are_what_torch_attends_with() -> None:
    query, key, value = drawn(2, 4)
    ours = torch.einsum("bhqk,bkhd->bqhd", scaled_scores(query, key).softmax(-1), value)
    theirs = torch.nn.functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (query, key, value)))
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_student_that_attends_as_its_teacher_has_loss_zero(name: str, mask: Tensor) -> None:
    states = drawn(2, 4)
    assert LOSSES[name](states, states, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert LOSSES[name](states, drawn(2, 4), mask).item() > 0.01


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_padding_changes_neither_loss_nor_gradient(name: str, heads: int, weighted: bool, mask: Tensor) -> None:
    weights = torch.tensor([1.0, 0.3, 2.0]) if weighted else None
    student, teacher = [each.requires_grad_() for each in drawn(2, 4)], drawn(heads, 8 // heads)
    short = LOSSES[name](student, teacher, mask, row_weights=weights)
    junk = [torch.randn(ROWS, 3, 2, 4) * 50 for _ in range(3)]
    longer = LOSSES[name](
        [torch.cat([a, b], 1) for a, b in zip(student, junk, strict=True)],
        [torch.cat([a, b.reshape(ROWS, 3, heads, -1)], 1) for a, b in zip(teacher, junk, strict=True)],
        torch.nn.functional.pad(mask, (0, 3)),
        row_weights=weights,
    )
    torch.testing.assert_close(short, longer)
    used = 3 if name == "relations" else 2
    for one, other in zip(
        torch.autograd.grad(short, student[:used]), torch.autograd.grad(longer, student[:used]), strict=True
    ):
        torch.testing.assert_close(one, other)
        assert torch.isfinite(one).all()
        assert one.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_what_stands_at_padding_has_no_gradient(name: str, mask: Tensor) -> None:
    student = [each.requires_grad_() for each in drawn(2, 4)]
    grads = torch.autograd.grad(LOSSES[name](student, drawn(2, 4), mask), student[:2])
    assert all(each[mask == 0].abs().sum() == 0 for each in grads)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_rows_weight_changes_nothing_for_the_other_rows(name: str, mask: Tensor) -> None:
    student, teacher = [each.requires_grad_() for each in drawn(2, 4)], drawn(2, 4)
    one, two = (
        torch.autograd.grad(LOSSES[name](student, teacher, mask, row_weights=torch.tensor(weights)), student[0])[0]
        for weights in ([1.0, 1.0, 1.0], [1.0, 0.25, 1.0])
    )
    torch.testing.assert_close(two, one * torch.tensor([1.0, 0.25, 1.0])[:, None, None, None])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_order_of_a_batch_changes_nothing(name: str, mask: Tensor) -> None:
    student, teacher, order = drawn(2, 4), drawn(2, 4), torch.tensor([2, 0, 1])
    shuffled = ([each[order] for each in states] for states in (student, teacher))
    torch.testing.assert_close(LOSSES[name](*shuffled, mask[order]), LOSSES[name](student, teacher, mask))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_no_gradient_flows_into_the_teacher(name: str, mask: Tensor) -> None:
    student, teacher = ([each.requires_grad_() for each in drawn(2, 4)] for _ in range(2))
    LOSSES[name](student, teacher, mask).backward()
    assert all(each.grad is None for each in teacher)


@pytest.mark.parametrize("name", ["relations", "kl"])
def test_large_scores_stay_finite(name: str, mask: Tensor) -> None:
    student, teacher = [(each * 100).requires_grad_() for each in drawn(2, 4)], [each * 100 for each in drawn(2, 4)]
    loss = LOSSES[name](student, teacher, mask)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(loss, student[:2]))


def test_relation_heads_that_do_not_divide_are_refused(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="3 relation heads do not divide 8 channels"):
        relations_kl(drawn(2, 4), drawn(2, 4), mask, heads=3)
    with pytest.raises(ValueError, match="differ in rows or tokens"):
        attention_kl(drawn(2, 4)[:2], drawn(2, 4, tokens=4)[:2], mask)
