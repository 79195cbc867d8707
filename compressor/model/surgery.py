"""Cutting heads, neurons and layers out of a model, on torch-pruning's dependency graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch_pruning
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from compressor.errors import InputError, StageError
from compressor.model.gates import gated
from compressor.model.manifest import Shapes
from compressor.model.parts import Layer, anatomy, shapes
from compressor.model.pruned_modeling import (
    AbsentAttention,
    AbsentIntermediate,
    BiasOnly,
    PrunedBertConfig,
    PrunedBertForSequenceClassification,
)

NOT_INHERITED = ("model_type", "auto_map", "architectures", "layer_shapes", "head_size", "dtype")
"""What a config says about the model it was written for alone."""


@dataclass(frozen=True)
class Kept:
    """What stays, in the numbering of the model that is cut, each ascending."""

    heads: tuple[tuple[int, ...], ...]
    """One entry a layer of the input, also for layers that go."""
    neurons: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]


def keep_all(sizes: Shapes) -> Kept:
    """The `Kept` that cuts nothing from a model of these shapes."""
    return Kept(
        heads=tuple(tuple(range(layer.heads)) for layer in sizes.layers),
        neurons=tuple(tuple(range(layer.ffn)) for layer in sizes.layers),
        layers=tuple(range(len(sizes.layers))),
    )


def kept_shapes(sizes: Shapes, kept: Kept) -> Shapes:
    """The shapes of a model of shapes `sizes` after `cut`; InputError where `kept` names what is not there."""
    check_kept(sizes, kept)
    layers = tuple(
        replace(sizes.layers[index], heads=len(kept.heads[index]), ffn=len(kept.neurons[index]))
        for index in kept.layers
    )
    return replace(sizes, layers=layers)


def check_kept(sizes: Shapes, kept: Kept) -> None:
    """Raise InputError unless `kept` names, ascending and once each, parts that a model of these shapes has."""
    count = len(sizes.layers)
    if len(kept.heads) != count or len(kept.neurons) != count:
        raise InputError(
            f"kept must name heads and neurons of {count} layers (got {len(kept.heads)} and {len(kept.neurons)})"
        )
    if not kept.layers:
        raise InputError("kept names no layer; a model keeps at least one")
    _check_indices("layers", kept.layers, count)
    for index, layer in enumerate(sizes.layers):
        _check_indices(f"heads of layer {index}", kept.heads[index], layer.heads)
        _check_indices(f"neurons of layer {index}", kept.neurons[index], layer.ffn)


def _check_indices(what: str, indices: Sequence[int], count: int) -> None:
    if list(indices) != sorted(set(indices)) or any(not 0 <= index < count for index in indices):
        raise InputError(f"kept {what} must be ascending numbers from 0 to {count - 1} (got {list(indices)[:8]})")


@contextlib.contextmanager
def masked(model: PreTrainedModel, kept: Kept) -> Iterator[None]:
    """Inside, `model` answers as if everything outside `kept` were cut: the reference that `cut` is held to."""
    sizes = shapes(model)
    check_kept(sizes, kept)
    device = next(model.parameters()).device

    def gate(indices: Sequence[int], count: int) -> torch.Tensor:
        values = torch.zeros(count, device=device)
        values[list(indices)] = 1.0
        return values

    numbered = list(enumerate(sizes.layers))
    with gated(
        model,
        heads=[gate(kept.heads[index], layer.heads) for index, layer in numbered],
        neurons=[gate(kept.neurons[index], layer.ffn) for index, layer in numbered],
        layers=list(gate(kept.layers, len(sizes.layers))),
    ):
        yield


def cut(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A new model that holds only what `kept` names; `model` is untouched.

    Its class is transformers' own where that can say the shapes, else PrunedBertForSequenceClassification. Device, mode
    and attention implementation are those of `model`.
    Raises: InputError where `kept` does not fit; StageError where the dependency graph couples other channels.
    """
    target = kept_shapes(shapes(model), kept)
    work = copy.deepcopy(model)
    parts = anatomy(work)
    _drop_channels(work, [(parts.layers[i], kept.heads[i], kept.neurons[i]) for i in kept.layers])
    for index in kept.layers:
        _remove_empty_halves(parts.layers[index], kept.heads[index], kept.neurons[index])
    stack: Any = parts.encoder.encoder
    stack.layer = nn.ModuleList(parts.layers[index].whole for index in kept.layers)
    return rebuild(work, target)


