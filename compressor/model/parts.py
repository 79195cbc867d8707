"""The parts of an encoder by name; with pruned_modeling the only file that spells transformers' module names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optimum.utils import NormalizedConfigManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.pruned_modeling import AbsentAttention, BiasOnly, PrunedBertConfig


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
    tables: tuple[nn.Embedding, ...]
    """Word, position and type embeddings."""
    embedding_norm: nn.LayerNorm
    layers: tuple[Layer, ...]
    pooler: nn.Linear | None
    classifier: nn.Linear


def _bert_layer(module: Any, head_size: int) -> Layer:
    inner, has_neurons = module.attention.self, hasattr(module.intermediate, "dense")
    has_heads = not isinstance(inner, AbsentAttention)
    return Layer(
        whole=module,
        heads=inner.query.out_features // inner.attention_head_size if has_heads else 0,
        head_size=inner.attention_head_size if has_heads else head_size,
        neurons=module.intermediate.dense.out_features if has_neurons else 0,
        query=inner.query if has_heads else None,
        key=inner.key if has_heads else None,
        value=inner.value if has_heads else None,
        attention_output=module.attention.output.dense,
        attention_norm=module.attention.output.LayerNorm,
        up=module.intermediate.dense if has_neurons else None,
        down=module.output.dense,
        norm=module.output.LayerNorm,
    )


def _mpnet_layer(module: Any) -> Layer:
    inner = module.attention.attn
    return Layer(
        whole=module,
        heads=inner.num_attention_heads,
        head_size=inner.attention_head_size,
        neurons=module.intermediate.dense.out_features,
        query=inner.q,
        key=inner.k,
        value=inner.v,
        attention_output=inner.o,
        attention_norm=module.attention.LayerNorm,
        up=module.intermediate.dense,
        down=module.output.dense,
        norm=module.output.LayerNorm,
    )


def _distilbert_layer(module: Any) -> Layer:
    inner = module.attention
    return Layer(
        whole=module,
        heads=inner.n_heads,
        head_size=inner.attention_head_size,
        neurons=module.ffn.lin1.out_features,
        query=inner.q_lin,
        key=inner.k_lin,
        value=inner.v_lin,
        attention_output=inner.out_lin,
        attention_norm=module.sa_layer_norm,
        up=module.ffn.lin1,
        down=module.ffn.lin2,
        norm=module.output_layer_norm,
    )


def _bert_layers(encoder: Any) -> tuple[Layer, ...]:
    config = encoder.config
    size = getattr(config, "head_size", None) or config.hidden_size // config.num_attention_heads
    return tuple(_bert_layer(module, size) for module in encoder.encoder.layer)


def _bert_stack(encoder: Any) -> Stack:
    return Stack(encoder.embeddings.word_embeddings, encoder.embeddings, _bert_layers(encoder), None)


def _electra_stack(encoder: Any) -> Stack:
    projected = getattr(encoder, "embeddings_project", encoder.embeddings)
    return Stack(encoder.embeddings.word_embeddings, projected, _bert_layers(encoder), None)


def _mpnet_stack(encoder: Any) -> Stack:
    layers = tuple(_mpnet_layer(module) for module in encoder.encoder.layer)
    return Stack(encoder.embeddings.word_embeddings, encoder.embeddings, layers, encoder.encoder)


def _distilbert_stack(encoder: Any) -> Stack:
    layers = tuple(_distilbert_layer(module) for module in encoder.transformer.layer)
    return Stack(encoder.embeddings.word_embeddings, encoder.embeddings, layers, None)


def _bert_anatomy(model: Any) -> Anatomy:
    encoder, parts = model.base_model, model.base_model.embeddings
    return Anatomy(
        encoder=encoder,
        embeddings=parts,
        tables=(parts.word_embeddings, parts.position_embeddings, parts.token_type_embeddings),
        embedding_norm=parts.LayerNorm,
        layers=_bert_layers(encoder),
        pooler=encoder.pooler.dense if encoder.pooler is not None else None,
        classifier=model.classifier,
    )


ANATOMIES: dict[str, Callable[[Any], Anatomy]] = {"bert": _bert_anatomy, PrunedBertConfig.model_type: _bert_anatomy}
"""Model type to the function that finds the parts of a classifier that can be copied from and cut."""

STACKS: dict[str, Callable[[Any], Stack]] = {
    "bert": _bert_stack,
    PrunedBertConfig.model_type: _bert_stack,
    "mpnet": _mpnet_stack,
    "roberta": _bert_stack,
    "distilbert": _distilbert_stack,
    "electra": _electra_stack,
}
"""Model type to the function that finds what a pass of its encoder goes through."""


def bare(model: nn.Module) -> PreTrainedModel:
    """The model itself, taken out of DistributedDataParallel where it is in it."""
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    found: PreTrainedModel = inner
    return found


def anatomy(model: PreTrainedModel) -> Anatomy:
    """The parts of `model`; InputError for an encoder whose shapes cannot be changed here."""
    kind = model.config.model_type
    if kind not in ANATOMIES:
        raise InputError(
            f"models of type {kind!r} cannot be distilled into, pruned or exported; known are {', '.join(ANATOMIES)}"
        )
    return ANATOMIES[kind](model)


def stack(model: nn.Module) -> Stack:
    """What a pass of `model`, which may be wrapped, goes through; InputError where its module names are not known."""
    inner = bare(model)
    kind = inner.config.model_type
    if kind not in STACKS:
        raise InputError(
            f"the hidden states of models of type {kind!r} cannot be read; known are {', '.join(STACKS)}: "
            "take one of these, or match logits alone"
        )
    return STACKS[kind](inner.base_model)


def shapes(model: PreTrainedModel) -> Shapes:
    """Width, layers and vocabulary of `model`, read from its modules where the parts are known, else its config."""
    own = model.config.model_type
    kind = "bert" if own == PrunedBertConfig.model_type else own
    normal = NormalizedConfigManager.get_normalized_config_class(kind)(model.config)
    if own in STACKS:
        parts = stack(model).layers
        layers = tuple(LayerShape(heads=each.heads, head_size=each.head_size, ffn=each.neurons) for each in parts)
    else:
        size = normal.hidden_size // normal.num_attention_heads
        shape = LayerShape(heads=normal.num_attention_heads, head_size=size, ffn=normal.config.intermediate_size)
        layers = (shape,) * normal.num_layers
    return Shapes(hidden=normal.hidden_size, layers=layers, vocabulary=normal.vocab_size)
