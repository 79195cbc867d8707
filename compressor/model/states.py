"""Running an encoder, and reading and going on from what it computes inside."""

# B rows, L tokens, D hidden, H heads, d head size, C classes

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.masking_utils import create_bidirectional_mask

from compressor.errors import InputError
from compressor.model.parts import bare, layer_output, stack

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, each (B, L, H, d)."""


class Mixable(Protocol):
    """A batch whose rows may be mixed with one another."""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """input_ids, attention_mask and so on, each (B, L)."""

    @property
    def partner(self) -> Tensor | None:
        """(B,) int64 place of the row that is mixed in; None where no row is mixed."""

    @property
    def kept(self) -> Tensor | None:
        """(B,) share of the row's own embeddings, 1 where it is not mixed; None where no row is."""


def model_inputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `inputs` that the forward of `model` takes; no segments for a model that knows one kind alone."""
    inner = bare(model)
    taken = _parameters(type(inner).forward)  # accelerate replaces the forward of the object
    single = getattr(inner.config, "type_vocab_size", 2) < 2
    return {
        name: value for name, value in inputs.items() if name in taken and not (single and name == "token_type_ids")
    }


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def forward(model: nn.Module, batch: Mixable) -> Tensor:
    """Logits of a batch, shape (B, C), with gradients; `model` may be wrapped for several processes.

    Where the batch has partners, the word embeddings of each row are `kept` times its own plus the rest times its
    partner's, place by place, under the batch's own attention mask (which spans both); position and segment
    embeddings are the row's own. All kept at 1 gives the logits without mixing.
    """
    inputs = model_inputs(model, batch.inputs)
    if batch.partner is not None and batch.kept is not None:
        own_BLD = stack(model).words(inputs.pop("input_ids"))
        share = batch.kept.to(own_BLD.dtype)[:, None, None]
        inputs["inputs_embeds"] = share * own_BLD + (1 - share) * own_BLD[batch.partner]
    logits: Tensor = model(**inputs).logits
    return logits


@contextlib.contextmanager
def record_hidden(model: nn.Module, *, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """A dict that each forward of `model` fills with the chosen layers' outputs, shape (B, L, D).

    Layer 0 is the embeddings' output, layer n that of the n-th transformer layer. The tensors keep their gradients.
    Raises: InputError for a layer that is not there or an encoder whose parts are not known.
    """
    parts = stack(model)
    modules = (parts.embeddings, *(layer.whole for layer in parts.layers))
    wrong = [layer for layer in layers if not 0 <= layer < len(modules)]
    if wrong:
        raise InputError(f"there is no layer {wrong[0]}: the model has layers 0 (embeddings) to {len(modules) - 1}")
    states: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states[layer] = layer_output(output)

        return hook

    hooks = [modules[layer].register_forward_hook(keep(layer)) for layer in dict.fromkeys(layers)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def record_heads(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Heads]]:
    """A dict that each forward of `model` fills with queries, keys and values of the chosen layers.

    Layers count from 1; each tensor has shape (B, L, H, d) and keeps its gradients. Works with every attention
    implementation, as it listens to the three projections.
    Raises: InputError for a layer that is not there or has no attention left.
    """
    states: dict[int, Heads] = {}

    def keep(layer: int, place: int, size: int, found: dict[int, Tensor]) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found[place] = output.view(*output.shape[:-1], -1, size)
            if len(found) == 3:
                states[layer] = (found.pop(0), found.pop(1), found.pop(2))

        return hook

    chosen = {layer: _projections(model, layer) for layer in layers}
    hooks: list[RemovableHandle] = []
    for layer, (parts, size) in chosen.items():
        found: dict[int, Tensor] = {}
        hooks.extend(part.register_forward_hook(keep(layer, place, size, found)) for place, part in enumerate(parts))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def head_states(model: nn.Module, layer: int, input_BLD: Tensor) -> Heads:
    """Queries, keys and values, each (B, L, H, d), that layer `layer` makes of its input, the output of `layer - 1`.

    Layers count from 1. The input is taken to the type of the weights first, as cached states may be narrower.
    Raises: InputError for a layer that is not there or has no attention left.
    """
    parts, size = _projections(model, layer)
    given = input_BLD.to(parts[0].weight.dtype)
    query, key, value = (part(given).view(*given.shape[:-1], -1, size) for part in parts)
    return query, key, value


def _projections(model: nn.Module, layer: int) -> tuple[tuple[nn.Linear, nn.Linear, nn.Linear], int]:
    """Query, key and value projections of a layer, counted from 1, and the width of its heads."""
    layers = stack(model).layers
    if not 1 <= layer <= len(layers):
        raise InputError(f"there is no layer {layer} with attention: the model has layers 1 to {len(layers)}")
    parts = layers[layer - 1]
    if parts.query is None or parts.key is None or parts.value is None:
        raise InputError(f"layer {layer} has no attention: all its heads were pruned; pair another layer")
    return (parts.query, parts.key, parts.value), parts.head_size


def attention_bias(model: nn.Module, length: int, *, layer: int) -> Tensor | None:
    """What is added to the scaled scores of a layer, shape (H, L, L), queries before keys; None where nothing is.

    MPNet's bias by the distance of two tokens (Song et al. 2020, https://arxiv.org/abs/2004.09297, after T5), of which
    a pruned layer has the columns of its heads. Layers count from 1.
    """
    parts = stack(model)
    columns = parts.layers[layer - 1].bias_heads
    if parts.relative is None or columns is None:
        return None
    shape_alone = parts.words.weight.new_empty(1, length, 1)
    bias: Tensor = parts.relative.compute_position_bias(shape_alone)[0, list(columns)]
    return bias


def continue_layers(
    model: nn.Module, hidden_BLD: Tensor, mask_BL: Tensor, *, start: int, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Outputs of `layers`, each (B, L, D), going on from `hidden_BLD`, the output of layer `start`.

    Layer 0 is the embeddings' output; `start` itself may be asked for. Mode and gradients are as the caller has set
    them. Equal to what a full pass gives at places that are not padding, but for the rounding of `hidden_BLD`.

    Args:
        mask_BL: 1 at tokens, 0 at padding.
    Raises: InputError for a layer below `start` or above the last.
    """
    parts = stack(model)
    wrong = [layer for layer in layers if not start <= layer <= len(parts.layers)]
    if wrong:
        raise InputError(f"layer {wrong[0]} does not follow layer {start} of a model of {len(parts.layers)} layers")
    state = hidden_BLD.to(parts.words.weight.dtype)
    given: dict[str, Any] = {
        "attention_mask": create_bidirectional_mask(
            config=bare(model).config, inputs_embeds=state, attention_mask=mask_BL
        )
    }
    if parts.relative is not None:
        given["position_bias"] = parts.relative.compute_position_bias(state)
    states = {start: state}
    for number in range(start + 1, max(layers, default=start) + 1):
        states[number] = state = layer_output(parts.layers[number - 1].whole(state, **given))
    return {layer: states[layer] for layer in layers}


def set_dropout(model: nn.Module, share: float) -> None:
    """Let every dropout of `model`, that of attention too, drop `share` (0 to 1) while it trains.

    The model's config is left as it was, so a saved model says what it was made with.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
