"""Cutting heads, neurons, layers and hidden channels out of a model, on torch-pruning's dependency graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch_pruning
from torch import nn
from transformers import PreTrainedModel

from compressor.errors import InputError, StageError
from compressor.model.gates import gated, hidden_gated
from compressor.model.manifest import UNEVEN_KEYS, Shapes
from compressor.model.parts import Anatomy, Layer, anatomy, family, shapes
from compressor.model.pruned_modeling import BiasOnly, Places, drop_heads, drop_neurons, put

NOT_INHERITED = ("model_type", "architectures", "dtype", *UNEVEN_KEYS)
"""What a config says about the model it was written for alone."""


@dataclass(frozen=True)
class Kept:
    """What stays, in the numbering of the model that is cut, each ascending."""

    heads: tuple[tuple[int, ...], ...]
    """One entry a layer of the input, also for layers that go."""
    neurons: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    hidden: tuple[int, ...] | None = None
    """Channels of the hidden states, cut everywhere at once; None keeps all."""


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
    hidden = sizes.hidden if kept.hidden is None else len(kept.hidden)
    return replace(sizes, hidden=hidden, layers=layers)


def check_kept(sizes: Shapes, kept: Kept) -> None:
    """Raise InputError unless `kept` names, ascending and once each, parts that a model of these shapes has."""
    count = len(sizes.layers)
    if len(kept.heads) != count or len(kept.neurons) != count:
        raise InputError(
            f"kept must name heads and neurons of {count} layers (got {len(kept.heads)} and {len(kept.neurons)})"
        )
    if not kept.layers:
        raise InputError("kept names no layer; a model keeps at least one")
    if kept.hidden is not None:
        _check_indices("hidden channels", kept.hidden, sizes.hidden)
        if not kept.hidden:
            raise InputError("kept names no hidden channel; a model keeps at least one")
    _check_indices("layers", kept.layers, count)
    for index, layer in enumerate(sizes.layers):
        _check_indices(f"heads of layer {index}", kept.heads[index], layer.heads)
        _check_indices(f"neurons of layer {index}", kept.neurons[index], layer.ffn)


def _check_indices(what: str, indices: Sequence[int], count: int) -> None:
    if list(indices) != sorted(set(indices)) or any(not 0 <= index < count for index in indices):
        raise InputError(f"kept {what} must be ascending numbers from 0 to {count - 1} (got {list(indices)[:8]})")


@contextlib.contextmanager
def masked(model: PreTrainedModel, kept: Kept) -> Iterator[None]:
    """Inside, `model` answers as if everything outside `kept` were cut: the reference that `cut` is held to.

    Where hidden channels go, the norms run over those that stay.
    """
    sizes = shapes(model)
    check_kept(sizes, kept)
    device = next(model.parameters()).device

    def gate(indices: Sequence[int], count: int) -> torch.Tensor:
        values = torch.zeros(count, device=device)
        values[list(indices)] = 1.0
        return values

    numbered = list(enumerate(sizes.layers))
    with contextlib.ExitStack() as gates:
        if kept.hidden is not None:
            gates.enter_context(hidden_gated(model, gate(kept.hidden, sizes.hidden)))
        gates.enter_context(
            gated(
                model,
                heads=[gate(kept.heads[index], layer.heads) for index, layer in numbered],
                neurons=[gate(kept.neurons[index], layer.ffn) for index, layer in numbered],
                layers=list(gate(kept.layers, len(sizes.layers))),
            )
        )
        yield


def cut(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A new model that holds only what `kept` names; `model` is untouched.

    Its class is transformers' own where that can say the shapes, else its family's in pruned_modeling. Device, mode and
    attention implementation are those of `model`.
    Raises: InputError where `kept` does not fit; StageError where the dependency graph couples other channels.
    """
    sizes = shapes(model)
    target = kept_shapes(sizes, kept)
    work = copy.deepcopy(model)
    parts, places = anatomy(work), family(work).places
    _drop_channels(work, [(parts.layers[i], kept.heads[i], kept.neurons[i]) for i in kept.layers])
    for index in kept.layers:
        _set_heads(parts.layers[index], places, kept.heads[index])
        _remove_empty_halves(parts.layers[index], places, kept.heads[index], kept.neurons[index])
    put(parts.encoder, places.layers, nn.ModuleList(parts.layers[index].whole for index in kept.layers))
    if target.hidden < sizes.hidden:
        _check_width(parts, target.hidden)
        _drop_width(work, sorted(set(range(sizes.hidden)) - set(kept.hidden or ())))
    return rebuild(work, target)