def _drop_channels(work: PreTrainedModel, plan: Sequence[tuple[Layer, Sequence[int], Sequence[int]]]) -> None:
    """Cut heads and neurons where some of the layer's stay, through torch-pruning's groups."""
    jobs: list[tuple[nn.Linear, list[int], set[tuple[nn.Module, str]]]] = []
    for layer, heads, neurons in plan:
        if layer.query is not None and 0 < len(heads) < layer.heads:
            gone = sorted(set(range(layer.heads)) - set(heads))
            channels = [head * layer.head_size + offset for head in gone for offset in range(layer.head_size)]
            outs = {(cast(nn.Module, part), "out") for part in (layer.query, layer.key, layer.value)}
            jobs.append((layer.query, channels, outs | {(layer.attention_output, "in")}))
        if layer.up is not None and 0 < len(neurons) < layer.neurons:
            gone = sorted(set(range(layer.neurons)) - set(neurons))
            jobs.append((layer.up, gone, {(layer.up, "out"), (layer.down, "in")}))
    if not jobs:
        return
    graph = _graph(work)
    for root, channels, coupled in jobs:
        group = graph.get_pruning_group(root, torch_pruning.prune_linear_out_channels, channels)
        _check_group(group, channels, coupled)
        group.prune()
    for layer, heads, _ in plan:
        if layer.query is not None and heads:
            _set_head_count(layer, len(heads))


def _graph(work: PreTrainedModel) -> Any:
    """The dependency graph of the model, traced with eager attention, in which every product is visible."""
    attention, training = work.config._attn_implementation, work.training
    device = next(work.parameters()).device
    work.set_attn_implementation("eager")
    alone = [module.bias for module in work.modules() if isinstance(module, BiasOnly)]
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            work.requires_grad_(True).eval(),
            example_inputs={"input_ids": torch.ones(1, 8, dtype=torch.long, device=device)},
            output_transform=lambda output: output.logits,
            ignored_params=alone,
            verbose=False,
        )
    work.set_attn_implementation(attention)
    work.train(training)
    return graph


def _check_group(group: Any, channels: Sequence[int], coupled: set[tuple[nn.Module, str]]) -> None:
    """Hold what torch-pruning would cut together against what belongs together in an encoder layer."""
    found = {
        (dependency.target.module, "out" if "out_channels" in dependency.handler.__name__ else "in")
        for dependency, _ in group
        if isinstance(dependency.target.module, nn.Linear)
    }
    moved = [
        dependency.target.name
        for dependency, indices in group
        if isinstance(dependency.target.module, nn.Linear) and sorted(indices) != list(channels)
    ]
    if found != coupled or moved:
        raise StageError(
            f"torch-pruning couples {len(found)} projections where a layer has {len(coupled)}"
            f"{f', with other channels in {moved[0]}' if moved else ''}; the cut would be wrong: "
            "use a version of torch-pruning and transformers from constraints.txt"
        )


def _set_head_count(layer: Layer, heads: int) -> None:
    """Write what attention reads beside the weights; a stale count would answer wrong without an error."""
    inner: Any = cast(Any, layer.whole).attention.self
    inner.num_attention_heads, inner.all_head_size = heads, heads * layer.head_size


def _remove_empty_halves(layer: Layer, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Put the bias alone where all heads, or all neurons, of a layer go."""
    whole: Any = layer.whole
    if layer.heads and not heads:
        whole.attention.self = AbsentAttention()
        whole.attention.output.dense = _bias_of(layer.attention_output)
    if layer.neurons and not neurons:
        whole.intermediate = AbsentIntermediate()
        whole.output.dense = _bias_of(layer.down)


def _bias_of(projection: Any) -> BiasOnly:
    bias = projection.bias.detach()
    alone = BiasOnly(bias.numel()).to(bias.device)
    alone.bias.data.copy_(bias)
    return alone


def rebuild(work: PreTrainedModel, target: Shapes) -> PreTrainedModel:
    """The weights of `work` in a freshly built model of shapes `target`, stock where that can say them."""
    made = fresh_model(work, target, seed=0)
    made.load_state_dict(work.state_dict(), strict=True)
    return made.train(work.training)


def fresh_model(like: PreTrainedModel, target: Shapes, *, seed: int) -> PreTrainedModel:
    """A model of shapes `target` with random weights, in all else configured and placed as `like`.

    Stock BERT where that can say the shapes. torch's own random numbers are left as they were.
    """
    settings = {**like.config.to_dict(), "num_hidden_layers": len(target.layers), "hidden_size": target.hidden}
    for name in NOT_INHERITED:
        settings.pop(name, None)
    size = target.layers[0].head_size
    settings["num_attention_heads"] = target.hidden // size
    settings["intermediate_size"] = max(1, *(layer.ffn for layer in target.layers))
    if target.is_stock:
        family: Any = BertForSequenceClassification
        config = BertConfig(**settings)
    else:
        family = PrunedBertForSequenceClassification
        each = [{"heads": layer.heads, "ffn": layer.ffn} for layer in target.layers]
        config = PrunedBertConfig(**settings, layer_shapes=each, head_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = family._from_config(config, attn_implementation=like.config._attn_implementation)
    return cast(PreTrainedModel, made.to(next(like.parameters()).device))
