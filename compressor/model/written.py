"""How much each head, neuron, half and layer writes, row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.model.parts import Layer, anatomy, layer_output

# B rows, L tokens, D hidden, H heads, d head size, F neurons, P parts of one kind


@dataclass(frozen=True)
class Norms:
    """Squared norms of what the parts write, each the mean over a row's true tokens; one tensor a layer."""

    heads: list[Tensor]
    """Of a head's context through the output projection, (B, H)."""
    neurons: list[Tensor]
    """Of a neuron's activation times its column of the output projection, (B, F)."""
    layers: list[Tensor]
    """Of what the layer changes of its input, (B,)."""
    attention: list[Tensor]
    """Of what all its heads write together, (B,)."""
    feed_forward: list[Tensor]
    """Of what all its neurons write together, (B,)."""


@contextlib.contextmanager
def written(model: PreTrainedModel, mask: Tensor) -> Iterator[Norms]:
    """Norms that hold what the pass made inside wrote; the model is put back as it was on leaving.

    Args:
        mask: 1 for true tokens and 0 for padding, (B, L), on the model's device.
    """
    share = mask.float() / mask.float().sum(-1, keepdim=True)
    layers = anatomy(model).layers
    absent, nothing = share.new_zeros(len(share), 0), share.new_zeros(len(share))
    norms = Norms(*([each] * len(layers) for each in (absent, absent, nothing, nothing, nothing)))
    hooks = []
    try:
        for index, layer in enumerate(layers):
            if layer.heads:
                hook = _reader(norms.heads, index, share, _head_squares(layer))
                hooks.append(layer.attention_output.register_forward_pre_hook(hook))
                hooks.append(layer.attention_output.register_forward_hook(_sum_reader(norms.attention, index, share)))
            if layer.neurons:
                hook = _reader(norms.neurons, index, share, _neuron_squares(layer))
                hooks.append(layer.down.register_forward_pre_hook(hook))
                hooks.append(layer.down.register_forward_hook(_sum_reader(norms.feed_forward, index, share)))
            hooks.append(layer.whole.register_forward_hook(_change_reader(norms.layers, index, share)))
        yield norms
    finally:
        for each in hooks:
            each.remove()


def _head_squares(layer: Layer) -> Callable[[Tensor], Tensor]:
    """From contexts, (B, L, H * d), to the squared norm of what each head writes, (B, L, H)."""
    output: Any = layer.attention_output
    weight_DHd = output.weight.detach().reshape(-1, layer.heads, layer.head_size)
    gram_Hdd = torch.einsum("ohd,ohe->hde", weight_DHd, weight_DHd)

    def squares(context: Tensor) -> Tensor:
        context_BLHd = context.reshape(*context.shape[:-1], layer.heads, layer.head_size)
        found: Tensor = (torch.einsum("blhd,hde->blhe", context_BLHd, gram_Hdd) * context_BLHd).sum(-1)
        return found.clamp_min(0.0)  # rounding may leave a head that writes next to nothing just below 0

    return squares


def _neuron_squares(layer: Layer) -> Callable[[Tensor], Tensor]:
    """From activations, (B, L, F), to the squared norm of what each neuron writes, (B, L, F)."""
    down: Any = layer.down
    columns_F = down.weight.detach().square().sum(0)
    return lambda activations: activations.square() * columns_F


def _reader(found: list[Tensor], index: int, share: Tensor, squares: Callable[[Tensor], Tensor]) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[index] = torch.einsum("blp,bl->bp", squares(inputs[0].detach()), share)

    return hook


def _sum_reader(found: list[Tensor], index: int, share: Tensor) -> Any:
    """Reads what a projection writes beside its bias, which stays when all its inputs go."""

    def hook(module: nn.Linear, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[index] = ((output - module.bias).detach().square().sum(-1) * share).sum(-1)

    return hook


def _change_reader(found: list[Tensor], index: int, share: Tensor) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        found[index] = ((layer_output(output) - inputs[0]).detach().square().sum(-1) * share).sum(-1)

    return hook
