"""Encoders whose layers differ in heads and feed-forward neurons, as config.json spells them out in `layer_shapes`.

Imports torch and transformers alone and is copied verbatim into model folders, so that a pruned model opens with
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` where compressor is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraModel,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)
from transformers.models.mpnet.modeling_mpnet import MPNetAttention


class AbsentAttention(nn.Module):
    """Stands where a layer has no head left: nothing is attended to."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Gives its input, shape (rows, tokens, hidden), of which BiasOnly takes the shape alone.

        In families whose attention holds its own output projection, that BiasOnly stands in here.
        """
        for output in self.children():
            hidden_states = output(hidden_states)
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


class SomeMPNetAttention(MPNetAttention):  # type: ignore[misc]
    """MPNet's attention with some of the heads that the encoder's bias by distance has a column for."""

    bias_heads: Sequence[int]
    """The column of each head."""

    def forward(self, *given: Any, position_bias: Any = None, **named: Any) -> tuple[Tensor, ...]:
        """As MPNetAttention; `position_bias` has shape (rows, columns, tokens, tokens)."""
        if position_bias is not None:
            position_bias = position_bias[:, list(self.bias_heads)]
        found: tuple[Tensor, ...] = super().forward(*given, position_bias=position_bias, **named)
        return found


@dataclass(frozen=True)
class Places:
    """Where the layers of a family, and in each its parts, are found; dotted names, those of parts from the layer."""

    layers: str
    """The list of layers, from the encoder."""
    attention: str
    """What is replaced where no head is left; it holds the next three."""
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    activation: str
    """What is replaced where no neuron is left."""
    up: str
    down: str
    norm: str
    heads: str = "num_attention_heads"
    """Attribute of the attention that counts its heads."""
    width: str = "all_head_size"
    """Attribute of the attention for the width of all heads together."""
    relative: str | None = None
    """What computes the bias by distance that is added to all scores, from the encoder; None for most."""
    reads_relative: str = ""
    """What is given that bias, and knows the columns of its heads by `bias_heads` where some heads are gone."""


BERT_PLACES = Places(
    layers="encoder.layer",
    attention="attention.self",
    query="query",
    key="key",
    value="value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    activation="intermediate",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
)
DISTILBERT_PLACES = Places(
    layers="transformer.layer",
    attention="attention",
    query="q_lin",
    key="k_lin",
    value="v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    activation="ffn.lin1",
    up="ffn.lin1",
    down="ffn.lin2",
    norm="output_layer_norm",
    heads="n_heads",
    width="dim",
)
MPNET_PLACES = Places(
    layers="encoder.layer",
    attention="attention.attn",
    query="q",
    key="k",
    value="v",
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
    activation="intermediate",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
    relative="encoder",
    reads_relative="attention",
)


def put(module: nn.Module, name: str, part: nn.Module) -> None:
    """Set the part of `module` that stands at the dotted `name`."""
    holder, _, last = name.rpartition(".")
    setattr(module.get_submodule(holder), last, part)


def drop_heads(layer: nn.Module, places: Places, bias: BiasOnly) -> None:
    """Leave `bias` alone of a layer's attention."""
    put(layer, places.attention, AbsentAttention())
    put(layer, places.attention_output, bias)


def drop_neurons(layer: nn.Module, places: Places, bias: BiasOnly) -> None:
    """Leave `bias` alone of a layer's feed-forward half."""
    put(layer, places.activation, AbsentIntermediate())
    put(layer, places.down, bias)


def shape_attention(layer: nn.Module, places: Places, *, heads: int, head_size: int, hidden: int) -> None:
    """Give a layer fresh projections for `heads` heads of `head_size`, or none of them for 0 heads."""
    if heads == 0:
        drop_heads(layer, places, BiasOnly(hidden))
        return
    width, inner = heads * head_size, layer.get_submodule(places.attention)
    inner.attention_head_size, inner.scaling = head_size, head_size**-0.5  # type: ignore[assignment]
    setattr(inner, places.heads, heads)
    setattr(inner, places.width, width)
    for name in (places.query, places.key, places.value):
        put(inner, name, nn.Linear(hidden, width))
    put(layer, places.attention_output, nn.Linear(width, hidden))


def shape_feed_forward(layer: nn.Module, places: Places, *, neurons: int, hidden: int) -> None:
    """Give a layer fresh projections for `neurons` neurons, or none of them for 0."""
    if neurons == 0:
        drop_neurons(layer, places, BiasOnly(hidden))
        return
    put(layer, places.up, nn.Linear(hidden, neurons))
    put(layer, places.down, nn.Linear(neurons, hidden))


def shape_layers(encoder: Any, config: Any, places: Places) -> None:
    """Resize each layer of an encoder to its entry in `config.layer_shapes`; ValueError where they do not fit."""
    shapes = config.layer_shapes or []
    if len(shapes) != config.num_hidden_layers or config.head_size is None:
        raise ValueError(
            f"config.json of a {config.model_type} needs head_size and one entry of layer_shapes for each of its "
            f"{config.num_hidden_layers} layers (got head_size {config.head_size}, {len(shapes)} entries)"
        )
    hidden = config.hidden_size
    for layer, shape in zip(encoder.get_submodule(places.layers), shapes, strict=True):
        shape_attention(layer, places, heads=int(shape["heads"]), head_size=config.head_size, hidden=hidden)
        shape_feed_forward(layer, places, neurons=int(shape["ffn"]), hidden=hidden)


