"""Views of a batch that teacher and student see alike."""

# B rows of a batch, L tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from compressor.data.batches import Batch


def mask_tokens(
    batch: Batch, share: float, mask_id: int, special_ids: Sequence[int], generator: torch.Generator
) -> Batch:
    """The batch with `share` of its tokens, drawn one by one, replaced by the mask token.

    Args:
        share: probability of each token, 0 to 1; special tokens and padding never change.
        mask_id: id of the mask token.
        special_ids: ids that stay, such as those of [CLS] and [SEP].
        generator: where the draws come from; on the CPU, so that every device masks the same tokens.
    """
    ids_BL = batch.inputs["input_ids"]
    if share <= 0:
        return batch
    drawn_BL = torch.rand(ids_BL.shape, generator=generator).to(ids_BL.device) < share
    special = torch.tensor(list(special_ids), dtype=ids_BL.dtype, device=ids_BL.device)
    may_BL = (batch.inputs["attention_mask"] > 0) & ~torch.isin(ids_BL, special)
    masked_BL = torch.where(drawn_BL & may_BL, torch.full_like(ids_BL, mask_id), ids_BL)
    return replace(batch, inputs={**batch.inputs, "input_ids": masked_BL})
