"""A small random model in the shape of a real one, for smoke runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from compressor.model.encoders import copy_tokenizer, quiet_transformers, set_labels
from compressor.model.families import family_of, uneven_family
from compressor.model.manifest import UNEVEN_KEYS, read_config

NOT_INHERITED = ("model_type", "architectures", *UNEVEN_KEYS)
"""Keys of a pruned config.json that a stock one does not have, or has otherwise."""


def save_random_model(source: Path, folder: Path, *, hidden: int, heads: int, labels: Sequence[str], seed: int) -> Path:
    """`folder`, holding a classifier of the depth and vocabulary of `source`, `hidden` wide, with random weights.

    The feed-forward part is twice as wide as the hidden states. The tokenizer is that of `source`.
    """
    config = _stock_config(source)
    family = family_of(config.model_type)
    config.hidden_size, config.num_attention_heads, config.num_labels = hidden, heads, len(labels)
    setattr(config, "intermediate_size" if family is None else family.neurons, 2 * hidden)
    torch.manual_seed(seed)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_config(config)
        set_labels(model, labels)
        model.save_pretrained(folder)
    copy_tokenizer(source, folder)
    return folder


def _stock_config(source: Path) -> Any:
    """The configuration of `source`; for a pruned one that of a stock model of its family with as many layers."""
    written = read_config(source)
    family = uneven_family(str(written.get("model_type", "")))
    if family is None:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    return family.stock_config.from_dict({key: value for key, value in written.items() if key not in NOT_INHERITED})
