"""How far a student's answers and hidden states are from its teacher's."""

# B rows, L tokens, D hidden, C classes (K those other than the teacher's first)

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

GCE_POWER = 0.7
"""q of the generalised cross-entropy, its authors' choice."""


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


def decoupled_per_row(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0, beta: float = 8.0) -> Tensor:
    """Decoupled divergence of each row's softened answers, times temperature squared, in nats, shape (B,), fp32.

    The divergence of the two chances "the teacher's first class" and "any other", plus `beta` times that among the
    others (Zhao et al. 2022, https://arxiv.org/abs/2203.08679, equation 7, alpha 1). In kl the latter has the factor
    1 - p of the teacher, which is small where the teacher is sure. With two classes it is 0.

    The target class is the teacher's first, so that unlabelled rows have one. Raises: as `kl_per_row`.
    """
    student, teacher = _softened(student_BC, teacher_BC, temperature)
    first_B1 = teacher.argmax(-1, keepdim=True)
    own, taught = _two_chances(student, first_B1), _two_chances(teacher, first_B1)
    of_first = (taught.exp() * (taught - own)).sum(-1)
    own_BK, taught_BK = (_others(each, first_B1).log_softmax(-1) for each in (student, teacher))
    among_others = (taught_BK.exp() * (taught_BK - own_BK)).sum(-1)
    return (of_first + beta * among_others) * temperature**2


