"""One tiny classifier of each family, whole and pruned unevenly: 3 layers, hidden 32, 4 heads."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from compressor.model.surgery import Kept, cut

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
PRUNED = Kept(heads=((0, 2), (1,), (0, 1, 3)), neurons=(tuple(range(10)), tuple(range(64)), (5, 6)), layers=(0, 1, 2))


def _bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SIZES))


def _distilbert() -> PreTrainedModel:
    names = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 60, "initializer_range": 0.2}
    return DistilBertForSequenceClassification(DistilBertConfig(**names, max_position_embeddings=40))


WHOLE: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": _bert,
    "mpnet": lambda: MPNetForSequenceClassification(MPNetConfig(**SIZES)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES, type_vocab_size=1)),
    "distilbert": _distilbert,
    "electra": lambda: ElectraForSequenceClassification(ElectraConfig(**SIZES, embedding_size=16)),
}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    **WHOLE,
    **{f"pruned-{name}": lambda whole=whole: cut(whole(), PRUNED) for name, whole in WHOLE.items()},  # type: ignore[misc]
}


def make(family: str, *, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """The tiny classifier in eval mode; `attention` is transformers' own choice unless given."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    if attention is not None:
        model.set_attn_implementation(attention)
    return model
