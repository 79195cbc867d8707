"""How far a student's attention, and the relations among its queries, keys and values, are from its teacher's.

Computed from queries, keys and values, never from a model's own attention matrices, so that any attention
implementation serves. Keys at padding have no part in a distribution, queries at padding none in a mean.
"""

# B rows, L tokens (queries, then keys), H heads, R relation heads, d head size

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from compressor.distill.losses import token_mean

QueriesKeys = tuple[Tensor, Tensor]
"""Queries and keys of a layer, each (B, L, H, d)."""
PROJECTIONS = {"qq": 0, "kk": 1, "vv": 2}
"""Relation to the place of its projection among queries, keys and values."""


def scaled_scores(query_BLHd: Tensor, key_BLHd: Tensor, bias_HLL: Tensor | None = None) -> Tensor:
    """Attention scores before softmax, shape (B, H, L, L), fp32: products over the root of the head size, plus a bias.

    Args:
        bias_HLL: what the model adds to scaled scores, such as MPNet's relative positions; None for nothing.
    """
    scale = 1.0 / math.sqrt(query_BLHd.shape[-1])
    scores_BHLL: Tensor = torch.einsum("bqhd,bkhd->bhqk", query_BLHd.float(), key_BLHd.float()) * scale
    return scores_BHLL if bias_HLL is None else scores_BHLL + bias_HLL.float()


def attention_kl(
    student: QueriesKeys,
    teacher: QueriesKeys,
    mask_BL: Tensor,
    *,
    row_weights: Tensor | None = None,
    student_bias_HLL: Tensor | None = None,
    teacher_bias_HLL: Tensor | None = None,
) -> Tensor:
    """Divergence of the student's attention from the teacher's, KL(teacher || student), in nats; 0 when they agree.

    Sum over keys, mean over heads and queries. Where the head counts differ each model's probabilities are averaged
    over its heads first, so that what is compared is where a layer looks on the whole.

    Args:
        student, teacher: queries and keys, each (rows, tokens, heads, head size); sizes may differ between the two.
        mask_BL: shape (rows, tokens), 1 for tokens, 0 for padding.
        row_weights: shape (rows,), factor of each row's tokens; the divisor stays the number of tokens. None is 1.
        student_bias_HLL, teacher_bias_HLL: as in `scaled_scores`.
    Returns: scalar, shape (), fp32.
    Raises: ValueError when rows or tokens differ.
    """
    _check(student[0], teacher[0], mask_BL)
    own = _log_attention(scaled_scores(*student, student_bias_HLL), mask_BL)
    taught = _log_attention(scaled_scores(*teacher, teacher_bias_HLL).detach(), mask_BL)
    if own.shape[1] != taught.shape[1]:
        own, taught = _mean_of_logs(own), _mean_of_logs(taught)
    return token_mean(_divergence(own, taught).mean(1), mask_BL, row_weights)


def attention_mse(
    student: QueriesKeys,
    teacher: QueriesKeys,
    mask_BL: Tensor,
    *,
    row_weights: Tensor | None = None,
    student_bias_HLL: Tensor | None = None,
    teacher_bias_HLL: Tensor | None = None,
) -> Tensor:
    """Squared difference of the scaled scores before softmax, mean over keys, heads and queries.

    As TinyBERT compares them (Jiao et al. 2020, https://arxiv.org/abs/1909.10351, section 3.1), padding left out. Where
    the head counts differ each model's scores are averaged over its heads first. Arguments as `attention_kl`.
    """
    _check(student[0], teacher[0], mask_BL)
    own, taught = scaled_scores(*student, student_bias_HLL), scaled_scores(*teacher, teacher_bias_HLL).detach()
    if own.shape[1] != taught.shape[1]:
        own, taught = own.mean(1, keepdim=True), taught.mean(1, keepdim=True)
    keys_BL = mask_BL.bool()
    squares_BLL = (own - taught).square().mean(1) * keys_BL[:, None, :]
    return token_mean(squares_BLL.sum(-1) / keys_BL.sum(-1).clamp(min=1)[:, None], mask_BL, row_weights)