def gce_per_row(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Generalised cross-entropy with the teacher's answers as targets, shape (B,), fp32; `temperature` is unused.

    Sum over classes of the teacher's probability times (1 - p^q) / q of the student's, q 0.7: between cross-entropy
    (q to 0) and mean absolute error (q 1), so that wrong answers of a noisy teacher pull less (Zhang and Sabuncu
    2018, https://arxiv.org/abs/1805.07836, equation 6). At least 0, at most 1 / q; its least value is not 0 where the
    teacher is unsure.
    """
    _check(student_BC, teacher_BC, temperature)
    student, teacher = _softened(student_BC, teacher_BC, 1.0)
    return -(teacher.exp() * torch.expm1(GCE_POWER * student)).sum(-1) / GCE_POWER


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
        teacher_BLD: same shape; a gradient flows into it where it asks for one, as a learned mixture of layers does.
        mask_BL: shape (rows, tokens), 1 for tokens, 0 for padding, which counts for nothing.
        row_weights: shape (rows,), factor of each row's tokens; the divisor stays the number of tokens. None is 1.
    Returns: scalar, shape (), fp32.
    Raises: ValueError when the shapes differ.
    """
    width = _check_hidden(student_BLD, teacher_BLD)
    student = functional.layer_norm(student_BLD.float(), (width,))
    teacher = functional.layer_norm(teacher_BLD.float(), (width,))
    return token_mean((student - teacher).square().mean(-1), mask_BL, row_weights)


def hidden_cosine(
    student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, *, row_weights: Tensor | None = None
) -> Tensor:
    """One minus the cosine of the hidden states, mean over tokens; 0 to 2; arguments as `hidden_mse`."""
    _check_hidden(student_BLD, teacher_BLD)
    cosine = functional.cosine_similarity(student_BLD.float(), teacher_BLD.float(), dim=-1)
    return token_mean(1.0 - cosine, mask_BL, row_weights)


def hidden_pkd(
    student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, *, row_weights: Tensor | None = None
) -> Tensor:
    """Squared distance of the first tokens' states, each brought to length 1, mean over rows; 0 to 4.

    Patient knowledge distillation (Sun et al. 2019, https://arxiv.org/abs/1908.09355, equation 7): summed over
    channels, so that a wider teacher does not teach less. Arguments as `hidden_mse`; the mask is unused, as the first
    token of a row is never padding, and the divisor is the number of rows.
    """
    _check_hidden(student_BLD, teacher_BLD)
    student, teacher = (functional.normalize(each[:, 0].float(), dim=-1) for each in (student_BLD, teacher_BLD))
    return weighted_mean((student - teacher).square().sum(-1), row_weights)


def hidden_mmd(
    student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, *, row_weights: Tensor | None = None
) -> Tensor:
    """Maximum mean discrepancy between the channels of the two, mean over rows; 0 to 2; widths may differ.

    Neuron selectivity transfer (Huang and Wang 2017, https://arxiv.org/abs/1707.01219, equation 6): a channel's states
    over a row's tokens, brought to length 1, are one sample; the kernel of two samples is their product squared. That
    kernel is the product of the samples' outer products, so the discrepancy is the squared distance of their means.
    Arguments as `hidden_mse`, but for the widths; the divisor of `row_weights` is the number of rows.
    Raises: ValueError when rows or tokens differ.
    """
    _check_tokens(student_BLD, teacher_BLD)
    means = []
    for states_BLD in (student_BLD, teacher_BLD):
        unit_BLD = functional.normalize(_without_padding(states_BLD, mask_BL), dim=1)
        means.append(unit_BLD @ unit_BLD.transpose(1, 2) / unit_BLD.shape[-1])
    return weighted_mean((means[0] - means[1]).square().sum((1, 2)), row_weights)


def hidden_gram(
    student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, *, row_weights: Tensor | None = None
) -> Tensor:
    """Squared difference of the cosines between the tokens of a row, mean over tokens; 0 to 4; widths may differ.

    The Gram matrix of a row's tokens, each brought to length 1, divided by the number of tokens. Products of
    activations as in Yim et al. 2017 (a gift from knowledge distillation), but among tokens instead of channels,
    whose number may differ. Arguments as `hidden_mse`, but for the widths.
    Raises: ValueError when rows or tokens differ.
    """
    _check_tokens(student_BLD, teacher_BLD)
    units = [functional.normalize(_without_padding(each, mask_BL), dim=-1) for each in (student_BLD, teacher_BLD)]
    cosines = [unit_BLD @ unit_BLD.transpose(1, 2) for unit_BLD in units]
    tokens_B1 = mask_BL.sum(-1, keepdim=True).clamp(min=1)
    return token_mean((cosines[0] - cosines[1]).square().sum(-1) / tokens_B1, mask_BL, row_weights)


def weighted_mean(values_B: Tensor, weights_B: Tensor | None, answered_B: Tensor | None = None) -> Tensor:
    """Sum of weight times value over rows, divided by the number of rows, shape (); None weighs all rows 1.

    Not divided by the weights: the weight of some rows then changes nothing for the others.

    Args:
        answered_B: shape (rows,) bool, the rows that take part and are counted; None for all.

    >>> weighted_mean(torch.tensor([1.0, 3.0]), None, torch.tensor([True, False])).item()
    1.0
    """
    weighted = values_B if weights_B is None else values_B * weights_B
    if answered_B is None:
        return weighted.mean()
    return torch.where(answered_B, weighted, 0.0).sum() / answered_B.sum().clamp(min=1)


def token_mean(values_BL: Tensor, mask_BL: Tensor, row_weights: Tensor | None) -> Tensor:
    """Mean over the tokens that are not padding, shape (); whatever stands at padding does not matter.

    Args:
        row_weights: shape (rows,), factor of each row's tokens; the divisor stays the number of tokens. None is 1.
    """
    valid = mask_BL.bool()
    kept = torch.where(valid, values_BL, 0.0)
    if row_weights is not None:
        kept = kept * row_weights[:, None]
    return kept.sum() / valid.sum().clamp(min=1)


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


def _check_tokens(student: Tensor, teacher: Tensor) -> None:
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student and teacher states differ in rows or tokens: {tuple(student.shape[:2])}, "
            f"{tuple(teacher.shape[:2])}"
        )


def _without_padding(states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The states in fp32, 0 at padding."""
    return torch.where(mask_BL.bool()[:, :, None], states_BLD.float(), 0.0)


def _two_chances(logs_BC: Tensor, first_B1: Tensor) -> Tensor:
    """Log probabilities of a class and of all others together, shape (B, 2)."""
    rest = _others(logs_BC, first_B1).logsumexp(-1, keepdim=True)
    return torch.cat([logs_BC.gather(-1, first_B1), rest], dim=-1)


def _others(values_BC: Tensor, first_B1: Tensor) -> Tensor:
    """The classes other than one, shape (B, K)."""
    places_K = torch.arange(values_BC.shape[-1] - 1, device=values_BC.device)
    return values_BC.gather(-1, places_K + (places_K >= first_B1))


LOGITS_LOSSES: dict[str, Callable[..., Tensor]] = {
    "kl": kl_per_row,
    "mse": mse_per_row,
    "ce": ce_per_row,
    "decoupled": decoupled_per_row,
    "gce": gce_per_row,
}
"""Name to loss(student (B, C), teacher (B, C), temperature=) -> (B,); decoupled takes beta= too."""
HIDDEN_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": hidden_mse,
    "cosine": hidden_cosine,
    "pkd": hidden_pkd,
    "mmd": hidden_mmd,
    "gram": hidden_gram,
}
"""Name to loss(student (B, L, D), teacher (B, L, D), mask (B, L), row_weights=) -> ()."""
SAME_WIDTH = frozenset({"mse", "cosine", "pkd"})
"""Hidden losses that compare channel by channel, and so need a projection where the widths differ."""
