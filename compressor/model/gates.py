"""Factors between 0 and 1 on heads, neurons, layers and channels of a model that is otherwise left as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.model.parts import anatomy, layer_output

# B rows, L tokens, D hidden, H heads, d head size, F neurons


@contextlib.contextmanager
def gated(
    model: PreTrainedModel, *, heads: Sequence[Tensor], neurons: Sequence[Tensor], layers: Sequence[Tensor]
) -> Iterator[None]:
    """Inside, each part's contribution is multiplied by its gate: 1 changes nothing, 0 is as if the part were cut.

    Args:
        model: put back as it was on leaving.
        heads: one tensor a layer, (H,) for all rows or (B, H) for each row; (.., 0) where the layer has none.
        neurons: likewise, (F,) or (B, F).
        layers: likewise, () or (B,); a layer at 0 hands its input on.
    """
    hooks = []
    try:
        for layer, head_gate, neuron_gate, layer_gate in zip(
            anatomy(model).layers, heads, neurons, layers, strict=True
        ):
            if layer.heads:
                gate = head_gate.repeat_interleave(layer.head_size, dim=-1)
                hooks.append(layer.attention_output.register_forward_pre_hook(_scale_input(gate)))
            if layer.neurons:
                hooks.append(layer.down.register_forward_pre_hook(_scale_input(neuron_gate)))
            hooks.append(layer.whole.register_forward_hook(_blend_output(layer_gate)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fold(model: PreTrainedModel, *, heads: Sequence[Tensor], neurons: Sequence[Tensor]) -> None:
    """Write the gates of heads and neurons into the output projections, so that the model answers without as with them.

    Args:
        model: changed in place.
        heads: one tensor a layer, (H,); (0,) where the layer has none.
        neurons: likewise, (F,).
    """
    with torch.no_grad():
        for layer, head_gate, neuron_gate in zip(anatomy(model).layers, heads, neurons, strict=True):
            if isinstance(layer.attention_output, nn.Linear):
                layer.attention_output.weight.mul_(head_gate.repeat_interleave(layer.head_size))
            if isinstance(layer.down, nn.Linear):
                layer.down.weight.mul_(neuron_gate)


@contextlib.contextmanager
def channels_gated(
    model: PreTrainedModel,
    *,
    hidden: Tensor,
    queries: Sequence[Tensor],
    values: Sequence[Tensor],
    neurons: Sequence[Tensor],
) -> Iterator[None]:
    """Inside, each channel is multiplied by its gate wherever it stands.

    Args:
        model: one whose layers all have heads and neurons; put back as it was on leaving.
        hidden: (D,) or (B, D); acts after the embeddings and after both norms of every layer.
        queries: one tensor a layer, (H * d,) or (B, H * d).
        values: likewise; act on what the heads read before the output projection.
        neurons: likewise, (F,) or (B, F).
    """
    parts = anatomy(model)
    hooks = [parts.embeddings.register_forward_hook(_scale_output(hidden))]
    try:
        for layer, query_gate, value_gate, neuron_gate in zip(parts.layers, queries, values, neurons, strict=True):
            query = cast(nn.Module, layer.query)
            hooks.append(query.register_forward_hook(_scale_output(query_gate)))
            hooks.append(layer.attention_output.register_forward_pre_hook(_scale_input(value_gate)))
            hooks.append(layer.down.register_forward_pre_hook(_scale_input(neuron_gate)))
            hooks.extend(
                norm.register_forward_hook(_scale_output(hidden)) for norm in (layer.attention_norm, layer.norm)
            )
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def hidden_gated(model: PreTrainedModel, gate: Tensor) -> Iterator[None]:
    """Inside, each channel of the hidden states counts as much as its gate, everywhere at once.

    The norms take their mean and variance over the channels weighted by their gates, so that a channel at 0 is as if it
    were cut: written by nothing and read by nothing, by no norm either. It acts on the embeddings, on both norms of
    every layer, and on what the pooler writes, which is as wide.

    Args:
        model: put back as it was on leaving.
        gate: (D,) for all rows or (B, D) for each row.
    """
    parts = anatomy(model)
    norms = [norm for layer in parts.layers for norm in (layer.attention_norm, layer.norm)]
    hooks = [parts.pooler.register_forward_hook(lambda _pooler, _inputs, output_BD: output_BD * gate)]
    try:
        if parts.projection is None:
            norms.append(parts.embedding_norm)
        else:
            hooks.append(parts.projection.register_forward_hook(_scale_output(gate)))
        hooks.extend(norm.register_forward_hook(_weighted_norm(gate)) for norm in norms)
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _weighted_norm(gate: Tensor) -> Any:
    weight = gate.unsqueeze(-2) if gate.dim() == 2 else gate
    count = weight.sum(-1, keepdim=True)

    def hook(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        states = inputs[0]
        centred = states - (states * weight).sum(-1, keepdim=True) / count
        variance = (centred.square() * weight).sum(-1, keepdim=True) / count
        return (centred * (variance + norm.eps).rsqrt() * norm.weight + norm.bias) * weight

    return hook


def _scale_output(gate: Tensor) -> Any:
    spread = gate.unsqueeze(-2) if gate.dim() == 2 else gate

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * spread

    return hook


def _scale_input(gate: Tensor) -> Any:
    spread = gate.unsqueeze(-2) if gate.dim() == 2 else gate

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * spread, *inputs[1:])

    return hook


def _blend_output(gate: Tensor) -> Any:
    spread = gate[:, None, None] if gate.dim() == 1 else gate

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        if _is_one(gate):
            return output
        blended = inputs[0] + spread * (layer_output(output) - inputs[0])
        return (blended, *output[1:]) if isinstance(output, tuple) else blended

    return hook


def _is_one(gate: Tensor) -> bool:
    """True for a gate that is a plain 1, so that an untouched layer's output keeps every bit."""
    return not gate.requires_grad and gate.dim() == 0 and float(gate) == 1.0