def _drop_channels(work: PreTrainedModel, plan: Sequence[tuple[Layer, Sequence[int], Sequence[int]]]) -> None:
    """Cut heads and neurons where some of the layer's stay, through torch-pruning's groups."""
    jobs: list[tuple[nn.Linear, list[int], Coupled]] = []
    for layer, heads, neurons in plan:
        if layer.query is not None and 0 < len(heads) < layer.heads:
            gone = sorted(set(range(layer.heads)) - set(heads))
            channels = [head * layer.head_size + offset for head in gone for offset in range(layer.head_size)]
            outs = _coupled("out", layer.query, layer.key, layer.value)
            jobs.append((layer.query, channels, outs | _coupled("in", layer.attention_output)))
        if layer.up is not None and 0 < len(neurons) < layer.neurons:
            gone = sorted(set(range(layer.neurons)) - set(neurons))
            jobs.append((layer.up, gone, _coupled("out", layer.up) | _coupled("in", layer.down)))
    if not jobs:
        return
    graph = _graph(work)
    for root, channels, coupled in jobs:
        group = graph.get_pruning_group(root, torch_pruning.prune_linear_out_channels, channels)
        _check_group(group, channels, coupled)
        group.prune()


def _check_width(parts: Anatomy, width: int) -> None:
    """Nothing, or InputError where transformers would leave out the projection between embeddings and layers."""
    if parts.projection is not None and width == parts.projection.in_features:
        raise InputError(
            f"kept names {width} hidden channels, as many as the embeddings have, and transformers would drop the "
            "projection between them; keep one more or one less"
        )


def _drop_width(work: PreTrainedModel, gone: list[int]) -> None:
    """Cut channels of the hidden states, and of what the pooler writes, through torch-pruning's groups."""
    parts, graph = anatomy(work), _graph(work)
    halves = [half for layer in parts.layers for half in (layer.attention_output, layer.down)]
    reads = [part for layer in parts.layers for part in (layer.query, layer.key, layer.value, layer.up)]
    norms = [norm for layer in parts.layers for norm in (layer.attention_norm, layer.norm)]
    embedded = (parts.projection,) if parts.projection is not None else (*parts.tables, parts.embedding_norm)
    stream = _coupled("out", *embedded, *halves, *norms) | _coupled("in", *reads, parts.pooler)
    pooled = _coupled("out", parts.pooler) | _coupled("in", parts.classifier)
    cut_embedded = (
        torch_pruning.prune_linear_out_channels
        if parts.projection is not None
        else torch_pruning.prune_embedding_out_channels
    )
    for root, function, coupled in (
        (embedded[0], cut_embedded, stream),
        (parts.pooler, torch_pruning.prune_linear_out_channels, pooled),
    ):
        group = graph.get_pruning_group(root, function, gone)
        _check_group(group, gone, coupled)
        group.prune()
    for half in halves:
        if isinstance(half, BiasOnly):
            left = sorted(set(range(half.bias.numel())) - set(gone))
            half.bias = nn.Parameter(half.bias.detach()[left])


Coupled = set[tuple[nn.Module, str]]
"""Modules whose channels go together, with the side, `in` or `out`, that they go on."""


def _coupled(side: str, *parts: nn.Module | None) -> Coupled:
    """Those of the parts that torch-pruning cuts."""
    return {(part, side) for part in parts if isinstance(part, nn.Linear | nn.Embedding | nn.LayerNorm)}


def _graph(work: PreTrainedModel) -> Any:
    """The dependency graph of the model, traced with eager attention, in which every product is visible.

    A bias by distance is left out: it would tie the heads of all layers together.
    """
    attention, training = work.config._attn_implementation, work.training
    device = next(work.parameters()).device
    work.set_attn_implementation("eager")
    alone = [module.bias for module in work.modules() if isinstance(module, BiasOnly)]
    with torch.enable_grad(), _without_relative_bias(work):
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


@contextlib.contextmanager
def _without_relative_bias(work: PreTrainedModel) -> Iterator[None]:
    relative = anatomy(work).relative
    if relative is None:
        yield
        return
    relative.compute_position_bias = lambda _states: None
    try:
        yield
    finally:
        del relative.compute_position_bias  # the class has its own


