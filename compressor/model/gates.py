"""Factors between 0 and 1 on heads, neurons and layers of a model that is otherwise left as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.model.parts import anatomy

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

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output if _is_one(gate) else inputs[0] + spread * (output - inputs[0])

    return hook


def _is_one(gate: Tensor) -> bool:
    """True for a gate that is a plain 1, so that an untouched layer's output keeps every bit."""
    return not gate.requires_grad and gate.dim() == 0 and float(gate) == 1.0
