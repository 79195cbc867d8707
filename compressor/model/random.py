"""A small random model in the shape of a real one, for smoke runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from compressor.model.encoders import copy_tokenizer, quiet_transformers, set_labels


def save_random_model(source: Path, folder: Path, *, hidden: int, heads: int, labels: Sequence[str], seed: int) -> Path:
    """`folder`, holding a classifier of the depth and vocabulary of `source`, `hidden` wide, with random weights.

    The feed-forward part is twice as wide as the hidden states. The tokenizer is that of `source`.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    config.hidden_size, config.num_attention_heads, config.intermediate_size = hidden, heads, 2 * hidden
    config.num_labels = len(labels)
    torch.manual_seed(seed)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_config(config)
        set_labels(model, labels)
        model.save_pretrained(folder)
    copy_tokenizer(source, folder)
    return folder