def relations_kl(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask_BL: Tensor,
    *,
    heads: int,
    pairs: Sequence[str] = ("qq", "kk", "vv"),
    row_weights: Tensor | None = None,
) -> Tensor:
    """Divergence of the relations among queries, among keys and among values; 0 when they agree.

    MiniLMv2 (Wang et al. 2021, https://arxiv.org/abs/2012.15828, section 3.1): the heads of a projection are put side
    by side and cut into `heads` relation heads, so neither head counts nor widths need to agree; in each, the softmax
    over tokens of products divided by the root of its size; KL(teacher || student) over tokens, mean over relation
    heads and tokens, mean over `pairs`.

    Args:
        student, teacher: queries, keys and values, each (rows, tokens, heads, head size).
        mask_BL: shape (rows, tokens), 1 for tokens, 0 for padding.
        heads: relation heads; divides heads times head size of both.
        pairs: which projections are related to themselves, of qq, kk and vv.
        row_weights: as in `attention_kl`.
    Returns: scalar, shape (), in nats, fp32.
    Raises: ValueError when rows or tokens differ or `heads` does not divide a width.
    """
    _check(student[0], teacher[0], mask_BL)
    divergences = []
    for pair in pairs:
        own, taught = (_cut(each[PROJECTIONS[pair]], heads) for each in (student, teacher))
        divergences.append(
            _divergence(
                _log_attention(scaled_scores(own, own), mask_BL),
                _log_attention(scaled_scores(taught, taught).detach(), mask_BL),
            ).mean(1)
        )
    return token_mean(torch.stack(divergences).mean(0), mask_BL, row_weights)


def _cut(states_BLHd: Tensor, heads: int) -> Tensor:
    """The same channels in `heads` relation heads, shape (B, L, R, channels / R)."""
    flat = states_BLHd.flatten(2)
    if flat.shape[-1] % heads:
        raise ValueError(f"{heads} relation heads do not divide {flat.shape[-1]} channels")
    return flat.reshape(*flat.shape[:2], heads, -1)


def _log_attention(scores_BHLL: Tensor, mask_BL: Tensor) -> Tensor:
    """Log probabilities over keys; where a key is padding its probability is 0 and its logarithm merely low."""
    lowest = torch.finfo(scores_BHLL.dtype).min
    return functional.log_softmax(scores_BHLL.masked_fill(~mask_BL.bool()[:, None, None, :], lowest), dim=-1)


def _mean_of_logs(logs_BHLL: Tensor) -> Tensor:
    """Logarithm of the mean probability over heads, shape (B, 1, L, L)."""
    return logs_BHLL.logsumexp(1, keepdim=True) - math.log(logs_BHLL.shape[1])


def _divergence(student_BHLL: Tensor, teacher_BHLL: Tensor) -> Tensor:
    """KL(teacher || student) over keys, shape (B, H, L); padding adds 0 as its difference is multiplied by 0."""
    chance = teacher_BHLL.exp()
    return torch.where(chance > 0, chance * (teacher_BHLL - student_BHLL), 0.0).sum(-1)


def _check(student: Tensor, teacher: Tensor, mask_BL: Tensor) -> None:
    if student.shape[:2] != teacher.shape[:2] or student.shape[:2] != mask_BL.shape:
        raise ValueError(
            f"student, teacher and mask differ in rows or tokens: {tuple(student.shape[:2])}, "
            f"{tuple(teacher.shape[:2])}, {tuple(mask_BL.shape)}"
        )


ATTENTION_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": attention_mse, "kl": attention_kl}
"""Name to loss((query, key), (query, key), mask (B, L), row_weights=, student_bias_HLL=, teacher_bias_HLL=) -> ()."""