def _check_group(group: Any, channels: Sequence[int], coupled: Coupled) -> None:
    """Hold what torch-pruning would cut together against what belongs together in an encoder."""
    found: Coupled = set()
    moved: list[str] = []
    for dependency, indices in group:
        part, handler = dependency.target.module, dependency.handler.__name__
        reads = isinstance(part, nn.Linear) and "out_channels" not in handler
        here = _coupled("in" if reads else "out", part)
        found |= here
        if here and sorted(indices) != list(channels):
            moved.append(dependency.target.name)
    if found != coupled or moved:
        raise StageError(
            f"torch-pruning couples {len(found)} parts where {len(coupled)} belong together"
            f"{f', with other channels in {moved[0]}' if moved else ''}; the cut would be wrong: "
            "use a version of torch-pruning and transformers from constraints.txt"
        )


def _set_heads(layer: Layer, places: Places, heads: Sequence[int]) -> None:
    """Write what attention reads beside the weights; a stale count would answer wrong without an error."""
    if not layer.heads or not heads:
        return
    inner: Any = layer.whole.get_submodule(places.attention)
    setattr(inner, places.heads, len(heads))
    setattr(inner, places.width, len(heads) * layer.head_size)
    if layer.bias_heads is not None:
        reads: Any = layer.whole.get_submodule(places.reads_relative)
        reads.bias_heads = [layer.bias_heads[head] for head in heads]


def _remove_empty_halves(layer: Layer, places: Places, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Put the bias alone where all heads, or all neurons, of a layer go."""
    if layer.heads and not heads:
        drop_heads(layer.whole, places, _bias_of(layer.attention_output))
    if layer.neurons and not neurons:
        drop_neurons(layer.whole, places, _bias_of(layer.down))


def _bias_of(projection: Any) -> BiasOnly:
    bias = projection.bias.detach()
    alone = BiasOnly(bias.numel()).to(bias.device)
    alone.bias.data.copy_(bias)
    return alone


def rebuild(work: PreTrainedModel, target: Shapes) -> PreTrainedModel:
    """The weights of `work` in a freshly built model of shapes `target`, stock where that can say them."""
    columns = [layer.bias_heads or () for layer in anatomy(work).layers]
    made = fresh_model(work, target, seed=0, bias_heads=columns)
    made.load_state_dict(work.state_dict(), strict=True)
    return made.train(work.training)


def fresh_model(
    like: PreTrainedModel, target: Shapes, *, seed: int, bias_heads: Sequence[Sequence[int]] | None = None
) -> PreTrainedModel:
    """A model of shapes `target` with random weights, in all else configured and placed as `like`.

    Of transformers' own class where that can say the shapes. torch's own random numbers are left as they were.

    Args:
        bias_heads: for each layer the columns that its heads read of the bias by distance, where the family has one;
            None gives each layer the first.
    """
    kin, pruned = family(like), _layer_shapes(like, target, bias_heads)
    names = getattr(kin.stock_config, "attribute_map", {})
    sizes = {
        "num_hidden_layers": len(target.layers),
        "hidden_size": target.hidden,
        "num_attention_heads": _stock_heads(target),
        kin.neurons: max(1, *(layer.ffn for layer in target.layers)),
    }
    settings = {**like.config.to_dict(), **{names.get(name, name): size for name, size in sizes.items()}}
    if "embedding_size" in settings and anatomy(like).projection is None:
        settings["embedding_size"] = target.hidden
    for name in NOT_INHERITED:
        settings.pop(name, None)
    columns = list(range(pruned.get("relative_attention_heads", 0)))
    stock = target.is_stock and all(each.get("bias_heads", columns) == columns for each in pruned["layer_shapes"])
    config = kin.stock_config(**settings) if stock else kin.config(**settings, **pruned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = kin.stock_classifier if stock else kin.classifier
        made = chosen._from_config(config, attn_implementation=like.config._attn_implementation)
    return cast(PreTrainedModel, made.to(next(like.parameters()).device))


def _stock_heads(target: Shapes) -> int:
    """Heads that fill the width; 1 where none do, as a config's heads divide it even where each layer says its own."""
    size = target.layers[0].head_size
    return target.hidden // size if target.hidden % size == 0 else 1


def _layer_shapes(like: PreTrainedModel, target: Shapes, bias_heads: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """What the config of a model of uneven layers says beside a stock one."""
    each: list[dict[str, Any]] = [{"heads": layer.heads, "ffn": layer.ffn} for layer in target.layers]
    found = {"layer_shapes": each, "head_size": target.layers[0].head_size}
    relative = anatomy(like).relative
    if relative is not None:
        found["relative_attention_heads"] = relative.relative_attention_bias.embedding_dim
        for place, shape in enumerate(each):
            shape["bias_heads"] = list(range(shape["heads"]) if bias_heads is None else bias_heads[place])
    return found
