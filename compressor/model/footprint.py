"""How large a model is: parameters, multiply-accumulates, heads and neurons."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from compressor.model.manifest import LayerShape, Shapes
from compressor.model.parts import anatomy

TOKENS = 32
"""Length at which multiply-accumulates are counted; a typical sentence."""


def parameters(model: nn.Module) -> int:
    """Numbers in all weights, those that are used twice counted once."""
    return sum(weight.numel() for weight in model.parameters())


def parameters_without_embeddings(model: PreTrainedModel) -> int:
    """Numbers in all weights but the word, position and type tables."""
    return parameters(model) - sum(table.weight.numel() for table in anatomy(model).tables)


def head_macs(head_size: int, hidden: int, *, tokens: int = TOKENS) -> int:
    """Multiply-accumulates of one head for one row: its four projections, its scores and its weighted sum."""
    return tokens * 4 * hidden * head_size + 2 * tokens * tokens * head_size


def neuron_macs(hidden: int, *, tokens: int = TOKENS) -> int:
    """Multiply-accumulates of one feed-forward neuron for one row."""
    return tokens * 2 * hidden


def layer_macs(layer: LayerShape, hidden: int, *, tokens: int = TOKENS) -> int:
    """Multiply-accumulates of the matrix products of one layer for one row."""
    return sum(half_macs(layer, hidden, tokens=tokens))


def half_macs(layer: LayerShape, hidden: int, *, tokens: int = TOKENS) -> tuple[int, int]:
    """Those of its attention and of its feed-forward half."""
    attention = layer.heads * head_macs(layer.head_size, hidden, tokens=tokens)
    return attention, layer.ffn * neuron_macs(hidden, tokens=tokens)


def macs(shapes: Shapes, *, tokens: int = TOKENS) -> int:
    """Multiply-accumulates of the encoder's matrix products for one row of `tokens` tokens.

    >>> macs(Shapes(hidden=4, layers=(LayerShape(heads=2, head_size=2, ffn=8),), vocabulary=10), tokens=1)
    136
    """
    return sum(layer_macs(layer, shapes.hidden, tokens=tokens) for layer in shapes.layers)


def head_parameters(head_size: int, hidden: int) -> int:
    """Numbers that go with one head: its rows of query, key and value with their biases, its columns of the output."""
    return 4 * head_size * hidden + 3 * head_size


def neuron_parameters(hidden: int) -> int:
    """Numbers that go with one feed-forward neuron: a row with its bias, and a column."""
    return 2 * hidden + 1


def layer_parameters(layer: LayerShape, hidden: int) -> int:
    """Numbers in one layer; two output biases and two layer norms remain when all heads and neurons are gone."""
    units = layer.heads * head_parameters(layer.head_size, hidden) + layer.ffn * neuron_parameters(hidden)
    return units + 6 * hidden


def heads(shapes: Shapes) -> int:
    """Attention heads over all layers."""
    return sum(layer.heads for layer in shapes.layers)


def neurons(shapes: Shapes) -> int:
    """Feed-forward neurons over all layers."""
    return sum(layer.ffn for layer in shapes.layers)
