"""How far a student's answers and hidden states are from its teacher's."""

# B rows, L tokens, D hidden, C classes

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def kl_per_row(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Divergence of each row's softened answers, times temperature squared, in nats, shape (B,), fp32.

    Summed over classes in log space, so that impossible classes add nothing and large logits do not overflow.
    Raises: ValueError when the shapes differ or temperature is not positive.
    """
    student, teacher = _softened(student_BC, teacher_BC, temperature)
    # where a probability underflows to 0 its logarithm is still finite, so the product is 0
    return (teacher.exp() * (teacher - student)).sum(-1) * temperature**2


def ce_per_row(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of each row's softened answers, times temperature squared, in nats, shape (B,), fp32.

    The divergence plus the teacher's own entropy: another value, the same gradient.
    """
    student, teacher = _softened(student_BC, teacher_BC, temperature)
    return -(teacher.exp() * student).sum(-1) * temperature**2


def mse_per_row(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean over classes of the squared difference of the logits, shape (B,), fp32; `temperature` is unused.

    (Half of it is what kl tends to as the temperature grows, for logits of mean 0; Hinton et al. 2015, section 2.1.)
    """
    _check(student_BC, teacher_BC, temperature)
    return (student_BC.float() - teacher_BC.detach().float()).square().mean(-1)


def kd_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Divergence of the student's softened answers from the teacher's; 0 when they agree.

    KL(teacher || student) over classes, mean over rows, times temperature squared so that the gradient keeps
    its size as the temperature changes (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2).

    Args:
        student_logits: shape (rows, classes), before softmax.
        teacher_logits: same shape; no gradient flows into it.
        temperature: > 0, no unit.
    Returns: scalar, shape (), >= 0, in nats.
    Raises: ValueError when the shapes differ or temperature is not positive.

    >>> kd_kl(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).item()
    0.0
    """
    return kl_per_row(student_logits, teacher_logits, temperature=temperature).mean()


def kd_ce(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student's softened answers with the teacher's, mean over rows; arguments as `kd_kl`."""
    return ce_per_row(student_logits, teacher_logits, temperature=temperature).mean()


def kd_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Squared difference of the logits, mean over classes and rows; arguments as `kd_kl`."""
    return mse_per_row(student_logits, teacher_logits).mean()


def hidden_mse(
    student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, *, row_weights: Tensor | None = None
) -> Tensor:
    """Squared difference of layer-normalised hidden states, mean over channels and tokens; 0 to 4.

    Each token's states are brought to mean 0 and variance 1 first (no learned scale), so that the size of the
    teacher's states does not decide the size of the loss.

    Args:
        student_BLD: shape (rows, tokens, hidden), in the teacher's width.
        teacher_BLD: same shape; no gradient flows into it.
        mask_BL: shape (rows, tokens), 1 for tokens, 0 for padding, which counts for nothing.
        row_weights: shape (rows,), factor of each row's tokens; the divisor stays the number of tokens. None is 1.
    Returns: scalar, shape (), fp32.
    Raises: ValueError when the shapes differ.
    """
    width = _check_hidden(student_BLD, teacher_BLD)
    student = functional.layer_norm(student_BLD.float(), (width,))
    teacher = functional.layer_norm(teacher_BLD.detach().float(), (width,))
    return _token_mean((student - teacher).square().mean(-1), mask_BL, row_weights)


def hidden_cosine(
    student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, *, row_weights: Tensor | None = None
) -> Tensor:
    """One minus the cosine of the hidden states, mean over tokens; 0 to 2; arguments as `hidden_mse`."""
    _check_hidden(student_BLD, teacher_BLD)
    cosine = functional.cosine_similarity(student_BLD.float(), teacher_BLD.detach().float(), dim=-1)
    return _token_mean(1.0 - cosine, mask_BL, row_weights)


def weighted_mean(values_B: Tensor, weights_B: Tensor | None) -> Tensor:
    """Sum of weight times value over rows, divided by the number of rows, shape (); None weighs all rows 1.

    Not divided by the weights: the weight of some rows then changes nothing for the others.
    """
    return (values_B if weights_B is None else values_B * weights_B).mean()


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    _check(student, teacher, temperature)
    return (
        functional.log_softmax(student.float() / temperature, dim=-1),
        functional.log_softmax(teacher.detach().float() / temperature, dim=-1),
    )


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher logits differ in shape: {tuple(student.shape)}, {tuple(teacher.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 (got {temperature})")


def _check_hidden(student: Tensor, teacher: Tensor) -> int:
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher states differ in shape: {tuple(student.shape)}, {tuple(teacher.shape)}")
    return student.shape[-1]


def _token_mean(values_BL: Tensor, mask_BL: Tensor, row_weights: Tensor | None) -> Tensor:
    """Mean over the tokens that are not padding; whatever stands at padding does not matter."""
    valid = mask_BL.bool()
    kept = torch.where(valid, values_BL, 0.0)
    if row_weights is not None:
        kept = kept * row_weights[:, None]
    return kept.sum() / valid.sum().clamp(min=1)


LOGITS_LOSSES: dict[str, Callable[..., Tensor]] = {"kl": kl_per_row, "mse": mse_per_row, "ce": ce_per_row}
"""Name to loss(student (B, C), teacher (B, C), temperature=) -> (B,)."""
HIDDEN_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": hidden_mse, "cosine": hidden_cosine}
"""Name to loss(student (B, L, D), teacher (B, L, D), mask (B, L), row_weights=) -> ()."""