class Shaped(nn.Module):
    """What makes of transformers' own encoder or classifier, the next base class, one of uneven layers."""

    places = BERT_PLACES

    def __init__(self, config: Any, **options: Any) -> None:
        """Take a config whose `layer_shapes` fit; `options` are those of transformers' class."""
        super().__init__(config, **options)
        self.shape(self.base_model, config)
        self.post_init()  # type: ignore[operator]

    def shape(self, encoder: Any, config: Any) -> None:
        """Resize the layers of `encoder`, which is the model itself or stands in it."""
        shape_layers(encoder, config, self.places)


class PrunedBertConfig(BertConfig):  # type: ignore[misc]
    """BertConfig with one `{"heads": int, "ffn": int}` a layer; every head is `head_size` wide."""

    model_type = "pruned-bert"

    layer_shapes: list[Any] | None = None
    head_size: int | None = None


class PrunedBertModel(Shaped, BertModel):  # type: ignore[misc]
    """The encoder alone."""

    config_class = PrunedBertConfig


class PrunedBertForSequenceClassification(Shaped, BertForSequenceClassification):  # type: ignore[misc]
    """The encoder with its classifier."""

    config_class = PrunedBertConfig


class PrunedRobertaConfig(RobertaConfig):  # type: ignore[misc]
    """RobertaConfig with one `{"heads": int, "ffn": int}` a layer; every head is `head_size` wide."""

    model_type = "pruned-roberta"

    layer_shapes: list[Any] | None = None
    head_size: int | None = None


class PrunedRobertaModel(Shaped, RobertaModel):  # type: ignore[misc]
    """The encoder alone."""

    config_class = PrunedRobertaConfig


class PrunedRobertaForSequenceClassification(Shaped, RobertaForSequenceClassification):  # type: ignore[misc]
    """The encoder with its classifier."""

    config_class = PrunedRobertaConfig


class PrunedDistilBertConfig(DistilBertConfig):  # type: ignore[misc]
    """DistilBertConfig with one `{"heads": int, "ffn": int}` a layer; every head is `head_size` wide."""

    model_type = "pruned-distilbert"

    layer_shapes: list[Any] | None = None
    head_size: int | None = None


class PrunedDistilBertModel(Shaped, DistilBertModel):  # type: ignore[misc]
    """The encoder alone."""

    config_class = PrunedDistilBertConfig
    places = DISTILBERT_PLACES


class PrunedDistilBertForSequenceClassification(Shaped, DistilBertForSequenceClassification):  # type: ignore[misc]
    """The encoder with its classifier."""

    config_class = PrunedDistilBertConfig
    places = DISTILBERT_PLACES


class PrunedElectraConfig(ElectraConfig):  # type: ignore[misc]
    """ElectraConfig with one `{"heads": int, "ffn": int}` a layer; every head is `head_size` wide."""

    model_type = "pruned-electra"

    layer_shapes: list[Any] | None = None
    head_size: int | None = None


class PrunedElectraModel(Shaped, ElectraModel):  # type: ignore[misc]
    """The encoder alone."""

    config_class = PrunedElectraConfig


class PrunedElectraForSequenceClassification(Shaped, ElectraForSequenceClassification):  # type: ignore[misc]
    """The encoder with its classifier."""

    config_class = PrunedElectraConfig


class PrunedMPNetConfig(MPNetConfig):  # type: ignore[misc]
    """MPNetConfig with one `{"heads": int, "ffn": int, "bias_heads": [int, ...]}` a layer.

    Every head is `head_size` wide; `bias_heads` are the columns of the heads in the bias by distance, which has
    `relative_attention_heads` of them for all layers: the first ones unless given.
    """

    model_type = "pruned-mpnet"

    layer_shapes: list[Any] | None = None
    head_size: int | None = None
    relative_attention_heads: int | None = None


class ShapedMPNet(Shaped):
    """Shaped, with each head reading its own column of the bias by distance."""

    places = MPNET_PLACES

    def shape(self, encoder: Any, config: Any) -> None:
        """Resize the bias by distance and the layers of `encoder`."""
        columns = config.relative_attention_heads or config.num_attention_heads
        encoder.encoder.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, columns)
        for layer, shape in zip(encoder.encoder.layer, config.layer_shapes or (), strict=False):
            if shape["heads"]:
                layer.attention = SomeMPNetAttention(config)
                layer.attention.bias_heads = shape.get("bias_heads") or list(range(shape["heads"]))
        super().shape(encoder, config)


class PrunedMPNetModel(ShapedMPNet, MPNetModel):  # type: ignore[misc]
    """The encoder alone."""

    config_class = PrunedMPNetConfig


class PrunedMPNetForSequenceClassification(ShapedMPNet, MPNetForSequenceClassification):  # type: ignore[misc]
    """The encoder with its classifier."""

    config_class = PrunedMPNetConfig
