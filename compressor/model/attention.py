"""Attention by two plain products for short rows on a CPU, and torch's own kernel everywhere else."""

# B rows, H heads, L tokens, d head size

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Attention = Literal["short_products", "sdpa", "eager"]
"""Ways to attend, by their names in transformers' registry."""

SHORT = 128
"""Tokens of the longest rows that are multiplied plainly; longer ones the kernel does with less memory."""


def short_products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Attention as `sdpa` computes it, up to rounding; made for transformers' AttentionInterface.

    Args:
        query: shape (B, H, L, d), as key and value.
        attention_mask: True where a query may look at a key, broadcast to (B, H, L, L); None where all are seen.
        dropout: share of the weights dropped, 0 to 1.
        scaling: of the scores; None is d ** -0.5.
    Returns: shape (B, L, H, d) and no weights.
    """
    if attention_mask is None:
        plain = not given.get("is_causal", getattr(module, "is_causal", True))
    else:
        plain = attention_mask.dtype == torch.bool
    if query.device.type != "cpu" or query.shape[2] > SHORT or not plain or given.get("position_bias") is not None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )
        return found
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores_BHLL = (query * scale) @ key.transpose(2, 3)
    if attention_mask is not None:
        bias = torch.zeros(attention_mask.shape, dtype=scores_BHLL.dtype)
        bias.masked_fill_(~attention_mask, torch.finfo(scores_BHLL.dtype).min)
        scores_BHLL = scores_BHLL.add_(bias)
    weights_BHLL = nn.functional.dropout(scores_BHLL.softmax(-1), p=dropout, training=dropout > 0)
    return (weights_BHLL @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("short_products", short_products)
AttentionMaskInterface.register("short_products", sdpa_mask)
