"""The parts of an encoder; with families and pruned_modeling the only file that spells transformers' module names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optimum.utils import NormalizedConfigManager
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.families import FAMILIES, PRUNED, Family, family_of
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.pruned_modeling import AbsentAttention, BiasOnly, Places


@dataclass(frozen=True)
class Layer:
    """The parts of one transformer layer; projections are None where that half of the layer is gone."""

    whole: nn.Module
    heads: int
    head_size: int
    neurons: int
    query: nn.Linear | None
    key: nn.Linear | None
    value: nn.Linear | None
    attention_output: nn.Linear | BiasOnly
    attention_norm: nn.LayerNorm
    up: nn.Linear | None
    down: nn.Linear | BiasOnly
    norm: nn.LayerNorm
    bias_heads: tuple[int, ...] | None
    """The column of each head in the encoder's bias by distance; None where the family has no such bias."""

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The projections that are there, in the order of use."""
        parts = (self.query, self.key, self.value, self.attention_output, self.up, self.down)
        return tuple(part for part in parts if isinstance(part, nn.Linear))


@dataclass(frozen=True)
class Stack:
    """What a pass goes through, of any encoder that can teach."""

    words: nn.Embedding
    embeddings: nn.Module
    """Its output, shape (rows, tokens, hidden), is layer 0: what the first transformer layer reads."""
    layers: tuple[Layer, ...]
    relative: Any | None
    """MPNet's encoder, which adds a bias by distance to all scores; None for the others."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of an encoder with its classifier, of those whose shapes can be changed."""

    encoder: PreTrainedModel
    embeddings: nn.Module
    """Its output is what the first layer reads."""
    tables: tuple[nn.Embedding, ...]
    """Word and position embeddings, and type embeddings where there are some."""
    embedding_norm: nn.LayerNorm
    projection: nn.Linear | None
    """From narrower embeddings to the layers' width (ELECTRA); None where they are as wide."""
    layers: tuple[Layer, ...]
    relative: Any | None
    """As in Stack."""
    pooler: nn.Linear
    """The projection between the first token's state and the classifier, wherever the family keeps it."""
    classifier: nn.Linear
    """The projection with one row a class."""


TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
"""Names of the tables of embeddings, which stand first in every encoder; some have no segments."""


def _layer(module: Any, places: Places, config: Any) -> Layer:
    inner, down = module.get_submodule(places.attention), module.get_submodule(places.down)
    size, heads, neurons = _head_size(config), 0, 0
    query = key = value = up = None
    if not isinstance(inner, AbsentAttention):
        query, key, value = (inner.get_submodule(name) for name in (places.query, places.key, places.value))
        size = inner.attention_head_size
        heads = query.out_features // size
    if not isinstance(down, BiasOnly):
        up = module.get_submodule(places.up)
        neurons = up.out_features
    columns = getattr(module.get_submodule(places.reads_relative), "bias_heads", range(heads))
    return Layer(
        whole=module,
        heads=heads,
        head_size=size,
        neurons=neurons,
        query=query,
        key=key,
        value=value,
        attention_output=module.get_submodule(places.attention_output),
        attention_norm=module.get_submodule(places.attention_norm),
        up=up,
        down=down,
        norm=module.get_submodule(places.norm),
        bias_heads=None if places.relative is None else tuple(columns[:heads]),
    )


def _head_size(config: Any) -> int:
    """Width of a head of which the layers alone may not tell, as one of them may have none."""
    size: int = getattr(config, "head_size", None) or config.hidden_size // config.num_attention_heads
    return size


def _stack(encoder: Any, places: Places) -> Stack:
    return Stack(
        words=encoder.embeddings.word_embeddings,
        embeddings=getattr(encoder, "embeddings_project", encoder.embeddings),
        layers=tuple(_layer(each, places, encoder.config) for each in encoder.get_submodule(places.layers)),
        relative=None if places.relative is None else encoder.get_submodule(places.relative),
    )


def layer_output(found: Any) -> Tensor:
    """The hidden states in what a transformer layer gives, which in some families is a tuple that begins with them."""
    states: Tensor = found[0] if isinstance(found, tuple) else found
    return states


def bare(model: nn.Module) -> PreTrainedModel:
    """The model itself, taken out of DistributedDataParallel where it is in it."""
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    found: PreTrainedModel = inner
    return found


def family(model: PreTrainedModel) -> Family:
    """The family of `model`; InputError for an encoder whose shapes cannot be changed here."""
    kind = model.config.model_type
    found = family_of(kind)
    if found is None:
        raise InputError(
            f"models of type {kind!r} cannot be cut or made students of, as their parts are not known; known are "
            f"{', '.join(FAMILIES)}"
        )
    return found


def anatomy(model: PreTrainedModel) -> Anatomy:
    """The parts of `model`; InputError as `family`."""
    names, encoder = family(model), model.base_model
    parts, stacked = encoder.embeddings, _stack(encoder, names.places)
    return Anatomy(
        encoder=encoder,
        embeddings=stacked.embeddings,
        tables=tuple(getattr(parts, name) for name in TABLES if hasattr(parts, name)),
        embedding_norm=parts.LayerNorm,
        projection=getattr(encoder, "embeddings_project", None),
        layers=stacked.layers,
        relative=stacked.relative,
        pooler=model.get_submodule(names.dense),
        classifier=model.get_submodule(names.answers),
    )


def stack(model: nn.Module) -> Stack:
    """What a pass of `model`, which may be wrapped, goes through; InputError where its module names are not known."""
    inner = bare(model)
    kind = inner.config.model_type
    found = family_of(kind)
    if found is None:
        raise InputError(
            f"the hidden states of models of type {kind!r} cannot be read; known are {', '.join(FAMILIES)}: "
            "take one of these, or match logits alone"
        )
    return _stack(inner.base_model, found.places)


def shapes(model: PreTrainedModel) -> Shapes:
    """Width, layers and vocabulary of `model`, read from its modules where the parts are known, else its config."""
    own = model.config.model_type
    normal = NormalizedConfigManager.get_normalized_config_class(own.removeprefix(PRUNED))(model.config)
    if family_of(own) is not None:
        parts = stack(model).layers
        layers = tuple(LayerShape(heads=each.heads, head_size=each.head_size, ffn=each.neurons) for each in parts)
    else:
        size = normal.hidden_size // normal.num_attention_heads
        shape = LayerShape(heads=normal.num_attention_heads, head_size=size, ffn=normal.config.intermediate_size)
        layers = (shape,) * normal.num_layers
    return Shapes(hidden=normal.hidden_size, layers=layers, vocabulary=normal.vocab_size)
