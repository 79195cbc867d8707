"""BERT whose layers differ in heads and feed-forward neurons, as config.json spells them out in `layer_shapes`.

Imports torch and transformers alone and is copied verbatim into model folders, so that a pruned model opens with
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` where compressor is not installed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel


class PrunedBertConfig(BertConfig):  # type: ignore[misc]
    """BertConfig with one `{"heads": int, "ffn": int}` a layer; every head is `head_size` wide."""

    model_type = "pruned-bert"

    layer_shapes: list[Any] | None = None
    head_size: int | None = None


class AbsentAttention(nn.Module):
    """Stands where a layer has no head left: nothing is attended to."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Gives its input, shape (rows, tokens, hidden), of which BiasOnly takes the shape alone."""
        return hidden_states, None


class AbsentIntermediate(nn.Module):
    """Stands where a layer has no feed-forward neuron left."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Gives its input, shape (rows, tokens, hidden), of which BiasOnly takes the shape alone."""
        return hidden_states


class BiasOnly(nn.Module):
    """What remains of an output projection whose inputs are all gone: its bias, shape (hidden,)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Gives the bias; spread over rows and tokens while training, so that dropout acts on each."""
        return self.bias.expand(*hidden_states.shape[:-1], -1) if self.training else self.bias


def shape_attention(attention: nn.Module, *, heads: int, head_size: int, hidden: int) -> None:
    """Give a BertAttention fresh projections for `heads` heads of `head_size`, or none of them for 0 heads."""
    if heads == 0:
        attention.self, attention.output.dense = AbsentAttention(), BiasOnly(hidden)  # type: ignore[union-attr]
        return
    width = heads * head_size
    inner: Any = attention.self
    inner.num_attention_heads, inner.attention_head_size, inner.all_head_size = heads, head_size, width
    inner.scaling = head_size**-0.5
    inner.query, inner.key, inner.value = (nn.Linear(hidden, width) for _ in range(3))
    attention.output.dense = nn.Linear(width, hidden)  # type: ignore[union-attr]


def shape_feed_forward(layer: nn.Module, *, neurons: int, hidden: int) -> None:
    """Give a BertLayer fresh projections for `neurons` neurons, or none of them for 0."""
    if neurons == 0:
        layer.intermediate, layer.output.dense = AbsentIntermediate(), BiasOnly(hidden)  # type: ignore[union-attr]
        return
    layer.intermediate.dense = nn.Linear(hidden, neurons)  # type: ignore[union-attr]
    layer.output.dense = nn.Linear(neurons, hidden)  # type: ignore[union-attr]


def shape_layers(model: Any, config: PrunedBertConfig) -> None:
    """Resize each layer of a BertModel to its entry in `config.layer_shapes`."""
    shapes = config.layer_shapes or []
    if len(shapes) != config.num_hidden_layers or config.head_size is None:
        raise ValueError(
            f"config.json of a pruned-bert needs head_size and one entry of layer_shapes for each of its "
            f"{config.num_hidden_layers} layers (got head_size {config.head_size}, {len(shapes)} entries)"
        )
    for layer, shape in zip(model.encoder.layer, shapes, strict=True):
        size, hidden = config.head_size, config.hidden_size
        shape_attention(layer.attention, heads=int(shape["heads"]), head_size=size, hidden=hidden)
        shape_feed_forward(layer, neurons=int(shape["ffn"]), hidden=hidden)


class PrunedBertModel(BertModel):  # type: ignore[misc]
    """The encoder alone."""

    config_class = PrunedBertConfig

    def __init__(self, config: PrunedBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        shape_layers(self, config)
        self.post_init()


class PrunedBertForSequenceClassification(BertForSequenceClassification):  # type: ignore[misc]
    """The encoder with its classifier."""

    config_class = PrunedBertConfig

    def __init__(self, config: PrunedBertConfig) -> None:
        super().__init__(config)
        shape_layers(self.bert, config)
        self.post_init()
